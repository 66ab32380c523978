"""Find activations of one model that the sample doesn't show.

A layer that puts out nothing below zero looks the same with a rectifier behind it and without. Both models are then
called once more, with the outputs of such layers moved until about half of their numbers are below zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import PortError, Problems
from xweights.porting.matching.folds import NORMS, OUTPUTS
from xweights.porting.matching.matching import Matching
from xweights.porting.matching.outputs import compare_outputs
from xweights.porting.matching.pairs import Pair
from xweights.porting.matching.samples import is_nowhere_negative
from xweights.porting.matching.trace import TracedModel, UnitCall, select_array
from xweights.porting.protocol import Arrays, LayerRecord
from xweights.porting.session import Run

# The first of as many layers behind which the models differ is searched for one by one.
_MOST = 8

# What is taken off the outputs of a layer, by the id of the source's unit and call by call.
Offsets = dict[int, list[float]]


class _Shift:
    """A watcher that moves the outputs of some units, before their activations, by what it writes down or is given."""

    def __init__(self, traced: TracedModel, keys: Mapping[int, int], given: Offsets | None = None) -> None:
        self.offsets: Offsets = {}
        self._traced = traced
        self._keys = keys
        self._given = given

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        """Do nothing."""

    def leave(self, record: LayerRecord, outputs: Arrays) -> Array | None:
        """Return the moved output of a unit that is to be moved."""
        units = self._traced.by_record.get(id(record), [])
        key = self._keys.get(id(units[0])) if len(units) == 1 else None
        array = None if key is None else select_array(units[0], outputs, 1)
        if key is None or array is None:
            return None
        of_calls = self.offsets.setdefault(key, [])
        if self._given is None:
            # Of this call, as layers before it were moved, too: with offsets of the plain run all would end below zero.
            of_calls.append(float(array.mean()) if np.ptp(array) else float(array.flat[0]) + 1)
        else:
            of_calls.append(_at(self._given.get(key, ()), len(of_calls)))
        return (array - of_calls[-1]).astype(array.dtype)


def _at(offsets: Sequence[float], call: int) -> float:
    # Another number of calls is a difference that shows by itself.
    return offsets[min(call, len(offsets) - 1)] if offsets else 0.0


def check_rectifiers(run: Run, sample: Any, matching: Matching, pairs: Sequence[Pair]) -> None:
    """Refuse a port if the models differ once layers that put out nothing below zero on the sample do so."""
    never_negative = _find_never_negative(matching)
    whole = {id(unit) for unit in (*matching.source.units, *matching.target.units)}
    # A folded layer, or a part of a fused one, isn't called by itself.
    parts = {id(pair.source) for pair in pairs if not {id(pair.source), id(pair.target)} <= whole}
    moved = [pair for pair in pairs if id(pair.source) in never_negative - parts]
    if not moved or not _differ(run, sample, matching, moved):
        return
    alone = (one for one in moved[:_MOST] if len(moved) > 1 and _differ(run, sample, matching, [one]))
    found = next(alone, moved[0])
    problems = Problems("this port is not right, and nothing was changed")
    problems.add(
        PortError,
        f"{found.target.path!r} puts out nothing below zero with this sample, and when it does, the outputs differ: "
        "one model has a rectifier behind it that the other lacks, or another one",
        fix=f"give {found.target.path!r} and {found.source.path!r} of the source the same activation",
    )
    problems.check()


def _find_never_negative(matching: Matching) -> set[int]:
    """Return the ids of layers of the source that put out nothing below zero, whenever they are called."""
    calls: dict[int, list[UnitCall]] = {}
    for call in matching.calls:
        if call.unit.kind in OUTPUTS or call.unit.kind in NORMS:
            calls.setdefault(id(call.unit), []).append(call)
    return {
        key
        for key, ones in calls.items()
        if all(call.output is not None and is_nowhere_negative(call.output) for call in ones)
    }


def _differ(run: Run, sample: Any, matching: Matching, pairs: Sequence[Pair]) -> bool:
    """Return whether the outputs differ when the outputs of some twins are moved alike."""
    source, target = matching.source, matching.target
    there = _Shift(source, {id(pair.source): id(pair.source) for pair in pairs})
    expected = run.call(source, sample, there, "source")
    here = _Shift(target, {id(pair.target): id(pair.source) for pair in pairs}, there.offsets)
    got = run.call(target, matching.sample, here, "target")
    if not len(there.offsets) == len(here.offsets) == len({id(pair.source) for pair in pairs}):
        return False  # it shows nothing
    if not all(np.isfinite(array).all() for array in expected.values()):
        return False
    first = target.porting.channels_first
    compared = compare_outputs(expected, got, matching.outputs, target_first=first)
    return any(error > limit for error, limit in compared.values())
