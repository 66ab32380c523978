"""Constraint rules for `hold`: Keep, SumToOne, Symmetric, Pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.selection import DEFAULT_KERNELS
from xweights.core.values import need_axes
from xweights.errors import SelectionError, ShapeError
from xweights.rules.base import FLOAT64, Per, Rule, need_floating
from xweights.rules.entries import resolve_index
from xweights.rules.norms import per_axes
from xweights.rules.pruning import Prune


@dataclass(frozen=True, eq=False, repr=False)
class Keep(Rule):
    """Keep the entries at ``index`` (None: all) at the values they have when the rule is prepared. Exact.

    ``index`` is as in ``set_entries``: a tuple, a mapping of axis names, or a bool array; in neutral order.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.zeros(3)}; held = xw.hold(w, xw.Keep((0,)), where="w"); xw.fill(w, 7.0); w["w"]
        array([0., 7., 7.])
    """

    elementwise = True
    reads_weights = True
    index: Any = None

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        free = np.zeros(parameter.shape, np.bool_) if self.index is None else np.ones(parameter.shape, np.bool_)
        if self.index is not None:
            free[resolve_index(self.index, parameter)] = False
            if free.all():
                raise SelectionError(f"Keep selects no entry of {parameter.name!r} {parameter.shape}")
        return (free, parameter.layout.to_neutral(parameter.read()).copy())

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        free, kept = operands
        return ops.choose(w, free, kept)


@dataclass(frozen=True, eq=False, repr=False)
class SumToOne(Rule):
    """Divide each unit (one per index of the axes ``per``) by its sum; a unit of sum 0 stays. Close (rtol 1e-6).

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = xw.Params({"k": np.array([[1.0], [3.0]])}, axes={"k": ("in", "out")})
        >>> xw.apply(w, xw.SumToOne(per="out"), where="k"); w["k"].ravel()
        array([0.25, 0.75])
    """

    default_where = DEFAULT_KERNELS
    per: Per
    exact = False

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        need_floating(parameter, "SumToOne")
        per_axes(self.per, parameter)
        return (np.ones((), FLOAT64), np.zeros((), FLOAT64))

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        one, zero = operands
        _, shape, others = per_axes(self.per, parameter)
        fine = w if shape == parameter.shape else ops.reshape(w, shape)
        total = ops.sum(ops.cast(fine, FLOAT64), others)
        factor = ops.where(ops.greater(ops.abs(total), zero), ops.divide(one, total), one)
        new = ops.multiply(fine, ops.cast(factor, parameter.dtype))
        return new if shape == parameter.shape else ops.reshape(new, parameter.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Symmetric(Rule):
    """Replace a matrix by the mean of itself and its transpose, over two axes of equal length. Exact.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = xw.Params({"k": np.array([[1.0, 2.0], [4.0, 3.0]])}, axes={"k": ("in", "out")})
        >>> xw.apply(w, xw.Symmetric(), where="k"); w["k"].tolist()
        [[1.0, 3.0], [3.0, 3.0]]
    """

    default_where = DEFAULT_KERNELS
    axes: tuple[str, str] = ("in", "out")

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        need_floating(parameter, "Symmetric")
        names = need_axes(parameter, "Symmetric")
        lengths = {axis: parameter.shape[names.index(axis)] for axis in self.axes if axis in names}
        if len(lengths) != 2 or len(set(lengths.values())) != 1:
            raise ShapeError(
                f"Symmetric needs two axes of equal length\n"
                f"{parameter.name!r}: ({', '.join(names)}) = {parameter.shape}\n"
                f"asked for: {self.axes}"
            )
        return (np.asarray(0.5, FLOAT64),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        names = parameter.axes or ()
        order = list(range(len(names)))
        first, second = (names.index(axis) for axis in self.axes)
        order[first], order[second] = second, first
        wide = ops.cast(w, FLOAT64)
        # The minimum of an array and itself is a copy: an edit in place must not read what it has already written.
        total = ops.add(ops.minimum(wide, wide), ops.transpose(wide, tuple(order)))
        mean = ops.multiply(ops.fence(total), operands[0])
        return ops.cast(mean, parameter.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class Pattern(Rule):
    """Keep the ``n`` largest of every ``m`` entries along an axis, chosen again at each step. Exact.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = xw.Params({"k": np.array([[1.0], [-3.0], [2.0], [0.5]])}, axes={"k": ("in", "out")})
        >>> xw.apply(w, xw.Pattern(2, 4, "in"), where="k"); w["k"].ravel()
        array([ 0., -3.,  2.,  0.])
    """

    default_where = DEFAULT_KERNELS
    n: int
    m: int
    axis: str

    def __post_init__(self) -> None:
        self.prune  # noqa: B018 - checks the arguments

    @property
    def prune(self) -> Prune:
        """The pruning rule that selects the entries."""
        return Prune(pattern=(self.n, self.m, self.axis))

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        return self.prune.operands(parameter)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.keep(w, self.prune.measure([w], ops, [parameter], [operands])[0])
