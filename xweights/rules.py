"""Rules: small frozen objects, each a pure function ``w -> w'`` written in ``ops.*`` and axis names only.

Owns :class:`Rule` and the deterministic rules. Imports axes, backend (protocols), errors, parameter and values.
Rules get traced: no ``.item()``, no data-dependent ``if``, nothing of NumPy on weights. What a rule needs besides the
weights (numbers, masks, deltas) is prepared on the host by :meth:`Rule.operands`, before anything is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from xweights.axes import unpacked
from xweights.backend import Ops
from xweights.errors import ArgumentError, DtypeError, LayoutError, NonfiniteError, SelectionError, ShapeError
from xweights.parameter import Array, Parameter
from xweights.values import host_array, is_number, need_axes, operand

Per = str | tuple[str, ...]
Scope = Literal["each", "global"]
FLOAT64 = np.dtype(np.float64)


class Rule:
    """What becomes of one parameter's weights.

    Subclass it to make a rule of your own: define :meth:`__call__`, and :meth:`operands` if it needs more than ``w``.

    Example:
        >>> import numpy as np, xweights as xw
        >>> class Halve(xw.Rule):
        ...     def operands(self, parameter): return (np.asarray(0.5, parameter.dtype),)
        ...     def __call__(self, w, ops, parameter, half, shared=None): return ops.multiply(w, half)
        >>> w = {"w": np.array([2.0])}; xw.apply(w, Halve(), where=...); w["w"]
        array([1.])
    """

    exact: bool = True
    """True: bit-identical on every backend. False: equal within the rtol that its docstring states."""
    joint: bool = False
    """True: :meth:`measure` looks at all selected parameters together, before any is changed."""
    random: bool = False
    """True: draws numbers on the host, so a compiled step needs ``bound.draw(step)``; operands can't fail after check."""

    def check(self, parameter: Parameter) -> None:
        """Raise what :meth:`operands` would not notice."""

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        """Return the host arrays the rule works with, checked against the parameter; raise what is wrong."""
        return ()

    def measure(self, ws: Sequence[Any], ops: Ops, parameters: Sequence[Parameter]) -> Any:
        """Return what a joint rule has to know of all the weights; passed on as ``shared``."""
        return None

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        """Return the new weights. ``w`` is in neutral axis order; edits of ``ops`` may reuse its memory."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")

    def on_host(self, w: Array, parameter: Parameter) -> bool:
        """Edit a writable host view in place if the rule has a quicker way than ``__call__``; return whether it did."""
        return False

    def __repr__(self) -> str:
        try:
            shown = ", ".join(f"{one.name}={_short(getattr(self, one.name))}" for one in fields(self))  # type: ignore[arg-type]
        except TypeError:
            shown = ""
        return f"{type(self).__name__}({shown})"


def _short(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape:
        return f"<array {shape}>"
    if isinstance(value, dict) or hasattr(value, "keys"):
        return f"<{len(value)} arrays by name>"
    return repr(value)


def need_floating(parameter: Parameter, what: str) -> None:
    """Refuse an integer or bool parameter."""
    if not parameter.floating:
        raise DtypeError(f"{what} is for floating-point parameters\n{parameter.name!r} is {parameter.dtype.name}")


@dataclass(frozen=True, eq=False, repr=False)
class Fill(Rule):
    """Set every entry to ``value``. Exact."""

    value: Any

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        return (operand(self.value, parameter, what="value"),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.fill(w, operands[0])


@dataclass(frozen=True, eq=False, repr=False)
class Scale(Rule):
    """Multiply by ``factor``. Exact."""

    factor: Any

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        return (operand(self.factor, parameter, what="factor"),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.multiply(w, operands[0])


@dataclass(frozen=True, eq=False, repr=False)
class Add(Rule):
    """Add ``delta``. Exact."""

    delta: Any

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        return (operand(self.delta, parameter, what="delta"),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.add(w, operands[0])


@dataclass(frozen=True, eq=False, repr=False)
class Clip(Rule):
    """Bring every entry into [low, high]: ``where(w < low, low, where(w > high, high, w))``; NaN stays NaN. Exact."""

    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ArgumentError("clip without a bound does nothing\nFix: give low=, high= or both")
        if is_number(self.low) and is_number(self.high) and self.low > self.high:
            raise ArgumentError(f"low is greater than high\nlow:  {self.low!r}\nhigh: {self.high!r}\nFix: swap them")
        for word, bound in (("low", self.low), ("high", self.high)):
            if is_number(bound) and math.isnan(bound):
                raise ArgumentError(f"{word} is NaN: nothing compares with it")

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        bounds = [
            None if bound is None else operand(bound, parameter, what=word)
            for word, bound in (("low", self.low), ("high", self.high))
        ]
        low, high = bounds
        if low is not None and high is not None and bool(np.any(low > high)):
            raise ArgumentError(f"low is greater than high somewhere in {parameter.name!r}")
        return tuple(bound for bound in bounds if bound is not None)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        low = None if self.low is None else operands[0]
        high = None if self.high is None else operands[-1]
        return ops.clip(w, low, high)


@dataclass(frozen=True, eq=False, repr=False)
class NonNegative(Rule):
    """Set negative entries to +0.0; -0.0 and NaN stay. Exact."""

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        return (np.zeros((), parameter.dtype),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.clip(w, operands[0], None)


@dataclass(frozen=True, eq=False, repr=False)
class Mask(Rule):
    """Keep the entries where ``keep`` is True; the others become +0.0, whatever they were. Exact."""

    keep: Any

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        mask = operand(self.keep, parameter, what="keep", dtype=np.dtype(np.bool_))
        return (np.broadcast_to(mask, parameter.shape),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.keep(w, operands[0])


@dataclass(frozen=True, eq=False, repr=False)
class SetEntries(Rule):
    """Set the entries at ``index`` to ``value``. Exact.

    ``index``: a tuple of ints and slices, a mapping of axis names to them, or a bool array of the parameter's shape.
    """

    index: Any
    value: Any

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        index = self.resolve(parameter)
        shape = np.broadcast_to(np.empty((), np.bool_), parameter.shape)[index].shape
        if 0 in shape:
            raise SelectionError(f"index={_short(self.index)} selects no entry of {parameter.name!r} {parameter.shape}")
        one_by_one = Parameter(
            name=parameter.name, native_name=parameter.native_name, layout=_plain(shape),
            dtype=parameter.dtype, storage=parameter.storage, handle=None,
        )  # fmt: skip
        return (operand(self.value, one_by_one, what="value"),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.set_at(w, self.resolve(parameter), operands[0])

    def resolve(self, parameter: Parameter) -> tuple[Any, ...]:
        """Return the index as a full tuple of ints and slices, or of one bool array; raise if it doesn't fit."""
        return entries_index(self.index, parameter)


