"""Keras' functions that move numbers as neutral operations."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import keras
import numpy as np

from xweights.errors import PortError
from xweights_keras.skeleton.tape import Call, Tape, dtype_of, first, handles


@handles("Reshape", "ExpandDims", "Squeeze", "Ravel", "View")
def _reshape(tape: Tape, call: Call) -> Any:
    return tape.reshape(call, first(call), call.operation.compute_output_spec(tape.array(first(call))).shape)


@handles("Transpose", "Swapaxes", "Moveaxis")
def _transpose(tape: Tape, call: Call) -> Any:
    x, operation = tape.array(first(call)), call.operation
    axes = list(range(len(x.shape)))
    kind = type(operation).__name__
    if kind == "Transpose":
        axes = axes[::-1] if operation.axes is None else [axis % len(axes) for axis in operation.axes]
    elif kind == "Swapaxes":
        a, b = operation.axis1, operation.axis2
        axes[a], axes[b] = axes[b], axes[a]
    else:
        source, destination = (
            [item] if isinstance(item, int) else list(item) for item in (operation.source, operation.destination)
        )
        count = len(axes)
        axes = [axis for axis in axes if axis not in [s % count for s in source]]
        for to, axis in sorted(zip((d % count for d in destination), (s % count for s in source), strict=True)):
            axes.insert(to, axis)
    return tape.permute(call, x, axes)


@handles("Ndim")
def _rank(tape: Tape, call: Call) -> Any:
    return len(tape.array(first(call)).shape)


@handles("BroadcastTo")
def _broadcast(tape: Tape, call: Call) -> Any:
    x, shape = tape.array(first(call)), call.operation.shape
    return x if tuple(x.shape) == tuple(shape) else tape.add(call, "broadcast", [x], shape, dtype_of(x))


@handles("Concatenate")
def _concatenate(tape: Tape, call: Call) -> Any:
    return tape.concatenate(call, first(call), call.operation.axis)


@handles("Stack")
def _stack(tape: Tape, call: Call) -> Any:
    parts = [tape.array(part) for part in first(call)]
    axis = call.operation.axis % (len(parts[0].shape) + 1)
    parts = [tape.reshape(call, part, (*part.shape[:axis], 1, *part.shape[axis:])) for part in parts]
    return tape.concatenate(call, parts, axis)


@handles("Split", "ArraySplit")
def _split(tape: Tape, call: Call) -> Any:
    x, operation = tape.array(first(call)), call.operation
    axis = operation.axis % len(x.shape)
    length, cuts = x.shape[axis], operation.indices_or_sections
    if isinstance(cuts, int):
        cuts = [length // cuts * place for place in range(1, cuts)]
    edges = [0, *(int(cut) for cut in cuts), length]
    return [tape.slice(call, x, axis, start, stop) for start, stop in pairwise(edges)]


@handles("Unstack")
def _unstack(tape: Tape, call: Call) -> Any:
    x = tape.array(first(call))
    axis = call.operation.axis % len(x.shape)
    return [_at(tape, call, x, axis, place) for place in range(x.shape[axis])]


def _at(tape: Tape, call: Call, x: Any, axis: int, place: int) -> Any:
    index: list[Any] = [(0, None, 1)] * len(x.shape)
    index[axis] = place
    shape = [n for a, n in enumerate(x.shape) if a != axis]
    return tape.add(call, "slice", [x], shape, dtype_of(x), index=tuple(index))


@handles("GetItem")
def _get_item(tape: Tape, call: Call) -> Any:
    x, key = list(call.args.values())[:2]
    x = tape.array(x)
    key = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in [part for part in key if isinstance(part, type(Ellipsis))]:
        place = next(p for p, part in enumerate(key) if part is Ellipsis)
        taken = sum(part is not None for part in key) - 1
        key[place : place + 1] = [slice(None)] * (len(x.shape) - taken)
    index: list[Any] = []
    shape: list[int] = []
    for part in key:
        if part is None:
            shape.append(1)
            continue
        length = x.shape[len(index)]
        if isinstance(part, slice):
            start, stop, step = part.indices(length)
            if step < 1:
                raise PortError("an index that goes backwards has no recipe for code")
            index.append((start, None if stop >= length else stop, step))
            shape.append(len(range(start, stop, step)))
        elif isinstance(part, (int, np.integer)):
            index.append(int(part))
        else:
            raise PortError("an index by an array has no recipe for code")
    shape += x.shape[len(index) :]
    index += [(0, None, 1)] * (len(x.shape) - len(index))
    plain = [
        length if part == (0, None, 1) else len(range(part[0], length if part[1] is None else part[1], part[2]))
        for part, length in zip(index, x.shape, strict=True)
        if isinstance(part, tuple)
    ]
    chosen = x
    if any(part != (0, None, 1) for part in index):
        chosen = tape.add(call, "slice", [x], plain, dtype_of(x), index=tuple(index))
    return tape.reshape(call, chosen, shape)


@handles("Slice")
def _slice(tape: Tape, call: Call) -> Any:
    x, starts = list(call.args.values())[:2]
    x = tape.array(x)
    if isinstance(starts, keras.KerasTensor) or any(isinstance(start, keras.KerasTensor) for start in starts):
        raise PortError("a slice from a place that is computed has no recipe for code")
    starts = [int(start) for start in np.asarray(keras.ops.convert_to_numpy(starts)).tolist()]
    for axis, (start, length) in enumerate(zip(starts, call.operation.shape, strict=True)):
        stop = x.shape[axis] if length == -1 else start + int(length)
        x = tape.slice(call, x, axis, start, stop)
    return x


@handles("Pad")
def _pad(tape: Tape, call: Call) -> Any:
    x, operation = tape.array(first(call)), call.operation
    sides = np.broadcast_to(np.asarray(operation.pad_width), (len(x.shape), 2)).tolist()
    shape = [n + a + b for n, (a, b) in zip(x.shape, sides, strict=True)]
    value = call.args.get("constant_values") or 0.0
    if operation.mode not in ("constant", "reflect", "edge"):
        raise PortError(f"a padding of the mode {operation.mode!r} has no recipe for code")
    sides = tuple(tuple(side) for side in sides)
    return tape.add(call, "pad", [x], shape, dtype_of(x), padding=sides, mode=operation.mode, value=float(value))


@handles("Flip")
def _flip(tape: Tape, call: Call) -> Any:
    x, axes = tape.array(first(call)), call.operation.axis
    axes = range(len(x.shape)) if axes is None else ([axes] if isinstance(axes, int) else axes)
    return tape.add(call, "flip", [x], x.shape, dtype_of(x), axes=tuple(axis % len(x.shape) for axis in axes))


@handles("Repeat")
def _repeat(tape: Tape, call: Call) -> Any:
    x, times, axis = tape.array(first(call)), call.operation.repeats, call.operation.axis
    if isinstance(times, (list, tuple, np.ndarray)) and len(times) == 1:
        times = int(times[0])
    if not isinstance(times, int) or axis is None:
        raise PortError("keras.ops.repeat by an array has no recipe for code")
    axis %= len(x.shape)
    shape = [n * times if a == axis else n for a, n in enumerate(x.shape)]
    return tape.add(call, "repeat", [x], shape, dtype_of(x), axis=axis, times=times)


@handles("Tile")
def _tile(tape: Tape, call: Call) -> Any:
    x, times = tape.array(first(call)), call.operation.repeats
    times = [times] if isinstance(times, int) else list(times)
    times = [1] * (len(x.shape) - len(times)) + times
    shape = [1] * (len(times) - len(x.shape)) + list(x.shape)
    spread = tape.reshape(call, x, [length for n in shape for length in (1, n)])
    pairs = [length for pair in zip(times, shape, strict=True) for length in pair]
    spread = tape.add(call, "broadcast", [spread], pairs, dtype_of(x))
    return tape.reshape(call, spread, [t * n for t, n in zip(times, shape, strict=True)])


@handles("Roll")
def _roll(tape: Tape, call: Call) -> Any:
    x = tape.array(first(call))
    shifts, axes = ([v] if isinstance(v, int) else list(v) for v in (call.operation.shift, call.operation.axis))
    for shift, axis in zip(shifts, axes, strict=True):
        cut = -shift % x.shape[axis]
        if cut:
            parts = [tape.slice(call, x, axis, cut, x.shape[axis]), tape.slice(call, x, axis, 0, cut)]
            x = tape.concatenate(call, parts, axis)
    return x


@handles("Take", "TakeAlongAxis")
def _take(tape: Tape, call: Call) -> Any:
    x, index = (tape.array(item) for item in list(call.args.values())[:2])
    axis = call.operation.axis
    if type(call.operation).__name__ == "TakeAlongAxis":
        return tape.add(call, "take_along", [x, index], index.shape, dtype_of(x), axis=axis % len(x.shape))
    if axis is None:
        x, axis = tape.reshape(call, x, (math.prod(x.shape),)), 0
    axis %= len(x.shape)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return tape.add(call, "take", [x, index], shape, dtype_of(x), axis=axis)


@handles("Tril", "Triu")
def _triangle(tape: Tape, call: Call) -> Any:
    x = tape.array(first(call))
    shape = np.tril if type(call.operation).__name__ == "Tril" else np.triu
    mask = shape(np.ones(tuple(x.shape[-2:]), bool), call.operation.k)
    return tape.add(call, "where", [mask, x, 0], x.shape, dtype_of(x))


@handles("OneHot")
def _one_hot(tape: Tape, call: Call) -> Any:
    x, operation = tape.array(first(call)), call.operation
    if operation.axis not in (-1, len(x.shape)):
        raise PortError("keras.ops.one_hot along another axis than the last has no recipe for code")
    column = tape.reshape(call, x, (*x.shape, 1))
    shape = (*x.shape, operation.num_classes)
    hot = tape.add(call, "binary", [column, np.arange(operation.num_classes)], shape, "bool", function="equal")
    return tape.add(call, "cast", [hot], shape, str(keras.backend.standardize_dtype(operation.dtype or "float32")))
