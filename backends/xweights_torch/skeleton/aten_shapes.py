"""Torch's functions that move numbers as neutral operations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from xweights.errors import PortError
from xweights_torch.skeleton.aten import Call, ProgramReader, Value, handles


@handles("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as", "reshape_as",
         "view_copy", "unsqueeze_copy", "squeeze_copy")  # fmt: skip
def _reshape(reader: ProgramReader, call: Call) -> Any:
    if "dtype" in call.args:
        raise PortError("a view of another type has no recipe for code")
    if call["self"].shape == call.shape:
        return call["self"]
    return reader.add(call, "reshape", [call["self"]])


@handles("permute", "permute_copy")
def _permute(reader: ProgramReader, call: Call) -> Any:
    rank = len(call.shape)
    return reader.permute(call, call["self"], [axis % rank for axis in call["dims"]])


@handles("transpose", "swapaxes", "t", "transpose_copy", "numpy_T", "mT")
def _transpose(reader: ProgramReader, call: Call) -> Any:
    rank = len(call.shape)
    order = list(range(rank))
    if rank < 2:
        return call["self"]
    default = (-2, -1)
    a = call.args.get("dim0", call.args.get("axis0", default[0])) % rank
    b = call.args.get("dim1", call.args.get("axis1", default[1])) % rank
    order[a], order[b] = b, a
    return reader.permute(call, call["self"], order)


@handles("movedim", "moveaxis")
def _movedim(reader: ProgramReader, call: Call) -> Any:
    source, destination = ([a] if isinstance(a, int) else list(a) for a in (call["source"], call["destination"]))
    rank = len(call.shape)
    order = [axis for axis in range(rank) if axis not in [s % rank for s in source]]
    for to, axis in sorted(zip((d % rank for d in destination), (s % rank for s in source), strict=True)):
        order.insert(to, axis)
    return reader.permute(call, call["self"], order)


@handles("expand", "expand_as", "broadcast_to", "expand_copy")
def _expand(reader: ProgramReader, call: Call) -> Any:
    if call["self"].shape == call.shape:
        return call["self"]
    return reader.add(call, "broadcast", [call["self"]])


@handles("repeat", "tile")
def _repeat(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    times = list(call.args.get("repeats", call.args.get("dims")))
    times = [1] * (len(x.shape) - len(times)) + times
    shape = [1] * (len(times) - len(x.shape)) + list(x.shape)
    x = reader.reshape(call, x, shape)
    if all(n == 1 or t == 1 for n, t in zip(shape, times, strict=True)):
        return reader.add(call, "broadcast", [x]) if x.shape != call.shape else x
    pairs = [(t, n) for t, n in zip(times, shape, strict=True)]
    spread = reader.reshape(call, x, [length for _, n in pairs for length in (1, n)])
    spread = reader.add(call, "broadcast", [spread], [length for pair in pairs for length in pair], x.dtype)
    return reader.reshape(call, spread, call.shape)


@handles("repeat_interleave")
def _repeat_each(reader: ProgramReader, call: Call) -> Any:
    times = call["repeats"]
    if not isinstance(times, int):
        raise PortError("torch's repeat_interleave by an array has no recipe for code")
    x = reader.value(call["self"])
    if call.get("dim") is None:
        x = reader.reshape(call, x, (math.prod(x.shape),))
    return reader.add(call, "repeat", [x], axis=call.get("dim", 0) % len(x.shape), times=times)


@handles("select")
def _select(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    index: list[Any] = [(0, None, 1)] * len(x.shape)
    axis = call["dim"] % len(x.shape)
    place = call["index"]
    index[axis] = place if place < 0 else (place - x.shape[axis] if place == x.shape[axis] - 1 > 0 else place)
    return reader.add(call, "slice", [x], index=tuple(index))


@handles("slice", "narrow", "slice_copy")
def _slice(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    axis = call.get("dim", 0)
    length = x.shape[axis]
    if "length" in call.args:
        return reader.slice(call, x, axis, call["start"], call["start"] + call["length"])
    start, stop, step = slice(call.get("start"), call.get("end"), call.get("step", 1)).indices(length)
    return reader.slice(call, x, axis, start, stop, step)


@handles("split", "split_with_sizes", "chunk", "tensor_split", "split_copy", "split_with_sizes_copy")
def _split(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    axis = call.get("dim", 0)
    parts, start = [], 0
    for meta in call.meta:
        length = int(meta.shape[axis])
        parts.append(reader.slice(call, x, axis, start, start + length))
        start += length
    return parts


@handles("unbind", "unbind_copy")
def _unbind(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    axis = call.get("dim", 0) % len(x.shape)
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    parts = []
    for place in range(x.shape[axis]):
        index: list[Any] = [(0, None, 1)] * len(x.shape)
        index[axis] = place
        parts.append(reader.add(call, "slice", [x], shape, x.dtype, index=tuple(index)))
    return parts


@handles("cat", "concat", "concatenate")
def _cat(reader: ProgramReader, call: Call) -> Any:
    return reader.concatenate(call, call["tensors"], call.get("dim", 0))


@handles("stack")
def _stack(reader: ProgramReader, call: Call) -> Any:
    axis = call.get("dim", 0) % len(call.shape)
    parts = [reader.reshape(call, part, (*part.shape[:axis], 1, *part.shape[axis:])) for part in call["tensors"]]
    return reader.concatenate(call, parts, axis)


@handles("slice_scatter", "select_scatter")
def _scatter(reader: ProgramReader, call: Call) -> Any:
    """Return a value of which a part is another: what is left in a program where a part was changed in place."""
    x, part = reader.value(call["self"]), reader.value(call["src"])
    axis = call.get("dim", 0) % len(x.shape)
    length = x.shape[axis]
    if "index" in call.args:
        start = call["index"] % length
        stop = start + 1
        part = reader.reshape(call, part, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    else:
        start, stop, step = slice(call.get("start"), call.get("end"), call.get("step", 1)).indices(length)
        if step != 1:
            raise PortError("a change in place of every other entry has no recipe for code")
    front = [reader.slice(call, x, axis, 0, start)] if start else []
    behind = [reader.slice(call, x, axis, stop, length)] if stop < length else []
    return reader.concatenate(call, [*front, part, *behind], axis)


@handles("copy")
def _copy(reader: ProgramReader, call: Call) -> Any:
    source = reader.value(call["src"])
    return source if source.shape == call.shape else reader.add(call, "broadcast", [source])


@handles("zero", "fill")
def _filled(reader: ProgramReader, call: Call) -> Any:
    return torch.full(call.shape, call.get("value", 0), dtype=call.meta.dtype)


@handles("roll")
def _roll(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    for shift, axis in zip(call["shifts"], call["dims"], strict=True):
        cut = -shift % x.shape[axis]
        if cut:
            parts = [reader.slice(call, x, axis, cut, x.shape[axis]), reader.slice(call, x, axis, 0, cut)]
            x = reader.concatenate(call, parts, axis)
    return x


@handles("flip")
def _flip(reader: ProgramReader, call: Call) -> Any:
    return reader.add(call, "flip", [call["self"]], axes=tuple(axis % len(call.shape) for axis in call["dims"]))


@handles("index_select")
def _index_select(reader: ProgramReader, call: Call) -> Any:
    return reader.add(call, "take", [call["self"], call["index"]], axis=call["dim"] % len(call.shape))


@handles("gather")
def _gather(reader: ProgramReader, call: Call) -> Any:
    x, index = reader.value(call["self"]), reader.value(call["index"])
    axis = call["dim"] % len(call.shape)
    # torch reads only as far as the index reaches along the other axes
    for other, length in enumerate(index.shape):
        if other != axis:
            x = reader.slice(call, x, other, 0, length)
    return reader.add(call, "take_along", [x, index], axis=axis)


@handles("index")
def _index(reader: ProgramReader, call: Call) -> Any:
    x, indices = reader.value(call["self"]), list(call["indices"])
    used = [axis for axis, index in enumerate(indices) if index is not None]
    first, last = used[0], used[-1]
    chosen = [indices[axis] for axis in used]
    if used != list(range(first, last + 1)) or any(index.dtype in ("bool", torch.bool) for index in chosen):
        raise PortError("a choice of entries by masks, or along axes apart, has no recipe for code")
    flat = None
    for axis in used:
        place = _from_the_start(reader, call, indices[axis], x.shape[axis])
        if flat is not None:
            before = reader.binary(call, "multiply", flat, x.shape[axis], "int64")
            place = reader.binary(call, "add", before, place, "int64")
        flat = place
    merged = (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])
    return reader.add(call, "take", [reader.reshape(call, x, merged), flat], axis=first)


def _from_the_start(reader: ProgramReader, call: Call, index: Any, length: int) -> Value:
    """Return an index whose negative entries, which count from the end, are counted from the start."""
    value = reader.value(index)
    if isinstance(index, torch.Tensor) and bool((index >= 0).all()):
        return value
    moved = reader.binary(call, "add", value, length, "int64")
    negative = reader.binary(call, "less", value, 0, "bool")
    return reader.add(call, "where", [negative, moved, value], value.shape, "int64")


@handles("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _pad(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    flat = call.args.get("pad", call.args.get("padding"))
    base = call.base
    mode = {"reflection": "reflect", "replication": "edge"}.get(base.partition("_")[0], call.get("mode", "constant"))
    mode = {"replicate": "edge"}.get(mode, mode)
    sides = [(flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2)]
    sides = [(0, 0)] * (len(x.shape) - len(sides)) + sides
    for axis, (front, behind) in enumerate(sides):
        if front < 0 or behind < 0:
            x = reader.slice(call, x, axis, max(-front, 0), x.shape[axis] - max(-behind, 0))
    sides = [(max(front, 0), max(behind, 0)) for front, behind in sides]
    if not any(front or behind for front, behind in sides):
        return x
    if mode not in ("constant", "reflect", "edge"):
        raise PortError(f"a padding of the mode {mode!r} has no recipe for code")
    return reader.add(call, "pad", [x], padding=tuple(sides), mode=mode, value=float(call.get("value", 0.0) or 0.0))


@handles("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like")
def _full(reader: ProgramReader, call: Call) -> Any:
    base = call.base
    value = call.get("fill_value", 1 if "ones" in base else 0)
    return torch.full(call.shape, value, dtype=call.meta.dtype)


@handles("unfold")
def _unfold(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    axis, size, step = call["dimension"] % len(x.shape), call["size"], call["step"]
    windows = (x.shape[axis] - size) // step + 1
    index = np.arange(windows)[:, None] * step + np.arange(size)[None, :]
    shape = (*x.shape[:axis], windows, size, *x.shape[axis + 1 :])
    taken = reader.add(call, "take", [x, reader.constant(index)], shape, x.dtype, axis=axis)
    order = [a for a in range(len(shape)) if a != axis + 1]
    return reader.permute(call, taken, [*order, axis + 1])