def _plain(shape: tuple[int, ...]) -> Any:
    from xweights.axes import plain_layout

    return plain_layout(shape)


def entries_index(index: Any, parameter: Parameter) -> tuple[Any, ...]:
    """Return what ``index`` means for a parameter: ints and slices per neutral axis, or one bool array."""
    shape, name = parameter.shape, parameter.name
    if hasattr(index, "keys"):
        axes = need_axes(parameter, "an index by axis names")
        strange = [axis for axis in index if axis not in axes]
        if strange:
            raise LayoutError(f"{name!r} has no axis {strange[0]!r}\naxes: ({', '.join(axes)})")
        items = [index.get(axis, slice(None)) for axis in axes]
    elif not isinstance(index, (tuple, int, slice, type(...), np.integer)):
        mask = host_array(index, what="index")
        if mask.dtype.kind != "b":
            raise ArgumentError(
                f"index is a list or an integer array, which NumPy and the frameworks read differently\ngot: {index!r}\n"
                "Fix: a tuple of ints and slices, {'axis': int or slice}, or a bool array of the parameter's shape"
            )
        if mask.shape != shape:
            raise ShapeError(f"the bool index doesn't fit {name!r}\ngot:      {mask.shape}\nexpected: {shape}")
        return (mask,)
    else:
        given = index if isinstance(index, tuple) else (index,)
        if ... in [one for one in given if isinstance(one, type(...))]:
            cut = next(i for i, one in enumerate(given) if isinstance(one, type(...)))
            given = (*given[:cut], *[slice(None)] * (len(shape) - len(given) + 1), *given[cut + 1 :])
        if len(given) > len(shape):
            raise ShapeError(f"index has {len(given)} parts, {name!r} has {len(shape)} axes\nshape: {shape}")
        items = [*given, *[slice(None)] * (len(shape) - len(given))]
    full: list[Any] = []
    for position, (item, length) in enumerate(zip(items, shape, strict=True)):
        if isinstance(item, slice):
            full.append(slice(*item.indices(length)) if item.step is None or item.step > 0 else item)
        elif isinstance(item, (int, np.integer)) and not isinstance(item, (bool, np.bool_)):
            if not -length <= item < length:
                raise ShapeError(f"index {item} is out of range for axis {position} of {name!r}\nshape: {shape}")
            full.append(int(item) % length)
        else:
            raise ArgumentError(f"index may hold ints and slices\ngot: {item!r} for axis {position} of {name!r}")
    return tuple(full)


