"""Pair the units of the target with those of the source by running the target on the sample.

Every unit of the target is paired when it is called, with a unit of the source that had the same input: neither names
nor shapes nor the order of definition can mislead that. Then the source's weights are written to it, it computes, and
its output has to be the source's. In any case, the source's output is passed on to the next layer, so that errors stay
where they are made, and rounding doesn't accumulate. Where several units of the source had the same input (query, key
and value), one is tried, and if the forward can't be finished that way, the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.hold_registry import identity
from xweights.errors import ArgumentError
from xweights.porting.matching.candidates import (
    IMAGES,
    RECURRENT,
    Candidate,
    Candidates,
    Prefer,
    find_nearest,
    input_error,
    permute_output,
)
from xweights.porting.matching.outputs import OutputMap, compare_outputs
from xweights.porting.matching.similarity import Grid, cropped_distance, distance, tolerance
from xweights.porting.matching.trace import TracedModel, UnitCall, find_grids, select_array
from xweights.porting.matching.transfer import Writer
from xweights.porting.protocol import Arrays, LayerRecord
from xweights.porting.units import UNPERMUTED, FeaturePermutation, LayerUnit, can_pair

# Number of pairings that are tried before the port is given up.
BUDGET = 96
# Factor by which a layer may enlarge a difference in its input.
_GROWTH = 16


class _Stop(BaseException):
    """Stop a forward in the middle. It is no Exception, because frameworks catch those to change their message."""


@dataclass(eq=False)
class Divergence:
    """A divergence of the two models: in a unit's ``output``, before it (its ``input``), or at the ``end`` of both."""

    location: str
    target: LayerUnit | None
    call: UnitCall | None
    error: float
    text: str = ""
    output: Array | None = None


@dataclass(eq=False)
class Pair:
    """Two units that belong together, and the evidence."""

    source: LayerUnit
    target: LayerUnit
    permutation: FeaturePermutation = UNPERMUTED
    evidence: str = ""
    error: float | None = None
    rivals: int = 0
    seen: bool = True


@dataclass(eq=False)
class Matching:
    """The shared state of all attempts.

    ``assign`` writes the weights of a source unit to a target unit (None: compare only). ``allowed`` returns whether a
    target unit may be paired with a source unit, ``skipped`` are the target units that aren't part of the port.
    """

    source: TracedModel
    target: TracedModel
    calls: Sequence[UnitCall]
    grids: set[Grid]
    expected: Mapping[str, Array]
    sample: Any
    outputs: OutputMap = None
    assign: Writer | None = None
    allowed: Callable[[LayerUnit, LayerUnit], bool] = lambda source, target: True
    prefer: Prefer = lambda source, target: 0
    same: Callable[[LayerUnit, LayerUnit], bool] = lambda one, other: one is other
    skipped: frozenset[int] = frozenset()
    whole: bool = True
    columns: dict[int, Array] = field(default_factory=dict)
    events: Sequence[LayerRecord] = ()  # every layer of the source in call order
    target_events: Sequence[LayerRecord] = ()
    unseen: dict[int, LayerUnit] = field(
        default_factory=dict
    )  # source units for units of the target that are never called

    def __post_init__(self) -> None:
        self._fitting: dict[int, list[UnitCall]] = {}
        self.channels_differ = self.source.porting.channels_first != self.target.porting.channels_first

    def list_fitting(self, unit: LayerUnit) -> list[UnitCall]:
        """Return the calls of source units that a target unit could be the twin of, by kind and shape."""
        if id(unit) not in self._fitting:
            self._fitting[id(unit)] = [call for call in self.calls if can_pair(call.unit, unit)]
        return [call for call in self._fitting[id(unit)] if self.allowed(call.unit, unit)]

    def settle(self) -> Attempt:
        """Try one pairing after another; return the first that works, or the one that gets furthest."""
        decisions: list[int] = []
        best: Attempt | None = None
        for _ in range(BUDGET):
            attempt = self.attempt(decisions)
            if not attempt.may_be_mispaired:
                return attempt  # complete, and no other pairing would remove its divergences
            if best is None or attempt.progress > best.progress:
                best = attempt
            after = _next_decisions(attempt.decisions)
            if after is None:
                break
            decisions = after
        assert best is not None
        return self.attempt([chosen for chosen, _ in best.decisions], lenient=True)

    def attempt(self, decisions: list[int], *, lenient: bool = False) -> Attempt:
        """Run the target once, with these decisions where there is a choice."""
        while True:
            attempt = Attempt(self, decisions, lenient)
            try:
                got = self.target.porting.run(self.target.model, self.target.records, self.sample, attempt)
                attempt.finish(got)
            except _Stop:
                pass
            if not attempt.restart:
                self.target_events = attempt.events
                return attempt


