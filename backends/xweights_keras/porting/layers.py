"""Kinds, settings, inputs and outputs of Keras layers, in the neutral terms of a port.

Arrays are returned in the neutral form of ``xweights.porting.protocol``: channels last, time second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights_keras.activations import LAYERS, name_of
from xweights_keras.layers import PACKED
from xweights_keras.precision import to_effective_dtype

# Looked up by the names of a layer's base classes, the nearest first.
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
# Layers whose units are computed inside, with the names of their parts.
UNSEEN = {"conv_lstm": ("input", "state"), "attention_scale": ("",), "additive_attention": ("scores",)}
# Layers without weights, and the settings that distinguish two of them: Keras' attribute -> the neutral name.
PLAIN = {
    **LAYERS,
    "Flatten": ("flatten", {}),
    "Reshape": ("reshape", {}),
    "Dropout": ("dropout", {}),
    "BasePooling": ("pool", {"padding": "padding"}),
    "ZeroPadding2D": ("zero_padding", {"padding": "padding"}),
    "UpSampling2D": ("upsample", {"interpolation": "mode"}),
}


def is_a(layer: Any, name: str) -> bool:
    """Return True if a layer inherits from the Keras class of this name."""
    return name in _bases(layer)


def _bases(layer: Any) -> list[str]:
    return [base.__name__ for base in type(layer).__mro__ if base.__module__.partition(".")[0] == "keras"]


def kind_of(layer: Any) -> str:
    """Return the neutral kind of a layer; "other" for an unknown one."""
    kind = next((KINDS[name] for name in _bases(layer) if name in KINDS), "other")
    if kind == "rnn":
        cells = getattr(layer.cell, "cells", [layer.cell])
        kinds = {kind_of(cell) for cell in cells}
        return kinds.pop() if len(kinds) == 1 else "other"
    if kind == "gru" and not layer.reset_after:
        return "gru_reset_before"
    return kind


def attributes_of(layer: Any, kind: str) -> dict[str, Any]:
    """Return the settings of a layer under their neutral names."""
    settings: dict[str, Any] = {}
    if kind in ("batch_norm", "layer_norm", "group_norm", "rms_norm"):
        settings["eps"] = float(layer.epsilon)
    if kind == "batch_norm":
        settings["momentum"] = float(layer.momentum)
    if kind == "group_norm":
        settings["groups"] = int(layer.groups) if layer.groups != -1 else int(layer.gamma.shape[0])
    if kind == "einsum":
        settings["equation"] = layer.equation
    if kind in IMAGES and kind != "conv_lstm":
        space = layer.rank
        settings |= {"strides": tuple(layer.strides), "padding": layer.padding, "groups": getattr(layer, "groups", 1)}
        dilation = layer.dilation_rate
        settings["dilation"] = tuple(dilation) if isinstance(dilation, (tuple, list)) else (dilation,) * space
        if is_a(layer, "BaseDepthwiseConv"):
            settings["groups"] = int(layer.kernel.shape[-2])
        if kind == "conv_transpose" and getattr(layer, "output_padding", None) is not None:
            settings["output_padding"] = layer.output_padding
    if kind not in RECURRENT and kind not in ("other", "plain"):
        settings["fused"] = name_of(getattr(layer, "activation", None))
    if kind in RECURRENT:
        cell = getattr(layer, "cell", layer)
        cell = getattr(cell, "cells", [cell])[0]
        settings["activation"] = name_of(cell.activation)
        settings["cell"] = not hasattr(layer, "cell")
        if kind != "simple_rnn":
            settings["recurrent_activation"] = name_of(cell.recurrent_activation)
    return settings


def plain_of(layer: Any) -> dict[str, Any]:
    """Return the operation and the settings of a layer without weights."""
    if is_a(layer, "Activation"):
        return {"does": name_of(layer.activation)}
    if is_a(layer, "ReLU") and layer.max_value == 6:
        return {"does": "relu6", "slope": layer.negative_slope}
    for name in _bases(layer):
        if name in PLAIN:
            does, names = PLAIN[name]
            return {"does": does, **{neutral: getattr(layer, native) for native, neutral in names.items()}}
    own = type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.layers.Lambda)
    return {"does": type(layer).__name__ if own else "unknown"}


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


def to_host(value: Any) -> Array | None:
    """Return an input or output of a layer on the host; None for a symbolic tensor and for anything else."""
    array = as_array(value)
    return None if array is None else to_effective_dtype(array)


def as_array(value: Any) -> Array | None:
    """Return a tensor on the host in its own dtype; None for a symbolic one and for anything else."""
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
    """Return the axis of the channels in a layer's input."""
    if kind_of(layer) in IMAGES:
        return 1 if layer.data_format == "channels_first" else -1
    axis = getattr(layer, "axis", -1)
    return axis % array.ndim if isinstance(axis, int) else -1