def per_axes(per: Per, parameter: Parameter) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Return (fine axes, fine shape, positions of all axes not in ``per``) for "one per index of these axes".

    A packed axis such as ``gate*unit`` may be named whole or by its parts.
    """
    axes, shape = need_axes(parameter, f"per={per!r}"), parameter.shape
    wanted = (per,) if isinstance(per, str) else tuple(per)
    if not set(wanted) <= set(axes):
        axes, shape = unpacked(axes, shape, parameter.gates)
    missing = [axis for axis in wanted if axis not in axes]
    if missing or not wanted:
        raise LayoutError(
            f"{parameter.name!r} has no axis {', '.join(map(repr, missing)) or per!r}\n"
            f"axes: ({', '.join(parameter.axes or ())})\n"
            "Fix: per= names axes of every selected parameter; narrow the selection with where="
        )
    return axes, shape, tuple(i for i, axis in enumerate(axes) if axis not in wanted)


def _check_positive(number: Any, word: str) -> None:
    if not is_number(number) or not float(number) > 0 or math.isinf(number):
        raise ArgumentError(f"{word} must be a positive number\ngot: {number!r}")


def _check_per(per: Any) -> None:
    if not (isinstance(per, str) or (isinstance(per, tuple) and per and all(isinstance(one, str) for one in per))):
        raise ArgumentError(f"per= takes an axis name or a tuple of them\ngot: {per!r}\nFix: per='out'")


class _Scaled(Rule):
    """A rule that multiplies each group of entries by a factor computed in float64 from its norm."""

    def factor(self, norm: Any, ops: Ops, limit: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define factor")

    def scaled(self, w: Any, ops: Ops, parameter: Parameter, per: Per, limit: Any) -> Any:
        _, shape, others = per_axes(per, parameter)
        fine = w if shape == parameter.shape else ops.reshape(w, shape)
        norm = ops.sqrt(ops.sum_squares(fine, others))
        new = ops.multiply(fine, ops.cast(self.factor(norm, ops, limit), parameter.dtype))
        return new if shape == parameter.shape else ops.reshape(new, parameter.shape)


@dataclass(frozen=True, eq=False, repr=False)
class MaxNorm(_Scaled):
    """Scale each unit (one per index of the axes ``per``) down to an L2 norm of at most ``max``. Close (rtol 1e-6).

    Norms are accumulated in float64. A unit within the bound keeps its bits. Srebro & Shraibman, COLT 2005.
    """

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
        return self.scaled(w, ops, parameter, self.per, operands)

    def factor(self, norm: Any, ops: Ops, limit: Any) -> Any:
        most, one = limit
        return ops.where(ops.greater(norm, most), ops.divide(most, norm), one)


@dataclass(frozen=True, eq=False, repr=False)
class UnitNorm(_Scaled):
    """Scale each unit (one per index of the axes ``per``) to an L2 norm of 1; a zero unit stays zero. Close (rtol 1e-6)."""

    per: Per
    exact = False

    def __post_init__(self) -> None:
        _check_per(self.per)

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        need_floating(parameter, "unit_norm")
        per_axes(self.per, parameter)
        return (np.ones((), FLOAT64), np.zeros((), FLOAT64))

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return self.scaled(w, ops, parameter, self.per, operands)

    def factor(self, norm: Any, ops: Ops, limit: Any) -> Any:
        one, zero = limit
        return ops.where(ops.greater(norm, zero), ops.divide(one, norm), one)


@dataclass(frozen=True, eq=False, repr=False)
class ClipNorm(Rule):
    """Scale a whole parameter (or, ``scope="global"``, all together) down to an L2 norm of at most ``max``. Close (rtol 1e-6).

    Norms are accumulated in float64. Pascanu et al., ICML 2013, there for gradients.
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

    def measure(self, ws: Sequence[Any], ops: Ops, parameters: Sequence[Parameter]) -> Any:
        total = None
        for _, w in sorted(zip((p.name for p in parameters), ws, strict=True), key=lambda pair: pair[0]):
            part = ops.sum_squares(w, None)
            total = part if total is None else ops.add(total, part)
        return total

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        most, one = operands
        norm = ops.sqrt(ops.sum_squares(w, None) if shared is None else shared)
        factor = ops.where(ops.greater(norm, most), ops.divide(most, norm), one)
        return ops.multiply(w, ops.cast(factor, parameter.dtype))


