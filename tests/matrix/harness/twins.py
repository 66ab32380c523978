"""Twin models: the same small arrays in every framework, under the same neutral names.

Values go in and come out *by hand*, with transpositions that are written out here, so that a wrong adapter can't hide
its own mistake. No framework is imported before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import xweights as xw

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
LSTM_GATES = ("i", "f", "c", "o")


@dataclass(frozen=True)
class Spec:
    """One array of the model, in neutral order."""

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    trainable: bool = True
    gates: tuple[str, ...] | None = None


# Only the dense layer is square, so that a transposed one can be told by its values alone.
SPECS = (
    Spec("dense/kernel", ("in", "out"), (8, 8)),
    Spec("dense/bias", ("out",), (8,)),
    Spec("conv/kernel", ("h", "w", "in", "out"), (3, 2, 4, 6)),
    Spec("conv/bias", ("out",), (6,)),
    Spec("depthwise/kernel", ("h", "w", "in", "mult"), (2, 3, 4, 2)),
    Spec("depthwise/bias", ("out",), (8,)),
    Spec("norm/gamma", ("channel",), (5,)),
    Spec("norm/beta", ("channel",), (5,)),
    Spec("norm/moving_mean", ("channel",), (5,), trainable=False),
    Spec("norm/moving_variance", ("channel",), (5,), trainable=False),
    Spec("embedding/embeddings", ("vocab", "dim"), (7, 4)),
    Spec("cell/kernel", ("in", "gate*unit"), (3, 16), gates=LSTM_GATES),
    Spec("cell/recurrent_kernel", ("unit", "gate*unit"), (4, 16), gates=LSTM_GATES),
)
# In compiled cells only these are trained, so that a verb's default selection is small: compiling is what costs.
FEW = ("dense/kernel", "dense/bias", "conv/kernel")
NAMES = [spec.name for spec in SPECS]
KERNELS = [name for name in NAMES if name.endswith(("kernel", "embeddings"))]
TRAINABLE = tuple(spec.name for spec in SPECS if spec.trainable)
AXES = {spec.name: spec.axes for spec in SPECS}
SHAPES = {spec.name: spec.shape for spec in SPECS}


def as_params(arrays: Mapping[str, Array]) -> xw.Params:
    """Return the arrays as Params with axes and gates."""
    gates = {spec.name: spec.gates for spec in SPECS}
    return xw.Params(arrays, axes={n: AXES[n] for n in arrays}, gates={n: gates[n] for n in arrays})


class Twin:
    """A model whose values are read and written by hand. ``natives`` maps names to native arrays."""

    target: Any
    trained: tuple[str, ...]
    axes_unknown = False

    def load(self, arrays: Mapping[str, Array]) -> None:
        """Write values by hand."""
        raise NotImplementedError

    def read(self) -> Arrays:
        """Read values by hand: copies, in neutral order."""
        raise NotImplementedError

    def identity(self) -> list[int]:
        """Return the ids and addresses that must stay the same when a verb works in place."""
        raise NotImplementedError


class NumpyTwin(Twin):
    """Params: plain arrays with axes, and without trainable flags."""

    def __init__(self, dtype: np.dtype[Any], trained: tuple[str, ...] = TRAINABLE) -> None:
        self.trained = tuple(NAMES)
        self.target = as_params({spec.name: np.zeros(spec.shape, dtype) for spec in SPECS})

    def load(self, arrays: Mapping[str, Array]) -> None:
        for name, value in arrays.items():
            self.target[name][...] = value

    def read(self) -> Arrays:
        return {name: self.target[name].copy() for name in NAMES}

    def identity(self) -> list[int]:
        return [id(array) for array in self.target.values()] + [a.ctypes.data for a in self.target.values()]


# torch


def _torch_bits(tensor: Any, dtype: np.dtype[Any]) -> Array:
    import torch

    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return np.asarray(tensor.detach().contiguous().view(bits).numpy()).view(dtype).copy()


def _torch_copy(tensor: Any, value: Array) -> None:
    import torch

    bits = np.ascontiguousarray(value).view(f"i{value.dtype.itemsize}")
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    with torch.no_grad():
        tensor.view(kind).copy_(torch.from_numpy(bits.copy()))


# neutral -> torch's order and back
TO_TORCH: dict[str, Callable[[Array], Array]] = {
    "dense/kernel": lambda a: a.T,
    "conv/kernel": lambda a: a.transpose(3, 2, 0, 1),
    "depthwise/kernel": lambda a: a.transpose(2, 3, 0, 1).reshape(8, 1, 2, 3),
    "cell/kernel": lambda a: a.T,
    "cell/recurrent_kernel": lambda a: a.T,
}
FROM_TORCH: dict[str, Callable[[Array], Array]] = {
    "dense/kernel": lambda a: a.T,
    "conv/kernel": lambda a: a.transpose(2, 3, 1, 0),
    "depthwise/kernel": lambda a: a.reshape(4, 2, 2, 3).transpose(2, 3, 0, 1),
    "cell/kernel": lambda a: a.T,
    "cell/recurrent_kernel": lambda a: a.T,
}


class TorchTwin(Twin):
    """torch.nn.Module."""

    def __init__(self, dtype: np.dtype[Any], trained: tuple[str, ...] = TRAINABLE) -> None:
        import torch
        from torch import nn

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.dense = nn.Linear(8, 8)
                self.conv = nn.Conv2d(4, 6, (3, 2))
                self.depthwise = nn.Conv2d(4, 8, (2, 3), groups=4)
                self.norm = nn.BatchNorm1d(5)
                self.embedding = nn.Embedding(7, 4)
                self.cell = nn.LSTMCell(3, 4, bias=False)

        self.dtype = dtype
        self.target = m = Model().to(getattr(torch, dtype.name))
        self.natives = {
            "dense/kernel": m.dense.weight,
            "dense/bias": m.dense.bias,
            "conv/kernel": m.conv.weight,
            "conv/bias": m.conv.bias,
            "depthwise/kernel": m.depthwise.weight,
            "depthwise/bias": m.depthwise.bias,
            "norm/gamma": m.norm.weight,
            "norm/beta": m.norm.bias,
            "norm/moving_mean": m.norm.running_mean,
            "norm/moving_variance": m.norm.running_var,
            "embedding/embeddings": m.embedding.weight,
            "cell/kernel": m.cell.weight_ih,
            "cell/recurrent_kernel": m.cell.weight_hh,
        }
        for name, tensor in self.natives.items():
            tensor.requires_grad_(name in trained)
        self.trained = trained

    def load(self, arrays: Mapping[str, Array]) -> None:
        for name, value in arrays.items():
            _torch_copy(self.natives[name], TO_TORCH.get(name, lambda a: a)(value))

    def read(self) -> Arrays:
        return {n: FROM_TORCH.get(n, lambda a: a)(_torch_bits(t, self.dtype)) for n, t in self.natives.items()}

    def identity(self) -> list[int]:
        now = {**dict(self.target.named_parameters()), **dict(self.target.named_buffers())}
        return [id(tensor) for tensor in now.values()] + [tensor.data_ptr() for tensor in now.values()]


class TfModuleTwin(Twin):
    """A plain tf.Module: the same names, and no axes."""

    axes_unknown = True

    def __init__(self, dtype: np.dtype[Any], trained: tuple[str, ...] = TRAINABLE) -> None:
        import tensorflow as tf

        self.target = tf.Module()
        self.trained = trained
        self.natives = {}
        for spec in SPECS:
            layer, role = spec.name.split("/")
            if not hasattr(self.target, layer):
                setattr(self.target, layer, tf.Module())
            variable = tf.Variable(np.zeros(spec.shape, dtype), trainable=spec.name in trained)
            setattr(getattr(self.target, layer), role, variable)
            self.natives[spec.name] = variable

    def load(self, arrays: Mapping[str, Array]) -> None:
        import tensorflow as tf

        for name, value in arrays.items():
            self.natives[name].assign(tf.constant(np.array(value, order="C")))

    def read(self) -> Arrays:
        return {name: np.array(variable.numpy()) for name, variable in self.natives.items()}

    def identity(self) -> list[int]:
        return [id(variable) for variable in self.target.variables]


class KerasTwin(Twin):
    """A subclassed keras.Model, on the Keras backend of this process."""

    def __init__(self, dtype: np.dtype[Any], trained: tuple[str, ...] = TRAINABLE) -> None:
        import keras

        kind = dtype.name

        class Model(keras.Model):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(dtype=kind)
                # No random start, which JAX would compile for every shape and dtype: values are loaded.
                zeros: dict[str, Any] = {"dtype": kind, "kernel_initializer": "zeros"}
                self.dense = keras.layers.Dense(8, **zeros)
                self.conv = keras.layers.Conv2D(6, (3, 2), **zeros)
                self.depthwise = keras.layers.DepthwiseConv2D(
                    (2, 3), depth_multiplier=2, depthwise_initializer="zeros", dtype=kind
                )
                self.norm = keras.layers.BatchNormalization(dtype=kind)
                self.embedding = keras.layers.Embedding(7, 4, embeddings_initializer="zeros", dtype=kind)
                self.cell = keras.layers.LSTMCell(4, use_bias=False, recurrent_initializer="zeros", **zeros)

            def build(self, shape: Any = None) -> None:
                self.dense.build((None, 8))
                self.conv.build((None, 9, 9, 4))
                self.depthwise.build((None, 9, 9, 4))
                self.norm.build((None, 5))
                self.embedding.build((None,))
                self.cell.build((None, 3))
                self.built = True

            def call(self, x: Any) -> Any:
                return x

        self.dtype = dtype
        self.target = m = Model()
        m.build()
        self.natives = {
            "dense/kernel": m.dense.kernel,
            "dense/bias": m.dense.bias,
            "conv/kernel": m.conv.kernel,
            "conv/bias": m.conv.bias,
            "depthwise/kernel": m.depthwise.kernel,
            "depthwise/bias": m.depthwise.bias,
            "norm/gamma": m.norm.gamma,
            "norm/beta": m.norm.beta,
            "norm/moving_mean": m.norm.moving_mean,
            "norm/moving_variance": m.norm.moving_variance,
            "embedding/embeddings": m.embedding.embeddings,
            "cell/kernel": m.cell.kernel,
            "cell/recurrent_kernel": m.cell.recurrent_kernel,
        }
        for name, variable in self.natives.items():
            if name not in trained:
                variable.trainable = False
        self.trained = trained

    def load(self, arrays: Mapping[str, Array]) -> None:
        import keras

        for name, array in arrays.items():
            variable, value = self.natives[name], np.array(array, order="C")
            if keras.backend.backend() == "torch":
                _torch_copy(variable._value, value)
            elif keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                variable._value.assign(tf.constant(value))
            else:
                import jax.numpy as jnp

                variable._value = jnp.array(value)

    def read(self) -> Arrays:
        import keras

        if keras.backend.backend() == "torch":
            return {name: _torch_bits(v._value, self.dtype) for name, v in self.natives.items()}
        if keras.backend.backend() == "tensorflow":
            return {name: np.array(v._value.numpy()) for name, v in self.natives.items()}
        return {name: np.array(v._value) for name, v in self.natives.items()}

    def identity(self) -> list[int]:
        import keras

        ids = [id(variable) for variable in self.target.weights]
        if keras.backend.backend() != "jax":  # whose arrays are immutable: the variable gets another one
            ids += [id(variable._value) for variable in self.target.weights]
        return ids
