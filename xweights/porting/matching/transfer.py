"""Write a source unit's weights to a target unit."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.hold_registry import identity
from xweights.core.parameter import Parameter
from xweights.edit.read import neutral_view
from xweights.porting.matching.trace import read_arrays
from xweights.porting.units import FeaturePermutation, LayerUnit, ParamSlice, translate


@dataclass(frozen=True, eq=False)
class _Claim:
    """The first unit that wrote an array. Its values are recomputed when needed, which is rare."""

    source: LayerUnit
    target: LayerUnit
    role: str
    permutation: FeaturePermutation

    def read_stored(self) -> Array:
        """Return the values that were written."""
        kept = read_arrays(self.target) if self.permutation.shift is not None else None
        arrays, _ = translate(self.source, read_arrays(self.source), self.target, self.permutation, kept)
        return _to_stored(self.target.slices[self.role], arrays[self.role])


class Writer:
    """Writer of units that skips arrays it can't write and returns the reasons. Call ``start`` before each attempt."""

    def __init__(self) -> None:
        self._claims: dict[tuple[Hashable, str], _Claim] = {}

    def start(self) -> None:
        """Forget all claims."""
        self._claims = {}

    def __call__(self, source: LayerUnit, target: LayerUnit, permutation: FeaturePermutation) -> list[str]:
        """Write a unit; return a sentence for each loss."""
        arrays, lost = self.check(source, target, permutation)
        for role, value in arrays.items():
            param_slice = target.slices[role]
            _write(param_slice, value, param_slice.parameter)
        return lost

    def clear(self, target: LayerUnit) -> None:
        """Write zeros to a unit that has no twin."""
        for param_slice in target.slices.values():
            zeros = np.zeros(param_slice.shape, param_slice.parameter.dtype)
            _write(param_slice, zeros, param_slice.parameter)

    def check(
        self, source: LayerUnit, target: LayerUnit, permutation: FeaturePermutation
    ) -> tuple[dict[str, Array], list[str]]:
        """Return the arrays to write, by role, and a sentence for each loss."""
        kept = read_arrays(target) if permutation.shift is not None else None
        arrays, lost = translate(source, read_arrays(source), target, permutation, kept)
        writable = {}
        for role, value in arrays.items():
            param_slice = target.slices[role]
            parameter = param_slice.parameter
            if value.dtype != parameter.dtype:
                lost.append(f"{source.path!r} is {value.dtype.name} and {parameter.name!r} {parameter.dtype.name}")
                continue
            claim = (identity(parameter), param_slice.place)
            if claim not in self._claims:
                self._claims[claim] = _Claim(source, target, role, permutation)
                writable[role] = value
            elif not np.array_equal(self._claims[claim].read_stored(), _to_stored(param_slice, value), equal_nan=True):
                lost.append(
                    f"{parameter.name!r} is shared in the target, and {self._claims[claim].source.path!r} and "
                    f"{source.path!r}, which it would have to hold, differ"
                )
        return writable, lost


def _is_whole(param_slice: ParamSlice) -> bool:
    parts = (param_slice.gates, param_slice.order, param_slice.split, param_slice.view, param_slice.columns)
    return not param_slice.index and all(part is None for part in parts)


def _to_stored(param_slice: ParamSlice, value: Array) -> Array:
    neutral = np.zeros(param_slice.parameter.shape, value.dtype)
    param_slice.write(value, neutral)
    return param_slice.parameter.layout.to_stored(neutral)


def _write(param_slice: ParamSlice, value: Array, parameter: Parameter) -> None:
    if _is_whole(param_slice):
        neutral = value.reshape(parameter.shape)
    else:
        # Other units may share the same array.
        whole = not param_slice.index and math.prod(param_slice.shape) == parameter.size
        neutral = np.empty(parameter.shape, parameter.dtype) if whole else np.array(neutral_view(parameter), order="C")
        param_slice.write(value, neutral)
    parameter.write(parameter.layout.to_stored(neutral))
