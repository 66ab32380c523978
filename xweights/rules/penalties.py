"""Penalties on weights as formulas: what is added to a loss, and its derivative.

Value and gradient are both written here, once, in ``ops.*``; a framework only receives the gradient
(``Ops.differentiable``). So they are the same on every backend. Both are computed in float64 and rounded at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from xweights.core.casting import is_number
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.errors import ArgumentError
from xweights.rules.base import FLOAT64, Per, need_floating
from xweights.rules.norms import matrix_of, need_matrix, per_axes


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

    def gradient(
        self,
        upstream: Any,
        w: Any,
        ops: Ops,
        parameter: Parameter,
        given: Mapping[str, Any],
        squares: Any = None,
    ) -> Any:
        """Return upstream (0-d) times the derivative of :meth:`value`, in the dtype and order of ``w``.

        ``squares``: the sums of squares of the units, where ``w`` has only a part of them.
        """
        wide, upstream, zero = ops.cast(w, FLOAT64), ops.cast(upstream, FLOAT64), given["zero"]
        terms = []
        if self.l1 is not None:
            up, down = (ops.multiply(_copy(ops, upstream), given[key]) for key in ("l1", "-l1"))
            terms.append(ops.where(ops.greater(wide, zero), up, ops.where(ops.greater(zero, wide), down, zero)))
        if self.l2 is not None:
            terms.append(ops.multiply(_copy(ops, wide), ops.multiply(_copy(ops, upstream), given["2 l2"])))
        if self.group is not None:
            fine, others = self._units(wide, ops, parameter)
            norms = ops.sqrt(ops.sum_squares(fine, others) if squares is None else _copy(ops, squares))
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