@dataclass(frozen=True, eq=False, repr=False)
class SpectralNorm(Rule):
    """Scale down to a largest singular value of at most ``max``. Close (rtol 1e-5).

    The matrix is (all other axes, ``out``), or (all other axes, last axis) where there is no ``out``.
    Singular values come from a full decomposition in float64. Yoshida & Miyato, arXiv:1705.10941.
    """

    max: float
    exact = False

    def __post_init__(self) -> None:
        _check_positive(self.max, "max")

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        need_floating(parameter, "spectral_norm")
        if len(parameter.shape) < 2:
            raise ShapeError(f"spectral_norm needs a matrix\n{parameter.name!r} has the shape {parameter.shape}")
        if len(parameter.shape) > 2:
            need_axes(parameter, "spectral_norm of more than two axes")
        return (np.asarray(self.max, FLOAT64), np.ones((), FLOAT64))

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        most, one = operands
        axes, shape = parameter.axes or (), parameter.shape
        last = axes.index("out") if "out" in axes else len(shape) - 1
        order = (*(i for i in range(len(shape)) if i != last), last)
        matrix = ops.reshape(ops.transpose(w, order), (parameter.size // max(shape[last], 1), shape[last]))
        sigma = ops.largest_singular_value(matrix)
        factor = ops.where(ops.greater(sigma, most), ops.divide(most, sigma), one)
        return ops.multiply(w, ops.cast(factor, parameter.dtype))


@dataclass(frozen=True, eq=False, repr=False)
class Function(Rule):
    """A user's function of the native tensor, in neutral axis order. As exact as the function is."""

    function: Callable[[Any], Any]
    exact = False

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        new = self.function(w)
        name = getattr(self.function, "__name__", repr(self.function))
        if new is None:
            raise ArgumentError(f"{name} returned None for {parameter.name!r}\nFix: return the new tensor")
        if is_number(new) or isinstance(new, (np.ndarray, np.generic)):
            new = ops.constant(operand(new, parameter, what=f"what {name} returned"), w)
        if tuple(new.shape) != parameter.shape:
            raise ShapeError(
                f"{name} changed the shape of {parameter.name!r}\n"
                f"got:      {tuple(new.shape)}\nexpected: {parameter.shape}"
            )
        if new.dtype != w.dtype:
            raise DtypeError(
                f"{name} changed the dtype of {parameter.name!r}\ngot:      {new.dtype}\nexpected: {w.dtype}\n"
                "Fix: cast inside the function"
            )
        return new


def check_finite(array: Array, what: str) -> None:
    """Refuse NaN and infinity. One pass without a temporary: a finite sum of finite numbers is the common case."""
    if array.dtype.kind not in "fV" or array.dtype.kind == "f" and np.isfinite(_quick_sum(array)):
        return
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        nan = int(np.count_nonzero(np.isnan(array)))
        raise NonfiniteError(
            f"{what} has {bad:,} non-finite entries ({nan:,} NaN, {bad - nan:,} infinite) of {array.size:,}\n"
            "Fix: allow_nonfinite=True if that is meant"
        )


def _quick_sum(array: Array) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):
        # K order: a transposed view is summed the way it lies in memory.
        return np.add.reduce(array.ravel(order="K")) if array.dtype != np.float16 else np.nan
