"""Set entries of activations, and of weights when they are made, with Keras objects that are saved with the model.

Both are registered under the package name ``xweights``: import ``xweights_keras`` before such a model is loaded.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from xweights.core.casting import is_number
from xweights.core.dtypes import Array, is_floating
from xweights.core.values import host_array
from xweights.errors import ArgumentError
from xweights.rules.entries import check_index, resolve_entries


@keras.saving.register_keras_serializable(package="xweights")
class SetEntries(keras.Layer):  # type: ignore[misc] # Keras has no types
    """A layer that sets single entries, rows or blocks of an activation to ``value``, for each example of the batch.

    The index is that of :func:`xweights.set_entries`, for the axes after the batch axis. No gradient reaches an entry
    that was set; all others pass unchanged. Works in functional and compiled models, and is saved with them.

    Args:
        index: A tuple of ints and slices, or a bool array, for the axes after the batch axis.
        value: A number, or an array that broadcasts to the indexed part.
        **options: As for any Keras layer (``name``, ``dtype``).

    Exact. Raises LayoutError (an index by axis names, which activations don't have), and when it is called ShapeError,
    SelectionError, DtypeError.

    Example:
        >>> import numpy as np, keras  # doctest: +SKIP
        >>> from xweights_keras import SetEntries  # doctest: +SKIP
        >>> keras.ops.convert_to_numpy(SetEntries((0,), 1.0)(np.zeros((2, 3))))  # doctest: +SKIP
        array([[1., 0., 0.],
               [1., 0., 0.]], dtype=float32)
    """

    def __init__(self, index: Any, value: Any, **options: Any) -> None:
        super().__init__(**options)
        check_index(index)
        self.index = index
        self.value = value
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Check that the index fits."""
        self._parts(tuple(input_shape), _dtype(self.compute_dtype))
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Return the activation with the entries set."""
        mask, values = self._parts(tuple(inputs.shape), _dtype(keras.backend.standardize_dtype(inputs.dtype)))
        return keras.ops.where(mask[None], _tensor(values[None], inputs.dtype), inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the config from which :meth:`from_config` makes the layer."""
        return {**super().get_config(), "index": index_to_config(self.index), "value": value_to_config(self.value)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SetEntries:
        """Return the layer of a config."""
        return cls(**_read(config))

    def _parts(self, shape: tuple[int | None, ...], dtype: np.dtype[Any]) -> tuple[Array, Array]:
        return resolve_entries(self.index, self.value, shape[1:], dtype, what=f"an activation of {self.name!r}")


@keras.saving.register_keras_serializable(package="xweights")
class EntriesInitializer(keras.initializers.Initializer):  # type: ignore[misc] # Keras has no types
    """An initializer that starts single entries, rows or blocks at ``value``, and all others with ``base``.

    Args:
        base: An initializer of Keras, or its name.
        index: A tuple of ints and slices, or a bool array, in the order of the weight's axes.
        value: A number, or an array that broadcasts to the indexed part.

    Exact at the index; ``base`` draws the others. For the same random numbers in every framework, call
    ``xweights.init`` on the built model. Raises LayoutError (an index by axis names: a shape has none), and
    when it is called ShapeError, SelectionError, DtypeError.

    Example:
        >>> import keras  # doctest: +SKIP
        >>> from xweights_keras import EntriesInitializer  # doctest: +SKIP
        >>> start = EntriesInitializer("zeros", index=(0, 0), value=1.0)  # doctest: +SKIP
        >>> keras.ops.convert_to_numpy(start((2, 2)))  # doctest: +SKIP
        array([[1., 0.],
               [0., 0.]], dtype=float32)
    """

    def __init__(self, base: Any = "glorot_uniform", *, index: Any, value: Any) -> None:
        check_index(index)
        self.base = keras.initializers.get(base)
        if self.base is None:
            raise ArgumentError(
                "base= is no initializer\ngot: None\nFix: base='zeros', or another initializer of Keras"
            )
        self.index = index
        self.value = value

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Return the initial weights."""
        dtype = keras.backend.standardize_dtype(dtype)
        start = self.base(shape, dtype=dtype)
        mask, values = resolve_entries(self.index, self.value, tuple(shape), _dtype(dtype), what="a weight")
        return keras.ops.where(mask, _tensor(values, dtype), start)

    def get_config(self) -> dict[str, Any]:
        """Return the config from which :meth:`from_config` makes the initializer."""
        return {
            "base": keras.initializers.serialize(self.base),
            "index": index_to_config(self.index),
            "value": value_to_config(self.value),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EntriesInitializer:
        """Return the initializer of a config."""
        return cls(**_read(config))


def index_to_config(index: Any) -> Any:
    """Return an index in a form that JSON can store."""
    if isinstance(index, tuple):
        return {"parts": [index_to_config(part) for part in index]}
    if isinstance(index, slice):
        return {"slice": [None if bound is None else int(bound) for bound in (index.start, index.stop, index.step)]}
    if index is ...:
        return "..."
    if isinstance(index, (int, np.integer)) and not isinstance(index, (bool, np.bool_)):
        return int(index)
    return {"mask": host_array(index, what="index").tolist()}


def index_from_config(config: Any) -> Any:
    """Return the index that :func:`index_to_config` wrote."""
    if config == "...":
        return ...
    if not isinstance(config, dict):
        return config
    if "parts" in config:
        return tuple(index_from_config(part) for part in config["parts"])
    if "slice" in config:
        return slice(*config["slice"])
    return np.asarray(config["mask"], np.bool_)


def value_to_config(value: Any) -> Any:
    """Return a value in a form that JSON can store, to the last bit."""
    if isinstance(value, (int, float)):
        return value
    if is_number(value):
        return value.item() if value.dtype.kind in "iuf" else float(value)
    array = host_array(value, what="value")
    wide = array.astype(np.float64) if is_floating(array.dtype) else array
    return {"dtype": array.dtype.name, "values": wide.tolist()}


def value_from_config(config: Any) -> Any:
    """Return the value that :func:`value_to_config` wrote."""
    return np.asarray(config["values"], _dtype(config["dtype"])) if isinstance(config, dict) else config


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "index": index_from_config(config["index"]), "value": value_from_config(config["value"])}


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, name))


def _tensor(values: Array, dtype: Any) -> Any:
    # Not every Keras backend takes ml_dtypes arrays; float32 holds each number of a narrower type.
    narrow = is_floating(values.dtype) and values.dtype.itemsize < 4
    return keras.ops.convert_to_tensor(values.astype(np.float32) if narrow else values, dtype=dtype)
