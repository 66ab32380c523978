"""Read the state of an optimizer (`get_optimizer`) and write it (`set_optimizer`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xweights.core.agreement import Outcome, Vote
from xweights.core.names import Names, renamer
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike, select
from xweights.edit.read import parameters
from xweights.errors import ArgumentError, HandoffError, Problems, near
from xweights.optimizers.placing import candidates, place
from xweights.optimizers.protocol import Grade, Optimizing, Training, optimizing_for
from xweights.optimizers.remap import rename_parameters
from xweights.optimizers.reports import HandoffReport
from xweights.optimizers.saved import find_saved, is_saved, open_saved
from xweights.optimizers.state import OptimizerState
from xweights.optimizers.state_shards import cut_parameters, cut_state, describe_state, read_agreed


def get_optimizer(
    model: Any,
    optimizer: Any = None,
    *,
    step: int | None = None,
    part: str | None = None,
    rule: Any = None,
    where: WhereLike | None = None,
) -> OptimizerState:
    """Return the whole state of an optimizer, free of any framework; the optimizer is unchanged.

    A file stands for the optimizer whose state is in it, whole or beside a training run's weights: PyTorch's
    ``optimizer.state_dict()``, Keras' ``.keras`` and ``.weights.h5``, and what :meth:`OptimizerState.save` wrote.
    PyTorch saves positions and no names, so these are matched by order with the model's parameters, or with its
    trainable ones, with the shapes as a check; ``notes`` of the state says which was taken for which.

    Args:
        model: The module or model that it trains; or a :class:`Training`, if there is a scheduler, clipping or an EMA.
        optimizer: The optimizer; or the path of a file, or what :func:`xweights.load` returned.
        step: How many updates it has made, where it doesn't count them itself (PyTorch's SGD and Muon).
        part: Which optimizer is meant, in a file of several ("optimizer_states/0").
        rule: Of a file: the class that wrote it ("AdamW"), where the settings in it leave that open; or an optimizer of
            the model that was made as the saved one was: then its groups say which parameters they have, and its
            settings are taken where the file has none (Keras' ``.weights.h5``).
        where: Of a file of PyTorch: which parameters the optimizer had, in the model's order.

    On a sharded model every rank makes the call, and gets whole slots.
    Exact: exactly the same bits of every slot, in neutral order.
    Raises NotBuiltError for an optimizer without slots, HandoffError for one of another model, of an unknown class, or
    with slots missing, and for a file whose positions don't fit, with the list; DamagedFileError, RefusedFileError,
    FileAccessError.

    Example:
        >>> import torch, xweights as xw
        >>> model = torch.nn.Linear(1, 1)
        >>> xw.get_optimizer(model, torch.optim.SGD(model.parameters(), 0.1), step=0).groups[0].hyper["learning_rate"]
        0.1
    """
    side = model if isinstance(model, Training) else Training(model, optimizer)
    check_step(step)
    return read_optimizer(side, step, part=part, rule=rule, where=where)


def read_optimizer(
    side: Training,
    step: int | None,
    *,
    part: str | None = None,
    rule: Any = None,
    where: WhereLike | None = None,
) -> OptimizerState:
    """Return the state of a side's optimizer: a live one, one in a file, or a state that was read already."""
    backend = optimizing_for(side.model, "model")
    own = parameters(side.model)
    if isinstance(side.optimizer, OptimizerState):
        return place_saved(backend, side.model, own, side.optimizer, rule, where)
    if not is_saved(side.optimizer):
        if part is not None or rule is not None or where is not None:
            raise ArgumentError("part=, rule= and where= are for a file, and this is no path of one")
        return read_agreed(own, lambda blocks: backend.read(side, blocks, step), "get_optimizer")
    outside = [name for name in ("scheduler", "clip", "ema") if getattr(side, name) is not None]
    if outside:
        raise HandoffError(f"{outside[0]}= goes with a live optimizer, and this one is in a file\n"
                           "Fix: set_optimizer, then Training with the optimizer that it returns")  # fmt: skip
    opened = open_saved(side.optimizer)
    try:
        state = OptimizerState.load_own(opened)
        if state is not None:
            return place_saved(backend, side.model, own, state, rule, where)
        saved = find_saved(opened, part or opened.part)
    finally:
        if opened is not side.optimizer:
            opened.close()
    state = backend.read_saved(saved, side.model, own, rule, step)
    return place_saved(backend, side.model, own, state, rule, where)


def place_saved(
    backend: Optimizing,
    model: Any,
    own: Sequence[Parameter],
    state: OptimizerState,
    optimizer: Any,
    where: WhereLike | None = None,
) -> OptimizerState:
    """Return a state under the names of a model, which it may not know yet.

    ``optimizer``: one that was made as the saved one was, if there is any.
    """
    if state.saved is None:
        return state
    if state.saved.framework != backend.name:
        raise HandoffError(
            f"{state.saved.label} tells its parameters by the order in a model of {state.saved.framework}\n"
            f"got: a model of {backend.name}\nFix: xweights.handoff((the model of {state.saved.framework}, path), ...)"
        )
    order = backend.trained_order(model, own)
    groups = [] if isinstance(optimizer, (str, type)) else backend.groups_of(optimizer, own)
    chosen = None if where is None else select(own, where)
    return place(state, candidates(order, groups, chosen), order)


def set_optimizer(
    model: Any, optimizer: Any, state: OptimizerState, *, grade: Grade = "exact", names: Names | None = None
) -> HandoffReport:
    """Have an optimizer continue from a state, whatever framework the state comes from.

    Args:
        model: The module or model that is trained.
        optimizer: The optimizer to fill, in place; None: one is built. The report has it.
        state: What :func:`get_optimizer` or :meth:`OptimizerState.load` returned, or :func:`optimizer_state` described.
        grade: "exact"; or "stock": only if one of the framework's own classes continues without help.
        names: ``{"0/*": "dense/0/*"}`` if names differ (model's glob: state's glob).

    On a sharded model every rank makes the call with the same state, and fills the slots of its blocks.
    Exact: exactly the same bits where the rule is the framework's own; else see :func:`handoff`.
    Raises HandoffError with every cause; the optimizer is then as it was, on every rank.

    Example:
        >>> import torch, xweights as xw
        >>> model = torch.nn.Linear(1, 1)
        >>> state = xw.optimizer_state(model, "lion", learning_rate=1e-3)
        >>> type(xw.set_optimizer(model, None, state).optimizer).__name__
        'ForeignOptimizer'
    """
    backend = optimizing_for(model, "model")
    own = parameters(model)
    with Vote(own, "set_optimizer", writing=True) as vote:
        vote.agree(describe_state(state), grade, state, names)
        blocks = cut_parameters(vote.open(own))
        state = _fit(backend, model, own, optimizer, state, grade, names)
        local = cut_state(state, blocks)
        route = backend.plan(local, [block.local for block in blocks], optimizer, grade)
        problems = Problems("this optimizer can't be written, and nothing was changed")
        for text in route.refusals:
            problems.add(HandoffError, text)
        problems.check()
    restore = backend.backup(optimizer)
    written = None
    try:
        with Outcome(vote.group):
            written = backend.write(Training(model, optimizer), local, [block.local for block in blocks], route, grade)
    except BaseException:
        if written is not None:  # another rank could not
            written.release()
        restore()
        raise
    training = Training(model, written.optimizer, written.scheduler, ema=written.ema)
    left = [p.name for p in backend.trained_order(model, own) if p.trainable and p.name not in set(state.names)]
    notes = (*route.notes, *state.notes, *note_untrained(left, "the state doesn't have it"))
    return HandoffReport(training, grade, route.parts, None, state.updates, notes, (written.release,))


def _fit(
    backend: Optimizing,
    model: Any,
    own: Sequence[Parameter],
    optimizer: Any,
    state: OptimizerState,
    grade: Grade,
    names: Names | None,
) -> OptimizerState:
    """Return a state under the names of a model's parameters; raise with everything that doesn't fit them."""
    if grade not in ("exact", "stock"):
        raise ArgumentError(f'grade= is "exact" or "stock"\ngot: {grade!r}')
    state = place_saved(backend, model, own, state, optimizer)
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
    return state


def note_untrained(names: Sequence[str], why: str) -> list[str]:
    """Return the note on trainable parameters that the optimizer doesn't update, if there are any."""
    more = f", and {len(names) - 20} more" if len(names) > 20 else ""
    return [f"not updated, because {why}: {', '.join(names[:20])}{more}"] if names else []


_SHAPED = frozenset({"momentum", "velocity", "accumulator", "accumulated_grad", "linear", "average", "accumulated"})


def check_step(step: Any) -> None:
    """Refuse a step that is no number of updates."""
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise ArgumentError(f"step= is a number of updates, a whole number >= 0\ngot: {step!r}")
