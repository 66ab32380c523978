"""Blocks, tiles and memory order of host arrays."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import accumulate, pairwise, product
from typing import Any

import numpy as np

from xweights.core.dtypes import Array, is_complex, is_floating
from xweights.core.layout import Shape

# Entries handled at once where a temporary is needed: 256 KiB of float32 stays in the L2 cache. A full-size
# temporary costs 3-5 times an in-place pass, because every fresh page faults.
BLOCK = 1 << 16


# Side of the tiles in which two arrays of different memory order are combined (a mask in neutral order, a torch kernel
# in torch's). Against one pass over 2048 x 2048: copying 4x faster, adding 5x, masking 8x.
TILE = 64


@lru_cache(maxsize=256)  # 1,000 arrays of one shape are common, and computing takes as long as using one block
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


def tiles(first: Array, second: Array) -> Iterable[tuple[Any, ...]]:
    """Return the slices in which to combine two arrays of one shape: one slice if their memory order is equal.

    Also one slice if they share memory: NumPy handles the overlap, one operation at a time.
    """
    if first.size <= BLOCK >> 2 or first.ndim < 2 or second.shape != first.shape or _order(first) == _order(second):
        return ((...,),)
    if np.may_share_memory(first, second):
        return ((...,),)
    side = 2 * TILE if first.ndim == 2 else TILE
    return product(*(tuple(slice(i, i + side) for i in range(0, n, side)) for n in first.shape))


def align_pieces(first: Array, second: Array) -> Iterator[tuple[Array, Array]]:
    """Yield matching pieces of two arrays, the second's copied into the memory order of the first's.

    Arithmetic on pieces of different memory order would cost twice (add) or three times (mask) as much.
    """
    for cut in tiles(first, second):
        part = first[cut]
        yield part, second if part.size == first.size else match_memory_order(part, second[cut])


def _order(array: Array) -> list[int]:
    return sorted((axis for axis, n in enumerate(array.shape) if n > 1), key=lambda axis: -abs(array.strides[axis]))


def copy_into(out: Array, value: Array) -> None:
    """Copy values into an array of the same dtype, whatever the memory order of either."""
    for cut in tiles(out, value):
        np.copyto(out[cut], value[cut], casting="no")


def as_stored(array: Array) -> Array:
    """Return the array with its axes in memory order, flat where that needs no copy."""
    if array.flags.forc:  # the common case, in a fifth of the time
        return array.reshape(-1, order="C" if array.flags.c_contiguous else "F")
    transposed = array.transpose(stored_order(array))
    return transposed.reshape(-1) if transposed.flags.c_contiguous else transposed


def stored_order(array: Array) -> list[int]:
    """Return the axes in memory order."""
    return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))


def quick_sum(array: Array) -> Any:
    """Return a number that is finite only if every entry is, in one pass and without a temporary."""
    with np.errstate(all="ignore"):
        if array.flags.forc and array.dtype.char in "fd" and array.dtype.isnative:
            # The sum of squares: BLAS takes half the time of a sum. If it overflows, the caller looks again.
            flat = array.reshape(-1, order="C" if array.flags.c_contiguous else "F")
            return np.dot(flat, flat)
        # Over all axes at once: NumPy then walks the array in memory order.
        return np.add.reduce(array, axis=None)


def all_finite(flat: Array) -> bool:
    """Return whether all entries of a flat array are finite, by the quickest exact way for its dtype."""
    is_finite = finite_check(flat.dtype)
    return is_finite is None or not flat.size or is_finite(flat)


@lru_cache(maxsize=64)
def finite_check(dtype: np.dtype[Any]) -> Callable[[Array], bool] | None:
    """Return a function that tells whether all entries of a flat array are finite; None for numbers that always are."""
    if not (is_floating(dtype) or is_complex(dtype)):
        return None
    if dtype.char in "fd" and dtype.isnative:
        return _has_finite_squares
    if dtype.itemsize == 2 and dtype.isnative:
        return partial(_is_below_infinity, dtype)
    return _has_no_other


def _has_no_other(flat: Array) -> bool:
    with np.errstate(all="ignore"):  # a signalling NaN of a small type
        return bool(np.isfinite(flat).all())


def _has_finite_squares(flat: Array) -> bool:
    with np.errstate(all="ignore"):
        # A finite sum of squares rules out others. BLAS takes two thirds of the time of a comparison.
        return bool(np.isfinite(np.dot(flat, flat))) or _has_no_other(flat)


def _is_below_infinity(dtype: np.dtype[Any], flat: Array) -> bool:
    # As whole numbers those of NaN are above infinity's, of either sign. A mebibyte takes 0.03 ms, where np.isfinite
    # takes 0.8 in float16 and 0.5 in bfloat16.
    infinity, negative = map(int, np.array([np.inf, -np.inf], dtype).view(np.uint16))
    bits = flat.view(np.uint16)
    return bool(np.maximum.reduce(bits.view(np.int16)) < infinity and np.maximum.reduce(bits) < negative)


def are_surely_finite(arrays: Iterable[Array]) -> bool:
    """Return whether all entries are finite; False also if it takes a closer look to tell."""
    arrays = [array if array.flags.c_contiguous else array.transpose() for array in arrays]
    if not all(array.flags.c_contiguous for array in arrays):
        return False
    if all(finite_check(dtype) is _has_finite_squares for dtype in {array.dtype for array in arrays}):
        with np.errstate(all="ignore"):
            return all(map(math.isfinite, map(np.vdot, arrays, arrays)))
    return all(all_finite(array.reshape(-1)) for array in arrays)


def match_memory_order(model: Array, array: Array) -> Array:
    """Return a copy of ``array`` with the memory order of ``model``, an array of the same shape."""
    copy = np.empty_like(model, dtype=array.dtype)
    np.copyto(copy, array)
    return copy


def aliased_values(values: Sequence[tuple[int, Array]], homes: Sequence[Array]) -> set[int]:
    """Return the positions of values, each meant for ``homes[its number]``, that share memory with another home.

    Such a value would be overwritten before it is read, as when two arrays are swapped.
    """
    spans = sorted((*_span(home), at) for at, home in enumerate(homes) if home.size)
    starts = [start for start, _, _ in spans]
    reach = list(accumulate((end for _, end, _ in spans), max))
    aliased = set()
    for position, (own, value) in enumerate(values):
        start, end = _span(value)
        at = bisect_left(starts, end) - 1
        while at >= 0 and reach[at] > start and position not in aliased:
            if spans[at][2] != own and np.may_share_memory(value, homes[spans[at][2]]):
                aliased.add(position)
            at -= 1
    return aliased


def any_overlap(arrays: Sequence[Array]) -> bool:
    """Return whether the memory of two of these arrays may be the same somewhere."""
    spans = sorted(_span(array) for array in arrays if array.size)
    return any(end > start for (_, end), (start, _) in pairwise(spans))


def find_spans(arrays: Iterable[Array]) -> tuple[Array, Array]:
    """Return the addresses at which these arrays, each of them contiguous, begin and end."""
    arrays = list(arrays)
    # NumPy has no quicker way to ask for an address: a microsecond each.
    starts = np.array([array.__array_interface__["data"][0] for array in arrays], np.int64)
    return starts, starts + np.array([array.nbytes for array in arrays], np.int64)


def _span(array: Array) -> tuple[int, int]:
    if array.flags.forc:  # the common case, in a sixth of the time
        start = array.__array_interface__["data"][0]
        return start, start + array.nbytes
    return np.lib.array_utils.byte_bounds(array)
