"""What each Keras layer is called, set to and given in a port.

Arrays come out in the neutral form of ``xweights.porting.protocol``: channels last, time second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights_keras.layers import PACKED
from xweights_keras.precision import to_effective_dtype

# Found by the names of the classes that a layer inherits from, the nearest first.
KINDS = {
    "Dense": "dense",
    "EinsumDense": "einsum",
    "ReversibleEmbedding": "reversible_embedding",
    "Embedding": "embedding",
    "BaseConv": "conv",
    "BaseConvTranspose": "conv_transpose",
    "BaseDepthwiseConv": "conv",
    "BaseSeparableConv": "separable",
    "BatchNormalization": "batch_norm",
    "LayerNormalization": "layer_norm",
    "GroupNormalization": "group_norm",
    "RMSNormalization": "rms_norm",
    "Normalization": "normalization",
    "PReLU": "prelu",
    "ConvLSTM": "conv_lstm",
    "RNN": "rnn",
    "SimpleRNNCell": "simple_rnn",
    "LSTMCell": "lstm",
    "GRUCell": "gru",
    "Attention": "attention_scale",
    "AdditiveAttention": "additive_attention",
}
IMAGES = ("conv", "conv_transpose", "separable", "conv_lstm")
RECURRENT = ("simple_rnn", "lstm", "gru", "gru_reset_before")
# Layers whose units are computed inside, by the parts that these have.
UNSEEN = {"conv_lstm": ("input", "state"), "attention_scale": ("",), "additive_attention": ("scores",)}
# Layers without weights, and the settings that tell two of them apart: Keras' attribute -> the neutral word.
PLAIN = {
    "ReLU": ("relu", {"negative_slope": "slope"}),
    "LeakyReLU": ("leaky_relu", {"negative_slope": "slope"}),
    "ELU": ("elu", {"alpha": "alpha"}),
    "Softmax": ("softmax", {}),
    "Flatten": ("flatten", {}),
    "Reshape": ("reshape", {}),
    "Dropout": ("dropout", {}),
    "BasePooling": ("pool", {"padding": "padding"}),
    "ZeroPadding2D": ("zero_padding", {"padding": "padding"}),
    "UpSampling2D": ("upsample", {"interpolation": "mode"}),
}


def is_a(layer: Any, name: str) -> bool:
    """Return True if a layer inherits from Keras' class of this name."""
    return name in _bases(layer)


def _bases(layer: Any) -> list[str]:
    return [base.__name__ for base in type(layer).__mro__ if base.__module__.partition(".")[0] == "keras"]


def kind_of(layer: Any) -> str:
    """Return the neutral word for a layer; "other" for one that isn't known."""
    kind = next((KINDS[name] for name in _bases(layer) if name in KINDS), "other")
    if kind == "rnn":
        cells = getattr(layer.cell, "cells", [layer.cell])
        kinds = {kind_of(cell) for cell in cells}
        return kinds.pop() if len(kinds) == 1 else "other"
    if kind == "gru" and not layer.reset_after:
        return "gru_reset_before"
    return kind


def word_of(activation: Any) -> str:
    """Return the name of an activation; "linear" for none."""
    if activation is None:
        return "linear"
    return str(getattr(activation, "__name__", None) or getattr(activation, "name", type(activation).__name__))


def attributes_of(layer: Any, kind: str) -> dict[str, Any]:
    """Return the settings of a layer in neutral words."""
    found: dict[str, Any] = {}
    if kind in ("batch_norm", "layer_norm", "group_norm", "rms_norm"):
        found["eps"] = float(layer.epsilon)
    if kind == "batch_norm":
        found["momentum"] = float(layer.momentum)
    if kind == "group_norm":
        found["groups"] = int(layer.groups) if layer.groups != -1 else int(layer.gamma.shape[0])
    if kind == "einsum":
        found["equation"] = layer.equation
    if kind in IMAGES and kind != "conv_lstm":
        space = layer.rank
        found |= {"strides": tuple(layer.strides), "padding": layer.padding, "groups": getattr(layer, "groups", 1)}
        dilation = layer.dilation_rate
        found["dilation"] = tuple(dilation) if isinstance(dilation, (tuple, list)) else (dilation,) * space
        if is_a(layer, "BaseDepthwiseConv"):
            found["groups"] = int(layer.kernel.shape[-2])
        if kind == "conv_transpose" and getattr(layer, "output_padding", None) is not None:
            found["output_padding"] = layer.output_padding
    if kind not in RECURRENT and kind not in ("other", "plain"):
        found["fused"] = word_of(getattr(layer, "activation", None))
    if kind in RECURRENT:
        cell = getattr(layer, "cell", layer)
        cell = getattr(cell, "cells", [cell])[0]
        found["activation"] = word_of(cell.activation)
        found["cell"] = not hasattr(layer, "cell")
        if kind != "simple_rnn":
            found["recurrent_activation"] = word_of(cell.recurrent_activation)
    return found


