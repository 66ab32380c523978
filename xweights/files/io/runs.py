"""Where the entries of a block lie in an array that is stored in C order: in runs, one for each row that it cuts."""

from __future__ import annotations

import math

import numpy as np

from xweights.core.layout import Shape
from xweights.core.shards import Ranges


def list_runs(shape: Shape, ranges: Ranges) -> tuple[int, list[int], int]:
    """Return (step, starts, length) of the runs of a block, in entries; ``step`` is that along the last cut axis."""
    axis = len(shape)
    inner = 1
    while axis and ranges[axis - 1] == (0, shape[axis - 1]):
        axis -= 1
        inner *= shape[axis]
    if not axis:
        return inner, [0], inner
    # Axes up to this one are walked through; along it the entries lie together.
    axis -= 1
    first, last = ranges[axis]
    length = (last - first) * inner
    strides = [math.prod(shape[position + 1 :]) for position in range(axis)]
    starts = np.array([first * inner], np.int64)
    for (begin, end), stride in zip(ranges[:axis], strides, strict=True):
        starts = (starts[:, None] + np.arange(begin, end, dtype=np.int64) * stride).reshape(-1)
    return shape[axis] * inner, starts.tolist(), length


def intersect(ranges: Ranges, others: Ranges) -> Ranges | None:
    """Return the block that two blocks share; None if they share no entry."""
    shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(ranges, others, strict=True))
    return shared if all(first < last for first, last in shared) else None


def cut_relative(ranges: Ranges, start: Shape) -> tuple[slice, ...]:
    """Return the index of a block in an array whose first entry is at ``start``."""
    return tuple(slice(first - begin, last - begin) for (first, last), begin in zip(ranges, start, strict=True))
