"""``port``: write the weights of a model to its twin, proved right or refused.

With a sample everything is tried on the target itself, under a snapshot (a second copy of its weights during the port)
that is restored unless everything is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from xweights.core import hold_registry
from xweights.core.names import Names
from xweights.core.selection import WhereLike
from xweights.edit.guards import defer_interrupts
from xweights.edit.read import parameters
from xweights.edit.undo import Snapshot
from xweights.errors import ArgumentError, PortError, Problems
from xweights.porting.attributes import compare_plain_layers, compare_settings
from xweights.porting.diagnose import diagnose, note_variants
from xweights.porting.folded import describe_folds, suggest_fold
from xweights.porting.holds import check_holds, report_rules
from xweights.porting.left_over import list_unpaired, note_rows
from xweights.porting.matching.attempt import Attempt
from xweights.porting.matching.matching import Matching
from xweights.porting.matching.outputs import OutputMap, compare_outputs, list_uncompared
from xweights.porting.matching.pairs import Divergence, Pair
from xweights.porting.matching.samples import SilentWatcher
from xweights.porting.matching.transfer import Writer
from xweights.porting.plan import plan_pairs
from xweights.porting.progress import show_progress
from xweights.porting.rectifiers import check_rectifiers
from xweights.porting.refusal import (
    CANT,
    FAILED,
    FIX,
    list_hard,
    refuse_findings,
    refuse_losses,
    refuse_settings,
    refuse_unpaired,
)
from xweights.porting.reports import Difference, Finding, PortEntry, PortReport
from xweights.porting.session import Run
from xweights.porting.shards import find_sharded, port_on_ranks
from xweights.porting.units import UNPERMUTED, LayerUnit

Attributes = Literal["check", "fix", "ignore"]
_WRONG = "this port is not right, and nothing was changed"
# A setting that was fixed may bring others to light, of layers that weren't reached before.
_ROUNDS = 4


def port(
    source: Any,
    target: Any,
    *,
    sample: Any = None,
    sample_target: Any = None,
    where: WhereLike = ...,
    where_source: WhereLike = ...,
    names: Names | None = None,
    attributes: Attributes = "check",
    outputs: OutputMap = None,
    fold: bool = False,
    on_rank: int | Literal["all"] = "all",
) -> PortReport:
    """Move the weights of a model into its twin in another framework, and prove it by comparing the two forwards.

    Args:
        source: Model whose weights are read.
        target: Model that they are written to, in place.
        sample: Input of the source (array, tuple or dict). Every layer is paired by its input, and its output has to be
            its twin's. Without a sample, only a port that leaves no choice is made.
        sample_target: Input of the target: likewise, or a function of ``sample``. By default the channels are moved
            where the two frameworks have them on different axes.
        where: Which parameters of the target are ported; the others are kept and listed. Default: all.
        where_source: Which parameters of the source may be used. Those that went nowhere are listed in the report.
        names: ``{"0/*": "dense/0/*"}`` where a pair is known (target glob: source glob).
        attributes: How to treat settings other than weights that differ (eps, strides, activations): "check" raises,
            "fix" sets them on the target, "ignore" lists them.
        outputs: Which output of the target corresponds to which of the source: ``{target's: source's}``, or a function
            of the target's output.
        fold: Fold a batch norm into the layer beside it where only the source has one, write a norm that changes
            nothing where only the target has one, and move a bias into the norm behind it where it has no other place.
            A scaling of the input that only one model has is folded into the layer that is given the input.
        on_rank: The rank that has the other model, if one of them lies on several ranks: the others pass None in its
            place, and get a report without entries. Default: every rank has it. The port is proved on a whole copy.

    Exact: exactly the same bits, except that two biases of one framework are added where the other has only one.
    What is folded is close (rtol 1e-5 in float32), and the report lists it.
    Raises PortError (also of the kind of each cause) with everything that is wrong; both models are then unchanged.

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
    sharded = find_sharded(source, target)
    if sharded or on_rank != "all":
        call = partial(
            port, sample=sample, sample_target=sample_target, where=where, where_source=where_source, names=names,
            attributes=attributes, outputs=outputs, fold=fold,
        )  # fmt: skip
        agreed = (where, where_source, names, fold, sample if on_rank == "all" else None)
        return port_on_ranks(source, target, sharded, on_rank, call, attributes, *agreed)
    options = (sample, sample_target, where, names)
    try:
        with show_progress():
            report, pairs, run = port_models(
                source, target, *options, attributes, outputs, fold=fold, where_source=where_source
            )
    except PortError as refusal:
        models = parameters(source), parameters(target)
        attempt = partial(port_models, source, target, *options, outputs=outputs, where_source=where_source)
        better = None if fold or sample is None else suggest_fold(refusal, attempt, attributes, models)
        if better is None:
            raise
        raise better from None
    return replace(report, notes=(*report.notes, *report_rules(pairs, run)))