def plain_of(layer: Any) -> dict[str, Any]:
    """Return what a layer without weights does."""
    if is_a(layer, "Activation"):
        return {"does": word_of(layer.activation)}
    if is_a(layer, "ReLU") and layer.max_value == 6:
        return {"does": "relu6", "slope": layer.negative_slope}
    for name in _bases(layer):
        if name in PLAIN:
            does, names = PLAIN[name]
            return {"does": does, **{neutral: getattr(layer, mine) for mine, neutral in names.items()}}
    return {"does": type(layer).__name__}


def refusal(layer: Any, kind: str) -> str | None:
    """Return why a layer has no counterpart in another framework, or None."""
    if getattr(layer, "lora_enabled", False):
        return "its weights are spread over LoRA factors; merge them into the kernel first"
    if getattr(layer, "quantization_mode", None) in (*PACKED, "int8", "float8"):
        return f"its weights are quantized ({layer.quantization_mode}); port the model before it is quantized"
    if is_a(layer, "TorchModuleWrapper"):
        return "it wraps a torch module; port that module itself"
    if is_a(layer, "STFTSpectrogram"):
        return "its kernels are computed constants; a twin has to compute them as well"
    if kind == "batch_norm" and getattr(layer, "renorm", False):
        return "batch renormalization has no counterpart: it keeps statistics that no other layer has"
    if is_a(layer, "RNN") and kind == "other":
        return "its cells are of several kinds, or of a class that no recipe knows"
    return None


# Neutral arrays.


def host(value: Any) -> Array | None:
    """Return what a layer was given or has made on the host; None for a symbolic tensor and for anything else."""
    array = as_array(value)
    return None if array is None else to_effective_dtype(array)


def as_array(value: Any) -> Array | None:
    """Return a tensor on the host as it is; None for a symbolic one and for anything else."""
    if isinstance(value, (keras.KerasTensor, str, bool)) or value is None:
        return None
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value))
    except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError):
        return None  # a tracer, inside a loop of the framework
    return None if array.dtype == object else array


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) and value else value


def channel_axis(layer: Any, array: Array) -> int:
    """Return where the channels of a layer's input are."""
    if kind_of(layer) in IMAGES:
        return 1 if layer.data_format == "channels_first" else -1
    axis = getattr(layer, "axis", -1)
    return axis % array.ndim if isinstance(axis, int) else -1


def _images(layer: Any, array: Array, rank: int) -> Array:
    axis = 1 if layer.data_format == "channels_first" else -1
    array = array.reshape(-1, *array.shape[-rank - 1 :])
    return np.moveaxis(array, axis, -1)


def neutral(layer: Any, kind: str, array: Array | None) -> Array | None:
    """Return an input or output of a layer in neutral form."""
    if array is None:
        return None
    if kind == "dense":
        return array.reshape(-1, array.shape[-1])
    if kind in IMAGES and kind != "conv_lstm":
        return _images(layer, array, layer.rank)
    if kind == "batch_norm":
        array = np.moveaxis(array, channel_axis(layer, array), -1)
        return array.reshape(-1, array.shape[-1])
    if kind == "group_norm":
        return np.moveaxis(array, channel_axis(layer, array), -1)
    if kind in ("layer_norm", "rms_norm"):
        axis = layer.axis
        axes = [axis] if isinstance(axis, int) else list(axis)
        array = np.moveaxis(array, axes, range(-len(axes), 0))
        return array.reshape(-1, math.prod(array.shape[-len(axes) :]))
    if kind == "prelu":
        size = math.prod(layer.alpha.shape)
        if size == 1:
            return array
        if tuple(layer.alpha.shape) == array.shape[1:]:
            return array.reshape(array.shape[0], -1)
        place = next(axis for axis, length in enumerate(layer.alpha.shape, start=1) if length == size)
        return np.moveaxis(array, place, -1).reshape(-1, size)
    return array


