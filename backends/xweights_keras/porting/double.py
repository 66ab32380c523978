"""A copy of a Keras model, which computes in float64 to tell rounding from error.

The model is made again from its own configuration with every dtype policy replaced, or by calling its class where
that takes nothing.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras

from xweights.errors import PortError
from xweights_keras.precision import computed

_FLOATS = ("float16", "bfloat16", "float32", "mixed_float16", "mixed_bfloat16")


def doubled(model: Any) -> Any:
    """Return a copy that computes in float64; raise PortError where there can be none."""
    return copied(model, "float64")


def copied(model: Any, dtype: str | None) -> Any:
    """Return a copy, of another dtype if one is given; raise PortError where there can be none."""
    if dtype is not None and computed(dtype) != dtype:
        raise PortError(f"Keras computes {dtype} in {computed(dtype)} on {keras.backend.backend()}")
    try:
        copy = _called_again(model, dtype) if _takes_nothing(type(model)) else _deserialized(model, dtype)
        if not copy.built and model.built:
            copy.build_from_config(model.get_build_config())
    except Exception as wrong:
        why = str(wrong).partition("\n")[0]
        raise PortError(
            f"this model can't be made again{_in(dtype)}: {type(wrong).__name__}: {why}\n"
            "Fix: give its class what Keras saves models by: an __init__ that takes **options, and get_config()"
        ) from wrong
    mine, theirs = list(model.weights), list(copy.weights)
    if [tuple(one.shape) for one in mine] != [tuple(one.shape) for one in theirs]:
        raise PortError(f"this model can't be made again{_in(dtype)}: its copy has other weights")
    for one, other in zip(mine, theirs, strict=True):
        value = keras.ops.convert_to_numpy(one)
        other.assign(value.astype(dtype) if dtype is not None and "float" in str(other.dtype) else value)
        other.trainable = one.trainable
    return copy


def _takes_nothing(kind: type[Any]) -> bool:
    """Return whether a class of a user's own is called with nothing, so that Keras can't make it from a config."""
    if kind.__module__.partition(".")[0] == "keras":
        return False
    return len(inspect.signature(kind.__init__).parameters) == 1


def _called_again(model: Any, dtype: str | None) -> Any:
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype or model.dtype_policy)
    try:
        return type(model)()
    finally:
        keras.config.set_dtype_policy(former)


def _deserialized(model: Any, dtype: str | None) -> Any:
    layers = model._flatten_layers(include_self=True, recursive=True)
    custom = {name: type(one) for one in layers for name in _names(type(one))}
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    config = config if dtype is None else _in_dtype(config, dtype)
    return keras.saving.deserialize_keras_object(config, custom_objects=custom)


def _in(dtype: str | None) -> str:
    return "" if dtype is None else f" in {dtype}"


def _names(kind: type[Any]) -> list[str]:
    return [kind.__name__, keras.saving.get_registered_name(kind)]


def _in_dtype(value: Any, dtype: str) -> Any:
    if isinstance(value, dict):
        return {key: _in_dtype(one, dtype) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_in_dtype(one, dtype) for one in value)
    return dtype if isinstance(value, str) and value in _FLOATS else value
