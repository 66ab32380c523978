"""Round numbers and cast arrays without silent changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xweights.core.blocks import blocks, quick_sum
from xweights.core.dtypes import Array, is_complex, is_floating, is_half, part_dtype
from xweights.errors import ArgumentError, DtypeError, NonfiniteError, got_expected

Number = int | float


def is_number(value: Any) -> bool:
    """Return True for a Python or NumPy number (0-d arrays of NumPy included), False for bool."""
    if isinstance(value, (bool, np.bool_)):
        return False
    if isinstance(value, (int, float, np.integer, np.floating)):
        return True
    if not isinstance(value, (np.ndarray, np.generic)) or value.shape:
        return False
    return value.dtype.kind in "iuf" or is_floating(value.dtype)


def is_complex_number(value: Any) -> bool:
    """Return True for a Python or NumPy complex number (0-d arrays of NumPy included)."""
    if isinstance(value, (complex, np.complexfloating)):
        return True
    return isinstance(value, np.ndarray) and not value.shape and value.dtype.kind == "c"


def as_number(value: Any, dtype: np.dtype[Any], *, what: str = "the value") -> Array:
    """Return a number rounded once (nearest even) to ``dtype`` as a 0-d array; refuse one that doesn't fit.

    No bare Python number reaches a framework: times float16 it gives different bits in torch than in NumPy and
    TensorFlow in a sixth of all entries, and NumPy promotes bfloat16 to float32.
    """
    if dtype.kind == "b" and isinstance(value, (bool, np.bool_)):
        return np.asarray(value, dtype)
    if is_complex(dtype) and (is_complex_number(value) or is_number(value)):
        parts = (value.real, value.imag) if is_complex_number(value) else (value, 0)
        number = np.empty((), dtype)
        number.real, number.imag = (as_number(part, part_dtype(dtype), what=what) for part in parts)
        return number
    if is_complex_number(value):
        raise DtypeError(f"{what} is a complex number, and this can only store {dtype.name}\ngot: {value!r}")
    if not is_number(value):
        raise ArgumentError(f"{what} must be a number\ngot: {value!r} ({type(value).__name__})")
    exact = _exact(value)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        if not (isinstance(exact, int) or exact.is_integer()) or not info.min <= exact <= info.max:
            raise DtypeError(
                f"{what} can't be stored as {dtype.name}\ngot: {value!r}\nFix: give a whole number in its range"
            )
        return np.asarray(int(exact), dtype)
    if not is_floating(dtype):
        raise DtypeError(f"{what} can't be stored as {dtype.name}\ngot: {value!r}")
    number = round_to(_double(exact, dtype), dtype)
    stored = float(number)
    if not math.isfinite(stored) and exact == exact and stored != exact:
        raise DtypeError(f"{what} overflows {dtype.name}\ngot: {value!r}\nlargest: {largest(dtype)}")
    return number


def _exact(value: Any) -> int | float:
    if isinstance(value, (int, float)):
        return value
    return int(value) if np.asarray(value).dtype.kind in "iu" else float(value)


def _double(exact: float, dtype: np.dtype[Any]) -> Array:
    try:
        double = np.asarray(exact, np.float64)
    except OverflowError:  # an int beyond every float
        return np.asarray(math.inf if exact > 0 else -math.inf)
    if isinstance(exact, int) and dtype.itemsize < 8:
        _to_odd(double, np.asarray(int(double) != exact), np.asarray(abs(int(double)) > abs(exact)))
    return double


def round_to(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return an array rounded once, to nearest even, to a floating-point type. Silent where it overflows."""
    with np.errstate(all="ignore"):
        if array.dtype.itemsize <= 4 or dtype.name in ("float16", "float32", "float64"):
            return array.astype(dtype)
        # ml_dtypes rounds float64 via float32: twice. Rounding to float32 "to odd" makes the second rounding right.
        single = array.astype(np.float32)
        back = single.astype(array.dtype)
        _to_odd(single, (back != array) & np.isfinite(single), np.abs(back) > np.abs(array))
        return single.astype(dtype)


