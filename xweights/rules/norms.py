"""Rules that scale by a norm, which is accumulated in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.casting import is_number
from xweights.core.dtypes import Array, is_half
from xweights.core.layout import unpack_axes
from xweights.core.numpy_backend import NumpyOps
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.selection import DEFAULT_KERNELS
from xweights.core.values import need_axes
from xweights.errors import ArgumentError, LayoutError, ShapeError
from xweights.rules.base import FLOAT64, Per, Rule, Scope, need_floating

FLOAT32 = np.dtype(np.float32)


def per_axes(per: Per, parameter: Parameter) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Return (fine axes, fine shape, positions of all axes not in ``per``) for "one per index of these axes".

    A packed axis such as ``gate*unit`` may be named whole or by its parts.
    """
    axes, shape = need_axes(parameter, f"per={per!r}"), parameter.shape
    names = (per,) if isinstance(per, str) else tuple(per)
    if not set(names) <= set(axes):
        axes, shape = unpack_axes(axes, shape, parameter.gates)
    missing = [axis for axis in names if axis not in axes]
    if missing or not names:
        raise LayoutError(
            f"{parameter.name!r} has no axis {', '.join(map(repr, missing)) or repr(per)}\n"
            f"axes: ({', '.join(parameter.axes or ())})\n"
            "Fix: per= names axes of every selected parameter; narrow the selection with where="
        )
    return axes, shape, tuple(i for i, axis in enumerate(axes) if axis not in names)


def need_matrix(parameter: Parameter, what: str) -> None:
    """Refuse a parameter that :func:`matrix_of` can't make a matrix of."""
    if len(parameter.shape) < 2:
        raise ShapeError(f"{what} needs a matrix\n{parameter.name!r} has the shape {parameter.shape}")
    if len(parameter.shape) > 2:
        need_axes(parameter, f"{what} of more than two axes")


