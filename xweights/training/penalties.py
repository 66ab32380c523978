"""Penalties on weights: numbers that are added to a loss, with their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xweights.core.agreement import Vote, is_cut
from xweights.core.attachments import Releasable, count_of
from xweights.core.backend import Attachment, Regularizing
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.core.selection import DEFAULT_KERNELS, WhereLike, select
from xweights.core.targets import open_target
from xweights.edit.execute import add_refusal
from xweights.errors import HoldError, Problems, SelectionError, XweightsError
from xweights.rules.base import Per
from xweights.rules.penalties import Penalty
from xweights.training.bound_penalties import BoundPenalty
from xweights.training.penalty_shards import ShardedPenalty


class AddedPenalty(Releasable):
    """A penalty that a model adds to its own loss, until :meth:`release`; also a context manager.

    Attributes:
        parameters: The penalised parameters.
        rule: The :class:`Penalty`.

    Example:
        >>> import xweights as xw
        >>> xw.AddedPenalty.release.__doc__.splitlines()[0]
        'Remove this penalty; other regularizers stay. Calling it twice does nothing.'
    """

    def __init__(self, rule: Penalty, chosen: Sequence[Parameter], attachment: Attachment) -> None:
        self.rule = rule
        self.parameters = tuple(chosen)
        self._attachments = [attachment]

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a training step went by without the penalty."""
        super().check()

    def release(self) -> None:
        """Remove this penalty; other regularizers stay. Calling it twice does nothing."""
        super().release()

    def __repr__(self) -> str:
        return f"<AddedPenalty {self.rule!r} on {count_of(self.parameters)}>"


def penalty(
    target: Any,
    *,
    l1: float | None = None,
    l2: float | None = None,
    group: float | None = None,
    per: Per | None = None,
    orthogonal: float | None = None,
    where: WhereLike | None = None,
) -> Any:
    """Return a penalty on large weights to add to a loss: a differentiable number of the target's framework.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        l1: Weight of sum(abs(w)).
        l2: Weight of sum(w ** 2), as Keras' L2 counts it.
        group: Weight of the group lasso: sqrt(entries of a unit) * (L2 norm of the unit), summed over units.
        per: The axis (or axes) that number these units: "out" is one per output, over all other axes.
        orthogonal: Weight of sum((G - I) ** 2), G the Gram matrix of the columns of (all other axes, ``out``).
        where: Default: kernels and embeddings.

    Returns:
        A 0-d tensor: float32, or float64 if one of the parameters is. torch: with autograd to the parameters;
        TensorFlow: seen by a GradientTape; JAX: of the values in the ``keras.StatelessScope`` around it; arrays: a
        plain number. A parametrized parameter of torch is penalised by its effective value. First derivatives only.

    Close (rtol 1e-6, value and gradients): both are computed in float64 and rounded once. At 0 the derivative of l1,
    and of ``group`` for a unit of zeros, is 0. For a weight that changes during training, multiply:
    ``t * penalty(model, l2=1.0)``. Raises ArgumentError, LayoutError (no such axis), ShapeError, SelectionError,
    UseBindError (in torch.compile: use :func:`bind_penalty`), TraceError (JAX traces, and the variables have no
    traced values).

    Example:
        >>> import numpy as np, xweights as xw
        >>> float(xw.penalty({"d/kernel": np.array([3.0, -4.0])}, l1=1.0, l2=0.5))
        19.5
    """
    return bind_penalty(target, l1=l1, l2=l2, group=group, per=per, orthogonal=orthogonal, where=where)()


def bind_penalty(
    target: Any,
    *,
    l1: float | None = None,
    l2: float | None = None,
    group: float | None = None,
    per: Per | None = None,
    orthogonal: float | None = None,
    where: WhereLike | None = None,
) -> BoundPenalty:
    """Select now, in plain Python, and return a function that computes the penalty: for ``torch.compile`` or speed.

    Arguments, accuracy and errors are those of :func:`penalty`.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"d/kernel": np.array([3.0, -4.0])}; size = xw.bind_penalty(w, l2=1.0); xw.scale(w, 2.0); float(size())
        100.0
    """
    rule = Penalty(l1, l2, group, per, orthogonal)
    everything = _open(target, rule, where)
    if not any(map(is_cut, everything)):
        return BoundPenalty(rule, _choose(everything, rule, where))
    with Vote(everything, "penalty", writing=True) as vote:
        vote.agree(repr(rule), rule)
        chosen = vote.open(_select(everything, where))
        _check(chosen, rule)
        return ShardedPenalty(rule, chosen)


