"""Conversion of Keras layers without weights, and of operations, to neutral steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xweights.porting.skeleton import Shape, Step
from xweights_keras.activations import OPERATIONS, name_of
from xweights_keras.porting.layers import is_a

Inputs = tuple[str, ...]
# Keras' names of activations, where they differ from the neutral ones.
_NEUTRAL_NAMES = {"swish": "silu", "hard_swish": "hard_silu"}
_MERGES = {
    "Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Average": "average", "Maximum": "maximum",
    "Minimum": "minimum",
}  # fmt: skip
_SKIPPED = ("Identity", "ActivityRegularization", "InputLayer")


def activation_name(layer: Any) -> str:
    """Return the neutral name of a layer's activation."""
    name = name_of(getattr(layer, "activation", None))
    return _NEUTRAL_NAMES.get(name, name)


# Layers without weights.


def plain_step(layer: Any, name: str, inputs: Inputs, in_shape: Shape, shape: Shape) -> Step:
    """Return the step of one call of a layer without weights; ``in_shape`` is the shape of its first input."""

    def step(kind: str, **options: Any) -> Step:
        return Step(name, kind, inputs, options, shape=shape)

    merge = next((neutral for kind, neutral in _MERGES.items() if is_a(layer, kind)), None)
    if merge is not None and (merge != "subtract" or len(inputs) == 2):
        return step(merge)
    pooled = _pooling(layer, in_shape)
    if pooled is not None:
        return step(pooled[0], **pooled[1])
    for kind, read in _PLAIN.items():
        if is_a(layer, kind):
            recipe = read(layer, in_shape)
            if recipe is not None:
                return step(recipe[0], **recipe[1])
    if any(is_a(layer, kind) for kind in _SKIPPED):
        return step("activation", does="linear")
    return Step(name, f"{type(layer).__name__}, with settings or of a kind that has no recipe for code", inputs)


Recipe = tuple[str, dict[str, Any]] | None


def _activation(layer: Any, in_shape: Shape) -> Recipe:
    name = activation_name(layer)
    return "activation", {"does": name} | ({"slope": 0.2} if name == "leaky_relu" else {})


def _relu(layer: Any, in_shape: Shape) -> Recipe:
    if layer.threshold:
        return None
    if layer.max_value == 6 and not layer.negative_slope:
        return "activation", {"does": "relu6"}
    if layer.max_value is not None:
        return None
    slope = float(layer.negative_slope)
    return "activation", {"does": "leaky_relu", "slope": slope} if slope else {"does": "relu"}


def _softmax(layer: Any, in_shape: Shape) -> Recipe:
    return ("activation", {"does": "softmax"}) if layer.axis in (-1, len(in_shape)) else None


def _padding(layer: Any, in_shape: Shape) -> Recipe:
    sides = layer.padding if isinstance(layer.padding[0], (tuple, list)) else (layer.padding,)
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return ("zero_padding", {"padding": tuple(tuple(side) for side in sides)}) if last else None


def _cropping(layer: Any, in_shape: Shape) -> Recipe:
    sides = layer.cropping if isinstance(layer.cropping[0], (tuple, list)) else (layer.cropping,)
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return ("cropping", {"cropping": tuple(tuple(side) for side in sides)}) if last else None


def _upsample(layer: Any, in_shape: Shape) -> Recipe:
    size = layer.size if isinstance(layer.size, (tuple, list)) else (layer.size,)
    mode = getattr(layer, "interpolation", "nearest")
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return ("upsample", {"size": tuple(size), "mode": mode}) if last and mode in ("nearest", "bilinear") else None


def _concatenate(layer: Any, in_shape: Shape) -> Recipe:
    return "concatenate", {"axis": layer.axis % (len(in_shape) + 1)}


def _rescaling(layer: Any, in_shape: Shape) -> Recipe:
    numbers = all(isinstance(value, (int, float)) for value in (layer.scale, layer.offset))
    return ("scale", {"factor": layer.scale, "offset": layer.offset}) if numbers else None


_PLAIN: Mapping[str, Callable[[Any, Shape], Recipe]] = {
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": lambda layer, in_shape: ("activation", {"does": "leaky_relu", "slope": float(layer.negative_slope)}),
    "ELU": lambda layer, in_shape: ("activation", {"does": "elu", "alpha": float(layer.alpha)}),
    "Softmax": _softmax,
    "Dropout": lambda layer, in_shape: ("dropout", {"rate": layer.rate}),
    "Flatten": lambda layer, in_shape: ("flatten", {}),
    "Reshape": lambda layer, in_shape: ("reshape", {}),
    "Permute": lambda layer, in_shape: ("permute", {"order": tuple(layer.dims)}),
    "RepeatVector": lambda layer, in_shape: ("repeat", {"times": layer.n}),
    "ZeroPadding1D": _padding,
    "ZeroPadding2D": _padding,
    "ZeroPadding3D": _padding,
    "Cropping1D": _cropping,
    "Cropping2D": _cropping,
    "Cropping3D": _cropping,
    "UpSampling1D": _upsample,
    "UpSampling2D": _upsample,
    "UpSampling3D": _upsample,
    "Concatenate": _concatenate,
    "Rescaling": _rescaling,
}


