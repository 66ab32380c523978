"""Two models, what is asked of them, and how they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xweights.core.casting import check_finite
from xweights.core.names import glob_matcher
from xweights.core.renaming import Names, renamer
from xweights.core.selection import WhereLike
from xweights.edit.read import neutral_view, parameters
from xweights.errors import (
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
from xweights.porting.matching.outputs import OutputMap
from xweights.porting.matching.samples import target_samples
from xweights.porting.matching.search import Attempt, Matching
from xweights.porting.matching.trace import Recorder, TracedModel, arrays_of, side_of
from xweights.porting.matching.transfer import Writer
from xweights.porting.protocol import LayerRecord
from xweights.porting.units import LayerUnit


class Run:
    """Two models as units, and what of them is asked for."""

    def __init__(self, source: Any, target: Any, where: WhereLike, names: Names | None) -> None:
        self.source, self.target = side_of(source, "source"), side_of(target, "target")
        # The sides have handles of their own; a parameter is known by its name.
        wanted = {name for p in parameters(target, where=where) for name in (p.name, *p.aliases)}
        problems = Problems("this port can't be made, and nothing was changed")
        skipped = set()
        for unit in self.target.units:
            inside = [p.name in wanted for p in unit.parameters]
            if not any(inside):
                skipped.add(id(unit))
            elif not all(inside):
                text = f"where= takes a part of {unit.path!r}\n{', '.join(p.name for p in unit.parameters)}"
                problems.add(SelectionError, text, fix="select whole layers")
        self.skipped = frozenset(skipped)
        self.whole = not skipped
        self.allowed = _pins(self.source, self.target, names, problems)
        if self.whole:
            for side, what in ((self.source, "source"), (self.target, "target")):
                for record, why in side.refused:
                    problems.add(PortError, f"{record.path!r} of the {what} has no counterpart: {why}")
        problems.check()
        self.undo: list[tuple[LayerRecord, str, Any]] = []  # settings that were fixed
        known = {p.name for p in self.target.parameters}
        everything = parameters(target)
        self.remains = tuple(p.name for p in everything if p.name in known and p.name not in wanted)
        self.ignored = tuple(p.name for p in everything if p.name not in known)

    def check_weights(self, *, writing: bool) -> None:
        """Refuse NaN in the source, and a target that can't be written or holds rules."""
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
        """Refuse a target that is wholly of another dtype: a port moves bits, and casts nothing."""
        kinds = [{p.dtype.name for p in side.parameters if p.floating} for side in (self.source, self.target)]
        if all(kinds) and not kinds[0] & kinds[1]:
            expected, got = (", ".join(sorted(one)) for one in kinds)
            problems.add(
                DtypeError,
                f"a port moves bits and casts nothing\n{got_expected(f'a target in {got}', f'a target in {expected}')}",
                fix=f"make the target in {expected}, port, and cast it afterwards",
            )

    def matching(self, sample: Any, sample_target: Any, outputs: OutputMap, *, write: bool) -> tuple[Matching, Attempt]:
        """Run the source, then the target with everything it may be called with, until it works."""
        recorder = Recorder(self.source)
        expected = self.called(self.source, sample, recorder, "source")
        calls = recorder.joined()
        best: tuple[Matching, Attempt] | None = None
        latest = best
        failed: PortError | None = None
        for given in target_samples(self.source, self.target, sample, sample_target):
            matching = Matching(
                source=self.source,
                target=self.target,
                calls=calls,
                grids=recorder.grids,
                expected=expected,
                sample=given,
                outputs=outputs,
                assign=Writer() if write else None,
                allowed=self.allowed,
                prefer=(lambda one, other: 0) if write else _Resemblance(self.target),
                same=_same_weights,
                skipped=self.skipped,
                whole=self.whole,
                events=recorder.events,
            )
            try:
                attempt = matching.settle()
            except XweightsError:
                raise
            except Exception as wrong:  # noqa: BLE001 - whatever a model says to a sample that it doesn't take
                failed, latest = failed or _uncallable("target", given, wrong), None
                continue
            if best is None or attempt.progress > best[1].progress or not attempt.divergences:
                best = (matching, attempt)
            latest = (matching, attempt)
            if not attempt.divergences:
                break
        if best is None:
            raise failed or PortError("the target has nothing to be called with")
        if write and best != latest:
            # Another sample may have been tried since.
            matching, attempt = best
            best = (matching, matching.attempt([chosen for chosen, _ in attempt.decisions], lenient=True))
        return best

    def called(self, side: TracedModel, sample: Any, watcher: Any, what: str) -> dict[str, Any]:
        """Call one of the models; return its outputs, or raise PortError for a sample that it doesn't take."""
        try:
            return side.porting.run(side.model, side.records, sample, watcher)
        except XweightsError:
            raise
        except Exception as wrong:
            raise _uncallable(what, sample, wrong) from wrong


