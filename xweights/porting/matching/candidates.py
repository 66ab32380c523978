"""Which calls of the source a unit of the target was given the same numbers as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.similarity import (
    Grid,
    ambiguous,
    distance,
    grid_order,
    input_tolerance,
    permutation,
    same_input,
)
from xweights.porting.matching.trace import UnitCall
from xweights.porting.units import STRAIGHT, SUMMED, VECTORS, FeaturePermutation, LayerUnit

RECURRENT = SUMMED | {"gru", "gru_reset_before"}
PARTS = frozenset({"query", "key", "value", "attention_output"})
IMAGES = frozenset({"conv", "conv_transpose", "group_norm"})
# Which of two source units is tried first: the lower number.
Prefer = Callable[[LayerUnit, LayerUnit], int]
# Up to how many rows it is tried whether they run over time first.
_ROWS = 1 << 12


@dataclass(eq=False)
class Candidate:
    """A call of the source that may be the twin's. ``error`` is None where what came in wasn't seen on both sides."""

    call: UnitCall
    turn: FeaturePermutation
    error: float | None

    def evidence(self, turn: FeaturePermutation, rivals: int) -> str:
        """Say in a few words what speaks for it."""
        shown = "by its place" if self.error is None else "given the same numbers"
        if turn.rows is not None:
            shown += ", flattened in another order"
        if turn.columns is not None:
            shown += ", reshaped in another order"
        return f"{shown}, chosen among {rivals + 1}" if rivals else shown


class Candidates:
    """Looks for them in one forward of the target.

    ``grids`` are the images seen so far, ``doubts`` what the sample can't tell apart, ``first`` whether the target has
    channels first, ``differ`` whether the source hasn't.
    """

    def __init__(self, grids: set[Grid], prefer: Prefer, *, first: bool, differ: bool) -> None:
        self.grids, self.prefer, self.first, self.differ = grids, prefer, first, differ
        self.doubts: list[str] = []

    def among(self, unit: LayerUnit, array: Array | None, calls: Sequence[UnitCall], following: int) -> list[Candidate]:
        """Return them, the likeliest first: those that were seen, that are called alike, that come next."""
        found: dict[int, Candidate] = {}
        for call in calls:
            candidate = None if id(call.unit) in found else self._of(unit, array, call)
            if candidate is not None:
                found[id(call.unit)] = candidate

        def key(one: Candidate) -> tuple[Any, ...]:
            source, number = one.call.unit, one.call.number
            order = (number < following, abs(number - following))
            other = _other_part(source, unit)
            return (one.error is None, other, self.prefer(source, unit), -likeness(source, unit), *order)

        return sorted(found.values(), key=key) if len(found) > 1 else list(found.values())

    def _of(self, unit: LayerUnit, array: Array | None, call: UnitCall) -> Candidate | None:
        expected = call.input
        if array is None or expected is None:
            return Candidate(call, STRAIGHT, None)
        limit = input_tolerance(array, expected)
        if "other" in (unit.kind, call.unit.kind) and array.size == expected.size and array.ndim > 1:
            array, expected = array.reshape(array.shape[0], -1), expected.reshape(array.shape[0], -1)
        elif unit.kind in RECURRENT and array.shape[1] < expected.shape[1]:
            expected = expected[:, : array.shape[1]]  # a cell, called step by step
        error = same_input(array, expected, limit)
        if error is None and array.ndim < 3 and array.shape == expected.shape:
            count = array.shape[0]
            for batch in (one for one in range(2, count) if count % one == 0 and count <= _ROWS):
                if distance(array, swapped(expected, (batch, count // batch))) <= limit:
                    return Candidate(call, FeaturePermutation(swapped=(batch, count // batch)), 0.0)
        if not _permutable(unit, array) or array.shape != expected.shape:
            return None if error is None else Candidate(call, STRAIGHT, error)
        straight = np.arange(expected.shape[1])
        order: Array | None = straight
        if error is None:
            # A layer that flattens may have its own mind about channels, whatever its framework does elsewhere.
            orders = (
                permutation(array, expected, self.grids, channels_first=first, limit=limit)
                for first in (self.first, not self.first)
            )
            order = next((one for one in orders if one is not None), None)
        if order is None:
            return None
        # Features that are no flattened image can't lie in another order, whatever the numbers look like.
        images = {grid for grid in self.grids if min(grid) > 1}
        if self.differ and ambiguous(order, expected, images, channels_first=self.first, limit=limit):
            self.doubts.append(
                f"at {unit.path!r} the sample looks the same flattened with channels first and with channels last"
            )
        turn = STRAIGHT if np.array_equal(order, straight) else FeaturePermutation(rows=order)
        return Candidate(call, turn, distance(array, expected[:, order]))

    def reshaped(self, array: Array, calls: Sequence[UnitCall]) -> Array | None:
        """Return the order of the columns of a vector that became this image in the framework's own order, or None."""
        for call in calls:
            expected = call.input
            if not self.differ or expected is None or expected.shape != array.shape:
                continue
            mine, theirs = _as_vector(array, self.first), _as_vector(expected, not self.first)
            if distance(mine, theirs) <= input_tolerance(array, expected):
                grid = (mine.shape[1] // array.shape[-1], array.shape[-1])
                return grid_order(grid, channels_first=self.first)
        return None


def nearest(unit: LayerUnit, array: Array | None, calls: Sequence[UnitCall], following: int) -> UnitCall | None:
    """Return the likeliest twin where none was given the same numbers; None if no call is left."""

    def key(call: UnitCall) -> tuple[Any, ...]:
        far = abs(call.number - following)
        return (input_error(call, array) >= 0.5, call.number < following, far, -likeness(call.unit, unit))

    return min(calls, key=key, default=None)


def input_error(call: UnitCall | None, array: Array | None) -> float:
    """Return how far two inputs are apart; infinity where one wasn't seen."""
    if call is None or array is None or call.input is None:
        return float("inf")
    return distance(array, call.input)


def likeness(source: LayerUnit, target: LayerUnit) -> int:
    """Return how many parts of the two paths are equal, from the end; one more if all are."""
    mine, theirs = source.path.split("/"), target.path.split("/")
    equal = 0
    for one, other in zip(reversed(mine), reversed(theirs), strict=False):
        if one != other:
            break
        equal += 1
    return equal + (mine == theirs)


def _other_part(source: LayerUnit, target: LayerUnit) -> bool:
    """Return True if both say which part of an attention layer they are, and it isn't the same."""
    mine, theirs = source.path.rpartition("/")[2], target.path.rpartition("/")[2]
    return mine in PARTS and theirs in PARTS and mine != theirs


def turned_output(unit: LayerUnit, expected: Array, turn: FeaturePermutation) -> Array:
    """Return what the source has put out, with its features in the target's order."""
    if turn.swapped is not None and expected.shape[0] == turn.swapped[0] * turn.swapped[1]:
        expected = swapped(expected, turn.swapped)
    if turn.columns is not None:
        return expected[:, turn.columns]
    if turn.rows is not None and (unit.kind in VECTORS or unit.kind == "other"):
        flat = expected.reshape(expected.shape[0], -1)
        return flat[:, turn.rows] if flat.shape[1] == turn.rows.size else expected
    return expected


def swapped(array: Array, lengths: tuple[int, int]) -> Array:
    """Return rows that run over (batch, time) as they run over (time, batch)."""
    return array.reshape(*lengths, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def _permutable(unit: LayerUnit, array: Array) -> bool:
    return (unit.kind == "dense" or unit.kind in VECTORS or unit.kind == "other") and array.ndim == 2


def _as_vector(image: Array, channels_first: bool) -> Array:
    image = np.moveaxis(image, -1, 1) if channels_first else image
    return image.reshape(image.shape[0], -1)
