"""Which unit of the target belongs to which of the source, settled by running the target on the sample.

Every unit of the target is paired as it is called, with a unit of the source that was given the same numbers: neither
names nor shapes nor the order of definition can mislead that. Then the source's weights go into it, it computes, and
its output has to be the source's. Whatever it made, the source's output goes on to the next layer: so an error stays
where it is made, and no rounding adds up. Where several units of the source were given the same (query, key and value),
one is tried, and if the forward can't be finished that way, the next.
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
    input_error,
    nearest,
    turned_output,
)
from xweights.porting.matching.outputs import OutputMap, compare_outputs
from xweights.porting.matching.similarity import Grid, cropped, distance, tolerance
from xweights.porting.matching.trace import TracedModel, UnitCall, grids_in, seen_by
from xweights.porting.matching.transfer import Writer
from xweights.porting.protocol import Arrays, LayerRecord
from xweights.porting.units import STRAIGHT, FeaturePermutation, LayerUnit, fit

# How many ways of pairing are tried before the port is given up.
BUDGET = 96
# How much larger a layer may make a difference in what it is given.
_GROWTH = 16


class _Stop(BaseException):
    """Ends a forward in the middle. No Exception, because frameworks catch those to write another message into them."""


@dataclass(eq=False)
class Divergence:
    """Where the two models part: at a unit's ``output``, or before it (its ``input``), or at the end of both."""

    place: str
    target: LayerUnit | None
    call: UnitCall | None
    error: float
    text: str = ""
    output: Array | None = None


@dataclass(eq=False)
class Pair:
    """Two units that belong together, and what shows it."""

    source: LayerUnit
    target: LayerUnit
    turn: FeaturePermutation = STRAIGHT
    evidence: str = ""
    error: float | None = None
    rivals: int = 0
    seen: bool = True


