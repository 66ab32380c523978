"""Tie parameters: keep separate arrays equal.

One array that two layers share is better where a model can be written that way; this is for models built with two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.numpy_backend import NumpyOps
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.errors import ArgumentError, DtypeError, Problems, SelectionError, ShapeError
from xweights.rules.base import FLOAT64, Rule, need_floating


@dataclass(frozen=True, eq=False, repr=False)
class Tied(Rule):
    """Make the selected parameters equal: each becomes the mean of all. Exact.

    ``transposed``: the neutral names of those that are stored the other way round, such as the kernel (in, out) of an
    output layer that is tied to embeddings (vocab, dim).

    The mean is the nearest point at which they are equal; held under
    SGD, they are one shared array that learns from the mean of the gradients.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"a": np.array([1.0]), "b": np.array([3.0])}; held = xw.hold(w, xw.Tied(), where=["a", "b"]); w
        {'a': array([2.]), 'b': array([2.])}
    """

    transposed: tuple[str, ...] = ()
    joint = True

    def check_all(self, parameters: Sequence[Parameter]) -> None:
        """Raise every problem of the selection before anything is written."""
        problems = Problems("these can't be tied, and nothing was changed")
        if len(parameters) < 2:
            problems.add(SelectionError, f"Tied needs two parameters or more\nselected: {len(parameters)}")
        if isinstance(self.transposed, str):
            problems.add(ArgumentError, f"transposed= is a tuple of names\ngot: {self.transposed!r}")
        unselected = sorted(set(self.transposed) - {p.name for p in parameters})
        if unselected:
            problems.add(SelectionError, f"transposed= names what isn't selected: {', '.join(map(repr, unselected))}")
        for p in parameters[1:]:
            first = parameters[0]
            if self._shape(p) != self._shape(first):
                problems.add(
                    ShapeError,
                    f"these have different shapes\n{first.name!r}: {self._shape(first)}\n{p.name!r}: {self._shape(p)}",
                    fix=f"Tied(transposed=({p.name!r},)) if it is stored the other way round",
                )
            if p.dtype != first.dtype:
                problems.add(
                    DtypeError,
                    f"these have different dtypes\n{first.name!r}: {first.dtype}\n{p.name!r}: {p.dtype}",
                    fix="bring both to one dtype first",
                )
        for p in parameters:
            if p.name in self.transposed and len(p.shape) != 2:
                problems.add(ShapeError, f"only a matrix can be transposed\n{p.name!r}: {p.shape}")
        problems.check()

    def operands(self, parameter: Parameter) -> tuple[Any, ...]:
        need_floating(parameter, "Tied")
        return ()

    def measure(
        self, ws: Sequence[Any], ops: Ops, parameters: Sequence[Parameter], operands: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """Return the mean of all, in the orientation of each parameter."""
        self.check_all(parameters)
        first = ops.cast(self.turned(ws[0], ops, parameters[0]), FLOAT64)
        minus = ops.constant(np.asarray(-1.0, FLOAT64), first)
        total = None
        for w, p in zip(ws[1:], parameters[1:], strict=True):
            # As differences from the first, so that the mean of equal arrays is that array, bit for bit.
            other = ops.cast(self.turned(w, ops, p), FLOAT64)
            gap = ops.fence(ops.add(ops.fence(ops.multiply(_copy(first, ops), minus)), other))
            total = gap if total is None else ops.fence(ops.add(total, gap))
        count = ops.constant(np.asarray(float(len(parameters)), FLOAT64), first)
        share = ops.fence(ops.divide(total, count))
        mean = ops.cast(ops.add(share, first), parameters[0].dtype)
        return [self.turned(mean, ops, p) for p in parameters]

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return shared

    def turned(self, w: Any, ops: Ops, parameter: Parameter) -> Any:
        """Return ``w`` transposed if the parameter is: from its orientation to the mean's, or back."""
        return ops.transpose(w, (1, 0)) if parameter.name in self.transposed else w

    def _shape(self, parameter: Parameter) -> tuple[int, ...]:
        return parameter.shape[::-1] if parameter.name in self.transposed else parameter.shape


class TiedShare(Rule):
    """One parameter's part in a held tie: the first becomes the mean of all, the others a copy of the first."""

    def __init__(self, tie: Tied, parameters: Sequence[Parameter], position: int) -> None:
        self.tie, self.parameters, self.position = tie, tuple(parameters), position

    @property
    def first(self) -> Parameter:
        """The parameter that the others copy."""
        return self.parameters[0]

    def operands(self, parameter: Parameter) -> tuple[Any, ...]:
        return self.tie.operands(parameter)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        if self.position:
            first = self.tie.turned(_read_current(self.first, ops), ops, self.first)
            return _copy(self.tie.turned(first, ops, parameter), ops)
        ws = [w, *(_read_current(p, ops) for p in self.parameters[1:])]
        return self.tie.measure(ws, ops, self.parameters, [()] * len(ws))[0]

    def __repr__(self) -> str:
        return repr(self.tie)


def _read_current(p: Parameter, ops: Ops) -> Any:
    """Return the current weights of a parameter, also inside a compiled step."""
    if isinstance(ops, NumpyOps):
        return p.layout.to_neutral(p.read())
    native = p.native(tensor=True)
    return native if p.layout.is_identity else ops.transpose(ops.reshape(native, p.layout.split), p.layout.order)


def _copy(w: Any, ops: Ops) -> Any:
    # The minimum of an array and itself is a copy, which edits may write to.
    return ops.minimum(w, w)
