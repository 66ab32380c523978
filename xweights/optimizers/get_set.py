"""Read the state of an optimizer (`get_optimizer`) and write it (`set_optimizer`)."""

from __future__ import annotations

from typing import Any

from xweights.core.names import Names, renamer
from xweights.edit.read import parameters
from xweights.errors import ArgumentError, HandoffError, Problems, near
from xweights.optimizers.protocol import Grade, Training, optimizing_for
from xweights.optimizers.remap import rename_parameters
from xweights.optimizers.reports import HandoffReport
from xweights.optimizers.state import OptimizerState


def get_optimizer(model: Any, optimizer: Any = None, *, step: int | None = None) -> OptimizerState:
    """Return the whole state of an optimizer, free of any framework; the optimizer is unchanged.

    Args:
        model: The module or model that it trains; or a :class:`Training`, if there is a scheduler, clipping or an EMA.
        optimizer: The optimizer.
        step: How many updates it has made, where it doesn't count them itself (PyTorch's SGD and Muon).

    Exact: exactly the same bits of every slot, in neutral order.
    Raises NotBuiltError for an optimizer without slots, HandoffError for one of another model, of an unknown class, or
    with slots missing.

    Example:
        >>> import torch, xweights as xw
        >>> model = torch.nn.Linear(1, 1)
        >>> xw.get_optimizer(model, torch.optim.SGD(model.parameters(), 0.1), step=0).groups[0].hyper["learning_rate"]
        0.1
    """
    side = model if isinstance(model, Training) else Training(model, optimizer)
    check_step(step)
    return optimizing_for(side.model, "model").read(side, parameters(side.model), step)


def set_optimizer(
    model: Any, optimizer: Any, state: OptimizerState, *, grade: Grade = "exact", names: Names | None = None
) -> HandoffReport:
    """Have an optimizer continue from a state, whatever framework the state comes from.

    Args:
        model: The module or model that is trained.
        optimizer: The optimizer to fill, in place; None: one is built. The report has it.
        state: What :func:`get_optimizer` returned, or :func:`optimizer_state` described.
        grade: "exact"; or "stock": only if one of the framework's own classes continues without help.
        names: ``{"0/*": "dense/0/*"}`` if names differ (model's glob: state's glob).

    Exact: exactly the same bits where the rule is the framework's own; else see :func:`handoff`.
    Raises HandoffError with every cause; the optimizer is then as it was.

    Example:
        >>> import torch, xweights as xw
        >>> model = torch.nn.Linear(1, 1)
        >>> state = xw.optimizer_state(model, "lion", learning_rate=1e-3)
        >>> type(xw.set_optimizer(model, None, state).optimizer).__name__
        'ForeignOptimizer'
    """
    if grade not in ("exact", "stock"):
        raise ArgumentError(f'grade= is "exact" or "stock"\ngot: {grade!r}')
    backend = optimizing_for(model, "model")
    own = parameters(model)
    rename = renamer(names)
    state = rename_parameters(state, {rename(p.name): p.name for p in own}) if names else state
    problems = Problems("this optimizer can't be written, and nothing was changed")
    known = {p.name: p for p in own}
    for name in state.names:
        if name not in known:
            problems.add(HandoffError, f"the model has no {name!r}\n{near(name, known)}", fix="names= for twins")
        elif any(value.shape != known[name].shape for slot, value in state.slots[name].items() if slot in _SHAPED):
            shape = next(value.shape for slot, value in state.slots[name].items() if slot in _SHAPED)
            problems.add(HandoffError, f"the slots of {name!r} don't fit\ngot:      {shape}\n"
                         f"expected: {known[name].shape}")  # fmt: skip
        elif state.dtypes[name] != known[name].dtype.name:
            text = f"the slots of {name!r} are of another dtype\ngot:      {state.dtypes[name]}"
            problems.add(HandoffError, f"{text}\nexpected: {known[name].dtype.name}", fix="state.with_dtype(...)")
    problems.check()
    route = backend.plan(state, own, optimizer, grade)
    for text in route.refusals:
        problems.add(HandoffError, text)
    problems.check()
    restore = backend.backup(optimizer)
    try:
        written = backend.write(Training(model, optimizer), state, own, route, grade)
    except BaseException:
        restore()
        raise
    training = Training(model, written.optimizer, written.scheduler, ema=written.ema)
    return HandoffReport(training, grade, route.parts, None, state.updates, route.notes, (written.release,))


_SHAPED = frozenset({"momentum", "velocity", "accumulator", "accumulated_grad", "linear", "average", "accumulated"})


def check_step(step: Any) -> None:
    """Refuse a step that is no number of updates."""
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise ArgumentError(f"step= is a number of updates, a whole number >= 0\ngot: {step!r}")
