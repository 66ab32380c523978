"""The numbers in plots and comparisons: histograms, maps of zeros, singular values, largest changes.

At most one parameter is expanded at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from xweights.core.blocks import as_stored, blocks
from xweights.core.dtypes import Array, widen
from xweights.core.layout import reorder
from xweights.core.names import Names
from xweights.core.parameter import Parameter
from xweights.edit.read import neutral_view
from xweights.inspection.diff import match_parameters
from xweights.inspection.results import Diff


@dataclass(frozen=True)
class Histogram:
    """Counts of values by range; zeros and non-finite values apart, since a pruned array is mostly zeros."""

    counts: Array
    edges: Array
    zeros: int
    nonfinite: int
    beyond: int = 0  # finite values outside of the edges: a few far from all others would press those into one bar


@np.errstate(all="ignore")
def histogram(p: Parameter, *, minus: Parameter | None = None) -> Histogram:
    """Return the histogram of a parameter, or of its differences from another of its shape.

    Complex numbers count by their magnitudes.
    """
    bins = min(60, max(10, 2 * math.isqrt(p.size)))
    view = neutral_view(p)
    other = None if minus is None else align_axes(p, minus)
    # Two passes, one for the range and one for the counts, and no full-size copy.
    low, high, zeros, nonfinite = math.inf, -math.inf, 0, 0
    if other is None:
        view = as_stored(view)
    for cut in blocks(view.shape):
        wide = _wide(view, other, cut)
        finite = np.isfinite(wide)
        nonfinite += wide.size - int(np.count_nonzero(finite))
        zeros += int(np.count_nonzero(wide == 0))
        kept = wide[finite & (wide != 0)]
        if kept.size:
            low, high = min(low, float(kept.min())), max(high, float(kept.max()))
    if low > high:
        return Histogram(np.zeros(1, np.int64), np.array([-0.5, 0.5]), zeros, nonfinite)
    edges = _edges(low, high, bins)
    counts = _count(view, other, edges)
    total = int(counts.sum())
    for _ in range(_CLOSER):
        inside = _crowded(counts, edges)
        if inside is None:
            break
        edges = _edges(*inside, bins)
        counts = _count(view, other, edges)
    return Histogram(counts, edges, zeros, nonfinite, total - int(counts.sum()))


# How often the range is narrowed, to a quarter or less; from how many values on; and the share that may be left out.
_CLOSER, _MANY, _FAR = 4, 500, 0.002


def _count(view: Array, other: Array | None, edges: Array) -> Array:
    counts = np.zeros(len(edges) - 1, np.int64)
    for cut in blocks(view.shape):
        wide = _wide(view, other, cut)
        counts += np.histogram(wide[np.isfinite(wide) & (wide != 0)], edges)[0]
    return counts


def _crowded(counts: Array, edges: Array) -> tuple[float, float] | None:
    """Return the range of a few bins that have nearly all values; None if the values are spread over more."""
    total = int(counts.sum())
    if total < _MANY:
        return None
    running = np.cumsum(counts)
    low = int(np.searchsorted(running, total * _FAR / 2, side="right"))
    high = int(np.searchsorted(running, total * (1 - _FAR / 2)))
    if 4 * (high - low + 1) > len(counts):
        return None
    return float(edges[low]), float(edges[min(high + 1, len(edges) - 1)])


def _edges(low: float, high: float, bins: int) -> Array:
    if low == high:
        reach = abs(low) / 2
        low, high = low - reach, high + reach
    part = np.linspace(0, 1, bins + 1)
    edges = low * (1 - part) + high * part  # high - low may overflow
    edges[0], edges[-1] = low, high
    # No bins fit between neighbouring floats.
    return edges if np.all(np.diff(edges) > 0) else np.array([low, high])


def _wide(view: Array, other: Array | None, cut: Any) -> Array:
    wide = widen(np.ravel(view[cut]))
    if other is not None:
        wide = wide - widen(np.ravel(other[cut]))
    return np.abs(wide) if wide.dtype.kind == "c" else wide


def align_axes(p: Parameter, other: Parameter) -> Array:
    """Return another parameter's values in the axis order of this one."""
    values = neutral_view(other)
    if p.axes is not None and other.axes is not None and p.axes != other.axes:
        values = reorder(values, other.axes, p.axes)
    return values


