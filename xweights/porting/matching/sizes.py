"""Sizes of inputs: which calls of the source can't have been given the same numbers, without comparing them.

The mean absolute entry and the two extremes are the same in whatever order the entries are. They are found once for
each input, so that a unit of the target is compared with the few calls that may be its twin: of 1,000 equal layers in a
row, with one. The mean alone doesn't tell normalized inputs apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.forms import Form, Forms
from xweights.porting.matching.similarity import input_tolerance
from xweights.porting.matching.trace import UnitCall
from xweights.porting.units import LayerUnit

# Of so few calls all are compared.
_FEW = 3


class _Table:
    """The inputs of all calls in one form, by the numbers of the calls."""

    def __init__(self, form: Form, forms: Forms, calls: Sequence[UnitCall]) -> None:
        count = max((call.number for call in calls), default=-1) + 1
        self.has_form = np.zeros(count, bool)
        self.sizes = np.full((count, 3), np.nan)
        self.largest = np.ones(count)
        self.shapes = np.full(count, -1)
        self.codes: dict[tuple[Any, ...], int] = {}
        for call in calls:
            bring = forms.of(call.unit).get(form)
            if bring is None:
                continue
            self.has_form[call.number] = True
            array = None if call.input is None else bring(call.input)
            if array is not None and array.dtype.kind == "f" and array.size:
                self.shapes[call.number] = self.codes.setdefault((array.shape, array.dtype), len(self.codes))
                self.sizes[call.number] = _measure(array)
                self.largest[call.number] = np.abs(self.sizes[call.number]).max() or 1.0

    def may_be_equal(self, array: Array | None, numbers: Array) -> Array:
        """Return which of the calls have the form, and aren't excluded by the sizes of their inputs."""
        possible: Array = self.has_form[numbers]
        code = None if array is None else self.codes.get((array.shape, array.dtype))
        if array is None or code is None:
            return possible
        with np.errstate(invalid="ignore"):
            difference = np.abs(self.sizes[numbers] - _measure(array)).max(axis=1)
            far = difference > input_tolerance(array) * self.largest[numbers]
        excluded: Array = (self.shapes[numbers] == code) & far
        left: Array = possible & ~excluded
        return left


class InputSizes:
    """The sizes of the inputs of all calls of the source, in all forms that are asked for."""

    def __init__(self, forms: Forms, calls: Sequence[UnitCall]) -> None:
        self._forms, self._calls = forms, calls
        self._tables: dict[Form, _Table] = {}

    def shortlist(self, unit: LayerUnit, array: Array | None, calls: Sequence[UnitCall]) -> Sequence[UnitCall]:
        """Return those of the calls that may have been given the same numbers as a unit of the target."""
        if array is None or array.dtype.kind != "f" or len(calls) <= _FEW or unit.kind == "other":
            return calls
        numbers = np.fromiter((call.number for call in calls), np.int64, len(calls))
        kept, known = np.zeros(len(calls), bool), np.zeros(len(calls), bool)
        for form, bring in self._forms.of(unit).items():
            if form[0] == "rows":
                return calls
            if form not in self._tables:
                self._tables[form] = _Table(form, self._forms, self._calls)
            table = self._tables[form]
            if table.has_form[numbers].any():
                known |= table.has_form[numbers]
                kept |= table.may_be_equal(bring(array), numbers)
        return [call for call, keep in zip(calls, kept | ~known, strict=True) if keep]


def _measure(array: Array) -> tuple[float, float, float]:
    """Return the mean absolute entry and the extremes; NaN if one isn't finite, which is compared with everything."""
    sizes = float(np.abs(array).mean(dtype=np.float64)), float(array.max()), float(array.min())
    return sizes if np.isfinite(sizes).all() else (float("nan"),) * 3
