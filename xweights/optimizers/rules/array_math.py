"""Array functions that the update formulas are written in, and their NumPy implementation."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from xweights.core.dtypes import Array


class ArrayMath(Protocol):
    """Functions of arrays; ``+ - * / @`` are the arrays' own."""

    def sqrt(self, x: Any) -> Any: ...
    def square(self, x: Any) -> Any: ...
    def abs(self, x: Any) -> Any: ...
    def sign(self, x: Any) -> Any: ...
    def power(self, x: Any, exponent: float) -> Any: ...
    def clip(self, x: Any, low: float, high: float) -> Any: ...
    def maximum(self, x: Any, y: Any) -> Any:
        """Return the larger of two arrays, or of an array and a number."""

    def where(self, condition: Any, x: Any, y: Any) -> Any: ...
    def mean(self, x: Any, axis: int | None = None) -> Any:
        """Return the mean over one axis, kept with length 1, or over all axes (0-d)."""

    def sum(self, x: Any) -> Any: ...
    def blend(self, old: Any, new: Any, share: Any) -> Any:
        """Return old + share * (new - old)."""

    def swap(self, x: Any) -> Any:
        """Return the transpose of a matrix."""

    def cast(self, x: Any, dtype: str) -> Any: ...
    def round_to_bfloat16(self, x: Any) -> Any:
        """Return a float32 array, rounded to bfloat16."""

    def like(self, x: Any, other: Any) -> Any:
        """Return x in the dtype of ``other``."""

    # Composed builds the rest from these; a framework may have a single call for several of them.

    def mix(self, x: Any, a: Any, y: Any, b: Any) -> Any:
        """Return x * a + y * b."""

    def ratio(self, x: Any, a: Any, size: Any) -> Any:
        """Return x / a / size."""

    def root(self, x: Any, eps: Any, *, under: Any = None, over: Any = None) -> Any:
        """Return sqrt(x / under) / over + eps."""

    def root_sum(self, x: Any, eps: Any) -> Any:
        """Return sqrt(x + eps)."""

    def less_square(self, x: Any, y: Any) -> Any:
        """Return x - y ** 2."""

    def rms(self, x: Any) -> Any:
        """Return the root of the mean square of all entries."""

    def length(self, x: Any) -> Any:
        """Return the root of the sum of all squares."""

    # These may write to their first argument: a formula doesn't use it afterwards.

    def slot_blend(self, slot: Any, new: Any, share: Any) -> Any:
        """Return slot + share * (new - slot)."""

    def slot_blend_square(self, slot: Any, new: Any, share: Any) -> Any:
        """Return slot + share * (new ** 2 - slot)."""

    def slot_mix(self, slot: Any, a: Any, y: Any, b: Any) -> Any:
        """Return slot * a + y * b."""

    def slot_mix_square(self, slot: Any, a: Any, y: Any, b: Any) -> Any:
        """Return slot * a + y ** 2 * b."""

    def slot_mix_ratio(self, slot: Any, a: Any, x: Any, lr: Any, size: Any) -> Any:
        """Return slot * a + x * lr / size."""

    def less(self, w: Any, x: Any, lr: Any) -> Any:
        """Return w - x * lr."""

    def less_ratio(self, w: Any, x: Any, lr: Any, size: Any) -> Any:
        """Return w - x * lr / size."""


class Composed:
    """Functions composed of others, each rounding as its formula is written."""

    def blend(self: ArrayMath, old: Any, new: Any, share: Any) -> Any:
        """Return old + share * (new - old)."""
        return old + (new - old) * share

    def mix(self: ArrayMath, x: Any, a: Any, y: Any, b: Any) -> Any:
        """Return x * a + y * b."""
        return x * a + y * b

    def ratio(self: ArrayMath, x: Any, a: Any, size: Any) -> Any:
        """Return x / a / size."""
        return x / a / size

    def slot_blend(self: ArrayMath, slot: Any, new: Any, share: Any) -> Any:
        """Return slot + share * (new - slot)."""
        return self.blend(slot, new, share)

    def slot_blend_square(self: ArrayMath, slot: Any, new: Any, share: Any) -> Any:
        """Return slot + share * (new ** 2 - slot)."""
        return self.blend(slot, self.square(new), share)

    def slot_mix(self: ArrayMath, slot: Any, a: Any, y: Any, b: Any) -> Any:
        """Return slot * a + y * b."""
        return slot * a + y * b

    def slot_mix_square(self: ArrayMath, slot: Any, a: Any, y: Any, b: Any) -> Any:
        """Return slot * a + y ** 2 * b."""
        return slot * a + self.square(y) * b

    def slot_mix_ratio(self: ArrayMath, slot: Any, a: Any, x: Any, lr: Any, size: Any) -> Any:
        """Return slot * a + x * lr / size."""
        return slot * a + x * lr / size

    def less(self: ArrayMath, w: Any, x: Any, lr: Any) -> Any:
        """Return w - x * lr."""
        return w - x * lr

    def less_ratio(self: ArrayMath, w: Any, x: Any, lr: Any, size: Any) -> Any:
        """Return w - x * lr / size."""
        return w - x * lr / size

    def root(self: ArrayMath, x: Any, eps: Any, *, under: Any = None, over: Any = None) -> Any:
        """Return sqrt(x / under) / over + eps."""
        root = self.sqrt(x if under is None else x / under)
        return (root if over is None else root / over) + eps

    def root_sum(self: ArrayMath, x: Any, eps: Any) -> Any:
        """Return sqrt(x + eps)."""
        return self.sqrt(x + eps)

    def less_square(self: ArrayMath, x: Any, y: Any) -> Any:
        """Return x - y ** 2."""
        return x - self.square(y)

    def rms(self: ArrayMath, x: Any) -> Any:
        """Return the root of the mean square of all entries."""
        return self.sqrt(self.mean(self.square(x)))

    def length(self: ArrayMath, x: Any) -> Any:
        """Return the root of the sum of all squares."""
        return self.sqrt(self.sum(self.square(x)))


class NumpyMath(Composed):
    """The array math of the formulas in NumPy: the reference that tests compare frameworks with."""

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
        """Return the mean over one axis, kept with length 1, or over all axes."""
        return np.mean(x) if axis is None else np.mean(x, axis=axis, keepdims=True)

    def cast(self, x: Array, dtype: str) -> Array:
        """Return x in another dtype."""
        return np.asarray(x).astype(dtype)

    def round_to_bfloat16(self, x: Any) -> Any:
        """Return a float32 array, rounded to bfloat16."""
        import ml_dtypes

        return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32)

    def like(self, x: Array, other: Array) -> Array:
        """Return x in the dtype of ``other``."""
        return np.asarray(x).astype(other.dtype)
