"""Find the calls of the source that had the same input as a unit of the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.forms import Bring, Form, Forms, find_used_rows
from xweights.porting.matching.packing import Packing
from xweights.porting.matching.rows import KINDS, RowMatch, is_elsewhere, match_rows
from xweights.porting.matching.similarity import (
    Grid,
    distance,
    find_permutation,
    grid_order,
    input_distance,
    input_tolerance,
    is_ambiguous,
)
from xweights.porting.matching.trace import UnitCall
from xweights.porting.units import RECURRENT, UNPERMUTED, VECTORS, FeaturePermutation, LayerUnit

PARTS = frozenset({"query", "key", "value", "attention_output"})
IMAGES = frozenset({"conv", "conv_transpose", "group_norm"})
Columns = slice | Array
# Which of two source units is tried first: the lower number.
Prefer = Callable[[LayerUnit, LayerUnit], int]
# Up to this many rows, inputs whose rows run over time first are tried too.
_ROWS = 1 << 12
# Of arrays with at least so many entries a few are compared first.
_LARGE = 1 << 12


@dataclass(eq=False)
class Split:
    """Columns of a fused layer: those of one part, or all that have twins; ``widths`` are those of its parts."""

    columns: Array
    widths: tuple[int, ...]
    packing: Packing


@dataclass(eq=False)
class Candidate:
    """A call of the source that may be the twin's. ``error`` is None if the input wasn't seen in both models.

    ``parts`` are the calls that make up a fused unit of the target, each with the columns that it fills; ``whole`` is
    the fused call of which ``call`` is a part, ``split`` which one. ``packing`` says how they are packed. ``rows`` are
    those that the two inputs have in common, if not all.
    """

    call: UnitCall
    permutation: FeaturePermutation
    error: float | None
    parts: tuple[tuple[UnitCall, Columns], ...] = ()
    whole: UnitCall | None = None
    split: Split | None = None
    packing: str = ""
    rows: RowMatch | None = None
    numbers: tuple[int, ...] = ()  # of the calls that ``call`` is made of, if it is several

    def evidence(self, permutation: FeaturePermutation, rivals: int) -> str:
        """Return the evidence for it in a few words."""
        text = "by its place" if self.error is None else "given the same numbers"
        if self.rows is not None:
            text += f" in {self.rows.target.size} of {self.rows.counts[0]} rows"
        if self.packing:
            text += f", {self.packing}"
        if permutation.shift is not None and permutation.shift[0] != permutation.shift[1]:
            text += f", row {permutation.shift[0]} as row {permutation.shift[1]}"
        if permutation.rows is not None:
            text += ", flattened in another order"
        if permutation.columns is not None:
            text += ", reshaped in another order"
        return f"{text}, chosen among {rivals + 1}" if rivals else text


class Candidates:
    """The search for candidates in one forward of the target.

    ``grids`` are the images seen so far, ``doubts`` the pairings that the sample can't tell apart; ``first``: the
    target has channels first; ``differ``: the source has them elsewhere.
    """

    def __init__(self, grids: set[Grid], prefer: Prefer, forms: Forms, *, first: bool, differ: bool) -> None:
        self.grids, self.prefer, self.forms, self.first, self.differ = grids, prefer, forms, first, differ
        self.doubts: list[str] = []
        self._sizes: dict[tuple[int, Form], tuple[float, float]] = {}  # mean and largest entry of a source's input

    def find(self, unit: LayerUnit, array: Array | None, calls: Sequence[UnitCall], following: int) -> list[Candidate]:
        """Return the candidates, the likeliest first: those that were seen, with similar names, that come next."""
        by_unit: dict[int, Candidate] = {}
        for call in calls:
            candidate = None if id(call.unit) in by_unit else self._check(unit, array, call)
            if candidate is not None:
                by_unit[id(call.unit)] = candidate

        def key(found: Candidate) -> tuple[Any, ...]:
            source, number = found.call.unit, found.call.number
            order = (number < following, abs(number - following))
            is_other_part = _is_other_part(source, unit)
            return (
                found.error is None,
                is_elsewhere(source, unit),
                is_other_part,
                self.prefer(source, unit),
                -count_equal_parts(source, unit),
                *order,
            )

        return sorted(by_unit.values(), key=key) if len(by_unit) > 1 else list(by_unit.values())

    def find_by_rows(self, unit: LayerUnit, array: Array, calls: Sequence[UnitCall], following: int) -> list[Candidate]:
        """Return the candidates of whose inputs some rows are the same, those at the same place in a stack first."""
        if unit.kind not in KINDS:
            return []
        by_unit: dict[int, list[UnitCall]] = {}
        for call in calls:
            by_unit.setdefault(id(call.unit), []).append(call)
        found = [one for same in by_unit.values() if (one := self._match_rows(unit, array, same)) is not None]

        def key(one: Candidate) -> tuple[Any, ...]:
            far = one.call.number - following
            return is_elsewhere(one.call.unit, unit), -count_equal_parts(one.call.unit, unit), far < 0, abs(far)

        return sorted(found, key=key)

    def _match_rows(self, unit: LayerUnit, array: Array, calls: Sequence[UnitCall]) -> Candidate | None:
        source = calls[0].unit
        for _, bring_source, bring_target in self.forms.list_common(source, unit):
            got = bring_target(array)
            joined = join_calls(calls, bring_source)
            match = None if got is None or joined is None else match_rows(got, joined[0])
            if match is not None and joined is not None:
                used = [call for call, ends in zip(calls, joined[2], strict=True) if _touches(match.source, ends)]
                call = UnitCall(source, used[0].number, joined[0], joined[1])
                return Candidate(call, UNPERMUTED, match.error, rows=match, numbers=tuple(one.number for one in used))
        return None

    def _check(self, unit: LayerUnit, array: Array | None, call: UnitCall) -> Candidate | None:
        for form, bring_source, bring_target in self.forms.list_common(call.unit, unit):
            if form[0] == "rows":
                return _check_rows(unit, array, call)
            if array is None or call.input is None:
                return Candidate(call, UNPERMUTED, None)
            got, expected = bring_target(array), bring_source(call.input)
            if got is not None and expected is not None:
                found = self._compare(unit, got, call, expected, form)
                if found is not None:
                    return found
        return None

    def _compare(self, unit: LayerUnit, array: Array, call: UnitCall, expected: Array, form: Form) -> Candidate | None:
        limit = input_tolerance(array, expected)
        if (
            array.shape == expected.shape
            and array.size >= _LARGE
            and not self._may_be_equal(array, expected, limit, (call.number, form))
        ):
            return None
        if "other" in (unit.kind, call.unit.kind) and array.size == expected.size and array.ndim > 1:
            array, expected = array.reshape(array.shape[0], -1), expected.reshape(array.shape[0], -1)
        elif unit.kind in RECURRENT and array.shape[1] < expected.shape[1]:
            expected = expected[:, : array.shape[1]]  # a cell, called step by step
        error = input_distance(array, expected, limit)
        if error is None and unit.kind in RECURRENT and array.shape == expected.shape:
            # What a recurrent layer is given may be an image, flattened step by step in another order.
            array, expected = (each.reshape(-1, each.shape[-1]) for each in (array, expected))
        elif error is None and array.shape == expected.shape:
            count = array.shape[0]
            for batch in (size for size in range(2, count) if count % size == 0 and count <= _ROWS):
                if distance(array, swap_batch_and_time(expected, (batch, count // batch))) <= limit:
                    return Candidate(call, FeaturePermutation(swapped=(batch, count // batch)), 0.0)
        if not _is_permutable(unit, array) or array.shape != expected.shape:
            return None if error is None else Candidate(call, UNPERMUTED, error)
        unpermuted = np.arange(expected.shape[1])
        order: Array | None = unpermuted
        if error is None:
            # A layer that flattens may order channels otherwise than its framework does elsewhere.
            orders = (
                find_permutation(array, expected, self.grids, channels_first=first, limit=limit)
                for first in (self.first, not self.first)
            )
            order = next((found for found in orders if found is not None), None)
        if order is None:
            return None
        # Features that aren't a flattened image can't be in another order, even if the numbers suggest it.
        images = {grid for grid in self.grids if min(grid) > 1}
        if self.differ and is_ambiguous(order, expected, images, channels_first=self.first, limit=limit):
            self.doubts.append(
                f"at {unit.path!r} the sample looks the same flattened with channels first and with channels last"
            )
        permutation = UNPERMUTED if np.array_equal(order, unpermuted) else FeaturePermutation(rows=order)
        return Candidate(call, permutation, distance(array, expected[:, order]))

    def _may_be_equal(self, array: Array, expected: Array, limit: float, key: tuple[int, Form]) -> bool:
        """Return False if the sizes of the entries already show that two arrays differ, in whatever order they are."""
        if array.dtype.kind != "f" or expected.dtype.kind != "f":
            return True
        if key not in self._sizes:
            entries = np.abs(expected, dtype=expected.dtype)
            self._sizes[key] = (float(entries.mean(dtype=np.float64)), float(entries.max()) or 1.0)
        mean, largest = self._sizes[key]
        got = float(np.abs(array).mean(dtype=np.float64))
        return not np.isfinite(mean + got) or abs(got - mean) <= limit * largest

    def find_column_order(self, array: Array, calls: Sequence[UnitCall]) -> Array | None:
        """Return the order of a vector's columns if it was reshaped to this image in the framework's order, or None."""
        for call in calls:
            expected = call.input
            if not self.differ or expected is None or expected.shape != array.shape:
                continue
            own_vectors, source_vectors = _flatten(array, self.first), _flatten(expected, not self.first)
            if distance(own_vectors, source_vectors) <= input_tolerance(array, expected):
                grid = (own_vectors.shape[1] // array.shape[-1], array.shape[-1])
                return grid_order(grid, channels_first=self.first)
        return None


def join_calls(calls: Sequence[UnitCall], bring: Bring) -> tuple[Array, Array | None, list[tuple[int, int]]] | None:
    """Return the inputs of several calls of one unit below one another, their outputs, and the rows of each."""
    inputs = [None if call.input is None else bring(call.input) for call in calls]
    first = inputs[0]
    if first is None or any(each is None or each.shape[1:] != first.shape[1:] for each in inputs):
        return None
    shown = [each for each in inputs if each is not None]
    ends, at = [], 0
    for each in shown:
        ends.append((at, at + len(each)))
        at += len(each)
    outputs = [
        None if call.output is None or call.output.size % len(each) else call.output.reshape(len(each), -1)
        for call, each in zip(calls, shown, strict=True)
    ]
    seen = [each for each in outputs if each is not None]
    alike = len(seen) == len(calls) and all(each.shape[1:] == seen[0].shape[1:] for each in seen)
    return np.concatenate(shown), np.concatenate(seen) if alike else None, ends


def _touches(rows: Array, ends: tuple[int, int]) -> bool:
    return bool(((rows >= ends[0]) & (rows < ends[1])).any())


def find_nearest(unit: LayerUnit, array: Array | None, calls: Sequence[UnitCall], following: int) -> UnitCall | None:
    """Return the likeliest twin if none had the same input; None if no call is left."""

    def key(call: UnitCall) -> tuple[Any, ...]:
        far = abs(call.number - following)
        return (input_error(call, array) >= 0.5, call.number < following, far, -count_equal_parts(call.unit, unit))

    return min(calls, key=key, default=None)


def input_error(call: UnitCall | None, array: Array | None) -> float:
    """Return the distance of two inputs; infinity if one wasn't seen."""
    if call is None or array is None or call.input is None:
        return float("inf")
    return distance(array, call.input)