def _to_odd(near: Array, inexact: Array, above: Array) -> None:
    """Turn rounding to nearest into rounding to odd: towards zero, with the last bit set where bits were lost."""
    bits = near.view(f"u{near.itemsize}")
    np.subtract(bits, 1, out=bits, where=inexact & above)
    np.bitwise_or(bits, 1, out=bits, where=inexact)


def largest(dtype: np.dtype[Any]) -> float:
    """Return the largest finite number of a floating-point type."""
    if dtype.kind == "f" and dtype.name in ("float16", "float32", "float64"):
        return float(np.finfo(dtype).max)
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return float(finfo(dtype).max)


def cast_exactly(array: Array, dtype: np.dtype[Any], *, what: str, cast: bool = False) -> Array:
    """Return the array in ``dtype``; unless ``cast``, refuse if any value would change."""
    if array.dtype == dtype:
        return array
    if (dtype.kind == "b") != (array.dtype.kind == "b") and not cast:
        raise DtypeError(f"{what} has the wrong dtype\n{got_expected(array.dtype.name, dtype.name)}")
    if is_complex(array.dtype) or is_complex(dtype):
        return _cast_complex(array, dtype, what=what, cast=cast)
    with np.errstate(all="ignore"):
        converted = round_to(array, dtype) if is_floating(array.dtype) and is_floating(dtype) else array.astype(dtype)
        if cast:
            return converted
        back = converted.astype(array.dtype)
        both_nan = (array != array) & (back != back) if is_floating(array.dtype) else np.False_
        changed = int(np.count_nonzero(~((back == array) | both_nan)))
    if changed:
        raise DtypeError(
            f"{what} would change in {changed:,} of {array.size:,} entries when stored as {dtype.name}\n"
            f"{got_expected(array.dtype.name, dtype.name)}\n"
            f"Fix: cast=True where the call has it, or pass array.astype({dtype.name!r})"
        )
    return converted


def _cast_complex(array: Array, dtype: np.dtype[Any], *, what: str, cast: bool) -> Array:
    """Cast both parts; dropping an imaginary part is no rounding, so no ``cast`` allows it."""
    if not is_complex(dtype):
        lost = int(np.count_nonzero(array.imag != 0))
        if lost:
            raise DtypeError(
                f"{what} has an imaginary part in {lost:,} of {array.size:,} entries\n"
                f"{got_expected(array.dtype.name, dtype.name)}\n"
                "Fix: decide what becomes of it, as in array.real or abs(array)"
            )
        return cast_exactly(np.ascontiguousarray(array.real).reshape(array.shape), dtype, what=what, cast=cast)
    converted = np.empty_like(array, dtype=dtype)
    converted.real = cast_exactly(array.real, part_dtype(dtype), what=what, cast=cast)
    converted.imag = cast_exactly(array.imag, part_dtype(dtype), what=what, cast=cast)
    return converted


def check_finite(array: Array, what: str) -> None:
    """Refuse NaN and infinity; in one pass without a temporary where the sum is finite, the common case."""
    if not (is_floating(array.dtype) or is_complex(array.dtype)) or (
        not is_half(array.dtype) and np.isfinite(quick_sum(array))
    ):
        return
    cuts = blocks(array.shape)
    with np.errstate(invalid="ignore"):  # a signalling NaN of a half type
        bad = array.size - sum(int(np.count_nonzero(np.isfinite(array[cut]))) for cut in cuts)
        nan = sum(int(np.count_nonzero(np.isnan(array[cut]))) for cut in cuts) if bad else 0
    if bad:
        raise NonfiniteError(
            f"{what} has {bad:,} non-finite entries ({nan:,} NaN, {bad - nan:,} infinite) of {array.size:,}\n"
            "Fix: allow_nonfinite=True if that is meant"
        )
