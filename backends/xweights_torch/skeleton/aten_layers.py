"""Torch's operations with weights, and attention, as neutral operations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xweights.errors import PortError
from xweights_torch.skeleton.aten import Call, ProgramReader, Value, Weight, handles

_SPACE = "dhw"


def layer_path(weights: Mapping[str, Any]) -> str:
    """Return the path of the layer whose parameters these are."""
    name = next(str(item.name) for item in weights.values() if item is not None)
    owner, _, role = name.rpartition(".")
    return owner if role in ("weight", "bias", "running_mean", "running_var") and owner else name


def _are_weights(weights: Mapping[str, Any]) -> bool:
    return all(item is None or isinstance(item, Weight) for item in weights.values()) and any(weights.values())


def _names(weights: Mapping[str, Any]) -> dict[str, str | None]:
    return {role: None if item is None else item.name for role, item in weights.items()}


@handles("linear")
def _linear(reader: ProgramReader, call: Call) -> Any:
    weights = {"kernel": call["weight"], "bias": call.args.get("bias")}
    if _are_weights(weights) and len(call.shape) > 1:
        units = call["weight"].shape[0]
        layer = layer_path(weights)
        return reader.add(call, "dense", [call["input"]], weights=_names(weights), axes="oi", units=units, layer=layer)
    product = reader.matmul(call, call["input"], reader.permute(call, call["weight"], (1, 0)))
    return product if weights["bias"] is None else reader.binary(call, "add", product, weights["bias"])


@handles("addmm")
def _addmm(reader: ProgramReader, call: Call) -> Any:
    weights = {"kernel": call["mat2"], "bias": call["self"]}
    if (call.get("beta", 1), call.get("alpha", 1)) != (1, 1):
        raise PortError("addmm with factors has no recipe for code")
    if _are_weights(weights) and len(call["self"].shape) == 1:
        units = call["mat2"].shape[1]
        layer = layer_path(weights)
        return reader.add(call, "dense", [call["mat1"]], weights=_names(weights), axes="io", units=units, layer=layer)
    return reader.binary(call, "add", reader.matmul(call, call["mat1"], call["mat2"]), call["self"])


@handles("matmul", "mm", "bmm", "mv", "dot")
def _matmul(reader: ProgramReader, call: Call) -> Any:
    other = next(call.args[key] for key in ("other", "mat2", "vec", "tensor") if key in call.args)
    return reader.matmul(call, call["self"], other)


@handles("baddbmm")
def _baddbmm(reader: ProgramReader, call: Call) -> Any:
    product = reader.matmul(call, call["batch1"], call["batch2"])
    if call.get("alpha", 1) != 1:
        product = reader.binary(call, "multiply", product, float(call["alpha"]))
    if call.get("beta", 1) == 0:
        return product
    added = (
        call["self"] if call.get("beta", 1) == 1 else reader.binary(call, "multiply", call["self"], float(call["beta"]))
    )
    return reader.binary(call, "add", product, added)


@handles("einsum")
def _einsum(reader: ProgramReader, call: Call) -> Any:
    return reader.add(call, "einsum", list(call["tensors"]), equation=call["equation"].replace(" ", ""))


@handles("conv1d", "conv2d", "conv3d", "convolution")
def _conv(reader: ProgramReader, call: Call) -> Any:
    if call.get("transposed", False):
        return _conv_transpose(reader, call)
    x, kernel, bias = reader.value(call["input"]), call["weight"], call.args.get("bias")
    rank = len(kernel.shape) - 2
    if len(x.shape) != rank + 2:
        raise PortError("a convolution of one example without a batch has no recipe for code")
    size = tuple(kernel.shape[2:])
    strides, dilation = (_per_axis(call[key], rank) for key in ("stride", "dilation"))
    padding = call["padding"]
    if padding == "valid":
        sides = ((0, 0),) * rank
    elif padding == "same":
        whole = [(n - 1) * d for n, d in zip(size, dilation, strict=True)]
        sides = tuple((n // 2, n - n // 2) for n in whole)
    else:
        sides = tuple((side, side) for side in _per_axis(padding, rank))
    options = {
        "axes": "oi" + _SPACE[-rank:], "axis": 1, "strides": strides, "dilation": dilation, "groups": call["groups"],
        "padding": sides,
    }  # fmt: skip
    weights = {"kernel": kernel, "bias": bias}
    if _are_weights(weights):
        more = {"weights": _names(weights), "filters": kernel.shape[0], "size": size}
        return reader.add(call, "conv", [x], layer=layer_path(weights), **options, **more)
    result = reader.add(call, "convolve", [x, kernel], **options)
    return result if bias is None else _add_to_channels(reader, call, result, bias)


def _add_to_channels(reader: ProgramReader, call: Call, value: Value, bias: Any) -> Value:
    spread = reader.reshape(call, bias, (bias.shape[0], *(1,) * (len(value.shape) - 2)))
    return reader.binary(call, "add", value, spread)


@handles("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(reader: ProgramReader, call: Call) -> Any:
    kernel, bias = call["weight"], call.args.get("bias")
    rank = len(kernel.shape) - 2
    weights = {"kernel": kernel, "bias": bias}
    if call["groups"] != 1 or not _are_weights(weights):
        raise PortError("a transposed convolution in groups, or by a computed kernel, has no recipe for code")
    padding, more = (_per_axis(call[key], rank) for key in ("padding", "output_padding"))
    return reader.add(
        call,
        "conv_transpose",
        [call["input"]],
        layer=layer_path(weights),
        weights=_names(weights),
        axes="io" + _SPACE[-rank:],
        axis=1,
        filters=kernel.shape[1],
        size=tuple(kernel.shape[2:]),
        strides=_per_axis(call["stride"], rank),
        dilation=_per_axis(call["dilation"], rank),
        crop=tuple((side, side - extra) for side, extra in zip(padding, more, strict=True)),
    )


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * rank if len(values) == 1 else values)


@handles("embedding")
def _embedding(reader: ProgramReader, call: Call) -> Any:
    weights = {"table": call["weight"]}
    if isinstance(call["weight"], Weight):
        layer = layer_path(weights)
        return reader.add(call, "embedding", [call["indices"]], weights=_names(weights), layer=layer)
    return reader.add(call, "take", [call["weight"], call["indices"]], axis=0)


@handles("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "_native_batch_norm_legit")
def _batch_norm(reader: ProgramReader, call: Call) -> Any:
    several = not hasattr(call.meta, "shape")
    x = reader.value(call["input"])
    weights = {
        "scale": call.args.get("weight"),
        "offset": call.args.get("bias"),
        "mean": call.args.get("running_mean"),
        "variance": call.args.get("running_var"),
    }
    dtype = x.dtype
    if weights["mean"] is None or call.get("training", False):
        axes = [axis for axis in range(len(x.shape)) if axis != 1]
        result = _normalize(reader, call, x, axes, call["eps"])
        for function, item in (("multiply", weights["scale"]), ("add", weights["offset"])):
            if item is not None:
                spread = reader.reshape(call, item, (*item.shape, *(1,) * (len(x.shape) - 2)))
                result = reader.binary(call, function, result, spread, dtype)
    elif _are_weights(weights):
        result = reader.add(
            call, "batch_norm", [x], x.shape, dtype, layer=layer_path(weights), weights=_names(weights), axis=1,
            eps=call["eps"], momentum=call.get("momentum", 0.1),
        )  # fmt: skip
    else:
        raise PortError("a batch norm by computed numbers has no recipe for code")
    return [result, None, None] if several else result


def _normalize(reader: ProgramReader, call: Call, x: Value, axes: list[int], eps: float) -> Value:
    mean = reader.reduce(call, "mean", x, axes, keepdims=True)
    centered = reader.binary(call, "subtract", x, mean, x.dtype)
    variance = reader.reduce(call, "mean", reader.unary(call, "square", centered), axes, keepdims=True)
    spread = reader.unary(call, "rsqrt", reader.binary(call, "add", variance, eps, x.dtype))
    return reader.binary(call, "multiply", centered, spread, x.dtype)


@handles("layer_norm", "native_layer_norm")
def _layer_norm(reader: ProgramReader, call: Call) -> Any:
    several = not hasattr(call.meta, "shape")
    x = reader.value(call["input"])
    weights = {"scale": call.args.get("weight"), "offset": call.args.get("bias")}
    axes = tuple(range(len(x.shape) - len(call["normalized_shape"]), len(x.shape)))
    if _are_weights(weights):
        result = reader.add(
            call, "layer_norm", [x], x.shape, x.dtype, layer=layer_path(weights), weights=_names(weights), axes=axes,
            eps=call["eps"],
        )  # fmt: skip
    else:
        result = _normalize(reader, call, x, list(axes), call["eps"])
        for function, item in (("multiply", weights["scale"]), ("add", weights["offset"])):
            if item is not None:
                result = reader.binary(call, function, result, item, x.dtype)
    return [result, None, None] if several else result


@handles("rms_norm", "_fused_rms_norm")
def _rms_norm(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["input"])
    axes = list(range(len(x.shape) - len(call["normalized_shape"]), len(x.shape)))
    eps = call.get("eps", 1.1920928955078125e-07)
    weights = {"scale": call.args.get("weight")}
    if _are_weights(weights) and len(axes) == 1:
        layer = layer_path(weights)
        return reader.add(call, "rms_norm", [x], weights=_names(weights), eps=eps, layer=layer)
    mean = reader.reduce(call, "mean", reader.unary(call, "square", x), axes, keepdims=True)
    result = reader.binary(call, "multiply", x, reader.unary(call, "rsqrt", reader.binary(call, "add", mean, eps)))
    return result if weights["scale"] is None else reader.binary(call, "multiply", result, weights["scale"])


@handles("group_norm", "instance_norm", "native_group_norm")
def _group_norm(reader: ProgramReader, call: Call) -> Any:
    several = not hasattr(call.meta, "shape")
    x = reader.value(call["input"])
    groups = x.shape[1]
    if "use_input_stats" in call.args:
        if not call["use_input_stats"]:
            raise PortError("an instance norm by saved statistics has no recipe for code")
    else:
        groups = call.args.get("num_groups", call.args.get("group"))
    weights = {"scale": call.args.get("weight"), "offset": call.args.get("bias")}
    if _are_weights(weights):
        result = reader.add(
            call, "group_norm", [x], x.shape, x.dtype, layer=layer_path(weights), weights=_names(weights), axis=1,
            groups=groups, eps=call["eps"],
        )  # fmt: skip
    elif weights["scale"] is None and weights["offset"] is None:
        grouped = reader.reshape(call, x, (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
        normal = _normalize(reader, call, grouped, list(range(2, len(grouped.shape))), call["eps"])
        result = reader.reshape(call, normal, x.shape)
    else:
        raise PortError("a group norm by computed numbers has no recipe for code")
    return [result, None, None] if several else result


@handles("scaled_dot_product_attention")
def _attention(reader: ProgramReader, call: Call) -> Any:
    query, key, value = (reader.value(call[part]) for part in ("query", "key", "value"))
    mask = call.args.get("attn_mask")
    scale = call.args.get("scale") or 1 / math.sqrt(query.shape[-1])
    if len(query.shape) == 4 and key.shape[1] != query.shape[1]:
        times = query.shape[1] // key.shape[1]
        key, value = (
            reader.add(call, "repeat", [part], (*query.shape[:2], *part.shape[2:]), part.dtype, axis=1, times=times)
            for part in (key, value)
        )
    inputs = [query, key, value] + ([] if mask is None else [mask])
    shape = (*query.shape[:-1], value.shape[-1])
    return reader.add(call, "attention", inputs, shape, scale=float(scale), causal=bool(call.get("is_causal")))
