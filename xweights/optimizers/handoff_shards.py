"""Hand over to or from a model that lies on several ranks: on plain copies, whose training state is then written.

Every rank makes the whole hand-off by itself, and all compare the weights that it gives. The state that a copy ends up
with is cut into the blocks of each rank, as any training state is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from xweights.core import attachments, hold_registry
from xweights.core.names import Names
from xweights.core.parameter import Parameter
from xweights.edit.read import get_params, parameters
from xweights.edit.undo import snapshot
from xweights.edit.write import set_params
from xweights.errors import HandoffError, Problems
from xweights.optimizers.protocol import Grade, Training, optimizing_for
from xweights.optimizers.reports import HandoffProof, HandoffReport
from xweights.optimizers.saved import is_saved
from xweights.optimizers.state import OptimizerState
from xweights.optimizers.training_state import get_training_state, write_training_state
from xweights.porting.reports import PortReport
from xweights.porting.shards import WorkOnCopies

Call = Callable[[Training, Training], HandoffReport]
_NO_PORT = PortReport(entries=(), ok=True, max_error=None)


def handoff_on_ranks(
    source: Training,
    target: Training,
    sharded: Sequence[Any],
    call: Call,
    grade: Grade,
    step: int | None,
    names: Names | None,
    *agreed: Any,
) -> HandoffReport:
    """Hand over between copies of the models that lie on several ranks, then write the state of the copy.

    ``call`` makes the hand-off of two sides of this process; ``agreed`` are arguments that every rank passes alike.
    """
    is_source = any(model is source.model for model in sharded)
    is_target = any(model is target.model for model in sharded)
    work = WorkOnCopies("handoff", sharded, "all", (grade, step, names, *agreed))
    with work.vote:
        work.open()
        own = parameters(source.model)
        if is_target:
            _refuse_attached(parameters(target.model))
        if is_source and grade == "exact" and _is_saved(source) and attachments.handles_on(own):
            raise HandoffError(
                "the state of the source's optimizer is in a file, and what is attached to its training can't be\n"
                "taken along from several ranks\nFix: pass the optimizer itself"
            )
    state = (
        get_training_state(source, step=step) if is_source and grade != "weights" and not _is_saved(source) else None
    )
    done: list[HandoffReport] = []

    def run(source_model: Any, target_model: Any) -> Any:
        side = replace(source, model=source_model)
        if state is not None:
            side = write_training_state(source_model, None, state).training
        done.append(call(side, Training(target_model) if is_target else target))
        if is_target:
            _refuse_settings(done[0])
        return done[0].port

    undo = [] if is_target else [optimizing_for(target.model, "target").backup(target.optimizer)]
    undo += [] if is_target else [snapshot(target.model).restore]
    try:
        work.run(source.model, target.model, run, _NO_PORT)
        return _finish(done[0], target, work.twin_of(target.model), grade) if is_target else done[0]
    except BaseException:
        for report in done:
            report.release()
        for restore in undo:
            restore()
        raise


def verify_on_ranks(
    source: Training,
    target: Training,
    sharded: Sequence[Any],
    call: Callable[[Training, Training], HandoffProof],
    step: int | None,
    *agreed: Any,
) -> HandoffProof:
    """Train on from copies of the sides that lie on several ranks, in their state; every rank by itself."""
    work = WorkOnCopies("verify_handoff", sharded, "all", (step, *agreed))
    with work.vote:
        work.open()
    sides = (source, target)
    states = [
        get_training_state(side, step=step) if any(side.model is model for model in sharded) else None for side in sides
    ]
    done: list[HandoffProof] = []

    def run(*models: Any) -> Any:
        copies = [
            side if state is None else write_training_state(model, None, state).training
            for side, state, model in zip(sides, states, models, strict=True)
        ]
        done.append(call(*copies))
        return _NO_PORT

    work.run(source.model, target.model, run, _NO_PORT)
    return done[0]


def _finish(report: HandoffReport, target: Training, twin: Any, grade: Grade) -> HandoffReport:
    """Write into the target what its copy has got, and return the report on the target itself."""
    if grade == "weights":
        set_params(target.model, get_params(twin, copy=False), allow_nonfinite=True)
        return replace(report, training=Training(target.model, target.optimizer), held=(), _release=())
    state = get_training_state(report.training)
    report.release()
    written = write_training_state(target.model, target.optimizer, state, grade=grade)
    training = replace(report.training, model=target.model, optimizer=written.optimizer,
                       scheduler=written.training.scheduler)  # fmt: skip
    return replace(report, training=training, held=written.held, _release=written._release)


def _is_saved(side: Training) -> bool:
    return side.optimizer is None or isinstance(side.optimizer, OptimizerState) or is_saved(side.optimizer)


def _refuse_attached(own: Sequence[Parameter]) -> None:
    """Refuse a target that something is attached to: what the copy gets would have to be fitted into its order."""
    problems = Problems("this experiment can't be handed over, and nothing was changed")
    names = [p.name for p in own if hold_registry.find(p) is not None]
    if names:
        shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
        problems.add(HandoffError, f"the target lies on several ranks, and is held: {shown}", fix="release it first")
    elif attachments.handles_on(own):
        problems.add(HandoffError, "the target lies on several ranks, and something is attached to its training",
                     fix="release it first")  # fmt: skip
    problems.check()


def _refuse_settings(report: HandoffReport) -> None:
    """Refuse what the hand-off set on the layers of a copy, and not on the target's own."""
    set_there = [part for part in report.parts if part.why.startswith("set from") or part.name == "moving variances"]
    problems = Problems("this experiment can't be handed over, and nothing was changed")
    for part in set_there:
        if part.grade != "stock":
            problems.add(
                HandoffError,
                f"{part.name}: {part.why}; and the target lies on several ranks",
                fix="set it on the target before it is sharded, or hand over before that",
            )
    problems.check()
