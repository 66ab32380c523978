"""Torch's functions of images as neutral operations: pools and changes of size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xweights.errors import PortError
from xweights_torch.skeleton.aten import Call, ProgramReader, Value, handles


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    values: list[int] = [value] if isinstance(value, int) else list(value)
    return tuple(values * rank if len(values) == 1 else values)


@handles("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool1d_with_indices",
         "avg_pool1d", "avg_pool2d", "avg_pool3d")  # fmt: skip
def _pool(reader: ProgramReader, call: Call) -> Any:
    name = call.function
    x = reader.value(call["self"])
    rank = int(name[name.index("d") - 1]) if "pool" not in name else int(name.partition("pool")[2][0])
    size = _per_axis(call["kernel_size"], rank)
    strides = _per_axis(call["stride"], rank) if call.get("stride", []) else size
    padding = _per_axis(call["padding"], rank)
    most = name.startswith("max")
    if any(d != 1 for d in _per_axis(call.get("dilation", 1), rank)):
        raise PortError("a dilated pool has no recipe for code")
    meta = call.meta[0] if isinstance(call.meta, (tuple, list)) else call.meta
    outputs = [int(n) for n in meta.shape[2:]]
    sides = []
    for n, k, s, p, out in zip(x.shape[2:], size, strides, padding, outputs, strict=True):
        # with ceil_mode the last window may reach beyond the padding
        sides.append((p, max((out - 1) * s + k - n - p, 0)))
    shape = (*x.shape[:2], *outputs)
    if most:
        result = reader.add(
            call, "max_pool", [x], shape, x.dtype, axis=1, size=size, strides=strides, padding=tuple(sides)
        )
        return [result, None] if "indices" in name else result
    inside = x
    if any(front or behind for front, behind in sides):
        padded = [*x.shape[:2], *(n + a + b for n, (a, b) in zip(x.shape[2:], sides, strict=True))]
        whole = ((0, 0), (0, 0), *sides)
        inside = reader.add(call, "pad", [x], padded, x.dtype, padding=whole, mode="constant", value=0.0)
    result = reader.add(call, "average_pool", [inside], shape, x.dtype, axis=1, size=size, strides=strides)
    divisor = call.get("divisor_override")
    factors = np.ones(outputs, np.float32)
    if divisor:
        factors *= math.prod(size) / divisor
    elif any(front or behind for front, behind in sides):
        include = call.get("count_include_pad", True)
        for axis, (n, k, s, p) in enumerate(zip(x.shape[2:], size, strides, padding, strict=True)):
            starts = np.arange(outputs[axis]) * s - p
            ends = np.minimum(starts + k, n + p)
            counts = ends - starts if include else np.minimum(ends, n) - np.maximum(starts, 0)
            factors = factors * (k / counts).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(rank)])
    if (factors == 1).all():
        return result
    return reader.binary(call, "multiply", result, reader.constant(factors), x.dtype)


@handles("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
         "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")  # fmt: skip
def _adaptive(reader: ProgramReader, call: Call) -> Any:
    name = call.function
    x = reader.value(call["self"])
    most = "max" in name
    outputs = [int(n) for n in (call.meta[0] if most else call.meta).shape[2:]]
    space = x.shape[2:]
    axes = list(range(2, len(x.shape)))
    if all(out == 1 for out in outputs):
        result = reader.reduce(call, "max" if most else "mean", x, axes, keepdims=True)
    elif all(n % out == 0 for n, out in zip(space, outputs, strict=True)):
        size = tuple(n // out for n, out in zip(space, outputs, strict=True))
        shape = (*x.shape[:2], *outputs)
        if size == (1,) * len(size):
            result = x
        elif most:
            none = ((0, 0),) * len(size)
            result = reader.add(call, "max_pool", [x], shape, x.dtype, axis=1, size=size, strides=size, padding=none)
        else:
            result = reader.add(call, "average_pool", [x], shape, x.dtype, axis=1, size=size, strides=size)
    else:
        result = x
        for axis, out in zip(axes, outputs, strict=True):
            n = result.shape[axis]
            ends = [(i * n // out, -(-(i + 1) * n // out)) for i in range(out)]
            parts = [reader.slice(call, result, axis, start, stop) for start, stop in ends]
            parts = [reader.reduce(call, "max" if most else "mean", part, [axis], keepdims=True) for part in parts]
            result = reader.concatenate(call, parts, axis)
    return [result, None] if most else result


@handles("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d")
def _nearest(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"] if "self" in call.args else call["input"])
    result = x
    exact = "exact" in call.function
    for axis, out in enumerate(call.shape[2:], start=2):
        n = x.shape[axis]
        if out == n:
            continue
        shape = [*result.shape[:axis], out, *result.shape[axis + 1 :]]
        if out % n == 0:
            result = reader.add(call, "repeat", [result], shape, x.dtype, axis=axis, times=out // n)
        else:
            places = np.floor((np.arange(out) + (0.5 if exact else 0.0)) * (n / out)).astype(np.int64).clip(0, n - 1)
            result = reader.add(call, "take", [result, reader.constant(places)], shape, x.dtype, axis=axis)
    return result


@handles("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
         "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")  # fmt: skip
def _smooth(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"] if "self" in call.args else call["input"])
    name = call.function
    if name.endswith("_aa"):
        raise PortError("a change of size with antialias has no recipe for code")
    factors = call.args.get("scale_factors") or [v for k, v in call.args.items() if k.startswith("scales") and v]
    for factor, n, out in zip(factors, x.shape[2:], call.shape[2:], strict=False):
        if out != n * factor:
            raise PortError("a change of size by a factor that doesn't divide it has no recipe for code")
    mode = "cubic" if "cubic" in name else "linear"
    align = bool(call["align_corners"])
    return reader.add(call, "resize", [x], axis=1, size=call.shape[2:], mode=mode, align=align)


@handles("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def _shuffle(reader: ProgramReader, call: Call) -> Any:
    name = call.function
    x = reader.value(call["self"])
    batch, channels, height, width = x.shape
    if name.endswith("channel_shuffle"):
        groups = call["groups"]
        return _through(reader, call, x, (batch, groups, channels // groups, height, width), (0, 2, 1, 3, 4))
    if name == "pixel_shuffle":
        r = call["upscale_factor"]
        return _through(reader, call, x, (batch, channels // r**2, r, r, height, width), (0, 1, 4, 2, 5, 3))
    r = call["downscale_factor"]
    return _through(reader, call, x, (batch, channels, height // r, r, width // r, r), (0, 1, 3, 5, 2, 4))


def _through(reader: ProgramReader, call: Call, x: Value, between: tuple[int, ...], order: tuple[int, ...]) -> Value:
    return reader.reshape(call, reader.permute(call, reader.reshape(call, x, between), order), call.shape)
