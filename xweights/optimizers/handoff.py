"""``handoff``: a half-trained experiment into another framework, as if nothing had happened.

The order: the source's optimizer is read; the weights are ported, with proof; the state takes the same way; the
target's optimizer is built or filled. Whatever goes wrong, both sides are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from xweights.core.parameter import Parameter
from xweights.core.renaming import Names
from xweights.edit.read import parameters
from xweights.edit.undo import snapshot
from xweights.errors import ArgumentError, HandoffError, PortError, Problems
from xweights.optimizers.biases import joined
from xweights.optimizers.get_set import check_step
from xweights.optimizers.protocol import Grade, Optimizing, Part, Training, optimizing_for, side_of
from xweights.optimizers.remap import remap_state
from xweights.optimizers.reports import HandoffReport
from xweights.optimizers.state import OptimizerState
from xweights.porting.matching.outputs import OutputMap
from xweights.porting.matching.search import Pair
from xweights.porting.port import Attributes, ported
from xweights.porting.reports import PortReport
from xweights.porting.session import Run


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
        source: ``(model, optimizer)`` or :class:`Training`, where more belongs to the experiment. It stays as it is.
        target: Likewise; with None for the optimizer one is built, which the report has.
        sample: What the source is called with, to prove the port of the weights; see :func:`port`.
        grade: "exact": training goes on within the rounding floor, by the framework's own class, by one with a hook
            before its step, or by an optimizer that follows the foreign rule. "stock": by the framework's own class
            without any help, or HandoffError. "weights": the weights alone, which is said loudly.
        step: How many updates the source's optimizer has made, where it doesn't count them (PyTorch's SGD and Muon).
        sample_target: As for :func:`port`, and so are the next three.
        names: Known pairs.
        attributes: What is done where settings that are no weights differ.
        outputs: Which output is which.

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
    mine, theirs = side_of(source, "source"), side_of(target, "target")
    if mine.model is theirs.model:
        raise HandoffError("source and target are the same model\nFix: xw.set_optimizer exchanges its optimizer")
    backends = optimizing_for(mine.model, "source"), optimizing_for(theirs.model, "target")
    state = None
    if grade != "weights":
        state = backends[0].read(mine, parameters(mine.model), step)
    work = Handing(mine, theirs, backends, grade)
    before = snapshot(theirs.model)
    work.undo.append(before.restore)
    work.undo.append(backends[1].backup(theirs.optimizer))
    try:
        options = (sample, sample_target, ..., names, attributes, outputs)
        report, pairs, run = ported(mine.model, theirs.model, *options)
        work.undo += [partial(run.target.porting.set_attribute, *one) for one in run.undo]
        return work.finished(state, report, pairs, run)
    except BaseException:
        for undo in reversed(work.undo):
            undo()
        raise


@dataclass
class Handing:
    """One hand-off under way."""

    source: Training
    target: Training
    backends: tuple[Optimizing, Optimizing]
    grade: Grade
    undo: list[Callable[[], None]] = field(default_factory=list)

    def finished(
        self, state: OptimizerState | None, report: PortReport, pairs: Sequence[Pair], run: Run
    ) -> HandoffReport:
        """Do what comes after the weights."""
        training = Training(self.target.model, self.target.optimizer)
        weights = Part("weights", "exact", _proof(report))
        if state is None:
            lost = Part("optimizer", "impossible", "not handed over: its slots, its steps and its schedule begin anew")
            return HandoffReport(training, "weights", (weights, lost), report)
        here = remap_state(state, pairs)
        own = parameters(self.target.model)
        route = self.backends[1].plan(here, own, self.target.optimizer, self.grade)
        problems = Problems(f"this experiment can't be handed over with grade={self.grade!r}, and nothing was changed")
        for text in route.refusals:
            first, _, fix = text.partition("\nFix: ")
            problems.add(HandoffError, first, fix=fix or None)
        problems.check()
        settings = self._settings(report, run)
        statistics, release = self._statistics(pairs)
        written = self.backends[1].write(self.target, here, own, route, self.grade)
        training = replace(
            training, optimizer=written.optimizer, scheduler=written.scheduler, ema=written.ema,
            micro_steps=here.micro_steps, micro_done=here.micro_done,
        )  # fmt: skip
        parts = (weights, *route.parts, *_biases(state, pairs), *settings, *statistics, *self._dropouts(run))
        trained = {p.name for p in own if p.trainable} - set(here.names)
        left = [f"not updated, because the source doesn't train it: {', '.join(sorted(trained))}"] if trained else []
        notes = (*route.notes, *left, *self._narrowed(own))
        return HandoffReport(
            training, self.grade, parts, report, here.updates, notes, (written.release, *release)
        )  # fmt: skip

    def _dropouts(self, run: Run) -> list[Part]:
        sides = zip((run.source, run.target), self.backends, strict=True)
        drops = [one.path for side, backend in sides for one in side.records if backend.drops(one.layer)]
        if not drops:
            return []
        streams = f"random streams have no counterpart ({', '.join(dict.fromkeys(drops))})"
        return [Part("dropout", "impossible", f"{streams}: xw.dropout_mask draws equal masks in all frameworks")]

    def _narrowed(self, own: Sequence[Parameter]) -> list[str]:
        """Say so where a framework computes in less than the dtype of the weights."""
        dtypes = dict.fromkeys(p.dtype.name for p in own if p.floating)
        sides = zip(("source", "target"), self.backends, strict=True)
        return [
            f"the {side}'s {one.name} computes {dtype} in {one.computed(dtype)} in places: so far the sides agree"
            for side, one in sides
            for dtype in dtypes
            if one.computed(dtype) != dtype
        ]

    def _settings(self, report: PortReport, run: Run) -> list[Part]:
        """Give the target's layers the source's settings that matter in training only."""
        records = {record.path: record for record in run.target.records}
        records |= {unit.path: unit.record for unit in run.target.units}
        problems = Problems("this experiment can't be handed over, and nothing was changed")
        parts = []
        for one in report.differences:
            if not one.training or one.fixed:
                continue
            record = records[one.target]
            try:
                run.target.porting.set_attribute(record, one.name, one.expected)
            except (PortError, TypeError):
                problems.add(HandoffError, f"{one}, and can't be set")
                continue
            self.undo.append(partial(run.target.porting.set_attribute, record, one.name, one.got))
            parts.append(Part(f"{one.name} of {one.target}", "exact", f"set from {one.got} to {one.expected}"))
        problems.check()
        return parts

    def _statistics(self, pairs: Sequence[Pair]) -> tuple[list[Part], list[Callable[[], None]]]:
        """Have batch normalizations of the target collect variances as those of the source do."""
        found = [(pair.source.record.layer, pair.target.record.layer) for pair in pairs]
        kinds = [pair.target.kind for pair in pairs]
        norms = [one for one, kind in zip(found, kinds, strict=True) if kind == "batch_norm"]
        if not norms:
            return [], []
        wanted = self.backends[0].unbiased([one for one, _ in norms])
        layers = [other for _, other in norms]
        word = "unbiased" if wanted else "biased"
        if self.backends[1].unbiased(layers) == wanted:
            return [Part("moving variances", "stock", f"both sides collect the {word} variance")], []
        if self.grade == "stock":
            raise HandoffError(
                f"this experiment can't be handed over with grade='stock', and nothing was changed\n"
                f"  - the source's batch normalizations collect the {word} variance, the target's the other\n"
                "Fix: grade='exact'"
            )
        release = self.backends[1].statistics(self.target.model, layers, unbiased=wanted)
        self.undo.append(release)
        return [Part("moving variances", "exact (hook)", f"collected {word}, as the source does")], [release]


def _biases(state: OptimizerState, pairs: Sequence[Pair]) -> list[Part]:
    return [
        Part("two biases", "exact", f"{' and '.join(one.source_names)} became {one.name}, which moves twice as fast")
        for one in joined(state, pairs, Problems(""))
    ]


def _proof(report: PortReport) -> str:
    if report.max_error is None:
        return "moved to the bit; pass sample= to have the forwards compared"
    return f"moved to the bit; the forwards differ by {report.max_error:.1e}"
