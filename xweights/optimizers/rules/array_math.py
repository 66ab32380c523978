"""The functions of arrays that the formulas of optimizers are written in, and NumPy's."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from xweights.core.dtypes import Array


class Maths(Protocol):
    """Functions of arrays; + - * / and @ are the arrays' own."""

    def sqrt(self, x: Any) -> Any: ...
    def square(self, x: Any) -> Any: ...
    def abs(self, x: Any) -> Any: ...
    def sign(self, x: Any) -> Any: ...
    def power(self, x: Any, exponent: float) -> Any: ...
    def clip(self, x: Any, low: float, high: float) -> Any: ...
    def maximum(self, x: Any, y: Any) -> Any:
        """The larger of two arrays, or of an array and a number."""

    def where(self, condition: Any, x: Any, y: Any) -> Any: ...
    def mean(self, x: Any, axis: int | None = None) -> Any:
        """The mean over one axis, which stays with length 1, or over all (0-d)."""

    def sum(self, x: Any) -> Any: ...
    def blend(self, old: Any, new: Any, share: Any) -> Any:
        """old + share * (new - old)."""

    def swap(self, x: Any) -> Any:
        """The transpose of a matrix."""

    def cast(self, x: Any, dtype: str) -> Any: ...
    def rounded(self, x: Any) -> Any:
        """A float32 array, rounded to bfloat16."""

    def like(self, x: Any, other: Any) -> Any:
        """x in the dtype of ``other``."""

    # The rest is made of the others, by Composed; a framework may have one call for what is several.

    def mix(self, x: Any, a: Any, y: Any, b: Any) -> Any:
        """x * a + y * b."""

    def ratio(self, x: Any, a: Any, size: Any) -> Any:
        """x / a / size."""

    def root(self, x: Any, eps: Any, *, under: Any = None, over: Any = None) -> Any:
        """sqrt(x / under) / over + eps."""

    def root_sum(self, x: Any, eps: Any) -> Any:
        """sqrt(x + eps)."""

    def less_square(self, x: Any, y: Any) -> Any:
        """x - y ** 2."""

    def rms(self, x: Any) -> Any:
        """The root of the mean square of all entries."""

    def length(self, x: Any) -> Any:
        """The root of the sum of all squares."""

    # These may write into their first argument: a formula doesn't use it afterwards.

    def slot_blend(self, slot: Any, new: Any, share: Any) -> Any:
        """slot + share * (new - slot)."""

    def slot_blend_square(self, slot: Any, new: Any, share: Any) -> Any:
        """slot + share * (new ** 2 - slot)."""

    def slot_mix(self, slot: Any, a: Any, y: Any, b: Any) -> Any:
        """slot * a + y * b."""

    def slot_mix_square(self, slot: Any, a: Any, y: Any, b: Any) -> Any:
        """slot * a + y ** 2 * b."""

    def slot_mix_ratio(self, slot: Any, a: Any, x: Any, rate: Any, size: Any) -> Any:
        """slot * a + x * rate / size."""

    def less(self, w: Any, x: Any, rate: Any) -> Any:
        """w - x * rate."""

    def less_ratio(self, w: Any, x: Any, rate: Any, size: Any) -> Any:
        """w - x * rate / size."""


class Composed:
    """Functions that are made of others, each with the rounding that it is written with."""

    def blend(self: Maths, old: Any, new: Any, share: Any) -> Any:
        """Old + share * (new - old)."""
        return old + (new - old) * share

    def mix(self: Maths, x: Any, a: Any, y: Any, b: Any) -> Any:
        """X * a + y * b."""
        return x * a + y * b

    def ratio(self: Maths, x: Any, a: Any, size: Any) -> Any:
        """X / a / size."""
        return x / a / size

    def slot_blend(self: Maths, slot: Any, new: Any, share: Any) -> Any:
        """Slot + share * (new - slot)."""
        return self.blend(slot, new, share)

    def slot_blend_square(self: Maths, slot: Any, new: Any, share: Any) -> Any:
        """Slot + share * (new ** 2 - slot)."""
        return self.blend(slot, self.square(new), share)

    def slot_mix(self: Maths, slot: Any, a: Any, y: Any, b: Any) -> Any:
        """Slot * a + y * b."""
        return slot * a + y * b

    def slot_mix_square(self: Maths, slot: Any, a: Any, y: Any, b: Any) -> Any:
        """Slot * a + y ** 2 * b."""
        return slot * a + self.square(y) * b

    def slot_mix_ratio(self: Maths, slot: Any, a: Any, x: Any, rate: Any, size: Any) -> Any:
        """Slot * a + x * rate / size."""
        return slot * a + x * rate / size

    def less(self: Maths, w: Any, x: Any, rate: Any) -> Any:
        """W - x * rate."""
        return w - x * rate

    def less_ratio(self: Maths, w: Any, x: Any, rate: Any, size: Any) -> Any:
        """W - x * rate / size."""
        return w - x * rate / size

    def root(self: Maths, x: Any, eps: Any, *, under: Any = None, over: Any = None) -> Any:
        """Sqrt(x / under) / over + eps."""
        made = self.sqrt(x if under is None else x / under)
        return (made if over is None else made / over) + eps

    def root_sum(self: Maths, x: Any, eps: Any) -> Any:
        """Sqrt(x + eps)."""
        return self.sqrt(x + eps)

    def less_square(self: Maths, x: Any, y: Any) -> Any:
        """X - y ** 2."""
        return x - self.square(y)

    def rms(self: Maths, x: Any) -> Any:
        """The root of the mean square of all entries."""
        return self.sqrt(self.mean(self.square(x)))

    def length(self: Maths, x: Any) -> Any:
        """The root of the sum of all squares."""
        return self.sqrt(self.sum(self.square(x)))


class NumpyMaths(Composed):
    """The maths of the formulas in NumPy."""

    sqrt = staticmethod(np.sqrt)
    square = staticmethod(np.square)
    abs = staticmethod(np.abs)
    sign = staticmethod(np.sign)
    power = staticmethod(np.power)
    clip = staticmethod(np.clip)
    maximum = staticmethod(np.maximum)
    where = staticmethod(np.where)
    sum = staticmethod(np.sum)
    swap = staticmethod(np.transpose)

    def mean(self, x: Array, axis: int | None = None) -> Any:
        """The mean over one axis, which stays, or over all."""
        return np.mean(x) if axis is None else np.mean(x, axis=axis, keepdims=True)

    def cast(self, x: Array, dtype: str) -> Array:
        """X in another dtype."""
        return np.asarray(x).astype(dtype)

    def rounded(self, x: Any) -> Any:
        """A float32 array, rounded to bfloat16."""
        import ml_dtypes

        return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32)

    def like(self, x: Array, other: Array) -> Array:
        """X in the dtype of another array."""
        return np.asarray(x).astype(other.dtype)