def add_penalty(
    model: Any,
    *,
    l1: float | None = None,
    l2: float | None = None,
    group: float | None = None,
    per: Per | None = None,
    orthogonal: float | None = None,
    where: WhereLike | None = None,
) -> AddedPenalty:
    """Have a Keras model add a penalty to the loss of ``fit``, also one that is built, compiled and fitted already.

    Args:
        model: The model that is fitted.
        l1: As for :func:`penalty`.
        l2: As for :func:`penalty`.
        group: As for :func:`penalty`.
        per: As for :func:`penalty`.
        orthogonal: As for :func:`penalty`.
        where: As for :func:`penalty`.

    Returns:
        An :class:`AddedPenalty`; ``release()`` removes it. Regularizers that were there before stay.

    The optimizer keeps its state. Keras leaves frozen weights out of its loss. ``model.save`` doesn't save the penalty.
    Close (rtol 1e-6). Raises as :func:`penalty`, and HoldError for a target that computes no loss by itself (torch,
    ``tf.Module``, arrays): add ``xw.penalty(...)`` to the loss there.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.add_penalty({"d/kernel": np.ones(2)}, l2=0.1)
        Traceback (most recent call last):
        xweights.errors.HoldError: nothing here puts together a loss by itself: got a dict
        Fix: in the training step: loss = loss + xweights.penalty(target, l2=0.1)
    """
    rule = Penalty(l1, l2, group, per, orthogonal)
    backend = backend_for(model)
    if not isinstance(backend, Regularizing):
        raise HoldError(
            f"nothing here puts together a loss by itself: got a {type(model).__name__}\n"
            f"Fix: in the training step: loss = loss + {_call_line('penalty', rule, where)}"
        )
    everything = _open(model, rule, where)
    with Vote(everything, "add_penalty", writing=True) as vote:
        vote.agree(repr(rule), rule)
        chosen = vote.open(_select(everything, where))
        _check(chosen, rule)
        _refuse_cut(chosen)
    parts = {id(p): BoundPenalty(rule, [p]) for p in chosen}
    return AddedPenalty(rule, chosen, backend.regularize(chosen, lambda p, x: parts[id(p)].of([x]), target=model))


def _open(target: Any, rule: Penalty, where: WhereLike | None) -> Sequence[Parameter]:
    line = _call_line("bind_penalty", rule, where)
    return open_target(target, bind_line=lambda: f"bound = {line}")


def _choose(everything: Sequence[Parameter], rule: Penalty, where: WhereLike | None) -> list[Parameter]:
    chosen = _select(everything, where)
    _check(chosen, rule)
    return chosen


def _select(everything: Sequence[Parameter], where: WhereLike | None) -> list[Parameter]:
    return select(everything, DEFAULT_KERNELS if where is None else where)


def _refuse_cut(chosen: Sequence[Parameter]) -> None:
    """Refuse parameters of which other ranks have parts: a compiled step has all of each, and a term its block."""
    problems = Problems("this can't be added to the loss of the model, and nothing was changed")
    for p in chosen:
        if is_cut(p):
            problems.add(
                HoldError,
                f"{p.name!r} is cut between processes, and the compiled step sees all of it at once",
                fix="leave it out with where=, and give its layer a regularizer of Keras when you make it",
            )
    problems.check()


def _check(chosen: Sequence[Parameter], rule: Penalty) -> None:
    """Raise everything that keeps these parameters from being penalised."""
    problems = Problems("this can't be penalised")
    if not chosen:
        problems.add(SelectionError, "the target has no parameters at all")
    for p in chosen:
        if add_refusal(problems, p, writing=False):
            continue
        try:
            rule.operands(p)
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
    problems.check()


def _call_line(call: str, rule: Penalty, where: WhereLike | None) -> str:
    arguments = repr(rule).removeprefix("Penalty(").removesuffix(")")
    return f"xweights.{call}(target, {arguments}{'' if where is None else f', where={where!r}'})"