def _uncallable(what: str, sample: Any, wrong: Exception) -> PortError:
    shown = _shape_of(sample)
    lines = [line for line in str(wrong).splitlines() if line.strip()]
    return PortError(
        f"the {what} can't be called with this sample, and nothing was changed\nsample: {shown}\n"
        f"cause:  {type(wrong).__name__}: {lines[0] if lines else ''}\n"
        f"Fix: pass {'sample' if what == 'source' else 'sample_target'}= as the {what} wants it"
    )


def _shape_of(sample: Any) -> str:
    if isinstance(sample, Mapping):
        return "{" + ", ".join(f"{name!r}: {_shape_of(one)}" for name, one in sample.items()) + "}"
    if isinstance(sample, (tuple, list)):
        return f"({', '.join(_shape_of(one) for one in sample)})"
    return f"{getattr(sample, 'dtype', type(sample).__name__)} {tuple(getattr(sample, 'shape', ()))}"


class _Resemblance:
    """Prefers, among units that were given the same, the one whose weights the target has already, in any order."""

    def __init__(self, target: TracedModel) -> None:
        self._target = target
        self._known: dict[int, bytes] = {}

    def __call__(self, source: LayerUnit, target: LayerUnit) -> int:
        mine = self._of(source)
        if mine == self._of(target):
            return 0
        return 2 if any(mine == self._of(one) for one in self._target.units if one.form == source.form) else 1

    def _of(self, unit: LayerUnit) -> bytes:
        if id(unit) not in self._known:
            arrays = arrays_of(unit)
            main = max(arrays.values(), key=lambda array: array.size)
            self._known[id(unit)] = hashlib.blake2b(np.sort(main, axis=None).tobytes()).digest()
        return self._known[id(unit)]


def _same_weights(one: LayerUnit, other: LayerUnit) -> bool:
    if one is other:
        return True
    mine, theirs = arrays_of(one), arrays_of(other)
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[role], theirs[role]) for role in mine)


def _pins(
    source: TracedModel, target: TracedModel, names: Names | None, problems: Problems
) -> Callable[[LayerUnit, LayerUnit], bool]:
    """Return whether a source unit may be the twin of a target unit, as far as names= says."""
    if not names:
        return lambda one, other: True
    rename, globs = renamer(names), [glob_matcher(glob) for glob in names]
    known = [name for p in source.parameters for name in (p.name, *p.aliases)]
    pinned: dict[int, set[str]] = {}
    used: set[int] = set()
    for unit in target.units:
        for p in unit.parameters:
            for name in (p.name, *p.aliases):
                hit = next((place for place, glob in enumerate(globs) if glob(name)), None)
                if hit is None:
                    continue
                used.add(hit)
                pinned.setdefault(id(unit), set()).add(rename(name))
                if rename(name) not in known and p.role not in ("recurrent_bias", "bias"):
                    text = f"names= pins {name!r} to {rename(name)!r}, which the source hasn't got"
                    problems.add(SelectionError, f"{text}\n{near(rename(name), known)}")
    for place, glob in enumerate(names):
        if place not in used:
            mine = [p.name for p in target.parameters]
            problems.add(
                SelectionError, f"names= has {glob!r}, which nothing in the target matches\n{near(glob, mine)}"
            )

    def allowed(one: LayerUnit, other: LayerUnit) -> bool:
        wanted = pinned.get(id(other))
        return wanted is None or any(name in wanted for p in one.parameters for name in (p.name, *p.aliases))

    return allowed
