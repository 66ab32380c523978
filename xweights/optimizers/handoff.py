"""``handoff``: move a half-trained experiment to another framework, where training continues.

The order: read the source's optimizer; port the weights, with proof; remap the state the same way; build or fill the
target's optimizer. If anything fails, both sides are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from xweights.core.names import Names
from xweights.core.parameter import Parameter
from xweights.edit.read import parameters
from xweights.edit.undo import snapshot
from xweights.errors import ArgumentError, HandoffError, PortError, Problems
from xweights.optimizers.biases import find_joined_biases
from xweights.optimizers.get_set import check_step, note_untrained, read_optimizer
from xweights.optimizers.handoff_shards import handoff_on_ranks
from xweights.optimizers.held_rules import Carried, carry_factors_and_averages, carry_rules
from xweights.optimizers.protocol import Grade, Optimizing, Part, Training, optimizing_for, to_training
from xweights.optimizers.remap import remap_state
from xweights.optimizers.reports import HandoffReport
from xweights.optimizers.state import OptimizerState
from xweights.porting.folded import suggest_fold
from xweights.porting.matching.outputs import OutputMap
from xweights.porting.matching.pairs import Pair
from xweights.porting.port import Attributes, port_models
from xweights.porting.reports import PortReport
from xweights.porting.session import Run
from xweights.porting.shards import find_sharded


def handoff(
    source: Any,
    target: Any,
    *,
    sample: Any = None,
    grade: Grade = "exact",
    step: int | None = None,
    sample_target: Any = None,
    names: Names | None = None,
    attributes: Attributes = "check",
    outputs: OutputMap = None,
) -> HandoffReport:
    """Hand a half-trained experiment to another framework: weights, optimizer, schedule, clipping and averages.

    Args:
        source: ``(model, optimizer)``, or :class:`Training` if more belongs to the experiment. It stays unchanged. The
            optimizer may be in a file: a path, or what :func:`get_optimizer` returned.
        target: Likewise; with None for the optimizer one is built, which the report has.
        sample: What the source is called with, to prove the port of the weights; see :func:`port`.
        grade: "exact": training continues within the rounding floor, by the framework's own class, by that class with a
            hook before its step, or by an optimizer that follows the foreign rule. "stock": by the framework's own
            class without any help, or HandoffError. "weights": the weights alone, which the report says loudly.
        step: How many updates the source's optimizer has made, where it doesn't count them (PyTorch's SGD and Muon).
        sample_target: As for :func:`port`, and so are the next three.
        names: Known pairs.
        attributes: "check", "fix" or "ignore" settings that are no weights and differ.
        outputs: Which output is which.

    If a side lies on several ranks, every rank makes the call, on plain copies; then each takes its blocks.
    Close (rtol 1e-5 in float32, 1e-12 in float64, after 20 steps): the floor is what the order of additions leaves
    open, and :func:`verify_handoff` measures it. The slots themselves are moved to the bit.
    Raises HandoffError, PortError, NotBuiltError (all causes at once); both sides are then as they were.
    Source of the rules: see ``xweights.optimizers.rules.updates``.

    Example:
        >>> import torch, xweights as xw
        >>> a, b = (torch.nn.Linear(2, 1) for _ in range(2))
        >>> xw.handoff((a, torch.optim.SGD(a.parameters(), 0.1)), (b, None), step=7).updates
        7
    """
    if grade not in ("stock", "exact", "weights"):
        raise ArgumentError(f'grade= is "stock", "exact" or "weights"\ngot: {grade!r}')
    check_step(step)
    source_side, target_side = to_training(source, "source"), to_training(target, "target")
    if source_side.model is target_side.model:
        raise HandoffError("source and target are the same model\nFix: xw.set_optimizer exchanges its optimizer")
    sharded = find_sharded(source_side.model, target_side.model)
    if sharded:
        options = {"sample": sample, "sample_target": sample_target, "attributes": attributes, "outputs": outputs}
        call = partial(handoff, grade=grade, step=step, names=names, **options)
        return handoff_on_ranks(
            source_side, target_side, sharded, call, grade, step, names, sample, sample_target, attributes
        )
    backends = optimizing_for(source_side.model, "source"), optimizing_for(target_side.model, "target")
    state = None
    if grade != "weights":
        state = read_optimizer(source_side, step)
    transfer = StateTransfer(source_side, target_side, backends, grade)
    before = snapshot(target_side.model)
    transfer.undo.append(before.restore)
    transfer.undo.append(backends[1].backup(target_side.optimizer))
    models = (source_side.model, target_side.model)
    try:
        report, pairs, run = port_models(*models, sample, sample_target, ..., names, attributes, outputs)
        transfer.undo += [partial(run.target.porting.set_attribute, *setting) for setting in run.undo]
        return transfer.finish(state, report, pairs, run)
    except BaseException as wrong:
        for undo in reversed(transfer.undo):
            undo()
        if isinstance(wrong, PortError) and sample is not None:
            attempt = partial(port_models, *models, sample, sample_target, ..., names, outputs=outputs)
            folded = suggest_fold(wrong, attempt, attributes, [parameters(model) for model in models])
            if folded is not None:
                raise _refuse_fold(folded) from None
        raise


def _refuse_fold(refusal: PortError) -> HandoffError:
    """Return the refusal of a hand-off between models of which one is folded."""
    cause = str(refusal).splitlines()[1].strip(" -")  # suggest_fold's own line
    return HandoffError(
        "this hand-off can't be made, and both sides are as they were\n"
        "  - the weights can only be ported with fold=True, and an optimizer's moments don't fold: what is one array "
        f"in one model is computed from several in the other\n    {cause}\n"
        "Fix: xw.port(source, target, sample=..., fold=True), and a new optimizer"
    )


@dataclass
class StateTransfer:
    """One hand-off in progress, with what undoes it."""

    source: Training
    target: Training
    backends: tuple[Optimizing, Optimizing]
    grade: Grade
    undo: list[Callable[[], None]] = field(default_factory=list)

    def finish(
        self, state: OptimizerState | None, report: PortReport, pairs: Sequence[Pair], run: Run
    ) -> HandoffReport:
        """Transfer everything but the weights, which are ported already, and return the report."""
        training = Training(self.target.model, self.target.optimizer)
        weights = Part("weights", "exact", _describe_proof(report))
        if state is None:
            lost = Part("optimizer", "impossible", "not handed over: its slots, its steps and its schedule start over")
            behind = (*self._carry_rules(pairs, held=False).parts, *self._carry_others(None, pairs, held=False).parts)
            return HandoffReport(training, "weights", (weights, lost, *behind), report)
        remapped = remap_state(state, pairs)
        carried = self._carry_rules(pairs)  # first: what is frozen on the source is to be frozen on the target
        own = parameters(self.target.model)
        route = self.backends[1].plan(remapped, own, self.target.optimizer, self.grade)
        problems = Problems(f"this experiment can't be handed over with grade={self.grade!r}, and nothing was changed")
        for text in route.refusals:
            first, _, fix = text.partition("\nFix: ")
            problems.add(HandoffError, first, fix=fix or None)
        problems.check()
        settings = self._copy_settings(report, run)
        statistics, release = self._match_statistics(pairs)
        written = self.backends[1].write(self.target, remapped, own, route, self.grade)
        self.undo.append(written.release)
        others = self._carry_others(written.optimizer, pairs)
        handles = (*carried.handles, *others.handles)
        training = replace(
            training, optimizer=written.optimizer, scheduler=written.scheduler, ema=written.ema,
            micro_steps=remapped.micro_steps, micro_done=remapped.micro_done,
        )  # fmt: skip
        parts = (
            weights,
            *route.parts,
            *carried.parts,
            *others.parts,
            *_report_biases(state, pairs),
            *settings,
            *statistics,
            *self._report_dropouts(run),
        )
        untrained = {p.name for p in own if p.trainable} - set(remapped.names)
        left = note_untrained(sorted(untrained), "the source doesn't train it")
        notes = (*route.notes, *remapped.notes, *left, *self._report_reduced_precision(own))
        return HandoffReport(
            training, self.grade, parts, report, remapped.updates, notes, handles,
            (written.release, *release, *(handle.release for handle in handles)),
        )  # fmt: skip

    def _carry_rules(self, pairs: Sequence[Pair], *, held: bool = True) -> Carried:
        target = self.target.model
        carried = carry_rules(parameters(self.source.model), target, parameters(target), pairs, held=held)
        self.undo += [handle.release for handle in carried.handles]
        return carried

    def _carry_others(self, optimizer: Any, pairs: Sequence[Pair], *, held: bool = True) -> Carried:
        source, target = parameters(self.source.model), self.target.model
        carried = carry_factors_and_averages(source, target, optimizer, pairs, held=held)
        self.undo += [handle.release for handle in carried.handles]
        return carried

    def _report_dropouts(self, run: Run) -> list[Part]:
        sides = zip((run.source, run.target), self.backends, strict=True)
        drops = [record.path for side, backend in sides for record in side.records if backend.drops(record.layer)]
        if not drops:
            return []
        streams = f"random streams have no counterpart ({', '.join(dict.fromkeys(drops))})"
        return [Part("dropout", "impossible", f"{streams}: xw.dropout_mask draws equal masks in all frameworks")]

    def _report_reduced_precision(self, own: Sequence[Parameter]) -> list[str]:
        """Return a note for each side that computes in a narrower dtype than that of its weights."""
        dtypes = dict.fromkeys(p.dtype.name for p in own if p.floating)
        sides = zip(("source", "target"), self.backends, strict=True)
        return [
            f"the {side}'s {backend.name} computes {dtype} in {backend.compute_dtype(dtype)} in places: "
            "the sides agree to that precision only"
            for side, backend in sides
            for dtype in dtypes
            if backend.compute_dtype(dtype) != dtype
        ]

    def _copy_settings(self, report: PortReport, run: Run) -> list[Part]:
        """Copy the source's settings that matter only in training to the target's layers."""
        records = {record.path: record for record in run.target.records}
        records |= {unit.path: unit.record for unit in run.target.units}
        problems = Problems("this experiment can't be handed over, and nothing was changed")
        parts = []
        for difference in report.differences:
            if not difference.training or difference.fixed:
                continue
            record = records[difference.target]
            try:
                run.target.porting.set_attribute(record, difference.name, difference.expected)
            except (PortError, TypeError):
                problems.add(HandoffError, f"{difference}, and can't be set")
                continue
            self.undo.append(partial(run.target.porting.set_attribute, record, difference.name, difference.got))
            parts.append(
                Part(
                    f"{difference.name} of {difference.target}",
                    "exact",
                    f"set from {difference.got} to {difference.expected}",
                )
            )
        problems.check()
        return parts

    def _match_statistics(self, pairs: Sequence[Pair]) -> tuple[list[Part], list[Callable[[], None]]]:
        """Have batch normalizations of the target collect variances as those of the source do."""
        layer_pairs = [(pair.source.record.layer, pair.target.record.layer) for pair in pairs]
        kinds = [pair.target.kind for pair in pairs]
        norms = [layers for layers, kind in zip(layer_pairs, kinds, strict=True) if kind == "batch_norm"]
        if not norms:
            return [], []
        unbiased = self.backends[0].collects_unbiased([source for source, _ in norms])
        layers = [target for _, target in norms]
        kind = "unbiased" if unbiased else "biased"
        if self.backends[1].collects_unbiased(layers) == unbiased:
            return [Part("moving variances", "stock", f"both sides collect the {kind} variance")], []
        if self.grade == "stock":
            raise HandoffError(
                f"this experiment can't be handed over with grade='stock', and nothing was changed\n"
                f"  - the source's batch normalizations collect the {kind} variance, the target's the other\n"
                "Fix: grade='exact'"
            )
        release = self.backends[1].set_statistics(self.target.model, layers, unbiased=unbiased)
        self.undo.append(release)
        return [Part("moving variances", "exact (hook)", f"collected {kind}, as the source does")], [release]


def _report_biases(state: OptimizerState, pairs: Sequence[Pair]) -> list[Part]:
    return [
        Part("two biases", "exact", f"{' and '.join(bias.source_names)} became {bias.name}, which moves twice as fast")
        for bias in find_joined_biases(state, pairs, Problems(""))
    ]


def _describe_proof(report: PortReport) -> str:
    if report.max_error is None:
        return "moved to the bit; pass sample= to have the forwards compared"
    return f"moved to the bit; the forwards differ by {report.max_error:.1e}"