def matrix_of(parameter: Parameter) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return the order of axes and the shape that make a matrix (all other axes, ``out``) of a parameter.

    Where there is no ``out``, the last axis is used.
    """
    axes, shape = parameter.axes or (), parameter.shape
    last = axes.index("out") if "out" in axes else len(shape) - 1
    order = (*(i for i in range(len(shape)) if i != last), last)
    return order, (parameter.size // max(shape[last], 1), shape[last])


def scale_by(w: Any, factor: Any, ops: Ops, parameter: Parameter) -> Any:
    """Return ``w`` times a float64 factor, in the parameter's dtype; half types via float32.

    float16 can't hold the reciprocal of a small norm, and rounds a small factor to a few bits.
    """
    if not is_half(parameter.dtype):
        return ops.multiply(w, ops.cast(factor, parameter.dtype))
    return ops.cast(ops.multiply(ops.cast(w, FLOAT32), ops.cast(factor, FLOAT32)), parameter.dtype)


def _check_positive(number: Any, name: str) -> None:
    if not is_number(number) or not float(number) > 0 or math.isinf(number):
        raise ArgumentError(f"{name} must be a positive number\ngot: {number!r}")


def _check_per(per: Any) -> None:
    if not (isinstance(per, str) or (isinstance(per, tuple) and per and all(isinstance(axis, str) for axis in per))):
        raise ArgumentError(f"per= takes an axis name or a tuple of them\ngot: {per!r}\nFix: per='out'")


class _ScaleByNorm(Rule):
    """A rule that multiplies each unit by a factor computed in float64 from its norm."""

    def factor(self, norm: Any, ops: Ops, limit: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define factor")

    def scale_units(self, w: Any, ops: Ops, parameter: Parameter, per: Per, limit: Any, squares: Any = None) -> Any:
        _, shape, others = per_axes(per, parameter)
        fine = w if shape == parameter.shape else ops.reshape(w, shape)
        norm = ops.sqrt(ops.sum_squares(fine, others) if squares is None else squares)
        new = scale_by(fine, self.factor(norm, ops, limit), ops, parameter)
        return new if shape == parameter.shape else ops.reshape(new, parameter.shape)


@dataclass(frozen=True, eq=False, repr=False)
class MaxNorm(_ScaleByNorm):
    """Scale each unit (one per index of the axes ``per``) down to an L2 norm of at most ``max``. Close (rtol 1e-6).

    Norms are accumulated in float64. A unit within the bound keeps its bits. Srebro & Shraibman, COLT 2005.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = xw.Params({"k": np.array([[3.0], [4.0]])}, axes={"k": ("in", "out")})
        >>> xw.apply(w, xw.MaxNorm(1.0, per="out"), where="k"); w["k"].ravel()
        array([0.6, 0.8])
    """

    default_where = DEFAULT_KERNELS
    max: float
    per: Per
    exact = False

    def __post_init__(self) -> None:
        _check_positive(self.max, "max")
        _check_per(self.per)

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        need_floating(parameter, "max_norm")
        per_axes(self.per, parameter)
        return (np.asarray(self.max, FLOAT64), np.ones((), FLOAT64))

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return self.scale_units(w, ops, parameter, self.per, operands, shared)

    def factor(self, norm: Any, ops: Ops, limit: Any) -> Any:
        bound, one = limit
        return ops.where(ops.greater(norm, bound), ops.divide(bound, norm), one)


@dataclass(frozen=True, eq=False, repr=False)
class UnitNorm(_ScaleByNorm):
    """Scale each unit (one per index of the axes ``per``) to an L2 norm of 1; a zero unit stays zero.

    Close (rtol 1e-6).

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = xw.Params({"k": np.array([[3.0], [4.0]])}, axes={"k": ("in", "out")})
        >>> xw.apply(w, xw.UnitNorm(per="out"), where="k"); w["k"].ravel()
        array([0.6, 0.8])
    """

    default_where = DEFAULT_KERNELS
    per: Per
    exact = False

    def __post_init__(self) -> None:
        _check_per(self.per)

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        need_floating(parameter, "unit_norm")
        per_axes(self.per, parameter)
        return (np.ones((), FLOAT64), np.zeros((), FLOAT64))

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return self.scale_units(w, ops, parameter, self.per, operands, shared)

    def factor(self, norm: Any, ops: Ops, limit: Any) -> Any:
        one, zero = limit
        return ops.where(ops.greater(norm, zero), ops.divide(one, norm), one)


@dataclass(frozen=True, eq=False, repr=False)
class ClipNorm(Rule):
    """Scale a whole parameter (or, ``scope="global"``, all together) down to an L2 norm of at most ``max``.

    Close (rtol 1e-6). Norms are accumulated in float64. Pascanu et al., ICML 2013, there for gradients.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = xw.Params({"k": np.array([[3.0], [4.0]])}, axes={"k": ("in", "out")})
        >>> xw.apply(w, xw.ClipNorm(1.0), where="k"); w["k"].ravel()
        array([0.6, 0.8])
    """

    max: float
    scope: Scope = "each"
    exact = False

    def __post_init__(self) -> None:
        _check_positive(self.max, "max")
        if self.scope not in ("each", "global"):
            raise ArgumentError(f'scope= is "each" or "global"\ngot: {self.scope!r}')

    @property
    def joint(self) -> bool:  # type: ignore[override]
        return self.scope == "global"

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        need_floating(parameter, "clip_norm")
        return (np.asarray(self.max, FLOAT64), np.ones((), FLOAT64))

    def measure(
        self, ws: Sequence[Any], ops: Ops, parameters: Sequence[Parameter], operands: Sequence[tuple[Any, ...]]
    ) -> Any:
        total = None
        # One after the other: they may be read from a file on access.
        for position in sorted(range(len(parameters)), key=lambda i: parameters[i].name):
            squares = ops.sum_squares(ws[position], None)
            total = squares if total is None else ops.add(total, squares)
        return total

    def join_squares(self, squares: Sequence[Array], parameters: Sequence[Parameter]) -> list[Array]:
        """Return for each parameter the sum of all squares, added in the order of :meth:`measure`."""
        total = np.zeros(())
        for position in sorted(range(len(parameters)), key=lambda i: parameters[i].name):
            total = np.asarray(total + squares[position])
        return [total] * len(squares)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        bound, one = operands
        norm = ops.sqrt(ops.sum_squares(w, None) if shared is None else shared)
        factor = ops.where(ops.greater(norm, bound), ops.divide(bound, norm), one)
        return scale_by(w, factor, ops, parameter)


@dataclass(frozen=True, eq=False, repr=False)
class SpectralNorm(Rule):
    """Scale down to a largest singular value of at most ``max``. Close (rtol 1e-5).

    The matrix is (all other axes, ``out``), or (all other axes, last axis) where there is no ``out``.
    Singular values come from a full decomposition in float64. Yoshida & Miyato, arXiv:1705.10941.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = xw.Params({"k": np.array([[3.0], [4.0]])}, axes={"k": ("in", "out")})
        >>> xw.apply(w, xw.SpectralNorm(1.0), where="k"); w["k"].ravel()
        array([0.6, 0.8])
    """

    default_where = DEFAULT_KERNELS
    max: float
    exact = False

    def __post_init__(self) -> None:
        _check_positive(self.max, "max")

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        need_floating(parameter, "spectral_norm")
        need_matrix(parameter, "spectral_norm")
        return (np.asarray(self.max, FLOAT64), np.ones((), FLOAT64))

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        bound, one = operands
        order, shape = matrix_of(parameter)
        sigma = ops.largest_singular_value(ops.reshape(ops.transpose(w, order), shape))
        factor = ops.where(ops.greater(sigma, bound), ops.divide(bound, sigma), one)
        return scale_by(w, factor, ops, parameter)


def norm_axes(rule: Rule, parameter: Parameter) -> tuple[int, ...] | None:
    """Return the neutral axes over which a rule sums squares to scale by a norm; None if it does nothing of the kind.

    Also None where ``per=`` names parts of a packed axis, which a block of it doesn't have.
    """
    if isinstance(rule, ClipNorm):
        return tuple(range(len(parameter.shape)))
    if not isinstance(rule, (MaxNorm, UnitNorm)):
        return None
    _, shape, others = per_axes(rule.per, parameter)
    return others if shape == parameter.shape else None


def squares_of(rule: Rule, parameter: Parameter) -> Array:
    """Return the sums of squares of a parameter by itself, over the axes that :func:`norm_axes` returned."""
    axes = norm_axes(rule, parameter)
    w = parameter.layout.to_neutral(parameter.read())
    return np.asarray(NumpyOps().sum_squares(w, None if isinstance(rule, ClipNorm) else axes))
