"""The shared session of port, plan and verify: two models, the selection, and how the models are called."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from xweights.core.casting import check_finite
from xweights.core.names import Names, glob_matcher, renamer
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike
from xweights.edit.read import neutral_view, parameters
from xweights.errors import (
    ArgumentError,
    DtypeError,
    NonfiniteError,
    PortError,
    Problems,
    SelectionError,
    WriteError,
    XweightsError,
    got_expected,
    near,
)
from xweights.porting.matching.attempt import Attempt
from xweights.porting.matching.folding import Folding, KeyWatcher
from xweights.porting.matching.matching import Matching, allow_all
from xweights.porting.matching.outputs import OutputMap
from xweights.porting.matching.samples import list_arrays, target_samples
from xweights.porting.matching.search import run_attempt, settle
from xweights.porting.matching.trace import Recorder, TracedModel, read_arrays, trace_model
from xweights.porting.matching.transfer import Writer
from xweights.porting.progress import count_layers
from xweights.porting.protocol import LayerRecord
from xweights.porting.units import LayerUnit

Allowed = Callable[[LayerUnit, LayerUnit], bool]


class Run:
    """Two models as units, with the selected part of them."""

    def __init__(
        self,
        source: Any,
        target: Any,
        where: WhereLike,
        names: Names | None,
        *,
        fold: bool = False,
        where_source: WhereLike = ...,
    ) -> None:
        self.source, self.target = trace_model(source, "source"), trace_model(target, "target")
        # The traced models have their own handles; parameters are identified by name.
        self._wanted = {name for p in parameters(target, where=where) for name in (p.name, *p.aliases)}
        everything_of_source = self.source.parameters
        self._taken: set[str] | None = None
        if where_source is not ...:
            self._taken = {name for p in _select_source(source, where_source) for name in (p.name, *p.aliases)}
            self.source = self._take_part(self.source)
        self.source_names = tuple(p.name for p in everything_of_source)
        self._names = names
        self._fold = fold
        self._problems = self._select()
        self._check_counterparts()
        self.undo: list[tuple[LayerRecord, str, Any]] = []  # settings to restore on failure
        self._failed: PortError | None = None  # why the target couldn't be called with a sample
        known_names = {p.name for p in self.target.parameters}
        everything = parameters(target)
        self.remains = tuple(p.name for p in everything if p.name in known_names and p.name not in self._wanted)
        self.ignored = tuple(p.name for p in everything if p.name not in known_names)

    def _take_part(self, traced: TracedModel) -> TracedModel:
        """Return the source with the units that take part alone."""
        if self._taken is None:
            return traced
        kept, problems = [], Problems("this port can't be made, and nothing was changed")
        for unit in traced.units:
            inside = [p.name in self._taken for p in unit.parameters]
            if all(inside):
                kept.append(unit)
            elif any(inside):
                text = f"where_source= takes a part of {unit.path!r}\n{', '.join(p.name for p in unit.parameters)}"
                problems.add(SelectionError, text, fix="select whole layers")
        problems.check()
        traced.units = kept
        traced.refused = [
            (record, why)
            for record, why in traced.refused
            if any(p.name in self._taken for p in record.parameters.values())
        ]
        return traced

    def _select(self) -> Problems:
        """Find the units of the target that aren't part of the port, and what `names=` allows; return what can't be."""
        problems = Problems("this port can't be made, and nothing was changed")
        skipped = set()
        for unit in self.target.units:
            inside = [p.name in self._wanted for p in unit.parameters]
            if not any(inside):
                skipped.add(id(unit))
            elif not all(inside):
                text = f"where= takes a part of {unit.path!r}\n{', '.join(p.name for p in unit.parameters)}"
                problems.add(SelectionError, text, fix="select whole layers")
        self.skipped = frozenset(skipped)
        self.whole = not skipped
        self.allowed = _make_pin_check(self.source, self.target, self._names, problems)
        return problems

    def _check_counterparts(self) -> None:
        """Refuse layers that no other framework has."""
        problems = Problems("this port can't be made, and nothing was changed")
        if self.whole:
            for traced, label in ((self.source, "source"), (self.target, "target")):
                for record, why in traced.refused:
                    problems.add(PortError, f"{record.path!r} of the {label} has no counterpart: {why}")
        problems.check()

    def check_selection(self) -> None:
        """Refuse a selection of parts of layers, as long as no sample has shown how they compute."""
        self._problems.check()

    def check_weights(self, *, writing: bool) -> None:
        """Refuse NaN in the source, and a target that can't be written."""
        problems = Problems("this port can't be made, and nothing was changed")
        for p in self.source.parameters:
            reason = p.refusal(writing=False)
            if reason is not None:
                problems.add(WriteError, f"{p.name!r} of the source can't be read: {reason}")
                continue
            try:
                check_finite(neutral_view(p), f"{p.name!r} of the source")
            except NonfiniteError as wrong:
                problems.add(NonfiniteError, str(wrong).partition("\nFix:")[0], fix="port a model without NaN")
        if writing:
            self._check_dtypes(problems)
            for p in self.target.parameters:
                reason = p.refusal(writing=True)
                if reason is not None and p.name not in self.remains:
                    problems.add(WriteError, f"{p.name!r} of the target can't be written: {reason}")
        if problems:
            problems.add(PortError, "neither model was called")
        problems.check()

    def _check_dtypes(self, problems: Problems) -> None:
        """Refuse a target of entirely different dtypes: a port moves bits and casts nothing."""
        kinds = [{p.dtype.name for p in traced.parameters if p.floating} for traced in (self.source, self.target)]
        if all(kinds) and not kinds[0] & kinds[1]:
            expected, got = (", ".join(sorted(names)) for names in kinds)
            problems.add(
                DtypeError,
                f"a port moves bits and casts nothing\n{got_expected(f'a target in {got}', f'a target in {expected}')}",
                fix=f"make the target in {expected}, port, and cast it afterwards",
            )

    def match(self, sample: Any, sample_target: Any, outputs: OutputMap, *, write: bool) -> tuple[Matching, Attempt]:
        """Run the source, then the target with one possible sample after the other, until one works.

        Layers with a forward of their own are taken apart into operations. Where that leads nowhere they are also
        tried as a whole, as layers of which only the sizes are known.
        """
        best: tuple[Matching, Attempt] | None = None
        latest = best
        failed: PortError | None = None
        for matching in self._list_matchings(sample, sample_target, outputs, write=write, observed=True):
            try:
                attempt = self._settle(matching)
            except PortError as wrong:
                failed, latest = failed or wrong, None
                continue
            latest = (matching, attempt)
            if best is None or attempt.progress > best[1].progress or not attempt.divergences:
                best = latest
            if not attempt.divergences:
                return best
        if best is None:
            raise failed or self._failed or PortError("the target has nothing to be called with")
        if best[1].may_be_mispaired and self._has_unknown_layers():
            for matching in self._list_matchings(sample, best[0].sample, outputs, write=write, observed=False):
                with contextlib.suppress(PortError):
                    attempt = self._settle(matching)
                    if not attempt.divergences:
                        return matching, attempt
            latest = None
        if best != latest:
            # Something else may have been tried since then.
            matching, attempt = best
            self.source, self.target = matching.source, matching.target
            self._select()
            if write:
                decisions = [chosen for chosen, _ in attempt.decisions]
                best = (matching, run_attempt(matching, decisions, lenient=True))
        return best

    def _list_matchings(
        self, sample: Any, sample_target: Any, outputs: OutputMap, *, write: bool, observed: bool
    ) -> Iterator[Matching]:
        """Yield what is to be tried, for each sample that the target may take."""
        self._failed = None
        self.source = self._trace(self.source, sample, "source", observed=observed)
        recorder = Recorder(self.source)
        expected = self.call(self.source, sample, recorder, "source")
        calls = recorder.join_loops()
        probe = KeyWatcher(self.source)
        if self._fold:
            self.call(self.source, sample, probe, "source")
        for target_sample in target_samples(self.source, self.target, sample, sample_target):
            try:
                self.target = self._trace(self.target, target_sample, "target", observed=observed)
            except PortError as wrong:
                self._failed = self._failed or wrong
                continue
            problems = self._select()
            if observed:
                problems.check()
                self._check_counterparts()
            elif problems:
                return
            folding = None
            if self._fold:
                watcher = KeyWatcher(self.target)
                try:
                    self.call(self.target, target_sample, watcher, "target")
                except PortError as wrong:
                    self._failed = self._failed or wrong
                    continue
                samples = list_arrays((sample, target_sample))
                folding = Folding(calls, probe, watcher, self.target.units, samples)
            yield Matching(
                source=self.source,
                target=self.target,
                calls=calls if folding is None else folding.calls,
                grids=recorder.grids,
                expected=expected,
                sample=target_sample,
                outputs=outputs,
                assign=Writer() if write else None,
                allowed=self.allowed if folding is None else partial(_allow_both, self.allowed, folding.allows),
                prefer=(lambda one, other: 0) if write else _WeightPreference(self.target),
                same=_have_same_weights,
                skipped=self.skipped,
                whole=self.whole,
                events=recorder.events,
                folding=folding,
            )

    def _settle(self, matching: Matching) -> Attempt:
        try:
            return settle(matching)
        except XweightsError:
            raise
        except Exception as wrong:  # any error of a model for a sample that it doesn't take
            raise _call_error("target", matching.sample, wrong) from wrong

    def _has_unknown_layers(self) -> bool:
        sides = (self.source, self.target)
        return any(record.kind == "other" for side in sides for record in side.porting.records(side.model))

    def _trace(self, traced: TracedModel, sample: Any, what: str, *, observed: bool) -> TracedModel:
        """Return a model as units, if wanted those that it was seen to compute with."""
        try:
            records = traced.porting.records(traced.model)
            if observed:
                records = traced.porting.observe(traced.model, records, sample)
        except XweightsError:
            raise
        except Exception as wrong:
            raise _call_error(what, sample, wrong) from wrong
        found = TracedModel(traced.model, traced.porting, records)
        return self._take_part(found) if what == "source" else found

    def call(self, traced: TracedModel, sample: Any, watcher: Any, what: str) -> dict[str, Any]:
        """Call one of the models and return its outputs; raise PortError for a sample that it doesn't take."""
        try:
            watcher = count_layers(watcher, f"running the {what}", traced.count_layers())
            return traced.porting.run(traced.model, traced.records, sample, watcher)
        except XweightsError:
            raise
        except Exception as wrong:
            raise _call_error(what, sample, wrong) from wrong


