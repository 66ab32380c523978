"""Find whether one array is the other times a factor plus an offset: one model scales its input, the other doesn't."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.similarity import distance

# Rounding of a scaled input in 32 bits.
_LIMIT = 1e-6
# How a refusal begins that is about it.
SCALED = "its input is scaled otherwise"
# With fewer rows a factor and an offset of each channel explain any numbers.
_ROWS = 8


class Scaling(NamedTuple):
    """What leads from one array to another: a factor and an offset, of all numbers or of each channel."""

    factor: Array
    offset: Array

    def read(self) -> tuple[Array, Array]:
        """Return the two."""
        return self.factor, self.offset

    def describe(self) -> str:
        """Return it in words."""
        factor, offset = (np.unique(numbers.astype(np.float32)) for numbers in self)
        said = f"{factor[0]:.4g} times" if factor.size == 1 else f"{factor[0]:.4g} to {factor[-1]:.4g} times"
        if not offset.any():
            return f"{said} that of its twin"
        more = f"{offset[0]:.4g}" if offset.size == 1 else f"{offset[0]:.4g} to {offset[-1]:.4g}"
        return f"{said} that of its twin, plus {more}"


def is_input(array: Array, samples: Sequence[Any]) -> bool:
    """Return True if an array has the numbers of one of the samples, in whatever order of axes."""
    for sample in samples:
        try:
            numbers = np.asarray(sample)
        except (TypeError, ValueError, RuntimeError):  # a tensor of a framework that NumPy can't read
            continue
        if numbers.size == array.size and numbers.dtype.kind in "fiu" and array.size:
            pairs = ((find(numbers), find(array)) for find in (np.min, np.max, np.mean))
            if all(np.isclose(one, other, rtol=1e-5, atol=1e-6) for one, other in pairs):
                return True
    return False


def find_scaling(given: Array, wanted: Array) -> Scaling | None:
    """Return what leads from one array to another, with channels last; None if nothing does, or if they are equal."""
    if given.shape != wanted.shape or given.ndim < 2 or given.dtype.kind != "f" or given.size < _ROWS:
        return None
    rows, others = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (given, wanted))
    axes: list[int | None] = [None, 0] if len(rows) >= _ROWS else [None]
    for axis in axes:
        mean, other_mean = rows.mean(axis=axis), others.mean(axis=axis)
        varied = np.square(rows - mean).sum(axis=axis)
        if not np.all(varied):
            return None
        factor = ((rows - mean) * (others - other_mean)).sum(axis=axis) / varied
        if not np.all(factor):
            return None
        offset = other_mean - factor * mean
        offset = np.where(np.abs(offset) <= _LIMIT * np.abs(others).max(axis=axis), 0.0, offset)
        if distance(rows * factor + offset, others) <= _LIMIT:
            unchanged = np.allclose(factor, 1.0, rtol=_LIMIT) and not offset.any()
            return None if unchanged else Scaling(*(np.broadcast_to(one, rows.shape[1:]) for one in (factor, offset)))
    return None
