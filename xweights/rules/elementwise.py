"""Elementwise rules: Fill, Scale, Add, Clip, NonNegative, Mask."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from xweights.core.casting import is_number
from xweights.core.dtypes import Array, is_complex
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.records import record
from xweights.core.selection import DEFAULT_KERNELS
from xweights.core.values import operand
from xweights.errors import ArgumentError, DtypeError
from xweights.rules.base import Rule, need_real


class _Elementwise(Rule):
    """A rule whose fields are numbers, arrays, or mappings by name."""

    elementwise = True

    @property
    def by_dtype(self) -> bool:
        # Rounding and checking two numbers takes 0.04 ms: for 1,000 parameters half the time of a clip.
        values = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        return all(isinstance(value, (int, float, type(None))) for value in values)


@record(frozen=True, eq=False, repr=False)
class Fill(_Elementwise):
    """Set every entry to ``value``. Exact.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.Fill(1), where="w"); w["w"]
        array([1., 1.])
    """

    value: Any

    @property
    def operand_by_name(self) -> tuple[Any, np.dtype[Any] | None]:
        return self.value, None

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        return (operand(self.value, parameter, what="value"),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.fill(w, operands[0])


@record(frozen=True, eq=False, repr=False)
class Scale(_Elementwise):
    """Multiply by ``factor``, which is real also for complex weights. Exact.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.Scale(2), where="w"); w["w"]
        array([-4.,  1.])
    """

    factor: Any

    @property
    def operand_by_name(self) -> tuple[Any, np.dtype[Any] | None]:
        return self.factor, None

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        factor = operand(self.factor, parameter, what="factor")
        if is_complex(parameter.dtype) and bool(np.any(factor.imag != 0)):
            # Processors round products of complex numbers in different ways.
            raise DtypeError(
                f"factor is complex, and the product with {parameter.name!r} has other bits on other backends\n"
                "Fix: apply(target, lambda w: w * factor, where=...)"
            )
        return (factor,)

    def on_host(self, w: Array, parameter: Parameter) -> bool:
        if not is_complex(parameter.dtype):
            return False
        # Each part alone: as complex numbers, infinity times 2 is infinity and NaN.
        (factor,) = self.operands(parameter)
        w.real *= factor.real
        w.imag *= factor.real
        return True

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.multiply(w, operands[0])


@record(frozen=True, eq=False, repr=False)
class Add(_Elementwise):
    """Add ``delta``. Exact.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.Add(1), where="w"); w["w"]
        array([-1. ,  1.5])
    """

    delta: Any

    @property
    def operand_by_name(self) -> tuple[Any, np.dtype[Any] | None]:
        return self.delta, None

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        return (operand(self.delta, parameter, what="delta"),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.add(w, operands[0])


@record(frozen=True, eq=False, repr=False)
class Clip(_Elementwise):
    """Bring every entry into [low, high]: ``where(w < low, low, where(w > high, high, w))``; NaN stays NaN. Exact.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.Clip(-1, 1), where="w"); w["w"]
        array([-1. ,  0.5])
    """

    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ArgumentError("clip without a bound does nothing\nFix: give low=, high= or both")
        if is_number(self.low) and is_number(self.high) and self.low > self.high:
            raise ArgumentError(f"low is greater than high\nlow:  {self.low!r}\nhigh: {self.high!r}\nFix: swap them")

    def check(self, parameter: Parameter) -> None:
        need_real(parameter, "clip")

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        bounds = [
            None if bound is None else operand(bound, parameter, what=name)
            for name, bound in (("low", self.low), ("high", self.high))
        ]
        low, high = bounds
        if any(bound is not None and bool(np.isnan(bound).any()) for bound in bounds):
            raise ArgumentError(f"a bound for {parameter.name!r} has NaN: nothing compares with it")
        if low is not None and high is not None and bool(np.any(low > high)):
            raise ArgumentError(f"low is greater than high somewhere in {parameter.name!r}")
        return tuple(bound for bound in bounds if bound is not None)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        low = None if self.low is None else operands[0]
        high = None if self.high is None else operands[-1]
        return ops.clip(w, low, high)


@record(frozen=True, eq=False, repr=False)
class NonNegative(_Elementwise):
    """Set negative entries to +0.0; -0.0 and NaN stay. Exact.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.NonNegative(), where="w"); w["w"]
        array([0. , 0.5])
    """

    def check(self, parameter: Parameter) -> None:
        need_real(parameter, "non_negative")

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        return (np.zeros((), parameter.dtype),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.clip(w, operands[0], None)


@record(frozen=True, eq=False, repr=False)
class Mask(Rule):
    """Keep the entries where ``keep`` is True; the others become +0.0, whatever they were. Exact.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.Mask(np.array([False, True])), where="w"); w["w"]
        array([0. , 0.5])
    """

    default_where = DEFAULT_KERNELS
    elementwise = True
    keep: Any

    @property
    def operand_by_name(self) -> tuple[Any, np.dtype[Any]]:
        return self.keep, np.dtype(np.bool_)

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        mask = operand(self.keep, parameter, what="keep", dtype=np.dtype(np.bool_))
        return (mask if mask.shape == parameter.shape else np.broadcast_to(mask, parameter.shape),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.keep(w, operands[0])