def port_models(
    source: Any,
    target: Any,
    sample: Any,
    sample_target: Any,
    where: WhereLike,
    names: Names | None,
    attributes: Attributes,
    outputs: OutputMap,
    *,
    fold: bool = False,
    keep: bool = True,
    where_source: WhereLike = ...,
) -> tuple[PortReport, list[Pair], Run]:
    """Port; return the report, the paired units and the run, so that a caller can remap other state the same way.

    ``keep``: whether a port that is right stays; otherwise it is only tried.
    """
    if fold and sample is None:
        raise ArgumentError("fold=True needs sample=: what is folded is close, not exact, and only a sample proves it")
    if attributes not in ("check", "fix", "ignore"):
        raise ArgumentError(f'attributes= is "check", "fix" or "ignore"\ngot: {attributes!r}')
    run = Run(source, target, where, names, fold=fold, where_source=where_source)
    if source is target:
        raise PortError("source and target are the same object\nFix: port into another model")
    run.check_weights(writing=True)
    # Without a sample everything is checked before the first write; parameters that can fail after that are kept.
    changing = [p for p in run.target.parameters if sample is not None or p.storage.fallible or hold_registry.find(p)]
    snapshot = Snapshot(changing)
    try:
        if sample is None:
            report, pairs = _port_without_sample(run)
        else:
            report, pairs = _port_with_sample(run, sample, sample_target, attributes, outputs)
        check_holds(run)
    except BaseException:
        _undo(run, snapshot)
        raise
    if not keep:
        _undo(run, snapshot)
    return report, pairs, run


def _undo(run: Run, snapshot: Snapshot) -> None:
    with defer_interrupts():
        snapshot.restore()
        for record, name, value in run.undo:
            run.target.porting.set_attribute(record, name, value)


def _port_without_sample(run: Run) -> tuple[PortReport, list[Pair]]:
    run.check_selection()
    pairs, plan = plan_pairs(run.source, run.target, run.skipped, run.allowed)
    problems = Problems("this port can't be made without a sample, and nothing was changed")
    for text in (*plan.problems, *plan.ambiguous):
        problems.add(PortError, text)
    differing = compare_settings([(pair.source, pair.target) for pair in pairs])
    refuse_settings(problems, [difference for difference in differing if not difference.training])
    if problems:
        problems.add(
            PortError, "a sample settles what the structure leaves open", fix="pass sample=, a batch for source"
        )
    problems.check()
    writer = Writer()
    for pair in pairs:
        for text in writer.check(pair.source, pair.target, UNPERMUTED)[1]:
            problems.add(PortError, text)
    problems.check()
    writer.start()
    with defer_interrupts():
        for pair in pairs:
            writer(pair.source, pair.target, UNPERMUTED)
    notes = ("not proved: pass sample= to compare the two forwards",)
    return _make_report(run, pairs, differing, None, {}, notes=notes), pairs


def _port_with_sample(
    run: Run, sample: Any, sample_target: Any, attributes: Attributes, outputs: OutputMap
) -> tuple[PortReport, list[Pair]]:
    matching, attempt = run.match(sample, sample_target, outputs, write=True)
    differing = list_differences(matching, attempt)
    fix = FIX
    if attributes == "fix":
        fixed: dict[tuple[str, str], Difference] = {}
        fix = CANT
        for _ in range(_ROUNDS):
            if not _fix_settings(run, differing, fixed):
                break
            try:
                matching, attempt = run.match(sample, sample_target, outputs, write=True)
            except PortError:
                fixed.clear()
                fix = FAILED
                break
            differing = list_differences(matching, attempt)
        differing = list({**{(one.target, one.name): one for one in differing}, **fixed}.values())
    pairs = list(attempt.pairs.values())
    blocking = [difference for difference in differing if not difference.training and not difference.fixed]
    tolerated = {difference.target for difference in blocking} if attributes == "ignore" else set()
    if attempt.divergences:
        # What has no twin isn't zero: that may be the cause of all that follows.
        missing = [Divergence("input", unit, None, float("inf")) for unit in attempt.zeroed]
        attempt.divergences = [*missing, *attempt.divergences]
    findings = [diagnose(divergence, matching, pairs) for divergence in attempt.divergences]
    unexplained = [
        finding
        for finding in findings
        if finding.layer not in tolerated and not (tolerated and finding.place != "output")
    ]
    unpaired, notes = list_unpaired(run, attempt)
    notes += [*note_variants(attempt.suspects, matching), *note_rows(pairs)]
    refused = [] if attributes == "ignore" else blocking
    _refuse(attempt, refused, unexplained, unpaired, fix)
    got = run.call(run.target, matching.sample, SilentWatcher(), "target")
    errors, ok = {}, True
    if run.whole:
        first = run.target.porting.channels_first
        besides = list_uncompared(matching.expected, got, outputs)
        notes += [] if besides is None else [besides]
        for name, (error, limit) in compare_outputs(matching.expected, got, outputs, target_first=first).items():
            errors[name] = error
            ok &= error <= limit
        if not ok and not tolerated:
            worst = max(errors, key=lambda name: errors[name])
            problems = Problems(_WRONG)
            problems.add(PortError, f"every layer agrees and the output {worst!r} doesn't (error {errors[worst]:.1e})")
            problems.throw()
        if ok and attributes != "ignore":
            check_rectifiers(run, sample, matching, pairs)
    else:
        notes.append("the outputs were not compared, because a part of the target was left out")
    first_found = findings[0] if findings else None
    report = _make_report(run, pairs, differing, ok, errors, notes=tuple(notes), first=first_found)
    unused = _list_unused(run, pairs, matching)
    return replace(report, folded=describe_folds(matching, pairs), unused=unused), pairs