def _next_decisions(decisions: list[tuple[int, int]]) -> list[int] | None:
    for position in range(len(decisions) - 1, -1, -1):
        chosen, count = decisions[position]
        if chosen + 1 < count:
            return [earlier for earlier, _ in decisions[:position]] + [chosen + 1]
    return None


@dataclass(eq=False)
class _OpenUnit:
    """A unit of the target that is computing. ``sound``: its input is its twin's, up to ``error``."""

    unit: LayerUnit
    call: UnitCall | None = None
    permutation: FeaturePermutation = UNPERMUTED
    sound: bool = True
    error: float = 0.0


class Attempt:
    """One forward of the target that pairs units as they are called. A watcher."""

    def __init__(self, matching: Matching, decisions: list[int], lenient: bool) -> None:
        self.matching = matching
        self.choices = decisions
        self.lenient = lenient
        self.decisions: list[tuple[int, int]] = []
        self.pairs: dict[int, Pair] = {}
        self.divergences: list[Divergence] = []
        self.lost: list[str] = []
        self.events: list[LayerRecord] = []
        self.outputs: dict[str, float] = {}
        self.progress = 0
        self.restart = False
        self.may_be_mispaired = False
        first = matching.target.porting.channels_first
        self.candidates = Candidates(set(matching.grids), matching.prefer, first=first, differ=matching.channels_differ)
        self.grids = self.candidates.grids
        self._used: set[int] = set()
        self._following = 0
        self._open: dict[int, list[list[_OpenUnit]]] = {}
        self._dense_units: list[LayerUnit] = []  # dense units in the order in which they were called
        if matching.assign is not None:
            matching.assign.start()
        by_id = {id(unit): unit for unit in matching.target.units}
        for key, source in matching.unseen.items():
            self.pairs[key] = Pair(source, by_id[key], evidence="the only one left of its kind and shape", seen=False)
            if matching.assign is not None:
                self.lost += matching.assign(source, by_id[key], UNPERMUTED)

    # While the target runs

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        self.events.append(record)
        first = record.kind in ("plain", "other") and self.matching.target.porting.channels_first
        self.grids |= find_grids(inputs.values(), channels_first=first)
        units = [unit for unit in self.matching.target.by_record.get(id(record), ()) if unit.call in inputs]
        open_units = [self._pair(unit, select_array(unit, inputs, 0)) for unit in units]
        self._open.setdefault(id(record), []).append(open_units)

    def leave(self, record: LayerRecord, outputs: Arrays) -> Array | None:
        first = record.kind in ("plain", "other") and self.matching.target.porting.channels_first
        self.grids |= find_grids(outputs.values(), channels_first=first)
        open_units = self._open[id(record)].pop()
        replacement = None
        for open_unit in open_units:
            if open_unit.call is not None:
                replacement = self._compare(open_unit, open_unit.call, select_array(open_unit.unit, outputs, 1))
        return replacement if len(open_units) == 1 else None

    def _pair(self, unit: LayerUnit, array: Array | None) -> _OpenUnit:
        matching = self.matching
        former = self.pairs.get(id(unit))
        unused = [call for call in matching.list_fitting(unit) if call.number not in self._used]
        if former is not None:
            same_source = [call for call in unused if matching.same(call.unit, former.source)]
            if not same_source and (former.source.kind in RECURRENT or not former.seen):
                return _OpenUnit(unit)  # one step of a loop that the other model runs inside a layer
            unused = same_source
        candidates = self.candidates.find(unit, array, unused, self._following)
        if not candidates and array is not None and unit.kind in IMAGES:
            self._restart_if_reshaped(array, unused)
        if not candidates and id(unit) in matching.skipped:
            return _OpenUnit(unit)
        sound = bool(candidates)
        if not candidates:
            likeliest = find_nearest(unit, array, unused, self._following)
            self._add_divergence(Divergence("input", unit, likeliest, input_error(likeliest, array), output=array))
            if likeliest is None:
                return _OpenUnit(unit)
            candidates = [Candidate(likeliest, UNPERMUTED, None)]
        chosen = candidates[self._decide(len(candidates))]
        self._note_doubts(unit, chosen, candidates)
        self._take(unit, chosen, len(candidates) - 1)
        return _OpenUnit(unit, chosen.call, self._permutation_of(unit, chosen.permutation), sound, chosen.error or 0.0)

    def _permutation_of(self, unit: LayerUnit, permutation: FeaturePermutation) -> FeaturePermutation:
        columns = self.matching.columns.get(id(unit))
        return permutation if columns is None else replace(permutation, columns=columns)

    def _decide(self, count: int) -> int:
        if count == 1:
            return 0
        position = len(self.decisions)
        chosen = min(self.choices[position], count - 1) if position < len(self.choices) else 0
        self.decisions.append((chosen, count))
        return chosen

    def _note_doubts(self, unit: LayerUnit, chosen: Candidate, candidates: Sequence[Candidate]) -> None:
        """Note rivals that have the same output as the chosen candidate although their weights differ."""
        output = chosen.call.output
        for rival in candidates:
            other = rival.call.output
            alike = output is not None and other is not None and distance(other, output) <= tolerance(output)
            if rival is not chosen and alike and not self.matching.same(rival.call.unit, chosen.call.unit):
                paths = f"{chosen.call.unit.path!r} and {rival.call.unit.path!r}"
                self.candidates.doubts.append(f"at {unit.path!r} the sample makes {paths} put out the same")

    def _take(self, unit: LayerUnit, chosen: Candidate, rivals: int) -> None:
        call, matching = chosen.call, self.matching
        self._used.add(call.number)
        self._following = call.number + 1
        self.progress += 1
        permutation = self._permutation_of(unit, chosen.permutation)
        if unit.kind == "dense":
            self._dense_units.append(unit)
        former = self.pairs.get(id(unit))
        if former is not None:
            if not _are_same(former.permutation, permutation):
                self._add_divergence(
                    Divergence("input", unit, call, float("inf"), "it is called with features in two orders")
                )
            return
        pair = self.pairs[id(unit)] = Pair(call.unit, unit, permutation, rivals=rivals, seen=chosen.error is not None)
        pair.evidence = chosen.evidence(permutation, rivals)
        if matching.assign is not None and id(unit) not in matching.skipped:
            self.lost += matching.assign(call.unit, unit, permutation)

    def _compare(self, open_unit: _OpenUnit, call: UnitCall, got: Array | None) -> Array | None:
        unit, expected = open_unit.unit, call.output
        if got is None or expected is None:
            return None
        expected = permute_output(unit, expected, open_unit.permutation)
        limit = max(tolerance(got, expected), _GROWTH * open_unit.error)
        if unit.kind in RECURRENT:
            steps = got.shape[1]
            if unit.record.attributes.get("cell"):
                if call.input is None or expected.shape[1] != call.input.shape[1]:
                    return None  # a first step, and only the twin's last one was seen
                expected = expected[:, :steps]
            if steps != expected.shape[1]:
                got, expected = got[:, -1:], expected[:, -1:]
            error = distance(got, expected)
        elif unit.kind in IMAGES:
            error = cropped_distance(got, expected, limit)
        else:
            if got.shape != expected.shape and got.size == expected.size:
                expected = expected.reshape(got.shape)
            error = distance(got, expected)
        pair = self.pairs.get(id(unit))
        if pair is not None:
            pair.error = max(error, pair.error or 0.0)
        if error > limit and open_unit.sound and id(unit) not in self.matching.skipped:
            # The input was the same, so another pairing wouldn't help, unless the input wasn't seen.
            unseen_input = pair is not None and not pair.seen
            self._add_divergence(Divergence("output", unit, call, error, output=np.array(got)), mispaired=unseen_input)
        return expected if got.shape == expected.shape and unit.kind not in RECURRENT else None

    def _add_divergence(self, divergence: Divergence, *, mispaired: bool = True) -> None:
        self.divergences.append(divergence)
        self.may_be_mispaired |= mispaired
        if mispaired and not self.lenient:
            raise _Stop

    def _restart_if_reshaped(self, array: Array, calls: Sequence[UnitCall]) -> None:
        """Restart with the maker's columns permuted if a vector was reshaped to this image in the framework's order."""
        columns = self.candidates.find_column_order(array, calls)
        makers = [] if columns is None else [unit for unit in self._dense_units if unit.form[1][1] == columns.size]
        if columns is not None and makers and id(makers[-1]) not in self.matching.columns:
            self.matching.columns[id(makers[-1])] = columns
            self.restart = True
            raise _Stop

    # After it has run

    def finish(self, got: Mapping[str, Array]) -> None:
        """Compare the outputs of the two models, and check that every unit has a twin."""
        matching = self.matching
        if self._pair_uncalled():
            self.restart = True
            return
        ported = {identity(p) for pair in self.pairs.values() for p in pair.source.parameters}
        paired = {id(pair.source) for pair in self.pairs.values()}
        try:
            if matching.whole:
                for call in matching.calls:
                    unit = call.unit
                    if id(unit) in paired or all(identity(p) in ported for p in unit.parameters):
                        continue
                    text = f"{unit.path!r} of the source has no twin in the target"
                    if not any(text == divergence.text for divergence in self.divergences):
                        self._add_divergence(Divergence("pairing", None, call, float("inf"), text))
                first = matching.target.porting.channels_first
                try:
                    compared = compare_outputs(matching.expected, got, matching.outputs, target_first=first)
                except ArgumentError:
                    if not self.divergences:
                        raise
                    return  # models that aren't twins needn't have corresponding outputs
                for name, (error, limit) in compared.items():
                    self.outputs[name] = error
                    if error > limit:
                        self._add_divergence(Divergence("end", None, None, error, self._describe_unequal(name, got)))
        except _Stop:
            pass

    def _describe_unequal(self, name: str, outputs: Mapping[str, Array]) -> str:
        got, expected = outputs.get(name), self.matching.expected.get(name)
        if got is None or expected is None or got.size == expected.size:
            return f"the output {name!r} differs"
        return f"the output {name!r} has the shape {got.shape}, its twin {expected.shape}"

    def _pair_uncalled(self) -> bool:
        """Pair units that weren't called in either model, if there is only one way; the outputs have to prove it."""
        matching = self.matching
        paired = {id(pair.source) for pair in self.pairs.values()}
        source_units = [unit for unit in matching.source.units if id(unit) not in paired]
        target_units = [
            unit for unit in matching.target.units if id(unit) not in self.pairs and id(unit) not in matching.skipped
        ]
        forced = {}
        for unit in target_units:
            fitting = [source for source in source_units if can_pair(source, unit)]
            rivals = [target for target in target_units if fitting and can_pair(fitting[0], target)]
            if len(fitting) == 1 and len(rivals) == 1 and matching.allowed(fitting[0], unit):
                forced[id(unit)] = fitting[0]
        matching.unseen.update(forced)
        return bool(forced)


def _are_same(first: FeaturePermutation, second: FeaturePermutation) -> bool:
    pairs = ((first.rows, second.rows), (first.columns, second.columns))
    return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)