@dataclass(eq=False)
class Matching:
    """What all attempts have in common.

    ``assign`` puts the weights of a source unit into a target unit (None: compare only). ``allowed`` says which source
    units a target unit was pinned to, ``skipped`` which target units are not part of the port.
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

    def fitting(self, unit: LayerUnit) -> list[UnitCall]:
        """Return the calls of source units that a target unit could be the twin of, by kind and shape."""
        if id(unit) not in self._fitting:
            self._fitting[id(unit)] = [one for one in self.calls if fit(one.unit, unit)]
        return [one for one in self._fitting[id(unit)] if self.allowed(one.unit, unit)]

    def settle(self) -> Attempt:
        """Try one way of pairing after another; return the first that works, or the one that gets furthest."""
        decisions: list[int] = []
        best: Attempt | None = None
        for _ in range(BUDGET):
            attempt = self.attempt(decisions)
            if not attempt.may_be_mispaired:
                return attempt  # whole, and what differs in it no other pairing would mend
            if best is None or attempt.progress > best.progress:
                best = attempt
            after = _next(attempt.decisions)
            if after is None:
                break
            decisions = after
        assert best is not None
        return self.attempt([chosen for chosen, _ in best.decisions], lenient=True)

    def attempt(self, decisions: list[int], *, lenient: bool = False) -> Attempt:
        """Run the target once, taking these decisions where there is a choice."""
        while True:
            attempt = Attempt(self, decisions, lenient)
            try:
                made = self.target.porting.run(self.target.model, self.target.records, self.sample, attempt)
                attempt.finish(made)
            except _Stop:
                pass
            if not attempt.restart:
                self.target_events = attempt.events
                return attempt


def _next(decisions: list[tuple[int, int]]) -> list[int] | None:
    for place in range(len(decisions) - 1, -1, -1):
        chosen, count = decisions[place]
        if chosen + 1 < count:
            return [one for one, _ in decisions[:place]] + [chosen + 1]
    return None


@dataclass(eq=False)
class _Begun:
    """A unit of the target that is computing. ``sound``: it was given what its twin was given, up to ``error``."""

    unit: LayerUnit
    call: UnitCall | None = None
    turn: FeaturePermutation = STRAIGHT
    sound: bool = True
    error: float = 0.0


class Attempt:
    """One forward of the target, pairing as it goes. A watcher."""

    def __init__(self, matching: Matching, decisions: list[int], lenient: bool) -> None:
        self.matching = matching
        self.given = decisions
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
        self.look = Candidates(set(matching.grids), matching.prefer, first=first, differ=matching.channels_differ)
        self.grids = self.look.grids
        self._used: set[int] = set()
        self._next = 0
        self._open: dict[int, list[list[_Begun]]] = {}
        self._vectors: list[LayerUnit] = []  # dense units in the order in which they were called
        if matching.assign is not None:
            matching.assign.start()
        by_id = {id(unit): unit for unit in matching.target.units}
        for key, source in matching.unseen.items():
            self.pairs[key] = Pair(source, by_id[key], evidence="the only one left of its kind and shape", seen=False)
            if matching.assign is not None:
                self.lost += matching.assign(source, by_id[key], STRAIGHT)

    # While the target runs

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        self.events.append(record)
        first = record.kind in ("plain", "other") and self.matching.target.porting.channels_first
        self.grids |= grids_in(inputs.values(), channels_first=first)
        units = [unit for unit in self.matching.target.by_record.get(id(record), ()) if unit.call in inputs]
        made = [self._pair(unit, seen_by(unit, inputs, 0)) for unit in units]
        self._open.setdefault(id(record), []).append(made)

    def leave(self, record: LayerRecord, outputs: Arrays) -> Array | None:
        first = record.kind in ("plain", "other") and self.matching.target.porting.channels_first
        self.grids |= grids_in(outputs.values(), channels_first=first)
        pairs = self._open[id(record)].pop()
        made = None
        for one in pairs:
            if one.call is not None:
                made = self._compare(one, one.call, seen_by(one.unit, outputs, 1))
        return made if len(pairs) == 1 else None

    def _pair(self, unit: LayerUnit, array: Array | None) -> _Begun:
        matching = self.matching
        former = self.pairs.get(id(unit))
        unused = [one for one in matching.fitting(unit) if one.number not in self._used]
        if former is not None:
            again = [one for one in unused if matching.same(one.unit, former.source)]
            if not again and (former.source.kind in RECURRENT or not former.seen):
                return _Begun(unit)  # one step of a loop that the other side runs inside
            unused = again
        found = self.look.among(unit, array, unused, self._next)
        if not found and array is not None and unit.kind in IMAGES:
            self._reshaped(array, unused)
        if not found and id(unit) in matching.skipped:
            return _Begun(unit)
        sound = bool(found)
        if not found:
            likeliest = nearest(unit, array, unused, self._next)
            self._diverged(Divergence("input", unit, likeliest, input_error(likeliest, array), output=array))
            if likeliest is None:
                return _Begun(unit)
            found = [Candidate(likeliest, STRAIGHT, None)]
        chosen = found[self._decide(len(found))]
        self._doubt(unit, chosen, found)
        self._take(unit, chosen, len(found) - 1)
        return _Begun(unit, chosen.call, self._turn_of(unit, chosen.turn), sound, chosen.error or 0.0)

    def _turn_of(self, unit: LayerUnit, turn: FeaturePermutation) -> FeaturePermutation:
        columns = self.matching.columns.get(id(unit))
        return turn if columns is None else replace(turn, columns=columns)

    def _decide(self, count: int) -> int:
        if count == 1:
            return 0
        place = len(self.decisions)
        chosen = min(self.given[place], count - 1) if place < len(self.given) else 0
        self.decisions.append((chosen, count))
        return chosen

    def _doubt(self, unit: LayerUnit, chosen: Candidate, found: Sequence[Candidate]) -> None:
        """Note rivals that put out the same as the chosen one although their weights differ."""
        output = chosen.call.output
        for rival in found:
            other = rival.call.output
            alike = output is not None and other is not None and distance(other, output) <= tolerance(output)
            if rival is not chosen and alike and not self.matching.same(rival.call.unit, chosen.call.unit):
                paths = f"{chosen.call.unit.path!r} and {rival.call.unit.path!r}"
                self.look.doubts.append(f"at {unit.path!r} the sample makes {paths} put out the same")

    def _take(self, unit: LayerUnit, chosen: Candidate, rivals: int) -> None:
        call, matching = chosen.call, self.matching
        self._used.add(call.number)
        self._next = call.number + 1
        self.progress += 1
        turn = self._turn_of(unit, chosen.turn)
        if unit.kind == "dense":
            self._vectors.append(unit)
        former = self.pairs.get(id(unit))
        if former is not None:
            if not _same_turn(former.turn, turn):
                self._diverged(
                    Divergence("input", unit, call, float("inf"), "it is called with features in two orders")
                )
            return
        pair = self.pairs[id(unit)] = Pair(call.unit, unit, turn, rivals=rivals, seen=chosen.error is not None)
        pair.evidence = chosen.evidence(turn, rivals)
        if matching.assign is not None and id(unit) not in matching.skipped:
            self.lost += matching.assign(call.unit, unit, turn)

    def _compare(self, begun: _Begun, call: UnitCall, got: Array | None) -> Array | None:
        unit, expected = begun.unit, call.output
        if got is None or expected is None:
            return None
        expected = turned_output(unit, expected, begun.turn)
        limit = max(tolerance(got, expected), _GROWTH * begun.error)
        if unit.kind in RECURRENT:
            steps = got.shape[1]
            if unit.record.attributes.get("cell"):
                if call.input is None or expected.shape[1] != call.input.shape[1]:
                    return None  # a first step, and only the last one of the twin was seen
                expected = expected[:, :steps]
            if steps != expected.shape[1]:
                got, expected = got[:, -1:], expected[:, -1:]
            error = distance(got, expected)
        elif unit.kind in IMAGES:
            error = cropped(got, expected, limit)
        else:
            if got.shape != expected.shape and got.size == expected.size:
                expected = expected.reshape(got.shape)
            error = distance(got, expected)
        pair = self.pairs.get(id(unit))
        if pair is not None:
            pair.error = max(error, pair.error or 0.0)
        if error > limit and begun.sound and id(unit) not in self.matching.skipped:
            # The numbers that came in were the same, so another pairing wouldn't mend it, unless they weren't seen.
            blind = pair is not None and not pair.seen
            self._diverged(Divergence("output", unit, call, error, output=np.array(got)), mispaired=blind)
        return expected if got.shape == expected.shape and unit.kind not in RECURRENT else None

    def _diverged(self, divergence: Divergence, *, mispaired: bool = True) -> None:
        self.divergences.append(divergence)
        self.may_be_mispaired |= mispaired
        if mispaired and not self.lenient:
            raise _Stop

    def _reshaped(self, array: Array, calls: Sequence[UnitCall]) -> None:
        """If a vector became this image in the framework's own order, start again with its maker's columns turned."""
        columns = self.look.reshaped(array, calls)
        makers = [] if columns is None else [one for one in self._vectors if one.form[1][1] == columns.size]
        if columns is not None and makers and id(makers[-1]) not in self.matching.columns:
            self.matching.columns[id(makers[-1])] = columns
            self.restart = True
            raise _Stop

    # After it has run

    def finish(self, made: Mapping[str, Array]) -> None:
        """Compare what the two models put out, and see whether everything has found its twin."""
        matching = self.matching
        if self._left_over():
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
                    if not any(text == one.text for one in self.divergences):
                        self._diverged(Divergence("pairing", None, call, float("inf"), text))
                first = matching.target.porting.channels_first
                try:
                    found = compare_outputs(matching.expected, made, matching.outputs, target_first=first)
                except ArgumentError:
                    if not self.divergences:
                        raise
                    return  # models that are no twins needn't have outputs that correspond
                for name, (error, limit) in found.items():
                    self.outputs[name] = error
                    if error > limit:
                        self._diverged(Divergence("end", None, None, error, self._unequal(name, made)))
        except _Stop:
            pass

    def _unequal(self, name: str, made: Mapping[str, Array]) -> str:
        got, expected = made.get(name), self.matching.expected.get(name)
        if got is None or expected is None or got.size == expected.size:
            return f"the output {name!r} differs"
        return f"the output {name!r} has the shape {got.shape}, its twin {expected.shape}"

    def _left_over(self) -> bool:
        """Pair what wasn't called on either side, where there is one way only; the outputs will have to show it."""
        matching = self.matching
        paired = {id(pair.source) for pair in self.pairs.values()}
        mine = [unit for unit in matching.source.units if id(unit) not in paired]
        theirs = [
            unit for unit in matching.target.units if id(unit) not in self.pairs and id(unit) not in matching.skipped
        ]
        found = {}
        for unit in theirs:
            fitting = [one for one in mine if fit(one, unit)]
            rivals = [one for one in theirs if fitting and fit(fitting[0], one)]
            if len(fitting) == 1 and len(rivals) == 1 and matching.allowed(fitting[0], unit):
                found[id(unit)] = fitting[0]
        matching.unseen.update(found)
        return bool(found)


def _same_turn(one: FeaturePermutation, other: FeaturePermutation) -> bool:
    pairs = ((one.rows, other.rows), (one.columns, other.columns))
    return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)
