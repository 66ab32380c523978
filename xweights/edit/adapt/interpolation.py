"""Interpolation between grids: the weights of torch's `interpolate`, in float64, and their use.

All of it is products and sums of single entries in one order, without a matrix product or a power function, so that it
gives the same bits on every machine.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from xweights.core.dtypes import Array

Mode = Literal["bicubic", "bilinear"]

# The free parameter of the cubic kernel (Keys 1981). torch has -0.5 where it antialiases, as Pillow, and -0.75 where it
# doesn't, as OpenCV: aten/src/ATen/native/UpSample.h and cpu/UpSampleKernel.cpp.
_ANTIALIASED, _PLAIN = -0.5, -0.75


class Taps(NamedTuple):
    """For each new position along an axis, the old positions that it is made of, and their weights: both (new, k)."""

    positions: Array
    weights: Array


def find_taps(old: int, new: int, mode: Mode, *, antialias: bool) -> Taps:
    """Return what each new position along an axis is made of.

    Centers of pixels are aligned (``align_corners=False``). Antialiasing widens the kernel by the scale where there are
    fewer new positions than old ones, and cuts it at the border; without it positions beyond the border are clamped.
    """
    scale = old / new
    centers = scale * (np.arange(new) + 0.5)
    if not antialias:
        return _find_plain_taps(old, centers - 0.5, mode)
    stretch = max(scale, 1.0)
    support = (2.0 if mode == "bicubic" else 1.0) * stretch
    first = np.maximum(np.trunc(centers - support + 0.5), 0).astype(np.int64)
    last = np.minimum(np.trunc(centers + support + 0.5), old).astype(np.int64)
    positions = first[:, None] + np.arange(int((last - first).max(initial=1)))
    distances = np.abs((positions - centers[:, None] + 0.5) / stretch)
    weights = _cubic(distances, _ANTIALIASED) if mode == "bicubic" else np.maximum(1.0 - distances, 0.0)
    weights = np.where(positions < last[:, None], weights, 0.0)
    total = np.zeros(new)
    for tap in range(weights.shape[1]):
        total += weights[:, tap]
    return Taps(np.minimum(positions, old - 1), weights / total[:, None])


def _find_plain_taps(old: int, centers: Array, mode: Mode) -> Taps:
    if mode == "bilinear":
        centers = np.maximum(centers, 0.0)
        offsets = np.arange(0, 2)
    else:
        offsets = np.arange(-1, 3)
    below = np.floor(centers)
    positions = below[:, None] + offsets
    distances = np.abs(positions - centers[:, None])
    weights = _cubic(distances, _PLAIN) if mode == "bicubic" else 1.0 - distances
    return Taps(np.clip(positions, 0, old - 1).astype(np.int64), weights)


def _cubic(distances: Array, a: float) -> Array:
    """Return the cubic convolution kernel at distances >= 0."""
    x = distances
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def interpolate_axis(array: Array, axis: int, taps: Taps) -> Array:
    """Return a float64 array interpolated along one axis."""
    weights = taps.weights.reshape(*taps.weights.shape, *(1,) * (array.ndim - axis - 1))
    total = None
    for tap in range(taps.weights.shape[1]):
        part = np.take(array, taps.positions[:, tap], axis) * weights[:, tap]
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    return total


def interpolate(grid: Array, axes: tuple[int, ...], new: tuple[int, ...], mode: Mode, *, antialias: bool) -> Array:
    """Return an array interpolated along axes to their new lengths, in float64: the last axis first, as torch does."""
    values = grid.astype(np.float64)
    for axis, length in reversed(list(zip(axes, new, strict=True))):
        if values.shape[axis] != length:
            values = interpolate_axis(values, axis, find_taps(values.shape[axis], length, mode, antialias=antialias))
    return values