def put_back(layer: Any, kind: str, value: Array, like: Any) -> Any:
    """Return a neutral output as the layer would have made it; None where that isn't clear."""
    shape = tuple(like.shape)
    if value.size != math.prod(shape):
        return None
    axis = -1
    if kind == "einsum":
        return _put_back_einsum(layer, value, shape, like)
    if kind in ("conv", "conv_transpose", "separable"):
        axis = 1 if layer.data_format == "channels_first" else -1
    elif kind in ("batch_norm", "group_norm"):
        axis = channel_axis(layer, value.reshape(shape))
    elif kind in ("layer_norm", "rms_norm"):
        if not isinstance(layer.axis, int) and len(layer.axis) > 1:
            return None
    elif kind not in ("dense", "embedding"):
        return None
    moved = list(shape)
    moved.append(moved.pop(axis))
    return _tensor(np.moveaxis(value.reshape(moved), -1, axis), like)


def _tensor(array: Array, like: Any) -> Any:
    return keras.ops.convert_to_tensor(np.ascontiguousarray(array), dtype=keras.backend.standardize_dtype(like.dtype))


# An einsum: the letters that it sums over, or makes, come last.


def _letters(layer: Any, *, output: bool) -> tuple[str, list[str]]:
    inputs, letters = layer.equation.partition("->")[0].split(",")
    result = layer.equation.partition("->")[2]
    operand, other = (result, inputs) if output else (inputs, result)
    return operand, [letter for letter in operand if letter in letters and letter not in other]


def _places(operand: str, chosen: list[str]) -> list[int]:
    return [operand.index(letter) - len(operand) for letter in chosen]


def _einsum(layer: Any, array: Array | None, *, output: bool) -> Array | None:
    if array is None:
        return None
    operand, chosen = _letters(layer, output=output)
    if not chosen:
        return None
    moved = np.moveaxis(array, _places(operand, chosen), range(-len(chosen), 0))
    return moved.reshape(-1, math.prod(moved.shape[-len(chosen) :]))


def _put_back_einsum(layer: Any, value: Array, shape: tuple[int, ...], like: Any) -> Any:
    operand, chosen = _letters(layer, output=True)
    if not chosen:
        return None
    places = [place % len(shape) for place in _places(operand, chosen)]
    rest = [axis for axis in range(len(shape)) if axis not in places]
    moved = value.reshape([shape[axis] for axis in [*rest, *places]])
    return _tensor(moved.transpose(np.argsort([*rest, *places])), like)


def inputs_of(layer: Any, kind: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Array | None]:
    """Return what a layer is given, by part."""
    value = args[0] if args else next(iter(named.values()), None)
    if kind in UNSEEN:
        return dict.fromkeys(UNSEEN[kind])
    if kind in RECURRENT:
        array = host(_first(value))
        sequence = None if array is None else _sequence(layer, array)
        parts = [f"l{place}" for place in range(len(layer.cell.cells))] if is_stack(layer) else [""]
        return {part: sequence if place == 0 else None for place, part in enumerate(parts)}
    if kind == "einsum":
        return {"": _einsum(layer, host(value), output=False)}
    if kind == "reversible_embedding":
        array = host(value)
        if (args[1] if len(args) > 1 else named.get("reverse", False)) and array is not None:
            return {"reverse": array.reshape(-1, array.shape[-1])}
        return {"": None if array is None else array.reshape(-1)}
    if kind == "embedding":
        array = host(value)
        return {"": None if array is None else array.reshape(-1)}
    array = neutral(layer, kind, host(_first(value)))
    return {"depthwise": array, "pointwise": None} if kind == "separable" else {"": array}


def outputs_of(layer: Any, kind: str, given: Mapping[str, Array | None], value: Any) -> dict[str, Array | None]:
    """Return what a layer has made, by part; ``given``: what :func:`inputs_of` returned."""
    if kind in UNSEEN:
        return {}
    array = host(_first(value))
    if kind in RECURRENT:
        last = f"l{len(layer.cell.cells) - 1}" if is_stack(layer) else ""
        if array is None:
            return {last: None}
        return {last: array if array.ndim == 3 else array[:, None]}
    if kind == "einsum":
        return {"": _einsum(layer, array, output=True)}
    if kind in ("embedding", "reversible_embedding"):
        return {next(iter(given)): None if array is None else array.reshape(-1, array.shape[-1])}
    array = neutral(layer, kind, array)
    return {"pointwise": array} if kind == "separable" else {"": array}


def is_stack(layer: Any) -> bool:
    """Return True for a recurrent layer around several cells."""
    return hasattr(getattr(layer, "cell", None), "cells")


def _sequence(layer: Any, array: Array) -> Array:
    if not hasattr(layer, "cell"):
        return array[:, None]
    return array[:, ::-1] if layer.go_backwards else array
