"""Keras' layers with weights as neutral operations."""

from __future__ import annotations

import math
from typing import Any

import keras

from xweights.errors import PortError
from xweights_keras.skeleton.tape import Call, Tape, dtype_of, handles

_SPACE = "dhw"


def _name(tape: Tape, variable: Any) -> str | None:
    return None if variable is None else tape.names[id(variable)]


def _activated(layer: Any, x: Any) -> Any:
    activation = getattr(layer, "activation", None)
    return x if activation is None else activation(x)


def _is_plain(layer: Any) -> bool:
    return not getattr(layer, "lora_enabled", False) and getattr(layer, "quantization_mode", None) is None


@handles("Dense", layer=True)
def _dense(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    if not _is_plain(layer):
        raise PortError(f"{call.path!r} is quantized or has a LoRA, which has no recipe for code")
    weights = {"kernel": _name(tape, layer._kernel), "bias": _name(tape, layer.bias)}
    shape = (*x.shape[:-1], layer.units)
    made = tape.add(
        call, "dense", [x], shape, dtype_of(x), weights=weights, axes="io", units=layer.units, layer=call.path
    )
    return _activated(layer, made)


@handles("EinsumDense", layer=True)
def _einsum(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    operand, kernel = layer.equation.replace(" ", "").partition("->")[0].split(",")
    result = layer.equation.replace(" ", "").partition("->")[2]
    if "..." in operand:
        used = [letter for letter in "zyxwvutsrqponm" if letter not in layer.equation]
        between = "".join(used[: len(x.shape) - len(operand.replace("...", ""))])
        operand, result = operand.replace("...", between), result.replace("...", between)
    taken = [letter for letter in operand if letter in kernel]
    made = [letter for letter in result if letter in kernel]
    rest = [letter for letter in operand if letter not in kernel]
    sizes = dict(zip(kernel, layer._kernel.shape, strict=True)) | dict(zip(operand, x.shape, strict=True))
    bias = "".join(letter for letter in made if layer.bias_axes and letter in layer.bias_axes)
    fits = kernel == "".join(taken + made) and not set(taken) & set(made) and result == "".join(rest + made)
    if not _is_plain(layer) or not fits or operand != "".join(rest + taken) or (bias and bias != "".join(made)):
        made_of = tape.add(
            call, "einsum", [x, layer._kernel], [sizes[letter] for letter in result], dtype_of(x),
            equation=f"{operand},{kernel}->{result}",
        )  # fmt: skip
        return _activated(layer, made_of if layer.bias is None else tape.binary(call, "add", made_of, layer.bias))
    inputs, units = math.prod(sizes[k] for k in taken), math.prod(sizes[k] for k in made)
    flat = tape.reshape(call, x, (*(sizes[k] for k in rest), inputs))
    weights = {"kernel": _name(tape, layer._kernel), "bias": _name(tape, layer.bias)}
    made_of = tape.add(
        call, "dense", [flat], (*flat.shape[:-1], units), dtype_of(x), weights=weights, axes="io", units=units,
        split={"kernel": (inputs, units)}, layer=call.path,
    )  # fmt: skip
    return _activated(layer, tape.reshape(call, made_of, [sizes[letter] for letter in result]))


@handles("Embedding", layer=True)
def _embedding(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    if "reverse" in call.args:
        return _reversible(tape, call)
    weights = {"table": _name(tape, layer._embeddings)}
    shape = (*x.shape, layer.output_dim)
    return tape.add(call, "embedding", [x], shape, layer.compute_dtype, weights=weights, layer=call.path)


def _reversible(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    if not call["reverse"]:
        weights = {"table": _name(tape, layer._embeddings)}
        shape = (*x.shape, layer.output_dim)
        return tape.add(call, "embedding", [x], shape, layer.compute_dtype, weights=weights, layer=call.path)
    return NotImplemented


@handles("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D", layer=True)
def _conv(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    rank = len(x.shape) - 2
    if layer.data_format != "channels_last":
        raise PortError(f"{call.path!r} has its channels first, which has no recipe for code")
    deep = hasattr(layer, "depth_multiplier")
    size, strides, dilation = (tuple(value) for value in (layer.kernel_size, layer.strides, layer.dilation_rate))
    channels = x.shape[-1]
    padding = sides_of(layer.padding, x.shape[1:-1], size, strides, dilation)
    space = [
        (n + a + b - (k - 1) * d - 1) // s + 1
        for n, (a, b), k, d, s in zip(x.shape[1:-1], padding, size, dilation, strides, strict=True)
    ]
    filters = channels * layer.depth_multiplier if deep else layer.filters
    kernel = layer.kernel if deep else layer._kernel
    weights = {"kernel": _name(tape, kernel), "bias": _name(tape, layer.bias)}
    letters = _SPACE[-rank:]
    made = tape.add(
        call, "conv", [x], (x.shape[0], *space, filters), dtype_of(x), layer=call.path, weights=weights,
        axes=f"{letters}gm" if deep else f"{letters}io", axis=-1, filters=filters, size=size, strides=strides,
        dilation=dilation, groups=channels if deep else layer.groups, padding=padding,
    )  # fmt: skip
    return _activated(layer, made)


def sides_of(padding: str, space: Any, size: Any, strides: Any, dilation: Any) -> tuple[tuple[int, int], ...]:
    """Return what is padded on each side: with "same" on average so that a stride makes one entry."""
    sides = []
    for n, k, s, d in zip(space, size, strides, dilation, strict=True):
        reach = (k - 1) * d + 1
        if padding == "valid":
            sides.append((0, 0))
        elif padding == "causal":
            sides.append((reach - 1, 0))
        else:
            whole = max((-(-n // s) - 1) * s + reach - n, 0)
            sides.append((whole // 2, whole - whole // 2))
    return tuple(sides)


@handles("SeparableConv1D", "SeparableConv2D", layer=True)
def _separable(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    rank = len(x.shape) - 2
    if layer.data_format != "channels_last":
        raise PortError(f"{call.path!r} has its channels first, which has no recipe for code")
    size, strides, dilation = (tuple(value) for value in (layer.kernel_size, layer.strides, layer.dilation_rate))
    channels = x.shape[-1]
    padding = sides_of(layer.padding, x.shape[1:-1], size, strides, dilation)
    space = [
        (n + a + b - (k - 1) * d - 1) // s + 1
        for n, (a, b), k, d, s in zip(x.shape[1:-1], padding, size, dilation, strides, strict=True)
    ]
    letters, ones = _SPACE[-rank:], (1,) * rank
    between = channels * layer.depth_multiplier
    deep = tape.add(
        call, "conv", [x], (x.shape[0], *space, between), dtype_of(x), layer=f"{call.path}.depthwise",
        weights={"kernel": _name(tape, layer.depthwise_kernel), "bias": None}, axes=f"{letters}gm", axis=-1,
        filters=between, size=size, strides=strides, dilation=dilation, groups=channels, padding=padding,
    )  # fmt: skip
    made = tape.add(
        call, "conv", [deep], (x.shape[0], *space, layer.filters), dtype_of(x), layer=f"{call.path}.pointwise",
        weights={"kernel": _name(tape, layer.pointwise_kernel), "bias": _name(tape, layer.bias)}, axes=f"{letters}io",
        axis=-1, filters=layer.filters, size=ones, strides=ones, dilation=ones, groups=1, padding=((0, 0),) * rank,
    )  # fmt: skip
    return _activated(layer, made)


@handles("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", layer=True)
def _conv_transpose(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    rank = len(x.shape) - 2
    if layer.data_format != "channels_last" or layer.output_padding is not None:
        raise PortError(f"{call.path!r} has its channels first or an output_padding, which has no recipe for code")
    size, strides, dilation = (tuple(value) for value in (layer.kernel_size, layer.strides, layer.dilation_rate))
    crop, space = [], []
    for n, k, s, d in zip(x.shape[1:-1], size, strides, dilation, strict=True):
        reach = (k - 1) * d + 1
        # "same" crops reach - stride, the smaller half in front; if that is negative, it pads.
        over = reach - s if layer.padding == "same" else min(reach - s, 0)
        crop.append((over // 2, over - over // 2) if over > 0 else (0, over))
        space.append((n - 1) * s + reach - over)
    weights = {"kernel": _name(tape, layer._kernel), "bias": _name(tape, layer.bias)}
    made = tape.add(
        call, "conv_transpose", [x], (x.shape[0], *space, layer.filters), dtype_of(x), layer=call.path, weights=weights,
        axes=f"{_SPACE[-rank:]}oi", axis=-1, filters=layer.filters, size=size, strides=strides, dilation=dilation,
        crop=tuple(crop),
    )  # fmt: skip
    return _activated(layer, made)


@handles("BatchNormalization", layer=True)
def _batch_norm(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    if getattr(layer, "renorm", False):
        raise PortError(f"{call.path!r} renormalizes, which has no recipe for code")
    names = {"scale": layer.gamma, "offset": layer.beta, "mean": layer.moving_mean, "variance": layer.moving_variance}
    weights = {role: _name(tape, variable) for role, variable in names.items()}
    return tape.add(
        call, "batch_norm", [x], x.shape, dtype_of(x), layer=call.path, weights=weights, axis=layer.axis,
        eps=layer.epsilon, momentum=round(1 - layer.momentum, 9),
    )  # fmt: skip


@handles("LayerNormalization", layer=True)
def _layer_norm(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    axes = sorted(axis % len(x.shape) for axis in axes)
    if getattr(layer, "rms_scaling", False) or axes != list(range(len(x.shape) - len(axes), len(x.shape))):
        return NotImplemented
    weights = {"scale": _name(tape, layer.gamma), "offset": _name(tape, layer.beta)}
    if not any(weights.values()):
        return NotImplemented
    return tape.add(
        call, "layer_norm", [x], x.shape, dtype_of(x), layer=call.path, weights=weights, axes=tuple(axes),
        eps=layer.epsilon,
    )  # fmt: skip


@handles("RMSNormalization", layer=True)
def _rms_norm(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    if layer.axis not in (-1, [-1], len(x.shape) - 1):
        return NotImplemented
    weights = {"scale": _name(tape, layer.scale)}
    return tape.add(call, "rms_norm", [x], x.shape, dtype_of(x), layer=call.path, weights=weights, eps=layer.epsilon)


@handles("GroupNormalization", layer=True)
def _group_norm(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    if layer.axis not in (-1, len(x.shape) - 1):
        return NotImplemented
    groups = x.shape[-1] if layer.groups == -1 else layer.groups
    weights = {"scale": _name(tape, layer.gamma), "offset": _name(tape, layer.beta)}
    if not all(weights.values()):
        return NotImplemented
    return tape.add(
        call, "group_norm", [x], x.shape, dtype_of(x), layer=call.path, weights=weights, axis=-1, groups=groups,
        eps=layer.epsilon,
    )  # fmt: skip


@handles("Dropout", "SpatialDropout1D", "SpatialDropout2D", layer=True)
def _dropout(tape: Tape, call: Call) -> Any:
    layer, x = call.operation, call["inputs"]
    if not layer.rate or not isinstance(layer, keras.layers.Dropout):
        return x
    return tape.add(call, "dropout", [x], x.shape, dtype_of(x), layer=call.path, rate=layer.rate)


@handles("RNN", "Bidirectional", "TimeDistributed", "ConvLSTM", layer=True)
def _recurrent(tape: Tape, call: Call) -> Any:
    raise PortError(f"{call.path!r}, a {type(call.operation).__name__} inside of other layers, has no recipe for code")