def as_matrix(p: Parameter) -> Array | None:
    """Return a parameter as a matrix (all inputs, out); None where its axes are unknown."""
    view = neutral_view(p)
    if view.ndim < 2 or not view.size:
        return None
    if p.axes is None:
        return view if view.ndim == 2 else None
    last = [p.axes.index(axis) for axis in p.outputs]
    first = [axis for axis in range(view.ndim) if axis not in last]
    transposed = view.transpose([*first, *last])
    return transposed.reshape(math.prod(view.shape[axis] for axis in first), -1)


def singular_values(p: Parameter) -> Array | None:
    """Return the singular values, largest first, of a parameter flattened to (all inputs, out), in float64.

    None where it is no matrix, where its axes are unknown, or where a value isn't finite.
    """
    flat = as_matrix(p)
    if flat is None:
        return None
    wide = widen(flat)
    if not np.isfinite(wide).all():
        return None
    values: Array = np.linalg.svd(wide, compute_uv=False)
    return values


def zero_map(p: Parameter, side: int = 64) -> Array:
    """Return the shares of zeros of a parameter, in at most ``side`` x ``side`` fields of (inputs, outputs)."""
    flat = as_matrix(p)
    if flat is None:
        view = neutral_view(p)
        flat = view.reshape(-1, view.shape[-1] if view.ndim else 1)
    rows, columns = (np.linspace(0, n, min(n, side) + 1).astype(int) for n in flat.shape)
    shares = np.empty((len(rows) - 1, len(columns) - 1))
    for row, (begin, end) in enumerate(pairwise(rows)):
        zeros = np.count_nonzero(flat[begin:end] == 0, axis=0)
        shares[row] = np.add.reduceat(zeros, columns[:-1]) / ((end - begin) * np.diff(columns))
    return shares


def zeros_in(p: Parameter) -> int:
    """Return how many entries are zero, of either sign."""
    view = neutral_view(p)
    return sum(int(np.count_nonzero(view[cut] == 0)) for cut in blocks(view.shape))


def count_nonfinite(p: Parameter) -> int:
    """Return how many entries are NaN or infinite."""
    view = neutral_view(p)
    return sum(view[cut].size - int(np.count_nonzero(np.isfinite(widen(view[cut])))) for cut in blocks(view.shape))


@dataclass(frozen=True)
class TopEntry:
    """One entry that differs, and its index in neutral order."""

    name: str
    index: tuple[int, ...]
    a: float | complex
    b: float | complex

    @property
    def gap(self) -> float:
        """The distance between the two; infinite where one is NaN."""
        gap = abs(self.a - self.b)
        return math.inf if math.isnan(gap) else gap


@np.errstate(all="ignore")
def top_entries(differences: Diff, a: Any, b: Any, count: int, *, names: Names | None = None) -> list[TopEntry]:
    """Return the entries that differ most, of comparable parameters."""
    pairs = pair_changed(differences, a, b, names)
    top: list[TopEntry] = []
    for name, p, counterpart in pairs:
        x, y = neutral_view(p), align_axes(p, counterpart)
        for cut in blocks(x.shape):
            first, second = widen(x[cut]), widen(y[cut])
            gap = np.abs(first - second)
            same = (first == second) | (np.isnan(first) & np.isnan(second))
            gap = np.where(np.isnan(gap) & ~same, np.inf, np.where(same, 0.0, gap))
            flat = np.ravel(gap)
            best = np.argpartition(flat, -count)[-count:] if flat.size > count else np.arange(flat.size)
            for position in best[flat[best] > 0]:
                inside = np.unravel_index(int(position), gap.shape)
                at = tuple(int(i) + (part.start or 0) for i, part in zip(inside, cut, strict=True))
                top.append(TopEntry(name, at, first[inside].item(), second[inside].item()))
        top = sorted(top, key=lambda entry: (-entry.gap, entry.name, entry.index))[:count]
    return top


def pair_changed(differences: Diff, a: Any, b: Any, names: Names | None) -> Sequence[tuple[str, Parameter, Parameter]]:
    """Return (name, parameter of a, its counterpart in b) for parameters that differ and have one shape."""
    # Matched as they were compared: the names in a file may be a framework's own.
    changed = {change.name for change in differences.changes if not math.isnan(change.max_abs)}
    return [
        (name, p, counterpart)
        for name, p, counterpart in match_parameters(a, b, ..., names)
        if p is not None and counterpart is not None and name in changed
    ]
