"""Conversion of Keras layers with weights to neutral steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xweights.porting.skeleton import Shape, Step
from xweights_keras.activations import name_of
from xweights_keras.porting.layers import attributes_of, is_a, kind_of
from xweights_keras.skeleton.functions import activation_name, plain_step

Inputs = tuple[str, ...]


def layer_steps(layer: Any, call: Any, name: str, inputs: Inputs, shapes: list[Shape], shape: Shape) -> list[Step]:
    """Return the steps of one call of a layer, the last with its output; ``shapes`` are those of its inputs."""
    if is_a(layer, "TimeDistributed"):
        return _for_each_frame(layer, name, inputs, shapes, shape)
    if is_a(layer, "SpectralNormalization"):
        layer = layer.layer  # at inference the kernel is used as it is stored
    kind = "both" if is_a(layer, "Bidirectional") else kind_of(layer)
    if is_a(layer, "MultiHeadAttention") or is_a(layer, "GroupedQueryAttention"):
        return [_attention(layer, call, name, inputs, shapes, shape)]
    reader = _READERS.get(kind)
    options = None if reader is None else reader(layer, shapes[0], shape)
    if kind == "reversible_embedding" and options is not None:
        return _reversible(layer, call, name, inputs, shape, options)
    if kind == "separable" and options is not None:
        return _separable(layer, name, inputs, shape, options)
    if options is not None:
        kind = {"both": kind_of(getattr(layer, "forward_layer", layer))}.get(kind, kind)
        fused = activation_name(layer) if kind in ("dense", "conv", "conv_transpose", "einsum") else "linear"
        return [Step(name, kind, inputs, options, fused, name, shape)]
    if reader is None and not layer.weights:
        return [plain_step(layer, name, inputs, shapes[0], shape)]
    return [Step(name, f"{type(layer).__name__}, with settings or of a kind that has no recipe for code", shape=shape)]


# Layers with weights: settings, or None if there is no recipe.

Options = dict[str, Any] | None


def _dense(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    return {"inputs": in_shape[-1], "units": layer.units, "bias": bool(layer.use_bias), "tied": None}


def _einsum(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    operand, kernel = layer.equation.partition("->")[0].split(",")
    result = layer.equation.partition("->")[2]
    if "..." in layer.equation:
        used = [letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in layer.equation]
        between = "".join(used[: len(in_shape) + 2 - len(operand.replace("...", "")) - 1])
        operand, result = (side.replace("...", between) for side in (operand, result))
    made_letters = [letter for letter in result if letter in kernel]
    whole = not (set(operand) & set(kernel) & set(result)) and set(kernel) <= set(operand) | set(result)
    biases = [letter for letter in result if layer.bias_axes is not None and letter in layer.bias_axes]
    lengths = dict(zip(result, (None, *out_shape), strict=True)) | dict(zip(operand, (None, *in_shape), strict=True))
    if not whole or (biases and biases != made_letters) or any(lengths[letter] is None for letter in kernel):
        return None
    return {"equation": (operand, kernel, result), "inputs": lengths, "outputs": made_letters, "bias": bool(biases)}


def _embedding(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    if layer.mask_zero:
        return None
    return {"vocab": layer.input_dim, "width": layer.output_dim}


def _conv(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    if layer.data_format != "channels_last":
        return None
    settings = attributes_of(layer, "conv")
    options = {name: settings[name] for name in ("strides", "dilation", "groups", "padding")}
    filters = layer.filters if hasattr(layer, "filters") else in_shape[-1] * layer.depth_multiplier
    more = {
        "size": tuple(layer.kernel_size),
        "bias": bool(layer.use_bias),
        "channels": in_shape[-1],
        "space": in_shape[:-1],
    }
    return options | more | {"filters": filters}


def _conv_transpose(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    settings = attributes_of(layer, "conv_transpose")
    if layer.data_format != "channels_last" or settings.get("output_padding") is not None:
        return None
    crop = []
    for size, stride, spread in zip(layer.kernel_size, layer.strides, settings["dilation"], strict=True):
        reach = (size - 1) * spread + 1
        # "same" crops reach - stride, the smaller half in front; if that is negative, it pads.
        over = reach - stride if layer.padding == "same" else min(reach - stride, 0)
        crop.append((over // 2, over - over // 2) if over > 0 else (0, over))
    options = {
        "channels": in_shape[-1],
        "filters": layer.filters,
        "size": tuple(layer.kernel_size),
        "crop": tuple(crop),
    }
    return options | {
        "strides": tuple(layer.strides),
        "dilation": settings["dilation"],
        "bias": bool(layer.use_bias),
    }


def _batch_norm(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    if layer.axis not in (-1, len(in_shape)) or getattr(layer, "renorm", False):
        return None
    return {
        "channels": in_shape[-1],
        "scale": layer.scale,
        "center": layer.center,
        **attributes_of(layer, "batch_norm"),
    }


def _layer_norm(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    positions = sorted(axis % (len(in_shape) + 1) for axis in axes)
    if positions != list(range(len(in_shape) + 1 - len(positions), len(in_shape) + 1)) or any(
        in_shape[p - 1] is None for p in positions
    ):
        return None
    options = {
        "normalized": tuple(in_shape[position - 1] for position in positions),
        "scale": layer.scale,
        "center": layer.center,
    }
    return options | attributes_of(layer, "layer_norm")


def _rms_norm(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    if layer.axis not in (-1, [-1], len(in_shape), [len(in_shape)]):
        return None
    return {"width": in_shape[-1], **attributes_of(layer, "rms_norm")}


def _group_norm(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    if layer.axis not in (-1, len(in_shape)) or not (layer.scale and layer.center):
        return None
    return {"channels": in_shape[-1], **attributes_of(layer, "group_norm")}


def _normalization(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    if layer.invert or not layer.weights or tuple(layer.axis) not in ((-1,), (len(in_shape),)):
        return None
    return {"width": in_shape[-1]}


def _prelu(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    return {"slopes": tuple(layer.alpha.shape)}


def _recurrent(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    forward = getattr(layer, "forward_layer", layer)
    cells = getattr(forward.cell, "cells", [forward.cell])
    kind = kind_of(forward)
    settings = attributes_of(forward, kind)
    both = forward is not layer
    units = {cell.units for cell in cells}
    usual = settings["activation"] == "tanh" or (kind == "simple_rnn" and settings["activation"] == "relu")
    usual &= settings.get("recurrent_activation", "sigmoid") == "sigmoid"
    alike = len(units) == 1 and len({bool(cell.use_bias) for cell in cells}) == 1
    if not usual or not alike or getattr(forward, "stateful", False) or kind not in _GATED:
        return None
    if both:
        back = layer.backward_layer
        mirrored = layer.merge_mode == "concat" and back.go_backwards and not forward.go_backwards
        if not mirrored or len(cells) > 1 or back.cell.units != forward.cell.units:
            return None
    return {
        "inputs": in_shape[-1], "units": units.pop(), "bias": bool(cells[0].use_bias), "layers": len(cells),
        "both": both, "backwards": forward.go_backwards, "sequences": forward.return_sequences,
        "activation": settings["activation"],
    }  # fmt: skip


_GATED = ("simple_rnn", "lstm", "gru")


def _attention_scale(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    return {} if layer.use_scale and layer.score_mode == "dot" else None


def _additive(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    return {"width": in_shape[-1]} if layer.use_scale else None


def _conv_lstm(layer: Any, in_shape: Shape, out_shape: Shape) -> Options:
    cell = layer.cell
    plain = name_of(cell.activation) == "tanh" and name_of(cell.recurrent_activation) == "sigmoid"
    plain &= not layer.go_backwards and cell.data_format == "channels_last"
    if not plain or any(step != 1 for step in (*cell.strides, *cell.dilation_rate)):
        return None
    return {
        "channels": in_shape[-1], "filters": cell.filters, "size": tuple(cell.kernel_size), "padding": cell.padding,
        "bias": bool(cell.use_bias), "sequences": layer.return_sequences,
    }  # fmt: skip


_READERS: Mapping[str, Callable[[Any, Shape, Shape], Options]] = {
    "dense": _dense,
    "einsum": _einsum,
    "embedding": _embedding,
    "reversible_embedding": _embedding,
    "conv": _conv,
    "separable": _conv,
    "conv_transpose": _conv_transpose,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "normalization": _normalization,
    "prelu": _prelu,
    "simple_rnn": _recurrent,
    "lstm": _recurrent,
    "gru": _recurrent,
    "both": _recurrent,
    "attention_scale": _attention_scale,
    "additive_attention": _additive,
    "conv_lstm": _conv_lstm,
}


def _attention(layer: Any, call: Any, name: str, inputs: Inputs, shapes: list[Shape], shape: Shape) -> Step:
    grouped = is_a(layer, "GroupedQueryAttention")
    named = {key for key, value in call.kwargs.items() if value is not None}
    causal = bool(call.kwargs.get("use_causal_mask", False))
    key_size = layer.head_dim if grouped else layer._key_dim
    odd = named & {"query_mask", "value_mask", "key_mask", "attention_mask", "return_attention_scores"}
    if odd or getattr(layer, "_use_gate", False) or any(len(s) != 2 for s in shapes):
        return Step(name, f"{type(layer).__name__}, with masks or settings that have no recipe for code", shape=shape)
    # Keras' order is query, value, key, and the key defaults to the value. The neutral order is query, key, value.
    order = (0, 1, 1) if len(inputs) == 2 else (0, 2, 1)
    if len(inputs) == 1:
        order = (0, 0, 0)
    options = {
        "widths": tuple(shapes[position][-1] for position in order),
        "heads": layer.num_query_heads if grouped else layer._num_heads,
        "key_heads": layer.num_key_value_heads if grouped else layer._num_heads,
        "key_size": key_size,
        "value_size": key_size if grouped else layer._value_dim,
        "outputs": shape[-1],
        "bias": bool(layer.use_bias if grouped else layer._use_bias),
        "causal": causal,
    }
    return Step(name, "attention", tuple(inputs[position] for position in order), options, "linear", name, shape)


def _reversible(layer: Any, call: Any, name: str, inputs: Inputs, shape: Shape, options: dict[str, Any]) -> list[Step]:
    reverse = call.kwargs.get("reverse", call.args[1] if len(call.args) > 1 else False)
    if not reverse:
        return [Step(name, "embedding", inputs, options, "linear", name, shape)]
    tied = name if layer.tie_weights else None
    back = {"inputs": options["width"], "units": options["vocab"], "bias": False, "tied": tied}
    if getattr(layer, "logit_soft_cap", None):
        return [Step(name, "ReversibleEmbedding with logit_soft_cap, which has no recipe for code", shape=shape)]
    return [Step(f"{name}_reverse", "dense", inputs, back, "linear", f"{name}_reverse", shape)]


def _separable(layer: Any, name: str, inputs: Inputs, shape: Shape, options: dict[str, Any]) -> list[Step]:
    """Return two convolutions: one for each channel, and one that mixes them."""
    deep, ones = f"{name}_depthwise", (1,) * len(options["size"])
    between = options["channels"] * layer.depth_multiplier
    first = options | {"groups": options["channels"], "filters": between, "bias": False}
    second = options | {
        "groups": 1, "channels": between, "size": ones, "strides": ones, "dilation": ones, "padding": "valid",
    }  # fmt: skip
    return [
        Step(deep, "conv", inputs, first, "linear", deep, (*shape[:-1], between)),
        Step(name, "conv", (deep,), second, activation_name(layer), f"{name}_pointwise", shape),
    ]


def _for_each_frame(layer: Any, name: str, inputs: Inputs, shapes: list[Shape], shape: Shape) -> list[Step]:
    """Return the steps of a layer called on every frame, as a call on a batch of all frames."""
    inner, frames = layer.layer, shapes[0][0]
    if is_a(inner, "Dense"):
        return layer_steps(inner, None, name, inputs, shapes, shape)
    if frames is None or is_a(inner, "Functional") or is_a(inner, "Sequential"):
        return [Step(name, "TimeDistributed around a model, or over unknown frames, which has no recipe for code")]
    merged = Step(f"{name}_frames", "merge_frames", inputs, shape=shapes[0][1:])
    inside = layer_steps(inner, None, name, (merged.name,), [shapes[0][1:]], shape[1:])
    back = Step(f"{name}_split", "split_frames", (inside[-1].name,), {"frames": frames}, shape=shape)
    return [merged, *inside, back]
