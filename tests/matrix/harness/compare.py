"""Measure the distance between two sets of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FAR = 1 << 62


@dataclass(frozen=True)
class Gap:
    """The worst entry of all: its distance in representable numbers, its relative error, and its position."""

    ulps: int = 0
    relative: float = 0.0
    entries: int = 0
    where: str = ""

    def within(self, rtol: float, dtype: np.dtype[Any]) -> bool:
        """Return whether this keeps the promise: bit by bit for rtol 0, else within rtol or the dtype's eps."""
        if not rtol:
            return self.entries == 0
        return self.relative <= max(rtol, eps(dtype))


def eps(dtype: np.dtype[Any]) -> float:
    """Return the distance from 1.0 to the next number."""
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).eps)


def gap(got: Mapping[str, Array], want: Mapping[str, Array], *, bits: bool) -> Gap:
    """Compare arrays by name. ``bits``: a NaN equals only the same NaN; else arithmetic may choose any."""
    worst = Gap()
    for name in want:
        if name not in got:
            return Gap(FAR, float("inf"), FAR, f"{name} is missing")
        current = _gap(name, got[name], want[name], bits)
        key = (current.ulps, current.entries)
        worst = Gap(
            max(current.ulps, worst.ulps),
            max(current.relative, worst.relative),
            current.entries + worst.entries,
            current.where if key > (worst.ulps, worst.entries) or not worst.where else worst.where,
        )
    return worst


def _gap(name: str, got: Array, want: Array, bits: bool) -> Gap:
    if got.shape != want.shape or got.dtype != want.dtype:
        return Gap(FAR, float("inf"), want.size, f"{name}: {got.dtype}{got.shape} for {want.dtype}{want.shape}")
    if want.dtype.kind == "b":
        differs = got != want
        return Gap(FAR, float("inf"), int(differs.sum()), f"{name}: {_first(differs)}") if differs.any() else Gap()
    a, b = np.ascontiguousarray(got), np.ascontiguousarray(want)
    bit_type = f"u{want.dtype.itemsize}"
    differs = a.view(bit_type) != b.view(bit_type)
    if not bits:
        differs &= ~(np.isnan(a) & np.isnan(b))
    if not differs.any():
        return Gap()
    with np.errstate(invalid="ignore"):  # a signalling NaN
        x, y = a[differs].astype(np.float64), b[differs].astype(np.float64)
    at = tuple(int(i[0]) for i in np.nonzero(differs))
    with np.errstate(all="ignore"):
        relative = np.where(x == y, 0.0, np.abs(x - y) / np.abs(y))
    nonfinite = ~np.isfinite(x) | ~np.isfinite(y)
    relative = np.where(np.isnan(relative) | nonfinite, np.inf, relative)
    ulps = (
        FAR
        if nonfinite.any()
        else int(max(abs(p - q) for p, q in zip(_positions(a[differs]), _positions(b[differs]), strict=True)))
    )
    where = (
        f"{name}{list(at)}: got {got[at]!r} ({a.view(bit_type)[at]:#x}), want {want[at]!r} ({b.view(bit_type)[at]:#x})"
    )
    return Gap(max(ulps, 1), float(relative.max()), int(differs.sum()), where)


def _first(mask: Array) -> list[int]:
    return [int(i[0]) for i in np.nonzero(mask)]


def _positions(numbers: Array) -> list[int]:
    """Return the position of each number among all representable ones; -0.0 is just below 0.0."""
    top = 1 << (8 * numbers.dtype.itemsize - 1)
    raw = [int(pattern) for pattern in numbers.view(f"u{numbers.dtype.itemsize}")]
    return [pattern if pattern < top else top - 1 - pattern for pattern in raw]