def list_differences(matching: Matching, attempt: Attempt) -> list[Difference]:
    """Return the settings in which the two models differ."""
    twins = [(pair.source, pair.target) for pair in attempt.pairs.values()]
    differing = compare_settings(twins)
    for _, _, unequal in compare_plain_layers(matching.events, attempt.events, twins):
        differing += unequal
    return differing


def _refuse(
    attempt: Attempt,
    blocking: Sequence[Difference],
    findings: Sequence[Finding],
    unpaired: Sequence[LayerUnit],
    fix: str,
) -> None:
    """Raise everything that is wrong with an attempt, the cause first."""
    problems = Problems(_WRONG)
    hard = list_hard(blocking)
    explained = {difference.target for difference in blocking}
    explained |= {finding.layer for finding in findings if finding.cause in attempt.lost}
    refuse_settings(problems, hard, fix)
    refuse_findings(problems, [finding for finding in findings if finding.layer not in explained])
    refuse_losses(problems, attempt.lost)
    refuse_settings(problems, [difference for difference in blocking if difference not in hard], fix)
    for text in dict.fromkeys(attempt.candidates.doubts):
        problems.add(PortError, text, fix="pass a sample of random numbers, which tells everything apart")
    refuse_unpaired(problems, unpaired)
    if not problems:
        refuse_findings(problems, findings)
    problems.check()


def _fix_settings(run: Run, differing: Sequence[Difference], fixed: dict[tuple[str, str], Difference]) -> bool:
    """Set the settings that differ on the target; return False if none could be set. ``fixed``: those that were."""
    records = {record.path: record for record in run.target.records}
    records |= {unit.path: unit.record for unit in run.target.units}
    any_fixed = False
    for difference in differing:
        key, record = (difference.target, difference.name), records[difference.target]
        if key in fixed:
            continue
        try:
            run.target.porting.set_attribute(record, difference.name, difference.expected)
        except PortError:
            continue
        any_fixed = True
        fixed[key] = replace(difference, fixed=True)
        run.undo.append((record, difference.name, difference.got))
    return any_fixed


def _make_report(
    run: Run,
    pairs: list[Pair],
    differing: list[Difference],
    ok: bool | None,
    errors: dict[str, float],
    *,
    notes: tuple[str, ...] = (),
    first: Finding | None = None,
) -> PortReport:
    worst = max(errors.values(), default=None) if ok is not None else None
    if ok is not None and worst is None:
        errors_seen = [pair.error for pair in pairs if pair.error is not None and id(pair.target) not in run.skipped]
        worst = max(errors_seen, default=0.0)
    return PortReport(
        entries=tuple(make_entry(pair) for pair in pairs if id(pair.target) not in run.skipped),
        ok=ok is not False,
        max_error=worst,
        outputs=errors,
        differences=tuple(differing),
        remains=run.remains,
        ignored=run.ignored,
        notes=notes,
        first_divergence=first,
        unused=_list_unused(run, pairs),
    )


def _list_unused(run: Run, pairs: Sequence[Pair], matching: Matching | None = None) -> tuple[str, ...]:
    """Return the names of the source's parameters that went nowhere."""
    ported = [pair for pair in pairs if id(pair.target) not in run.skipped]
    origins = [(pair.source,) if matching is None else matching.list_origins(pair.source) for pair in ported]
    used = [unit for units in (*origins, *(pair.absorbed for pair in ported)) for unit in units]
    names = {name for unit in used for p in unit.parameters for name in (p.name, *p.aliases)}
    return tuple(name for name in run.source_names if name not in names)


def make_entry(pair: Pair) -> PortEntry:
    """Return a pair as a row of a report."""
    return PortEntry(
        pair.source.path, pair.target.path, pair.target.kind, tuple(pair.target.slices), pair.evidence, pair.error
    )