def _images(layer: Any, array: Array, rank: int) -> Array:
    axis = 1 if layer.data_format == "channels_first" else -1
    array = array.reshape(-1, *array.shape[-rank - 1 :])
    return np.moveaxis(array, axis, -1)


def to_neutral_form(layer: Any, kind: str, array: Array | None) -> Array | None:
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
        position = next(axis for axis, length in enumerate(layer.alpha.shape, start=1) if length == size)
        return np.moveaxis(array, position, -1).reshape(-1, size)
    return array


def restore_output(layer: Any, kind: str, value: Array, like: Any) -> Any:
    """Return a neutral output in the layer's own form; None where that is ambiguous."""
    shape = tuple(like.shape)
    if value.size != math.prod(shape):
        return None
    axis = -1
    if kind == "einsum":
        return _restore_einsum(layer, value, shape, like)
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
    return tensor_like(np.moveaxis(value.reshape(moved), -1, axis), like)


def tensor_like(array: Array, like: Any) -> Any:
    """Return an array as a tensor of another's dtype."""
    return keras.ops.convert_to_tensor(np.ascontiguousarray(array), dtype=keras.backend.standardize_dtype(like.dtype))


# An einsum: the letters that it sums over, or adds, come last.


def _letters(layer: Any, *, output: bool) -> tuple[str, list[str]]:
    inputs, letters = layer.equation.partition("->")[0].split(",")
    result = layer.equation.partition("->")[2]
    operand, other = (result, inputs) if output else (inputs, result)
    return operand, [letter for letter in operand if letter in letters and letter not in other]


def _positions(operand: str, chosen: list[str]) -> list[int]:
    return [operand.index(letter) - len(operand) for letter in chosen]


def _einsum(layer: Any, array: Array | None, *, output: bool) -> Array | None:
    if array is None:
        return None
    operand, chosen = _letters(layer, output=output)
    if not chosen:
        return None
    moved = np.moveaxis(array, _positions(operand, chosen), range(-len(chosen), 0))
    return moved.reshape(-1, math.prod(moved.shape[-len(chosen) :]))


def _restore_einsum(layer: Any, value: Array, shape: tuple[int, ...], like: Any) -> Any:
    operand, chosen = _letters(layer, output=True)
    if not chosen:
        return None
    positions = [position % len(shape) for position in _positions(operand, chosen)]
    rest = [axis for axis in range(len(shape)) if axis not in positions]
    moved = value.reshape([shape[axis] for axis in [*rest, *positions]])
    return tensor_like(moved.transpose(np.argsort([*rest, *positions])), like)


def inputs_of(layer: Any, kind: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Array | None]:
    """Return the inputs of a layer, by part."""
    value = args[0] if args else next(iter(named.values()), None)
    if kind in UNSEEN:
        return dict.fromkeys(UNSEEN[kind])
    if kind in RECURRENT:
        array = to_host(_first(value))
        sequence = None if array is None else _sequence(layer, array)
        parts = [f"l{position}" for position in range(len(layer.cell.cells))] if is_stack(layer) else [""]
        return {part: sequence if position == 0 else None for position, part in enumerate(parts)}
    if kind == "einsum":
        return {"": _einsum(layer, to_host(value), output=False)}
    if kind == "reversible_embedding":
        array = to_host(value)
        if (args[1] if len(args) > 1 else named.get("reverse", False)) and array is not None:
            return {"reverse": array.reshape(-1, array.shape[-1])}
        return {"": None if array is None else array.reshape(-1)}
    if kind == "embedding":
        array = to_host(value)
        return {"": None if array is None else array.reshape(-1)}
    array = to_neutral_form(layer, kind, to_host(_first(value)))
    return {"depthwise": array, "pointwise": None} if kind == "separable" else {"": array}


def outputs_of(layer: Any, kind: str, inputs: Mapping[str, Array | None], value: Any) -> dict[str, Array | None]:
    """Return the outputs of a layer, by part; ``inputs`` is the result of :func:`inputs_of`."""
    if kind in UNSEEN:
        return {}
    array = to_host(_first(value))
    if kind in RECURRENT:
        last = f"l{len(layer.cell.cells) - 1}" if is_stack(layer) else ""
        if array is None:
            return {last: None}
        return {last: array if array.ndim == 3 else array[:, None]}
    if kind == "einsum":
        return {"": _einsum(layer, array, output=True)}
    if kind in ("embedding", "reversible_embedding"):
        return {next(iter(inputs)): None if array is None else array.reshape(-1, array.shape[-1])}
    array = to_neutral_form(layer, kind, array)
    return {"pointwise": array} if kind == "separable" else {"": array}


def is_stack(layer: Any) -> bool:
    """Return True for a recurrent layer around several cells."""
    return hasattr(getattr(layer, "cell", None), "cells")


def _sequence(layer: Any, array: Array) -> Array:
    if not hasattr(layer, "cell"):
        return array[:, None]
    return array[:, ::-1] if layer.go_backwards else array
