"""When two arrays are the same numbers: up to rounding, layout, zero padding and a permutation of the features.

Errors are relative to the largest entry of what is expected, because that is what a layer's rounding goes by.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from xweights.core.dtypes import Array

# How far one layer may be off: some hundred units in the last place for a sum of thousands of products, in both
# frameworks. Measured on convolutions of 4,608 products: below 20.
_UNITS = {2: 8, 4: 256, 8: 4096}
# What comes in was computed in between by layers without weights, in two frameworks.
_SLACK = 4
Grid = tuple[int, int]  # (positions, channels) of an image that was flattened


def tolerance(*arrays: Array) -> float:
    """Return the relative error that is rounding in the coarsest dtype of these arrays."""
    return max(_tolerance(array) for array in arrays)


def _tolerance(array: Array) -> float:
    if array.dtype.kind != "f":
        return float(np.finfo(np.float32).eps) * _UNITS[2] * 2**16 if array.dtype.itemsize < 4 else 0.0
    return float(np.finfo(array.dtype).eps) * _UNITS[array.dtype.itemsize]


def input_tolerance(*arrays: Array) -> float:
    """Return the relative error that layers without weights may make, and whole models.

    In float64 that is no rounding of float64: frameworks keep some constants (in gelu, in the scale of attention) in
    float32, which leaves 1e-8.
    """
    return max(1e-7 if array.dtype == np.float64 else _SLACK * tolerance(array) for array in arrays)


def distance(got: Array, expected: Array) -> float:
    """Return the largest difference, relative to the largest entry expected; infinity for unequal shapes or NaN."""
    if got.shape != expected.shape:
        return float("inf")
    if not got.size:
        return 0.0
    if got.dtype.kind not in "fV" and expected.dtype.kind not in "fV":
        return 0.0 if np.array_equal(got, expected) else float("inf")
    one, other = _wide(got), _wide(expected)
    with np.errstate(invalid="ignore"):
        # Attention masks bring minus infinity; inf - inf would be NaN.
        difference = np.where(one == other, 0, one - other)
        worst = float(np.abs(difference).max())
        finite = np.abs(other[np.isfinite(other)])
    scale = float(finite.max()) if finite.size else 1.0
    if np.isnan(worst):
        return float("inf")
    return worst / (scale or 1.0)


def _wide(array: Array) -> Array:
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def same_input(got: Array, expected: Array, limit: float) -> float | None:
    """Return the error of two inputs that may differ by zero padding around images; None if they aren't the same."""
    error = distance(got, expected)
    if error <= limit:
        return error
    if got.ndim != expected.ndim or got.ndim < 3 or got.shape[0] != expected.shape[0]:
        return None
    if got.shape == expected.shape or got.shape[-1] != expected.shape[-1]:
        return None
    inner, outer = (_trimmed(one) for one in (got, expected))
    error = distance(inner, outer)
    return error if error <= limit else None


def _trimmed(image: Array) -> Array:
    """Return an image without the zeros around it."""
    cuts: list[slice] = [slice(None)]
    for axis in range(1, image.ndim - 1):
        others = tuple(one for one in range(image.ndim) if one != axis)
        alive = np.flatnonzero((image != 0).any(axis=others))
        cuts.append(slice(int(alive[0]), int(alive[-1]) + 1) if alive.size else slice(0, 0))
    return image[tuple(cuts)]


def cropped(got: Array, expected: Array, limit: float) -> float:
    """Return the error of two outputs, one of which may still have a border that its model cuts off afterwards."""
    if got.shape == expected.shape or got.ndim != expected.ndim or got.ndim < 3:
        return distance(got, expected)
    if got.shape[0] != expected.shape[0] or got.shape[-1] != expected.shape[-1]:
        return float("inf")
    larger, smaller = (got, expected) if got.shape[1] >= expected.shape[1] else (expected, got)
    spare = [a - b for a, b in zip(larger.shape[1:-1], smaller.shape[1:-1], strict=True)]
    if min(spare) < 0 or max(spare) > 8:
        return float("inf")
    best = float("inf")
    for start in np.ndindex(*(one + 1 for one in spare)):
        cut = tuple(slice(at, at + length) for at, length in zip(start, smaller.shape[1:-1], strict=True))
        error = distance(larger[(slice(None), *cut)], smaller)
        if error <= limit:
            return error
        best = min(best, error)
    return best


@lru_cache(maxsize=256)  # asked for again at every pair of layers that are compared
def grid_order(grid: Grid, *, channels_first: bool) -> Array:
    """Return for each entry of a flattened image where it lies in the other framework's flattened image; read only.

    ``channels_first``: the one asked for has its channels first.
    """
    positions, channels = grid
    at = np.arange(positions * channels)
    shape = (positions, channels) if channels_first else (channels, positions)
    order = at.reshape(shape).T.ravel()
    order.flags.writeable = False
    return order


def permutation(
    got: Array, expected: Array, grids: Iterable[Grid], *, channels_first: bool, limit: float
) -> Array | None:
    """Return the order in which the features of ``expected`` make up ``got``, both (batch, features), or None.

    Blocks of the features may be flattened images of one of the ``grids``, the rest lies as it is.
    """
    found = _orders(got, expected, sorted(set(grids), reverse=True), channels_first, limit, first=True)
    return found[0] if found else None


def ambiguous(order: Array, expected: Array, grids: Iterable[Grid], *, channels_first: bool, limit: float) -> bool:
    """Return True if the numbers would look the same in another order of a flattened image."""
    features = expected.shape[-1]
    straight = np.arange(features)
    others = [straight]
    others += [grid_order(one, channels_first=channels_first) for one in set(grids) if one[0] * one[1] == features]
    seen = expected[:, order]
    return any(not np.array_equal(one, order) and distance(expected[:, one], seen) <= limit for one in others)


def _orders(
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
        block = _block(got, expected, grids, channels_first, limit * scale, at, at + int(wrong[0]))
        if block is None:
            return []
        start, turned = block
        order[start : start + turned.size] = turned + start
        at = start + turned.size
    return [order]


def _block(
    got: Array, expected: Array, grids: list[Grid], channels_first: bool, limit: float, low: int, wrong: int
) -> tuple[int, Array] | None:
    """Return where a flattened image begins, at or before the first wrong feature, and its order."""
    for positions, channels in grids:
        size = positions * channels
        if min(positions, channels) < 2 or size > expected.shape[-1] - low:
            continue
        turned = grid_order((positions, channels), channels_first=channels_first)
        # The first entry of an image stays where it is, so it begins at the latest one before the first wrong one.
        for start in range(wrong - 1, max(low, wrong - size) - 1, -1):
            if start + size <= expected.shape[-1]:
                part = expected[:, start : start + size][:, turned]
                if (np.abs(got[:, start : start + size] - part) <= limit).all():
                    return start, turned
    return None
