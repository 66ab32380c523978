"""Keras' functions of images as neutral operations."""

from __future__ import annotations

from typing import Any

import numpy as np

from xweights.errors import PortError
from xweights_keras.skeleton.tape import Call, Tape, dtype_of, first, handles
from xweights_keras.skeleton.tape_layers import sides_of


@handles("Conv", "DepthwiseConv")
def _conv(tape: Tape, call: Call) -> Any:
    x, kernel = (tape.array(item) for item in list(call.args.values())[:2])
    operation = call.operation
    rank = len(x.shape) - 2
    if operation.data_format == "channels_first":
        raise PortError("a convolution with channels first has no recipe for code")
    strides, dilation = (
        (value,) * rank if isinstance(value, int) else tuple(value)
        for value in (operation.strides, operation.dilation_rate)
    )
    size = tuple(kernel.shape[:rank])
    padding = sides_of(operation.padding, x.shape[1:-1], size, strides, dilation)
    deep = type(operation).__name__ == "DepthwiseConv"
    filters = kernel.shape[-1] * (kernel.shape[-2] if deep else 1)
    space = [
        (n + a + b - (k - 1) * d - 1) // s + 1
        for n, (a, b), k, d, s in zip(x.shape[1:-1], padding, size, dilation, strides, strict=True)
    ]
    letters = "dhw"[-rank:]
    groups = x.shape[-1] // kernel.shape[-2]
    if deep:  # one group for each channel
        kernel = tape.reshape(call, kernel, (*size, 1, filters))
        groups = x.shape[-1]
    return tape.add(
        call, "convolve", [x, kernel], (x.shape[0], *space, filters), dtype_of(x), axes=f"{letters}io", axis=-1,
        strides=strides, dilation=dilation, groups=groups, padding=padding,
    )  # fmt: skip


@handles("MaxPool", "AveragePool")
def _pool(tape: Tape, call: Call) -> Any:
    x, operation = tape.array(first(call)), call.operation
    rank = len(x.shape) - 2
    if operation.data_format == "channels_first":
        raise PortError("a pool with channels first has no recipe for code")
    size = (operation.pool_size,) * rank if isinstance(operation.pool_size, int) else tuple(operation.pool_size)
    strides = operation.strides or size
    strides = (strides,) * rank if isinstance(strides, int) else tuple(strides)
    sides = sides_of(operation.padding, x.shape[1:-1], size, strides, (1,) * rank)
    space = [(n + a + b - k) // s + 1 for n, (a, b), k, s in zip(x.shape[1:-1], sides, size, strides, strict=True)]
    shape = (x.shape[0], *space, x.shape[-1])
    if type(operation).__name__ == "MaxPool":
        return tape.add(call, "max_pool", [x], shape, dtype_of(x), axis=-1, size=size, strides=strides, padding=sides)
    factors = np.ones((*space, 1), np.float32)
    inside = x
    if any(front or behind for front, behind in sides):
        whole = ((0, 0), *sides, (0, 0))
        padded = [n + a + b for n, (a, b) in zip(x.shape, whole, strict=True)]
        inside = tape.add(call, "pad", [x], padded, dtype_of(x), padding=whole, mode="constant", value=0.0)
        for axis, (n, k, s, (front, _)) in enumerate(zip(x.shape[1:-1], size, strides, sides, strict=True)):
            starts = np.arange(space[axis]) * s - front
            counts = np.minimum(starts + k, n) - np.maximum(starts, 0)
            factors = factors * (k / counts).astype(np.float32).reshape(
                [-1 if a == axis else 1 for a in range(rank + 1)]
            )
    made = tape.add(call, "average_pool", [inside], shape, dtype_of(x), axis=-1, size=size, strides=strides)
    return made if (factors == 1).all() else tape.binary(call, "multiply", made, factors)


@handles("Resize")
def _resize(tape: Tape, call: Call) -> Any:
    x, operation = tape.array(first(call)), call.operation
    size = tuple(operation.size)
    plain = not getattr(operation, "antialias", False) and not getattr(operation, "crop_to_aspect_ratio", False)
    if len(x.shape) != 4 or operation.data_format == "channels_first" or not plain:
        raise PortError("a change of size with settings has no recipe for code")
    if operation.interpolation == "bilinear":
        shape = (x.shape[0], *size, x.shape[-1])
        return tape.add(call, "resize", [x], shape, dtype_of(x), axis=-1, size=size, mode="linear", align=False)
    if operation.interpolation != "nearest":
        raise PortError(f"a change of size by {operation.interpolation} has no recipe for code")
    for axis, new in enumerate(size, start=1):
        places = np.floor((np.arange(new) + 0.5) * x.shape[axis] / new).astype("int64")
        lengths = [new if a == axis else n for a, n in enumerate(x.shape)]
        x = tape.add(call, "take", [x, places], lengths, dtype_of(x), axis=axis)
    return x