def _select_source(source: Any, where_source: WhereLike) -> list[Parameter]:
    """Return the selected parameters of the source; a refusal names the argument that was given."""
    try:
        return list(parameters(source, where=where_source))
    except (SelectionError, ArgumentError) as wrong:
        text = str(wrong).replace("where=", "where_source=").replace("in this target", "in the source")
        raise type(wrong)(text) from None


def _allow_both(first: Allowed, second: Allowed, source: LayerUnit, target: LayerUnit) -> bool:
    return first(source, target) and second(source, target)


def _call_error(what: str, sample: Any, wrong: Exception) -> PortError:
    shown = _describe_shape(sample)
    lines = [line for line in str(wrong).splitlines() if line.strip()]
    return PortError(
        f"the {what} can't be called with this sample, and nothing was changed\nsample: {shown}\n"
        f"cause:  {type(wrong).__name__}: {lines[0] if lines else ''}\n"
        f"Fix: pass {'sample' if what == 'source' else 'sample_target'}= as the {what} wants it"
    )


def _describe_shape(sample: Any) -> str:
    if isinstance(sample, Mapping):
        return "{" + ", ".join(f"{name!r}: {_describe_shape(part)}" for name, part in sample.items()) + "}"
    if isinstance(sample, (tuple, list)):
        return f"({', '.join(_describe_shape(part) for part in sample)})"
    return f"{getattr(sample, 'dtype', type(sample).__name__)} {tuple(getattr(sample, 'shape', ()))}"


