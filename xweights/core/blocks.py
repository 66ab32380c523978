"""Blocks, tiles and memory order of host arrays."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, product
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape

# Entries handled at once where a temporary is needed: 256 KiB of float32 stays in the second-level cache. A full-size
# temporary costs 3-5 times an in-place pass, because every fresh page faults.
BLOCK = 1 << 16


# Side of the tiles in which one array is combined with another that lies across it in memory (a mask in neutral order,
# a torch kernel in torch's). Against one pass over 2048 x 2048: copying 4x quicker, adding 5x, masking 8x.
TILE = 64


@lru_cache(maxsize=256)  # 1,000 arrays of one shape are the rule, and reckoning takes as long as using one block
def blocks(shape: Shape, entries: int = BLOCK) -> Sequence[tuple[slice, ...]]:
    """Return slices that cut ``shape`` into pieces of about ``entries`` along its leading axes, in C order."""
    if not shape:
        return [()]
    size = math.prod(shape)
    if size <= entries:
        return [tuple(slice(0, n) for n in shape)]
    row = size // shape[0]
    if row >= entries:
        return [(slice(i, i + 1), *rest) for i in range(shape[0]) for rest in blocks(shape[1:], entries)]
    step = max(1, entries // max(row, 1))
    return [(slice(i, min(i + step, shape[0])), *(slice(0, n) for n in shape[1:])) for i in range(0, shape[0], step)]


def tiles(one: Array, other: Array) -> Iterable[tuple[Any, ...]]:
    """Return the cuts in which to combine two arrays of one shape: a single one if they lie in memory alike.

    Also a single one if they share memory: NumPy takes care of that, one operation at a time.
    """
    if one.size <= BLOCK >> 2 or one.ndim < 2 or other.shape != one.shape or _order(one) == _order(other):
        return ((...,),)
    if np.may_share_memory(one, other):
        return ((...,),)
    side = 2 * TILE if one.ndim == 2 else TILE
    return product(*(tuple(slice(i, i + side) for i in range(0, n, side)) for n in one.shape))


def turned(one: Array, other: Array) -> Iterator[tuple[Array, Array]]:
    """Yield pieces of two arrays, those of the second brought to lie in memory as those of the first.

    Arithmetic on pieces that lie across each other would cost twice (add) or three times (mask) as much.
    """
    for cut in tiles(one, other):
        part = one[cut]
        yield part, other if part.size == one.size else laid_like(part, other[cut])


def _order(array: Array) -> list[int]:
    return sorted((axis for axis, n in enumerate(array.shape) if n > 1), key=lambda axis: -abs(array.strides[axis]))


def copy_into(out: Array, value: Array) -> None:
    """Copy values into an array of the same dtype, however either lies in memory."""
    for cut in tiles(out, value):
        np.copyto(out[cut], value[cut], casting="no")


def as_stored(array: Array) -> Array:
    """Return the array with its axes in the order in which they lie in memory, flat where that needs no copy."""
    turned = array.transpose(stored_order(array))
    return turned.reshape(-1) if turned.flags.c_contiguous else turned


def stored_order(array: Array) -> list[int]:
    """Return the axes in the order in which they lie in memory."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


def quick_sum(array: Array) -> Any:
    """Return a number that is finite only if every entry is, in one pass and without a temporary."""
    with np.errstate(over="ignore", invalid="ignore"):
        if array.flags.forc and array.dtype.char in "fd" and array.dtype.isnative:
            # The sum of squares: BLAS takes half of the time of a sum. If it overflows, a second look settles it.
            flat = array.reshape(-1, order="C" if array.flags.c_contiguous else "F")
            return np.dot(flat, flat)
        # Over all axes at once: NumPy then walks the array the way it lies in memory.
        return np.add.reduce(array, axis=None)


def laid_like(one: Array, other: Array) -> Array:
    """Return a copy of a small array that lies in memory as another one of its shape does."""
    copy = np.empty_like(one, dtype=other.dtype)
    np.copyto(copy, other)
    return copy


def aliased_values(values: Sequence[tuple[int, Array]], homes: Sequence[Array]) -> set[int]:
    """Return which of the values, each meant for ``homes[its number]``, share memory with another of the homes.

    Written one after the other, such a value would have changed by the time it is read: as when two arrays are swapped.
    """
    spans = sorted((*_span(home), at) for at, home in enumerate(homes) if home.size)
    starts = [start for start, _, _ in spans]
    reach = list(accumulate((end for _, end, _ in spans), max))
    found = set()
    for position, (own, value) in enumerate(values):
        start, end = _span(value)
        at = bisect_left(starts, end) - 1
        while at >= 0 and reach[at] > start and position not in found:
            if spans[at][2] != own and np.may_share_memory(value, homes[spans[at][2]]):
                found.add(position)
            at -= 1
    return found


def _span(array: Array) -> tuple[int, int]:
    if array.flags.forc:  # the common case, in a sixth of the time of the general one
        start = array.__array_interface__["data"][0]
        return start, start + array.nbytes
    return np.lib.array_utils.byte_bounds(array)
