"""Arrays that are stored in several chunks, each of them a block of the array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.core.shards import Ranges
from xweights.files.io.blocks import make_block
from xweights.files.io.open_file import damaged
from xweights.files.io.records import Record
from xweights.files.io.runs import cut_relative, intersect

_MOST = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A block of an array: the index of its first entry, and the record of its entries."""

    start: Shape
    record: Record


@dataclass(frozen=True, slots=True, eq=False)
class JoinedChunks:
    """Location of an array that is joined from chunks when it is read."""

    chunks: Sequence[Chunk]

    def read(self, record: Record) -> Array:
        array = np.empty(record.shape, record.dtype)
        for chunk in self.chunks:
            array[_cut(chunk)] = chunk.record.read()
        return array

    def read_into(self, record: Record, out: Array, start: int) -> None:
        if len(self.chunks) == 1:
            self.chunks[0].record.read_into(out, start)
            return
        # The rows that hold these entries, from the chunks that have some of them.
        row = max(1, math.prod(record.shape[1:]))
        first, last = start // row, -(-(start + out.size) // row)
        rows = np.empty((last - first, *record.shape[1:]), record.dtype)
        for chunk in self.chunks:
            begin, end = max(first, chunk.start[0]), min(last, chunk.start[0] + chunk.record.shape[0])
            if begin < end:
                part = _read_rows(chunk.record, begin - chunk.start[0], end - chunk.start[0])
                rows[(slice(begin - first, end - first), *_cut(chunk)[1:])] = part
        out[...] = rows.reshape(-1)[start - first * row : start - first * row + out.size]

    def read_block(self, record: Record, ranges: Ranges, out: Array) -> None:
        for chunk in self.chunks:
            own = tuple((first, first + n) for first, n in zip(chunk.start, chunk.record.shape, strict=True))
            shared = intersect(ranges, own)
            if shared is None:
                continue
            part = out[cut_relative(shared, tuple(first for first, _ in ranges))]
            wanted = tuple((first - at, last - at) for (first, last), at in zip(shared, chunk.start, strict=True))
            block = make_block(chunk.record, wanted)
            if block is None:
                part[...] = chunk.record.read()[tuple(slice(*own) for own in wanted)]
            elif part.flags.c_contiguous:
                block.read_into(part.reshape(-1))
            else:
                part[...] = block.read()


def _cut(chunk: Chunk) -> tuple[slice, ...]:
    return tuple(slice(first, first + n) for first, n in zip(chunk.start, chunk.record.shape, strict=True))


def _read_rows(record: Record, first: int, last: int) -> Array:
    row = math.prod(record.shape[1:])
    part = np.empty(((last - first) * row,), record.dtype)
    record.read_into(part, first * row)
    return part.reshape(last - first, *record.shape[1:])


def check_chunks(path: str, key: str, shape: Shape, chunks: Sequence[tuple[Shape, Shape]]) -> None:
    """Raise unless chunks, each a first index and a shape, make up an array: all inside of it, no entry twice."""
    if len(chunks) > _MOST:
        raise damaged(path, f"it is in {len(chunks):,} chunks, and {_MOST:,} are allowed", key=key)
    for start, sizes in chunks:
        inside = len(start) == len(sizes) == len(shape) and all(
            first >= 0 and n >= 0 and first + n <= length for first, n, length in zip(start, sizes, shape, strict=True)
        )
        if not inside:
            raise damaged(path, f"one of its chunks isn't inside its shape {shape[:8]}", key=key)
    size, covered = math.prod(shape), sum(math.prod(sizes) for _, sizes in chunks)
    if covered != size or (not shape and len(chunks) != 1):
        reason = f"its chunks don't make it up\ngot:      {covered:,} entries\nexpected: {size:,}"
        raise damaged(path, reason, key=key)
    if len(chunks) < 2 or not size:
        return
    first = np.array([start for start, _ in chunks], np.int64)
    last = first + np.array([sizes for _, sizes in chunks], np.int64)
    filled = np.all(last > first, axis=1)
    for position in range(len(chunks) - 1):
        rest = slice(position + 1, None)
        apart = np.any((first[rest] >= last[position]) | (last[rest] <= first[position]), axis=1)
        if not (apart | ~filled[rest] | ~filled[position]).all():
            raise damaged(path, "two of its chunks overlap", key=key)
