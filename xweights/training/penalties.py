"""Penalties on weights: numbers that are added to a loss, with their gradients.

Value and gradient are both written here, once, in ``ops.*``; a framework only receives the gradient
(``Ops.differentiable``). So they are the same on every backend. Both are computed in float64 and rounded at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from xweights.core.backend import Attachment, Regularizing
from xweights.core.casting import is_number
from xweights.core.dispatch import ops_for, to_neutral, to_stored
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.registry import backend_for
from xweights.core.selection import DEFAULT_KERNELS, WhereLike, select
from xweights.core.targets import open_target
from xweights.edit.execute import add_refusal
from xweights.edit.guards import enter_guards
from xweights.errors import ArgumentError, HoldError, Problems, SelectionError, XweightsError
from xweights.rules.base import FLOAT64, need_floating
from xweights.rules.norms import FLOAT32, Per, matrix_of, need_matrix, per_axes
from xweights.training.releasable import Releasable, count_of


@dataclass(frozen=True)
class Penalty:
    """The terms of a penalty and their weights. None, the default of each weight, leaves its term out.

    Attributes:
        l1: Weight of sum(abs(w)).
        l2: Weight of sum(w ** 2), as Keras' L2 counts it (``weight_decay`` of an optimizer would be half of it).
        group: Weight of sqrt(entries of a unit) * (L2 norm of the unit), summed over units: the group lasso, which
            drives whole units to zero. Yuan & Lin, J. R. Stat. Soc. B 68 (2006).
        per: The axis (or axes) that number the units of ``group``.
        orthogonal: Weight of sum((G - I) ** 2), where G is the Gram matrix of the columns of (all other axes, ``out``),
            or of its rows where they are fewer. Bansal et al., arXiv:1810.09102.

    Example:
        >>> import xweights as xw
        >>> xw.Penalty(l2=0.01)
        Penalty(l2=0.01)
    """

    l1: float | None = None
    l2: float | None = None
    group: float | None = None
    per: Per | None = None
    orthogonal: float | None = None

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("l1", "l2", "group", "orthogonal")}
        if all(weight is None for weight in weights.values()):
            raise ArgumentError(
                "a penalty without a weight adds nothing\nFix: give l1=, l2=, group= with per=, or orthogonal="
            )
        for name, weight in weights.items():
            if weight is not None and (not is_number(weight) or not 0 <= float(weight) < math.inf):
                raise ArgumentError(f"{name}= must be a number >= 0\ngot: {weight!r}")
        if (self.group is None) != (self.per is None):
            raise ArgumentError(
                "group= and per= belong together: how much, and which axes number the units\n"
                f"got: group={self.group!r}, per={self.per!r}\nFix: group=0.01, per='out'"
            )

    def operands(self, parameter: Parameter) -> dict[str, Array]:
        """Return the numbers that the terms need for a parameter, in float64; raise if a term can't apply to it."""
        need_floating(parameter, "a penalty")
        numbers: dict[str, Any] = {"zero": 0.0, "one": 1.0}
        if self.l1 is not None:
            numbers |= {"l1": self.l1, "-l1": -float(self.l1)}
        if self.l2 is not None:
            numbers |= {"l2": self.l2, "2 l2": 2 * float(self.l2)}
        if self.group is not None and self.per is not None:
            _, shape, others = per_axes(self.per, parameter)
            numbers |= {"group": float(self.group) * math.sqrt(math.prod(shape[i] for i in others))}
        if self.orthogonal is not None:
            need_matrix(parameter, "orthogonal")
            side = min(matrix_of(parameter)[1])
            numbers |= {"orthogonal": self.orthogonal, "4 orthogonal": 4 * float(self.orthogonal), "-I": -np.eye(side)}
        return {key: np.asarray(number, FLOAT64) for key, number in numbers.items()}

    def value(self, w: Any, ops: Ops, parameter: Parameter, given: Mapping[str, Any]) -> Any:
        """Return the penalty of one parameter (neutral order), 0-d in float64. ``given``: the operands as constants."""
        everything = tuple(range(len(parameter.shape)))
        wide = ops.cast(w, FLOAT64)
        total = _copy(ops, given["zero"])
        if self.l1 is not None:
            size = ops.reshape(ops.sum(ops.abs(wide), everything), ())
            total = ops.add(total, ops.multiply(_copy(ops, size), given["l1"]))
        if self.l2 is not None:
            total = ops.add(total, ops.multiply(ops.sum_squares(w, None), given["l2"]))
        if self.group is not None:
            fine, others = self._units(wide, ops, parameter)
            norms = ops.sqrt(ops.sum_squares(fine, others))
            size = ops.reshape(ops.sum(norms, tuple(range(len(fine.shape)))), ())
            total = ops.add(total, ops.multiply(_copy(ops, size), given["group"]))
        if self.orthogonal is not None:
            _, gram = _gram_minus_identity(wide, ops, parameter, given["-I"])
            total = ops.add(total, ops.multiply(ops.sum_squares(gram, None), given["orthogonal"]))
        return total

    def gradient(self, upstream: Any, w: Any, ops: Ops, parameter: Parameter, given: Mapping[str, Any]) -> Any:
        """Return upstream (0-d) times the derivative of :meth:`value`, in the dtype and order of ``w``."""
        wide, upstream, zero = ops.cast(w, FLOAT64), ops.cast(upstream, FLOAT64), given["zero"]
        terms = []
        if self.l1 is not None:
            up, down = (ops.multiply(_copy(ops, upstream), given[key]) for key in ("l1", "-l1"))
            terms.append(ops.where(ops.greater(wide, zero), up, ops.where(ops.greater(zero, wide), down, zero)))
        if self.l2 is not None:
            terms.append(ops.multiply(_copy(ops, wide), ops.multiply(_copy(ops, upstream), given["2 l2"])))
        if self.group is not None:
            fine, others = self._units(wide, ops, parameter)
            norms = ops.sqrt(ops.sum_squares(fine, others))
            # At a unit of zeros the norm has no derivative; 0 is the subgradient that keeps the unit there.
            nonzero = ops.greater(norms, zero)
            scale = ops.multiply(_copy(ops, upstream), given["group"])
            factor = ops.where(nonzero, ops.divide(scale, ops.where(nonzero, norms, given["one"])), zero)
            terms.append(ops.reshape(ops.multiply(_copy(ops, fine), factor), parameter.shape))
        if self.orthogonal is not None:
            matrix, gram = _gram_minus_identity(wide, ops, parameter, given["-I"])
            product = ops.matmul(matrix, gram) if matrix.shape[0] >= matrix.shape[1] else ops.matmul(gram, matrix)
            term = ops.multiply(product, ops.multiply(_copy(ops, upstream), given["4 orthogonal"]))
            order, _ = matrix_of(parameter)
            back = tuple(order.index(axis) for axis in range(len(order)))
            terms.append(ops.transpose(ops.reshape(term, tuple(parameter.shape[i] for i in order)), back))
        total = terms[0]
        for term in terms[1:]:
            total = ops.add(total, term)
        return ops.cast(total, parameter.dtype)

    def _units(self, wide: Any, ops: Ops, parameter: Parameter) -> tuple[Any, tuple[int, ...]]:
        """Return the weights with packed axes split, and the axes inside a unit."""
        assert self.per is not None
        _, shape, others = per_axes(self.per, parameter)
        return (wide if shape == parameter.shape else ops.reshape(wide, shape)), others

    def __repr__(self) -> str:
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        text = ", ".join(f"{name}={value!r}" for name, value in settings.items() if value is not None)
        return f"Penalty({text})"