def count_equal_parts(source: LayerUnit, target: LayerUnit) -> int:
    """Return the number of equal parts of the two paths, from the end; one more if all are equal."""
    source_parts, target_parts = source.path.split("/"), target.path.split("/")
    equal = 0
    for source_part, target_part in zip(reversed(source_parts), reversed(target_parts), strict=False):
        if source_part != target_part:
            break
        equal += 1
    return equal + (source_parts == target_parts)


def _is_other_part(source: LayerUnit, target: LayerUnit) -> bool:
    """Return True if both are named parts of an attention layer, and not the same part."""
    source_part, target_part = source.path.rpartition("/")[2], target.path.rpartition("/")[2]
    return source_part in PARTS and target_part in PARTS and source_part != target_part


def permute_output(unit: LayerUnit, expected: Array, permutation: FeaturePermutation) -> Array:
    """Return the output of the source with its features in the target's order."""
    if permutation.swapped is not None and expected.shape[0] == permutation.swapped[0] * permutation.swapped[1]:
        expected = swap_batch_and_time(expected, permutation.swapped)
    if permutation.addend is not None:
        return expected + permutation.addend
    if permutation.columns is not None:
        return expected[..., permutation.columns]
    if permutation.rows is not None and (unit.kind in VECTORS or unit.kind == "other"):
        flat = expected.reshape(expected.shape[0], -1)
        return flat[:, permutation.rows] if flat.shape[1] == permutation.rows.size else expected
    return expected


def swap_batch_and_time(array: Array, lengths: tuple[int, int]) -> Array:
    """Return rows that run over (batch, time) as they run over (time, batch)."""
    return array.reshape(*lengths, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def _is_permutable(unit: LayerUnit, array: Array) -> bool:
    return (unit.kind in ("dense", "conv", "other") or unit.kind in VECTORS | RECURRENT) and array.ndim == 2


def _check_rows(unit: LayerUnit, array: Array | None, call: UnitCall) -> Candidate | None:
    """Return a table as a candidate for another of which as many rows are used, whatever the sample is."""
    used = find_used_rows(call.unit, call.input), find_used_rows(unit, array)
    if used[0] is not None and used[1] is not None and used[0][1] == used[1][1]:
        return Candidate(call, FeaturePermutation(shift=(used[0][0], used[1][0])), None)
    tables = [next(iter(one.slices.values())).shape for one in (call.unit, unit)]
    return Candidate(call, UNPERMUTED, None) if tables[0] == tables[1] else None


def _flatten(image: Array, channels_first: bool) -> Array:
    image = np.moveaxis(image, -1, 1) if channels_first else image
    return image.reshape(image.shape[0], -1)
