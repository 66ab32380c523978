"""One Keras layer without weights, or one operation, as a step in neutral words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xweights.porting.skeleton import Shape, Step
from xweights_keras.porting.layers import is_a, word_of

Inputs = tuple[str, ...]
# Keras' own words for activations, where they aren't ours.
_WORDS = {"swish": "silu", "hard_swish": "hard_silu"}
_MERGES = {
    "Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Average": "average", "Maximum": "maximum",
    "Minimum": "minimum",
}  # fmt: skip
_SKIPPED = ("Identity", "ActivityRegularization", "InputLayer")


def activation_word(layer: Any) -> str:
    """Return the neutral word for the activation of a layer."""
    word = word_of(getattr(layer, "activation", None))
    return _WORDS.get(word, word)


# Layers without weights.


def plain_step(layer: Any, name: str, inputs: Inputs, given: Shape, shape: Shape) -> Step:
    """Return the step of one call of a layer without weights; ``given`` is the shape of its first input."""

    def step(kind: str, **options: Any) -> Step:
        return Step(name, kind, inputs, options, shape=shape)

    merge = next((word for kind, word in _MERGES.items() if is_a(layer, kind)), None)
    if merge is not None and (merge != "subtract" or len(inputs) == 2):
        return step(merge)
    pooled = _pooled(layer, given)
    if pooled is not None:
        return step(pooled[0], **pooled[1])
    for kind, read in _PLAIN.items():
        if is_a(layer, kind):
            found = read(layer, given)
            if found is not None:
                return step(found[0], **found[1])
    if any(is_a(layer, kind) for kind in _SKIPPED):
        return step("activation", does="linear")
    return Step(name, f"{type(layer).__name__}, with settings or of a kind that has no recipe for code", inputs)


Found = tuple[str, dict[str, Any]] | None


def _activation(layer: Any, given: Shape) -> Found:
    word = activation_word(layer)
    return "activation", {"does": word} | ({"slope": 0.2} if word == "leaky_relu" else {})


def _relu(layer: Any, given: Shape) -> Found:
    if layer.threshold:
        return None
    if layer.max_value == 6 and not layer.negative_slope:
        return "activation", {"does": "relu6"}
    if layer.max_value is not None:
        return None
    slope = float(layer.negative_slope)
    return "activation", {"does": "leaky_relu", "slope": slope} if slope else {"does": "relu"}


def _softmax(layer: Any, given: Shape) -> Found:
    return ("activation", {"does": "softmax"}) if layer.axis in (-1, len(given)) else None


def _padding(layer: Any, given: Shape) -> Found:
    sides = layer.padding if isinstance(layer.padding[0], (tuple, list)) else (layer.padding,)
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return ("zero_padding", {"padding": tuple(tuple(one) for one in sides)}) if last else None


def _cropping(layer: Any, given: Shape) -> Found:
    sides = layer.cropping if isinstance(layer.cropping[0], (tuple, list)) else (layer.cropping,)
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return ("cropping", {"cropping": tuple(tuple(one) for one in sides)}) if last else None


def _upsample(layer: Any, given: Shape) -> Found:
    size = layer.size if isinstance(layer.size, (tuple, list)) else (layer.size,)
    mode = getattr(layer, "interpolation", "nearest")
    last = getattr(layer, "data_format", "channels_last") == "channels_last"
    return ("upsample", {"size": tuple(size), "mode": mode}) if last and mode in ("nearest", "bilinear") else None


def _concatenate(layer: Any, given: Shape) -> Found:
    return "concatenate", {"axis": layer.axis % (len(given) + 1)}


def _rescaling(layer: Any, given: Shape) -> Found:
    numbers = all(isinstance(one, (int, float)) for one in (layer.scale, layer.offset))
    return ("scale", {"factor": layer.scale, "offset": layer.offset}) if numbers else None


_PLAIN: Mapping[str, Callable[[Any, Shape], Found]] = {
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": lambda layer, given: ("activation", {"does": "leaky_relu", "slope": float(layer.negative_slope)}),
    "ELU": lambda layer, given: ("activation", {"does": "elu", "alpha": float(layer.alpha)}),
    "Softmax": _softmax,
    "Dropout": lambda layer, given: ("dropout", {"rate": layer.rate}),
    "Flatten": lambda layer, given: ("flatten", {}),
    "Reshape": lambda layer, given: ("reshape", {}),
    "Permute": lambda layer, given: ("permute", {"order": tuple(layer.dims)}),
    "RepeatVector": lambda layer, given: ("repeat", {"times": layer.n}),
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


def _pooled(layer: Any, given: Shape) -> Found:
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    for kind, word in (("BaseGlobalPooling", "global"), ("BasePooling", "pool")):
        if is_a(layer, kind):
            most = "Max" in type(layer).__name__
            if word == "global":
                axes = tuple(range(1, len(given)))
                return ("global_max" if most else "global_average"), {"axes": axes, "keeps": layer.keepdims}
            strides = tuple(layer.strides) if isinstance(layer.strides, (tuple, list)) else (layer.strides,)
            options = {"size": tuple(layer.pool_size), "strides": strides, "padding": layer.padding}
            return ("max_pool" if most else "average_pool"), options | {"space": given[:-1]}
    return None


# Operations of keras.ops inside a graph.

_NUMBERS: Mapping[str, Callable[[float], tuple[float, float]]] = {
    "Add": lambda number: (1.0, number),
    "Subtract": lambda number: (1.0, -number),
    "Multiply": lambda number: (number, 0.0),
    "Divide": lambda number: (1.0 / number, 0.0),
    "TrueDivide": lambda number: (1.0 / number, 0.0),
}
_OPERATIONS = {
    "Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Tanh": "tanh", "Silu": "silu", "Softplus": "softplus",
    "Softsign": "softsign", "HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu", "Selu": "selu", "Mish": "mish",
}  # fmt: skip


def operation_step(
    operation: Any, call: Any, name: str, inputs: Inputs, named: Mapping[int, str], shape: Shape
) -> Step:
    """Return the step of one operation that is no layer."""
    kind = type(operation).__name__
    args: Sequence[Any] = call.args
    unknown = Step(name, f"{kind}, an operation with settings or of a kind that has no recipe for code", shape=shape)
    rank = len(shape)
    if kind in _OPERATIONS:
        return Step(name, "activation", inputs, {"does": _OPERATIONS[kind]}, shape=shape)
    if kind == "Gelu":
        does = "gelu_tanh" if operation.approximate else "gelu"
        return Step(name, "activation", inputs, {"does": does}, shape=shape)
    if kind == "Softmax" and operation.axis in (-1, rank):
        return Step(name, "activation", inputs, {"does": "softmax"}, shape=shape)
    if kind in _MERGES and len(inputs) == 2:
        return Step(name, _MERGES[kind], inputs, shape=shape)
    numbers = [one for one in args if isinstance(one, (int, float))]
    if kind in _NUMBERS and len(inputs) == 1 and len(numbers) == 1 and id(args[0]) in named:
        factor, offset = _NUMBERS[kind](numbers[0])
        return Step(name, "scale", inputs, {"factor": factor, "offset": offset}, shape=shape)
    if kind in ("Add", "Multiply") and len(inputs) == 1 and len(numbers) == 1:
        factor, offset = _NUMBERS[kind](numbers[0])
        return Step(name, "scale", inputs, {"factor": factor, "offset": offset}, shape=shape)
    if kind == "GetItem":
        return _selected(args[1], name, inputs, shape) or unknown
    if kind == "Concatenate":
        return Step(name, "concatenate", inputs, {"axis": operation.axis % (rank + 1)}, shape=shape)
    if kind in ("Mean", "Max") and operation.axis is not None:
        axes = (operation.axis,) if isinstance(operation.axis, int) else tuple(operation.axis)
        whole = rank + 1 if operation.keepdims else rank + 1 + len(axes)
        places = tuple(sorted(axis % whole for axis in axes))
        word = "global_average" if kind == "Mean" else "global_max"
        if places == tuple(range(1, whole - 1)):
            return Step(name, word, inputs, {"axes": places, "keeps": operation.keepdims}, shape=shape)
    if kind == "Reshape" and math.prod(one or 1 for one in shape) > 1:
        return Step(name, "reshape", inputs, shape=shape)
    return unknown


def _selected(key: Any, name: str, inputs: Inputs, shape: Shape) -> Step | None:
    """x[:, place]: one position of the first axis after the batch."""
    everything = slice(None)
    if isinstance(key, tuple) and len(key) > 1 and key[0] == everything and isinstance(key[1], int):
        rest = [one for one in key[2:] if one not in (everything, Ellipsis)]
        if not rest:
            return Step(name, "select", inputs, {"place": key[1]}, shape=shape)
    return None
