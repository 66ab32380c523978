"""``port``: the weights of a model into its twin, proved right or refused.

With a sample everything is tried on the target itself, under a snapshot (a second copy of its weights, for as long as
the port takes) that is restored unless all of it is right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from xweights.core import hold_registry
from xweights.core.renaming import Names
from xweights.core.selection import WhereLike
from xweights.edit.guards import uninterrupted
from xweights.edit.read import neutral_view
from xweights.edit.undo import Snapshot
from xweights.errors import ArgumentError, PortError, Problems
from xweights.porting.attributes import differences, plain_differences
from xweights.porting.diagnose import finding_of
from xweights.porting.matching.outputs import OutputMap, compare_outputs
from xweights.porting.matching.samples import Silent
from xweights.porting.matching.search import Attempt, Matching, Pair
from xweights.porting.matching.transfer import Writer
from xweights.porting.plan import planned
from xweights.porting.reports import Difference, Finding, PortEntry, PortReport
from xweights.porting.session import Run
from xweights.porting.units import STRAIGHT

Attributes = Literal["check", "fix", "ignore"]


def port(
    source: Any,
    target: Any,
    *,
    sample: Any = None,
    sample_target: Any = None,
    where: WhereLike = ...,
    names: Names | None = None,
    attributes: Attributes = "check",
    outputs: OutputMap = None,
) -> PortReport:
    """Move the weights of a model into its twin in another framework, and prove it by comparing the two forwards.

    Args:
        source: Model whose weights are read.
        target: Model that they go into, in place.
        sample: What the source is called with (array, tuple or dict). Every layer is paired by what it is given, and
            has to make of it what its twin makes. Without a sample only a port that leaves no choice is made.
        sample_target: What the target is called with: likewise, or a function of ``sample``. By default the channels
            are moved where the two frameworks put them elsewhere.
        where: Which parameters of the target are ported; the others stay and are listed. Default: all.
        names: ``{"0/*": "dense/0/*"}`` where a pair is known (target glob: source glob).
        attributes: What is done where settings that are no weights differ (eps, strides, activations): "check" raises,
            "fix" sets them on the target, "ignore" lists them.
        outputs: Which output of the target is which of the source: ``{target's: source's}``, or a function of the
            target's output.

    Exact: the very bits, save that two biases that a framework keeps apart are added where the other keeps one.
    Raises PortError (and with it the kind of each cause): everything that is wrong; both models are then as they were.

    Example:
        >>> import keras
        >>> import torch
        >>> import numpy as np, xweights as xw
        >>> source = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
        >>> target = torch.nn.Sequential(torch.nn.Linear(3, 2))
        >>> report = xw.port(source, target, sample=np.eye(3, dtype="float32"))
        >>> report.ok, report.entries[0].source, report.entries[0].target, report.entries[0].evidence
        (True, 'head', '0', 'given the same numbers')
        >>> np.array_equal(target[0].weight.detach().numpy(), np.transpose(source.get_weights()[0]))
        True
    """
    options = (sample, sample_target, where, names, attributes, outputs)
    return ported(source, target, *options)[0]


def ported(
    source: Any,
    target: Any,
    sample: Any,
    sample_target: Any,
    where: WhereLike,
    names: Names | None,
    attributes: Attributes,
    outputs: OutputMap,
) -> tuple[PortReport, list[Pair], Run]:
    """Port, and return besides which unit went where, for what else has to take the same way."""
    if attributes not in ("check", "fix", "ignore"):
        raise ArgumentError(f'attributes= is "check", "fix" or "ignore"\ngot: {attributes!r}')
    run = Run(source, target, where, names)
    if source is target:
        raise PortError("source and target are the same object\nFix: port into another model")
    run.check_weights(writing=True)
    # Without a sample everything is checked before the first write; what can fail after that is kept.
    changing = [p for p in run.target.parameters if sample is not None or p.storage.fallible or hold_registry.held(p)]
    kept = Snapshot(changing)
    try:
        if sample is None:
            report, pairs = _without_sample(run)
        else:
            report, pairs = _with_sample(run, sample, sample_target, attributes, outputs)
        _obeyed(run)
    except BaseException:
        kept.restore()
        for record, name, value in run.undo:
            run.target.porting.set_attribute(record, name, value)
        raise
    return report, pairs, run


def _without_sample(run: Run) -> tuple[PortReport, list[Pair]]:
    pairs, plan = planned(run.source, run.target, run.skipped, run.allowed)
    problems = Problems("this port can't be made without a sample, and nothing was changed")
    for text in (*plan.problems, *plan.ambiguous):
        problems.add(PortError, text)
    found = differences([(pair.source, pair.target) for pair in pairs])
    _refuse_settings(problems, [one for one in found if not one.training])
    if problems:
        problems.add(
            PortError, "a sample settles what the structure leaves open", fix="pass sample=, a batch for source"
        )
    problems.check()
    writer = Writer()
    for pair in pairs:
        for text in writer.checked(pair.source, pair.target, STRAIGHT)[1]:
            problems.add(PortError, text)
    problems.check()
    writer.start()
    with uninterrupted():
        for pair in pairs:
            writer(pair.source, pair.target, STRAIGHT)
    notes = ("not proved: pass sample= to compare the two forwards",)
    return _report(run, pairs, found, None, {}, notes=notes), pairs


def _with_sample(
    run: Run, sample: Any, sample_target: Any, attributes: Attributes, outputs: OutputMap
) -> tuple[PortReport, list[Pair]]:
    matching, attempt = run.matching(sample, sample_target, outputs, write=True)
    pairs = list(attempt.pairs.values())
    found = settings_of(matching, attempt)
    notes: list[str] = []
    if attributes == "fix":
        found, mended = _fixed(run, matching, found)
        if mended:
            attempt = matching.settle()
            pairs = list(attempt.pairs.values())
    blocking = [one for one in found if not one.training and not one.fixed]
    problems = Problems("this port is not right, and nothing was changed")
    for text in attempt.lost:
        problems.add(PortError, text)
    problems.check()  # what couldn't be written would be found again, layer by layer
    for text in dict.fromkeys(attempt.look.doubts):
        problems.add(PortError, text, fix="pass a sample of random numbers, which tells everything apart")
    for text in _unpaired(run, attempt):
        problems.add(PortError, text, fix="where= to port a part of the target")
    if attributes != "ignore":
        _refuse_settings(problems, blocking, tried=attributes == "fix")
    tolerated = {one.target for one in blocking} if attributes == "ignore" else set()
    findings = [finding_of(one, matching, pairs) for one in attempt.divergences]
    strange = [one for one in findings if one.layer not in tolerated and not (tolerated and one.place != "output")]
    for finding in strange:
        problems.add(PortError, str(finding))
    problems.check()
    made = run.called(run.target, matching.sample, Silent(), "target")
    errors, ok = {}, True
    if run.whole:
        first = run.target.porting.channels_first
        for name, (error, limit) in compare_outputs(matching.expected, made, outputs, target_first=first).items():
            errors[name] = error
            ok &= error <= limit
        if not ok and not tolerated:
            worst = max(errors, key=lambda name: errors[name])
            problems.add(PortError, f"every layer agrees and the output {worst!r} doesn't (error {errors[worst]:.1e})")
        problems.check()
    else:
        notes.append("the outputs were not compared, because a part of the target was left out")
    first_found = findings[0] if findings else None
    return _report(run, pairs, found, ok, errors, notes=tuple(notes), first=first_found), pairs


def settings_of(matching: Matching, attempt: Attempt) -> list[Difference]:
    """Return the settings in which the two models differ."""
    twins = [(pair.source, pair.target) for pair in attempt.pairs.values()]
    found = differences(twins)
    for _, _, unequal in plain_differences(matching.events, attempt.events, twins):
        found += unequal
    return found


def _refuse_settings(problems: Problems, found: list[Difference], *, tried: bool = False) -> None:
    fix = 'attributes="fix" to set it on the target, or attributes="ignore"'
    if tried:
        fix = 'make the target with it (it can\'t be set on a layer that exists), or attributes="ignore"'
    for one in found:
        text = f"{one.name} differs, which is no weight\n{one.target!r}: {one.got}\n{one.source!r}: {one.expected}"
        problems.add(PortError, text, fix=fix)


def _fixed(run: Run, matching: Matching, found: list[Difference]) -> tuple[list[Difference], bool]:
    """Set what differs on the target; what can't be set stays a difference."""
    records = {record.path: record for record in run.target.records}
    records |= {unit.path: unit.record for unit in run.target.units}
    made = []
    for one in found:
        try:
            run.target.porting.set_attribute(records[one.target], one.name, one.expected)
            made.append(replace(one, fixed=True))
        except PortError:
            made.append(one)
    run.undo = [(records[one.target], one.name, one.got) for one in made if one.fixed]
    return made, any(one.fixed for one in made)


