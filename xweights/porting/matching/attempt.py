"""One forward of the target that pairs its units as they are called.

Every unit of the target is paired when it is called, with a unit of the source that had the same input: neither names
nor shapes nor the order of definition can mislead that. Then the source's weights are written to it, it computes, and
its output has to be the source's. In any case, the source's output is passed on to the next layer, so that errors stay
where they are made, and rounding doesn't accumulate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.hold_registry import identity
from xweights.errors import ArgumentError
from xweights.porting.matching.candidates import (
    IMAGES,
    Candidate,
    Candidates,
    Split,
    find_nearest,
    input_error,
    permute_output,
)
from xweights.porting.matching.forms import find_used_rows
from xweights.porting.matching.matching import Matching
from xweights.porting.matching.outputs import compare_outputs
from xweights.porting.matching.packed import find_joined, find_parts, take_columns
from xweights.porting.matching.packing import Packing
from xweights.porting.matching.pairs import Divergence, Pair
from xweights.porting.matching.rows import RowMatch, is_elsewhere, is_used
from xweights.porting.matching.similarity import cropped_distance, distance, tolerance
from xweights.porting.matching.trace import UnitCall, add_rows, find_grids, read_arrays, select_array
from xweights.porting.matching.uncalled import has_idle_twin, pair_uncalled
from xweights.porting.protocol import Arrays, LayerRecord
from xweights.porting.units import RECURRENT, UNPERMUTED, FeaturePermutation, LayerUnit, split_columns

# Factor by which a layer may enlarge a difference in its input.
_GROWTH = 16
# The share of the tolerance that rounding takes: more may be another variant of a function.
_FEW = 1 / 16


class StopAttempt(BaseException):
    """Stop a forward in the middle. It is no Exception, because frameworks catch those to change their message."""


@dataclass(eq=False)
class _OpenUnit:
    """A unit of the target that is computing. ``sound``: its input is its twin's, up to ``error``."""

    unit: LayerUnit
    call: UnitCall | None = None
    permutation: FeaturePermutation = UNPERMUTED
    sound: bool = True
    error: float = 0.0
    rows: RowMatch | None = None


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
        self.got: Mapping[str, Array] = {}
        # The unit that was called last before each unit of the target; 0: before the end.
        self.makers: dict[int, LayerUnit] = {}
        self.progress = 0
        self.reach = float("inf")  # the progress up to the first divergence
        self.restart = False
        self.may_be_mispaired = False
        first = matching.target.porting.channels_first
        self.candidates = Candidates(
            set(matching.grids), matching.prefer, matching.forms, first=first, differ=matching.channels_differ
        )
        self.grids = self.candidates.grids
        self.zeroed: list[LayerUnit] = []  # tables that are added, and that the source doesn't have
        self.called: set[int] = set()  # the units of the target
        self.suspects: list[Divergence] = []  # inputs that differ by more than a few roundings
        self.unused: list[LayerUnit] = []  # source units that no unit of the target needs
        self._joined: dict[int, list[Pair]] = {}  # the parts of fused units of the target
        self._taken: dict[int, Split] = {}  # columns of fused source calls, by number
        self._packings: dict[tuple[int, ...], Packing] = {}
        self._used: set[int] = set()
        self._following = 0
        self._open: dict[int, list[list[_OpenUnit]]] = {}
        self._dense_units: list[LayerUnit] = []  # dense units in the order in which they were called
        if matching.assign is not None:
            matching.assign.start()
        by_id = {id(unit): unit for unit in matching.target.units}
        for key, source in matching.unseen.items():
            self._pair_unseen(source, by_id[key], "the only one left of its kind and shape")
        for source, unit in matching.idle:
            self._pair_unseen(source, unit, "at the same place in a stack of which the others were seen")

    def _pair_unseen(self, source: LayerUnit, unit: LayerUnit, evidence: str) -> None:
        self.pairs[id(unit)] = Pair(source, unit, evidence=evidence, seen=False)
        if self.matching.assign is not None:
            self.lost += self.matching.assign(source, unit, UNPERMUTED)

    # While the target runs

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        self.events.append(record)
        first = record.kind in ("plain", "other") and self.matching.target.porting.channels_first
        self.grids |= find_grids(inputs.values(), channels_first=first)
        units = [unit for unit in self.matching.target.by_record.get(id(record), ()) if unit.call in inputs]
        self.called.update(id(unit) for unit in units)
        self.makers |= {id(unit): self.makers[0] for unit in units if 0 in self.makers and id(unit) not in self.makers}
        open_units = [self._pair(unit, select_array(unit, inputs, 0)) for unit in units]
        self._open.setdefault(id(record), []).append(open_units)

    def leave(self, record: LayerRecord, outputs: Arrays) -> Array | None:
        first = record.kind in ("plain", "other") and self.matching.target.porting.channels_first
        self.grids |= find_grids(outputs.values(), channels_first=first)
        open_units = self._open[id(record)].pop()
        replacement = None
        if open_units:
            self.makers[0] = open_units[-1].unit
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
            if not former.seen:
                self.called.discard(id(unit))  # it was paired as one that isn't called
            if not same_source and (former.source.kind in RECURRENT or not former.seen):
                return _OpenUnit(unit)  # one step of a loop that the other model runs inside a layer
            # It may be called more often than its twin, with an input that its twin was given once.
            unused = same_source or [
                call for call in matching.list_fitting(unit) if matching.same(call.unit, former.source)
            ]
        possible = matching.sizes.shortlist(unit, array, unused)
        candidates = self.candidates.find(unit, array, possible, self._following)
        if unit.kind == "dense" and array is not None and not any(one.error is not None for one in candidates):
            candidates = self._find_packed(unit, array) or candidates
        if array is not None and not any(one.error is not None for one in candidates):
            candidates = self._find_by_rows(unit, array, unused) or candidates
        if all(is_elsewhere(one.call.unit, unit) for one in candidates) and has_idle_twin(matching, unit):
            self.called.discard(id(unit))
            return _OpenUnit(unit)
        if not candidates and array is not None and unit.kind in IMAGES:
            self._restart_if_reshaped(array, unused)
        if not candidates and id(unit) in matching.skipped:
            return _OpenUnit(unit)
        sound = bool(candidates)
        if not candidates and former is None and self._clear(unit, array):
            return _OpenUnit(unit)
        if not candidates:
            likeliest = find_nearest(unit, array, unused, self._following)
            self._add_divergence(Divergence("input", unit, likeliest, input_error(likeliest, array), output=array))
            if likeliest is None:
                return _OpenUnit(unit)
            candidates = [Candidate(likeliest, UNPERMUTED, None)]
        chosen = candidates[self._decide(len(candidates))]
        self._note_doubts(unit, chosen, candidates)
        if array is not None and (chosen.error or 0.0) > _FEW * tolerance(array):
            self.suspects.append(Divergence("input", unit, chosen.call, chosen.error or 0.0, output=np.array(array)))
        self._take(unit, chosen, len(candidates) - 1)
        permutation = self._permutation_of(unit, chosen.permutation)
        return _OpenUnit(unit, chosen.call, permutation, sound, chosen.error or 0.0, chosen.rows)

    def _clear(self, unit: LayerUnit, array: Array | None) -> bool:
        """Set a table that the source doesn't have to zero: if it is only added, the outputs show that it is right."""
        if id(unit) in self.matching.skipped or find_used_rows(unit, array) is None:
            return False
        if self.matching.assign is None:
            return not any(table.any() for table in read_arrays(unit).values())
        if unit not in self.zeroed:
            self.zeroed.append(unit)
            self.matching.assign.clear(unit)
        return True

    def _find_by_rows(self, unit: LayerUnit, array: Array, unused: Sequence[UnitCall]) -> list[Candidate]:
        """Return what was given the same numbers in some rows of the input only."""
        found = self.candidates.find_by_rows(unit, array, unused, self._following)
        return found or (self._find_packed(unit, array, rows=True) if unit.kind == "dense" else [])

    def _find_packed(self, unit: LayerUnit, array: Array, *, rows: bool = False) -> list[Candidate]:
        """Return the ways in which a unit is made of several of the source, or is a part of one."""
        matching = self.matching
        pool = [call for call in matching.list_dense(unit) if call.number not in self._used]
        pool = [call for call in pool if not is_elsewhere(call.unit, unit)] or pool
        joined, former = self._joined.get(id(unit)), self.pairs.get(id(unit))
        found: list[Candidate] = []
        if former is None:
            found += find_joined(unit, array, pool, matching.list_heads, self._packings, rows=rows)
            if joined is not None:
                sources = {id(pair.source) for pair in joined}
                found = [one for one in found if {id(call.unit) for call, _ in one.parts} == sources]
                found = [one for one in found if one.packing == joined[0].packing][:1]
        if joined is None:
            parts = find_parts(unit, array, pool, matching.list_heads, self._packings, self._taken, rows=rows)
            found += [one for one in parts if former is None or matching.same(one.call.unit, former.source)]
        return found

    def _permutation_of(self, unit: LayerUnit, permutation: FeaturePermutation) -> FeaturePermutation:
        columns, absorbed = self.matching.columns.get(id(unit)), self.matching.absorbed.get(id(unit))
        permutation = permutation if columns is None else replace(permutation, columns=columns)
        return replace(permutation, addend=add_rows(absorbed)) if absorbed else permutation

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
        if chosen.whole is None or take_columns(chosen, self._taken):
            self._used.update(chosen.numbers or (call.number,))
        self._following = call.number + 1
        self.progress += 1
        if chosen.split is not None:
            self._packings[chosen.split.widths] = chosen.split.packing
        if chosen.parts:
            self._take_parts(unit, chosen, rivals)
            return
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
        pair.absorbed = matching.absorbed.get(id(unit), ())
        if matching.assign is not None and id(unit) not in matching.skipped:
            self.lost += matching.assign(call.unit, unit, permutation)

    def _take_parts(self, unit: LayerUnit, chosen: Candidate, rivals: int) -> None:
        """Pair each part of a fused unit of the target with the unit of the source that fills it."""
        matching = self.matching
        self._used.update(call.number for call, _ in chosen.parts)
        if id(unit) in self._joined:
            return
        self._dense_units.append(unit)
        evidence = chosen.evidence(UNPERMUTED, rivals)
        pairs = self._joined[id(unit)] = []
        for call, columns in chosen.parts:
            part = split_columns(unit, columns)
            pair = Pair(call.unit, part, evidence=evidence, rivals=rivals, packing=chosen.packing)
            pairs.append(pair)
            self.pairs[id(part)] = pair
            if matching.assign is not None and id(unit) not in matching.skipped:
                self.lost += matching.assign(call.unit, part, UNPERMUTED)

    def _compare(self, open_unit: _OpenUnit, call: UnitCall, got: Array | None) -> Array | None:
        unit, expected = open_unit.unit, call.output
        if got is None or expected is None:
            return None
        expected = permute_output(unit, expected, open_unit.permutation)
        limit = max(tolerance(got, expected), _GROWTH * open_unit.error)
        replaced = expected
        if open_unit.rows is not None:
            error, own_limit, common = open_unit.rows.compare(got, expected)
            limit, replaced = max(limit, own_limit), got if common is None else common
        elif unit.kind in RECURRENT:
            steps = got.shape[1]
            if unit.record.attributes.get("cell"):
                if call.input is None or expected.shape[1] != call.input.shape[1]:
                    return None  # a first step, and only the twin's last one was seen
                expected = expected[:, :steps]
            if steps != expected.shape[1]:
                got, expected = got[:, -1:], expected[:, -1:]
            error = distance(got, expected)
        elif unit.kind in IMAGES and got.ndim == expected.ndim:
            error = cropped_distance(got, expected, limit)
        else:
            if got.shape != expected.shape and got.size == expected.size:
                expected = expected.reshape(got.shape)  # the same numbers in another form of the layer
            error = distance(got, expected)
            replaced = expected
        pair = self.pairs.get(id(unit))
        for one in self._joined.get(id(unit), [pair] if pair is not None else []):
            one.error = max(error, one.error or 0.0)
        if error > limit and open_unit.sound and id(unit) not in self.matching.skipped:
            # The input was the same, so another pairing wouldn't help, unless the input wasn't seen.
            unseen_input = pair is not None and not pair.seen
            self._add_divergence(Divergence("output", unit, call, error, output=np.array(got)), mispaired=unseen_input)
        return replaced if got.shape == replaced.shape and unit.kind not in RECURRENT else None

    def _add_divergence(self, divergence: Divergence, *, mispaired: bool = True) -> None:
        self.reach = self.reach if self.divergences else self.progress
        self.divergences.append(divergence)
        self.may_be_mispaired |= mispaired
        if mispaired and not self.lenient:
            raise StopAttempt

    def _restart_if_reshaped(self, array: Array, calls: Sequence[UnitCall]) -> None:
        """Restart with the maker's columns permuted if a vector was reshaped to this image in the framework's order."""
        columns = self.candidates.find_column_order(array, calls)
        makers = [] if columns is None else [unit for unit in self._dense_units if unit.form[1][1] == columns.size]
        if columns is not None and makers and id(makers[-1]) not in self.matching.columns:
            self.matching.columns[id(makers[-1])] = columns
            self.restart = True
            raise StopAttempt

    # After it has run

    def finish(self, got: Mapping[str, Array]) -> None:
        """Compare the outputs of the two models, and check that every unit has a twin."""
        matching = self.matching
        self.got = got
        if pair_uncalled(matching, self.pairs, self.called):
            self.restart = True
            return
        try:
            compared = {}
            if matching.whole:
                first = matching.target.porting.channels_first
                try:
                    compared = compare_outputs(matching.expected, got, matching.outputs, target_first=first)
                except ArgumentError:
                    if not self.divergences:
                        raise
                    return  # models that aren't twins needn't have corresponding outputs
            unequal = {name: error for name, (error, limit) in compared.items() if error > limit}
            self.outputs = {name: error for name, (error, _) in compared.items()}
            self.unused = self._list_unused()
            if compared and not unequal:
                self._forgive_idle()
            if unequal or not compared:
                for unit in self.unused if matching.whole else ():
                    text = f"{unit.path!r} of the source has no twin in the target"
                    call = next((call for call in matching.calls if call.unit is unit), None)
                    if call is not None and not any(text == divergence.text for divergence in self.divergences):
                        self._add_divergence(Divergence("pairing", None, call, float("inf"), text))
            for name, error in unequal.items():
                self._add_divergence(Divergence("end", None, None, error, self._describe_unequal(name, got)))
        except StopAttempt:
            pass

    def _forgive_idle(self) -> None:
        """Forget divergences of units that nothing in the source could be, as the outputs agree without them."""
        idle = [one for one in self.divergences if one.location == "input" and one.call is None]
        if len(idle) == len(self.divergences):
            self.divergences = []
            self.called -= {id(divergence.target) for divergence in idle}

    def _list_unused(self) -> list[LayerUnit]:
        """Return the source units whose arrays, or of which some columns, went nowhere."""
        origins = [one for pair in self.pairs.values() for one in self.matching.list_origins(pair.source)]
        origins += [row for pair in self.pairs.values() for row in pair.absorbed]
        ported = {identity(p) for unit in origins for p in unit.parameters}
        unused = [unit for unit in self.matching.source.units if not is_used(unit, self.pairs.values(), ported)]
        partly = [number for number, split in self._taken.items() if not split.columns.all()]
        return unused + [call.unit for call in self.matching.calls if call.number in partly]

    def _describe_unequal(self, name: str, outputs: Mapping[str, Array]) -> str:
        got, expected = outputs.get(name), self.matching.expected.get(name)
        if got is None or expected is None or got.size == expected.size:
            return f"the output {name!r} differs"
        return f"the output {name!r} has the shape {got.shape}, its twin {expected.shape}"


def _are_same(first: FeaturePermutation, second: FeaturePermutation) -> bool:
    pairs = ((first.rows, second.rows), (first.columns, second.columns))
    return all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)