def _pooling(layer: Any, in_shape: Shape) -> Recipe:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    for kind, form in (("BaseGlobalPooling", "global"), ("BasePooling", "pool")):
        if is_a(layer, kind):
            most = "Max" in type(layer).__name__
            if form == "global":
                axes = tuple(range(1, len(in_shape)))
                return ("global_max" if most else "global_average"), {"axes": axes, "keeps": layer.keepdims}
            strides = tuple(layer.strides) if isinstance(layer.strides, (tuple, list)) else (layer.strides,)
            options = {"size": tuple(layer.pool_size), "strides": strides, "padding": layer.padding}
            return ("max_pool" if most else "average_pool"), options | {"space": in_shape[:-1]}
    return None


# Operations of keras.ops inside a graph.

_NUMBERS: Mapping[str, Callable[[float], tuple[float, float]]] = {
    "Add": lambda number: (1.0, number),
    "Subtract": lambda number: (1.0, -number),
    "Multiply": lambda number: (number, 0.0),
    "Divide": lambda number: (1.0 / number, 0.0),
    "TrueDivide": lambda number: (1.0 / number, 0.0),
}


def operation_step(
    operation: Any, call: Any, name: str, inputs: Inputs, named: Mapping[int, str], shape: Shape
) -> Step:
    """Return the step of one operation that isn't a layer."""
    kind = type(operation).__name__
    args: Sequence[Any] = call.args
    unknown = Step(name, f"{kind}, an operation with settings or of a kind that has no recipe for code", shape=shape)
    rank = len(shape)
    if kind in OPERATIONS:
        return Step(name, "activation", inputs, {"does": OPERATIONS[kind]}, shape=shape)
    if kind == "Gelu":
        does = "gelu_tanh" if operation.approximate else "gelu"
        return Step(name, "activation", inputs, {"does": does}, shape=shape)
    if kind == "Softmax" and operation.axis in (-1, rank):
        return Step(name, "activation", inputs, {"does": "softmax"}, shape=shape)
    if kind in _MERGES and len(inputs) == 2:
        return Step(name, _MERGES[kind], inputs, shape=shape)
    numbers = [arg for arg in args if isinstance(arg, (int, float))]
    if kind in _NUMBERS and len(inputs) == 1 and len(numbers) == 1 and id(args[0]) in named:
        factor, offset = _NUMBERS[kind](numbers[0])
        return Step(name, "scale", inputs, {"factor": factor, "offset": offset}, shape=shape)
    if kind in ("Add", "Multiply") and len(inputs) == 1 and len(numbers) == 1:
        factor, offset = _NUMBERS[kind](numbers[0])
        return Step(name, "scale", inputs, {"factor": factor, "offset": offset}, shape=shape)
    if kind == "GetItem":
        return _select(args[1], name, inputs, shape) or unknown
    if kind == "Concatenate":
        return Step(name, "concatenate", inputs, {"axis": operation.axis % (rank + 1)}, shape=shape)
    if kind in ("Mean", "Max") and operation.axis is not None:
        axes = (operation.axis,) if isinstance(operation.axis, int) else tuple(operation.axis)
        whole = rank + 1 if operation.keepdims else rank + 1 + len(axes)
        axes_from_start = tuple(sorted(axis % whole for axis in axes))
        pooling = "global_average" if kind == "Mean" else "global_max"
        if axes_from_start == tuple(range(1, whole - 1)):
            return Step(name, pooling, inputs, {"axes": axes_from_start, "keeps": operation.keepdims}, shape=shape)
    if kind == "Reshape" and math.prod(length or 1 for length in shape) > 1:
        return Step(name, "reshape", inputs, shape=shape)
    return unknown


def _select(key: Any, name: str, inputs: Inputs, shape: Shape) -> Step | None:
    """Return the step of x[:, position]: one position of the first axis after the batch."""
    everything = slice(None)
    if isinstance(key, tuple) and len(key) > 1 and key[0] == everything and isinstance(key[1], int):
        rest = [part for part in key[2:] if part not in (everything, Ellipsis)]
        if not rest:
            return Step(name, "select", inputs, {"place": key[1]}, shape=shape)
    return None