def _unpaired(run: Run, attempt: Attempt) -> list[str]:
    written = {hold_registry.identity(p) for pair in attempt.pairs.values() for p in pair.target.parameters}
    found = []
    for unit in run.target.units:
        known = id(unit) in attempt.pairs or id(unit) in run.skipped
        if known or all(hold_registry.identity(p) in written for p in unit.parameters):
            continue
        found.append(f"{unit.path!r} of the target has no twin in the source, or isn't called with this sample")
    return found


def _obeyed(run: Run) -> None:
    """Refuse a port that a hold on the target would undo."""
    held = [p for p in run.target.parameters if hold_registry.held(p) is not None]
    if not held:
        return
    before = [neutral_view(p).copy() for p in held]
    hold_registry.check(held)
    hold_registry.reapply(held)
    problems = Problems("this port can't be made, and nothing was changed")
    for p, value in zip(held, before, strict=True):
        if not np.array_equal(neutral_view(p), value, equal_nan=True):
            problems.add(PortError, f"a hold on {p.name!r} would change what is ported", fix="release it first")
    problems.check()


def _report(
    run: Run,
    pairs: list[Pair],
    found: list[Difference],
    ok: bool | None,
    errors: dict[str, float],
    *,
    notes: tuple[str, ...] = (),
    first: Finding | None = None,
) -> PortReport:
    worst = max(errors.values(), default=None) if ok is not None else None
    if ok is not None and worst is None:
        worst = max((pair.error for pair in pairs if pair.error is not None), default=0.0)
    return PortReport(
        entries=tuple(entry_of(pair) for pair in pairs if id(pair.target) not in run.skipped),
        ok=ok is not False,
        max_error=worst,
        outputs=errors,
        differences=tuple(found),
        remains=run.remains,
        ignored=run.ignored,
        notes=notes,
        first_divergence=first,
    )


def entry_of(pair: Pair) -> PortEntry:
    """Return a pair as a row of a report."""
    return PortEntry(
        pair.source.path, pair.target.path, pair.target.kind, tuple(pair.target.pieces), pair.evidence, pair.error
    )
