"""Compare arrays up to rounding, layout, zero padding and a permutation of the features.

Errors are relative to the largest expected entry, to which a layer's rounding is proportional.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from xweights.core.dtypes import Array

# Allowed error of one layer, in units in the last place: some hundreds for sums of thousands of products, in both
# frameworks. Measured on convolutions of 4,608 products: below 20.
_UNITS = {2: 8, 4: 256, 8: 4096}
# Inputs were computed in between by layers without weights, in two frameworks.
_SLACK = 4
Grid = tuple[int, int]  # (positions, channels) of an image that was flattened


def tolerance(*arrays: Array) -> float:
    """Return the relative error that counts as rounding in the coarsest dtype of these arrays."""
    return max(_tolerance(array) for array in arrays)


def _tolerance(array: Array) -> float:
    if array.dtype.kind != "f":
        return float(np.finfo(np.float32).eps) * _UNITS[2] * 2**16 if array.dtype.itemsize < 4 else 0.0
    return float(np.finfo(array.dtype).eps) * _UNITS[array.dtype.itemsize]


def input_tolerance(*arrays: Array) -> float:
    """Return the relative error that layers without weights, and whole models, may make.

    In float64 it is larger than the rounding of float64: frameworks keep some constants (in gelu, in the scale of
    attention) in float32, which leaves 1e-8.
    """
    return max(1e-7 if array.dtype == np.float64 else _SLACK * tolerance(array) for array in arrays)


def distance(got: Array, expected: Array) -> float:
    """Return the largest difference, relative to the largest expected entry; infinity for unequal shapes or NaN."""
    if got.shape != expected.shape:
        return float("inf")
    if not got.size:
        return 0.0
    if got.dtype.kind not in "fV" and expected.dtype.kind not in "fV":
        return 0.0 if np.array_equal(got, expected) else float("inf")
    got_wide, expected_wide = _widen(got), _widen(expected)
    with np.errstate(invalid="ignore"):
        # Attention masks contain minus infinity; inf - inf would be NaN.
        difference = np.where(got_wide == expected_wide, 0, got_wide - expected_wide)
        worst = float(np.abs(difference).max())
        finite = np.abs(expected_wide[np.isfinite(expected_wide)])
    scale = float(finite.max()) if finite.size else 1.0
    if np.isnan(worst):
        return float("inf")
    return worst / (scale or 1.0)


def _widen(array: Array) -> Array:
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def input_distance(got: Array, expected: Array, limit: float) -> float | None:
    """Return the error of two inputs that may differ by zero padding around images; None if they differ."""
    error = distance(got, expected)
    if error <= limit:
        return error
    if got.ndim != expected.ndim or got.ndim < 3 or got.shape[0] != expected.shape[0]:
        return None
    if got.shape == expected.shape or got.shape[-1] != expected.shape[-1]:
        return None
    inner, outer = (trim_zeros(image) for image in (got, expected))
    error = distance(inner, outer)
    return error if error <= limit else None


def trim_zeros(image: Array) -> Array:
    """Return an image without the zeros around it."""
    cuts: list[slice] = [slice(None)]
    for axis in range(1, image.ndim - 1):
        others = tuple(other_axis for other_axis in range(image.ndim) if other_axis != axis)
        nonzero = np.flatnonzero((image != 0).any(axis=others))
        cuts.append(slice(int(nonzero[0]), int(nonzero[-1]) + 1) if nonzero.size else slice(0, 0))
    return image[tuple(cuts)]


def cropped_distance(got: Array, expected: Array, limit: float) -> float:
    """Return the error of two outputs, one of which may still have a border that its model crops later."""
    if got.shape == expected.shape or got.ndim != expected.ndim or got.ndim < 3:
        return distance(got, expected)
    if got.shape[0] != expected.shape[0] or got.shape[-1] != expected.shape[-1]:
        return float("inf")
    larger, smaller = (got, expected) if got.shape[1] >= expected.shape[1] else (expected, got)
    spare = [a - b for a, b in zip(larger.shape[1:-1], smaller.shape[1:-1], strict=True)]
    if min(spare) < 0 or max(spare) > 8:
        return float("inf")
    best = float("inf")
    for start in np.ndindex(*(margin + 1 for margin in spare)):
        cut = tuple(slice(at, at + length) for at, length in zip(start, smaller.shape[1:-1], strict=True))
        error = distance(larger[(slice(None), *cut)], smaller)
        if error <= limit:
            return error
        best = min(best, error)
    return best


@lru_cache(maxsize=256)  # it is needed again for every compared pair of layers
def grid_order(grid: Grid, *, channels_first: bool) -> Array:
    """Return the index of each entry of a flattened image in the other framework's flattened image, read-only.

    ``channels_first``: the former image has its channels first.
    """
    positions, channels = grid
    at = np.arange(positions * channels)
    shape = (positions, channels) if channels_first else (channels, positions)
    order = at.reshape(shape).T.ravel()
    order.flags.writeable = False
    return order


def find_permutation(
    got: Array, expected: Array, grids: Iterable[Grid], *, channels_first: bool, limit: float
) -> Array | None:
    """Return the order in which the features of ``expected`` make up ``got``, both (batch, features), or None.

    Blocks of the features may be flattened images of one of the ``grids``; the rest is in the same order.
    """
    orders = _find_orders(got, expected, sorted(set(grids), reverse=True), channels_first, limit, first=True)
    return orders[0] if orders else None


def is_ambiguous(order: Array, expected: Array, grids: Iterable[Grid], *, channels_first: bool, limit: float) -> bool:
    """Return True if the numbers are the same in another order of a flattened image."""
    features = expected.shape[-1]
    unpermuted = np.arange(features)
    others = [unpermuted]
    others += [grid_order(grid, channels_first=channels_first) for grid in set(grids) if grid[0] * grid[1] == features]
    seen = expected[:, order]
    return any(not np.array_equal(other, order) and distance(expected[:, other], seen) <= limit for other in others)


def _find_orders(
    got: Array, expected: Array, grids: list[Grid], channels_first: bool, limit: float, *, first: bool
) -> list[Array]:
    features = expected.shape[-1]
    if got.shape != expected.shape:
        return []
    for grid in grids:
        if grid[0] * grid[1] == features and min(grid) > 1:
            order = grid_order(grid, channels_first=channels_first)
            if distance(got, expected[:, order]) <= limit:
                return [order]
    order = np.arange(features)
    scale = float(np.abs(expected).max()) or 1.0
    at = 0
    while at < features:
        wrong = np.flatnonzero((np.abs(got[:, at:] - expected[:, order[at:]]) > limit * scale).any(axis=0))
        if not wrong.size:
            return [order]
        block = _find_block(got, expected, grids, channels_first, limit * scale, at, at + int(wrong[0]))
        if block is None:
            return []
        start, block_order = block
        order[start : start + block_order.size] = block_order + start
        at = start + block_order.size
    return [order]


def _find_block(
    got: Array, expected: Array, grids: list[Grid], channels_first: bool, limit: float, low: int, wrong: int
) -> tuple[int, Array] | None:
    """Return the start of a flattened image, at or before the first wrong feature, and its order."""
    for positions, channels in grids:
        size = positions * channels
        if min(positions, channels) < 2 or size > expected.shape[-1] - low:
            continue
        block_order = grid_order((positions, channels), channels_first=channels_first)
        # The first entry of an image keeps its index, so the image begins before the first wrong feature.
        for start in range(wrong - 1, max(low, wrong - size) - 1, -1):
            if start + size <= expected.shape[-1]:
                part = expected[:, start : start + size][:, block_order]
                if (np.abs(got[:, start : start + size] - part) <= limit).all():
                    return start, block_order
    return None