class _WeightPreference:
    """Preference, among units with the same input, for the one whose weights the target has already, in any order."""

    def __init__(self, target: TracedModel) -> None:
        self._target = target
        self._known: dict[int, bytes] = {}

    def __call__(self, source: LayerUnit, target: LayerUnit) -> int:
        digest = self._of(source)
        if digest == self._of(target):
            return 0
        return 2 if any(digest == self._of(unit) for unit in self._target.units if unit.form == source.form) else 1

    def _of(self, unit: LayerUnit) -> bytes:
        if id(unit) not in self._known:
            arrays = read_arrays(unit)
            main = max(arrays.values(), key=lambda array: array.size)
            self._known[id(unit)] = hashlib.blake2b(np.sort(main, axis=None).tobytes()).digest()
        return self._known[id(unit)]


def _have_same_weights(first: LayerUnit, second: LayerUnit) -> bool:
    if first is second:
        return True
    first_arrays, second_arrays = read_arrays(first), read_arrays(second)
    return first_arrays.keys() == second_arrays.keys() and all(
        np.array_equal(first_arrays[role], second_arrays[role]) for role in first_arrays
    )


def _make_pin_check(
    source: TracedModel, target: TracedModel, names: Names | None, problems: Problems
) -> Callable[[LayerUnit, LayerUnit], bool]:
    """Return a function that returns whether ``names=`` allows a source unit as the twin of a target unit."""
    if not names:
        return allow_all
    rename, globs = renamer(names), [glob_matcher(glob) for glob in names]
    known = [name for p in source.parameters for name in (p.name, *p.aliases)]
    pinned: dict[int, set[str]] = {}
    used: set[int] = set()
    for unit in target.units:
        for p in unit.parameters:
            for name in (p.name, *p.aliases):
                hit = next((position for position, glob in enumerate(globs) if glob(name)), None)
                if hit is None:
                    continue
                used.add(hit)
                pinned.setdefault(id(unit), set()).add(rename(name))
                if rename(name) not in known and p.role not in ("recurrent_bias", "bias"):
                    text = f"names= pins {name!r} to {rename(name)!r}, which the source doesn't have"
                    problems.add(SelectionError, f"{text}\n{near(rename(name), known)}")
    for position, glob in enumerate(names):
        if position not in used:
            target_names = [p.name for p in target.parameters]
            problems.add(
                SelectionError, f"names= has {glob!r}, which nothing in the target matches\n{near(glob, target_names)}"
            )

    def allowed(source_unit: LayerUnit, target_unit: LayerUnit) -> bool:
        wanted = pinned.get(id(target_unit))
        return wanted is None or any(name in wanted for p in source_unit.parameters for name in (p.name, *p.aliases))

    return allowed
