"""How far two sets of arrays are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FAR = 1 << 62


@dataclass(frozen=True)
class Gap:
    """The worst entry of all: how many representable numbers lie between, the relative error, and where it is."""

    ulps: int = 0
    relative: float = 0.0
    entries: int = 0
    where: str = ""

    def within(self, rtol: float, dtype: np.dtype[Any]) -> bool:
        """Whether this keeps the promise: rtol 0 is bit by bit, else rtol or the dtype's own eps if that is larger."""
        if not rtol:
            return self.entries == 0
        return self.relative <= max(rtol, eps(dtype))


def eps(dtype: np.dtype[Any]) -> float:
    """The distance from 1.0 to the next number."""
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).eps)


def gap(got: Mapping[str, Array], want: Mapping[str, Array], *, bits: bool) -> Gap:
    """Compare arrays by name. ``bits``: a NaN equals only the same NaN; else arithmetic may choose any."""
    worst = Gap()
    for name in want:
        if name not in got:
            return Gap(FAR, float("inf"), FAR, f"{name} is missing")
        found = _gap(name, got[name], want[name], bits)
        key = (found.ulps, found.entries)
        worst = Gap(
            max(found.ulps, worst.ulps),
            max(found.relative, worst.relative),
            found.entries + worst.entries,
            found.where if key > (worst.ulps, worst.entries) or not worst.where else worst.where,
        )
    return worst


def _gap(name: str, got: Array, want: Array, bits: bool) -> Gap:
    if got.shape != want.shape or got.dtype != want.dtype:
        return Gap(FAR, float("inf"), want.size, f"{name}: {got.dtype}{got.shape} for {want.dtype}{want.shape}")
    if want.dtype.kind == "b":
        other = got != want
        return Gap(FAR, float("inf"), int(other.sum()), f"{name}: {_first(other)}") if other.any() else Gap()
    a, b = np.ascontiguousarray(got), np.ascontiguousarray(want)
    word = f"u{want.dtype.itemsize}"
    other = a.view(word) != b.view(word)
    if not bits:
        other &= ~(np.isnan(a) & np.isnan(b))
    if not other.any():
        return Gap()
    with np.errstate(invalid="ignore"):  # a signalling NaN
        x, y = a[other].astype(np.float64), b[other].astype(np.float64)
    at = tuple(int(i[0]) for i in np.nonzero(other))
    with np.errstate(all="ignore"):
        relative = np.where(x == y, 0.0, np.abs(x - y) / np.abs(y))
    strange = ~np.isfinite(x) | ~np.isfinite(y)
    relative = np.where(np.isnan(relative) | strange, np.inf, relative)
    ulps = (
        FAR
        if strange.any()
        else int(max(abs(p - q) for p, q in zip(_places(a[other]), _places(b[other]), strict=True)))
    )
    where = f"{name}{list(at)}: got {got[at]!r} ({a.view(word)[at]:#x}), want {want[at]!r} ({b.view(word)[at]:#x})"
    return Gap(max(ulps, 1), float(relative.max()), int(other.sum()), where)


def _first(mask: Array) -> list[int]:
    return [int(i[0]) for i in np.nonzero(mask)]


def _places(numbers: Array) -> list[int]:
    """The place of each number on the line of all representable ones; -0.0 lies just below 0.0."""
    top = 1 << (8 * numbers.dtype.itemsize - 1)
    raw = [int(one) for one in numbers.view(f"u{numbers.dtype.itemsize}")]
    return [one if one < top else top - 1 - one for one in raw]