def _copy(ops: Ops, x: Any) -> Any:
    """Return a copy that an op may overwrite: a cast to float64 returns a float64 array itself."""
    return ops.minimum(x, x)


def _gram_minus_identity(wide: Any, ops: Ops, parameter: Parameter, minus_identity: Any) -> tuple[Any, Any]:
    """Return the parameter as a matrix, and the smaller of its Gram matrices minus the identity."""
    order, shape = matrix_of(parameter)
    matrix = ops.reshape(ops.transpose(wide, order), shape)
    transposed = ops.transpose(matrix, (1, 0))
    gram = ops.matmul(transposed, matrix) if shape[0] >= shape[1] else ops.matmul(matrix, transposed)
    return matrix, ops.add(gram, minus_identity)


class BoundPenalty:
    """A penalty bound to its parameters: calling it returns the number, so a compiled step can contain it.

    Attributes:
        parameters: The penalised parameters.
        rule: The :class:`Penalty`.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.bind_penalty({"d/kernel": np.ones(2)}, l2=0.1)
        <BoundPenalty Penalty(l2=0.1) on 1 parameter>
    """

    def __init__(self, rule: Penalty, chosen: Sequence[Parameter]) -> None:
        self.rule = rule
        self.parameters = tuple(chosen)
        # Sums are in the order of names, so that twins with another order of parameters get the same bits.
        self._order = tuple(sorted(range(len(chosen)), key=lambda position: chosen[position].name))
        self._dtype = FLOAT64 if any(p.dtype == FLOAT64 for p in chosen) else FLOAT32
        with enter_guards(chosen):
            natives = [p.native(tensor=True) for p in chosen]
            ops_by_name = {ops.name: ops for ops in map(ops_for, natives)}
        if len(ops_by_name) > 1:
            raise ArgumentError(
                f"these parameters are of several frameworks: {', '.join(ops_by_name)}\n"
                "no number has a gradient in all of them\nFix: one penalty for each, converted to numbers"
            )
        self._ops: Ops = next(iter(ops_by_name.values()))
        self._operands = [
            {key: self._ops.constant(number, native) for key, number in rule.operands(p).items()}
            for p, native in zip(chosen, natives, strict=True)
        ]

    def __call__(self) -> Any:
        """Return the penalty now, as a 0-d tensor that takes part in the framework's differentiation."""
        return self.of([p.storage.tracked(p.handle) for p in self.parameters])

    def of(self, tensors: Sequence[Any]) -> Any:
        """Return the penalty of these native tensors, in stored order, instead of the parameters' own."""
        return self._ops.differentiable(self._value, self._gradient, tensors)

    def _value(self, *tensors: Any) -> Any:
        ops, total = self._ops, None
        for position in self._order:
            p = self.parameters[position]
            part = self.rule.value(to_neutral(ops, tensors[position], p.layout), ops, p, self._operands[position])
            total = part if total is None else ops.add(part, total)
        return ops.cast(total, self._dtype)

    def _gradient(self, upstream: Any, *tensors: Any) -> list[Any]:
        ops = self._ops
        return [
            to_stored(ops, self.rule.gradient(upstream, to_neutral(ops, tensor, p.layout), ops, p, operands), p.layout)
            for tensor, p, operands in zip(tensors, self.parameters, self._operands, strict=True)
        ]

    def __repr__(self) -> str:
        count = len(self.parameters)
        return f"<BoundPenalty {self.rule!r} on {count} parameter{'s' * (count != 1)}>"


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
    return BoundPenalty(rule, _select(target, rule, where))


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
    chosen = _select(model, rule, where)
    parts = {id(p): BoundPenalty(rule, [p]) for p in chosen}
    return AddedPenalty(rule, chosen, backend.regularize(chosen, lambda p, x: parts[id(p)].of([x]), target=model))


def _select(target: Any, rule: Penalty, where: WhereLike | None) -> list[Parameter]:
    line = _call_line("bind_penalty", rule, where)
    chosen = select(
        open_target(target, bind_line=lambda: f"bound = {line}"), DEFAULT_KERNELS if where is None else where
    )
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
    return chosen


def _call_line(call: str, rule: Penalty, where: WhereLike | None) -> str:
    arguments = repr(rule).removeprefix("Penalty(").removesuffix(")")
    return f"xweights.{call}(target, {arguments}{'' if where is None else f', where={where!r}'})"
