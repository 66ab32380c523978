"""What users pass as values, brought to arrays of a parameter's dtype without a silent change.

Owns the rounding of numbers, casts that must not change values, and the operands of rules. Imports axes, backend,
errors and parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xweights.core.backend import backend_for
from xweights.core.layout import reorder
from xweights.core.parameter import Array, Parameter, is_floating
from xweights.errors import ArgumentError, DtypeError, LayoutError, SelectionError, ShapeError, got_expected, near

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


def as_number(value: Any, dtype: np.dtype[Any], *, what: str = "the value") -> Array:
    """Return a number rounded once (nearest even) to ``dtype`` as a 0-d array; refuse one that doesn't fit.

    A bare Python number reaches no framework: times float16 it gives other bits in torch than in NumPy and
    TensorFlow in a sixth of all entries, and NumPy promotes bfloat16 to float32.
    """
    if dtype.kind == "b" and isinstance(value, (bool, np.bool_)):
        return np.asarray(value, dtype)
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
    number = rounded(_double(exact, dtype), dtype)
    turned = float(number)
    if not math.isfinite(turned) and exact == exact and turned != exact:
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


def rounded(array: Array, dtype: np.dtype[Any]) -> Array:
    """Return an array rounded to a floating-point type: once, to nearest even. Silent where it overflows."""
    with np.errstate(all="ignore"):
        if array.dtype.itemsize <= 4 or dtype.name in ("float16", "float32", "float64"):
            return array.astype(dtype)
        # ml_dtypes rounds float64 by way of float32: twice. Rounding to float32 "to odd" makes the second one right.
        single = array.astype(np.float32)
        back = single.astype(array.dtype)
        _to_odd(single, (back != array) & np.isfinite(single), np.abs(back) > np.abs(array))
        return single.astype(dtype)


def _to_odd(near: Array, inexact: Array, above: Array) -> None:
    """Turn what was rounded to nearest into what is rounded towards zero, with the last bit as "there was more"."""
    bits = near.view(f"u{near.itemsize}")
    np.subtract(bits, 1, out=bits, where=inexact & above)
    np.bitwise_or(bits, 1, out=bits, where=inexact)


def _round_once(exact: float, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f" and dtype.name.startswith("float") and dtype.itemsize >= 2:
        with np.errstate(over="ignore"):
            return np.asarray(exact, np.float64).astype(dtype)
    # ml_dtypes rounds float64 by way of float32: twice. Rounding to float32 "to odd" first makes the second one right.
    single = np.float32(exact)
    if np.isfinite(single) and float(single) != exact:
        bits = single.view(np.uint32)
        if abs(float(single)) > abs(exact):
            bits = np.uint32(bits - np.uint32(1))
        single = np.uint32(bits | np.uint32(1)).view(np.float32)
    return np.asarray(single).astype(dtype)


def largest(dtype: np.dtype[Any]) -> float:
    """Return the largest finite number of a floating-point type."""
    if dtype.kind == "f" and dtype.name in ("float16", "float32", "float64"):
        return float(np.finfo(dtype).max)
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    return float(finfo(dtype).max)


def host_array(value: Any, *, what: str = "the value", dtype: np.dtype[Any] | None = None) -> Array:
    """Return anything array-like as a NumPy array: a view of a tensor where there can be one.

    A list of Python numbers is rounded to ``dtype``, as a single number is.
    """
    if isinstance(value, (np.ndarray, np.generic, int, float)):
        array = np.asarray(value)
    elif isinstance(value, (list, tuple)):
        try:
            array = np.asarray(value)
        except ValueError as cause:
            raise ShapeError(f"{what} is a ragged list: {cause}") from None
        if dtype is not None and is_floating(dtype) and array.dtype.kind in "iuf" and _all_numbers(value):
            wide, array = array, rounded(array, dtype)
            if bool(np.any(np.isfinite(wide) & ~np.isfinite(array))):
                raise DtypeError(f"{what} overflows {dtype.name}\nlargest: {largest(dtype)}")
    else:
        backend = backend_for(value)
        if backend is not None:
            return backend.to_host(value)
        if not hasattr(value, "__array__"):
            raise ArgumentError(f"{what} is no array\ngot: {type(value).__module__}.{type(value).__qualname__}")
        array = np.asarray(value)
    if array.dtype.kind not in "biufV" or array.dtype.names:
        raise DtypeError(f"{what} holds no real numbers\ngot: an array of {array.dtype}")
    return array


def _all_numbers(values: Sequence[Any]) -> bool:
    return all(
        _all_numbers(one)
        if isinstance(one, (list, tuple))
        else isinstance(one, (int, float)) and not isinstance(one, bool)
        for one in values
    )


def cast_exactly(array: Array, dtype: np.dtype[Any], *, what: str, cast: bool = False) -> Array:
    """Return the array in ``dtype``; unless ``cast``, refuse if any value would change."""
    if array.dtype == dtype:
        return array
    if (dtype.kind == "b") != (array.dtype.kind == "b") and not cast:
        raise DtypeError(f"{what} has the wrong dtype\n{got_expected(array.dtype.name, dtype.name)}")
    with np.errstate(over="ignore", invalid="ignore"):
        turned = rounded(array, dtype) if is_floating(array.dtype) and is_floating(dtype) else array.astype(dtype)
        if cast:
            return turned
        back = turned.astype(array.dtype)
        both_nan = (array != array) & (back != back) if is_floating(array.dtype) else np.False_
        changed = int(np.count_nonzero(~((back == array) | both_nan)))
    if changed:
        raise DtypeError(
            f"{what} would change in {changed:,} of {array.size:,} entries when stored as {dtype.name}\n"
            f"{got_expected(array.dtype.name, dtype.name)}\n"
            f"Fix: cast=True where the call has it, or pass array.astype({dtype.name!r})"
        )
    return turned


def operand(value: Any, parameter: Parameter, *, what: str, dtype: np.dtype[Any] | None = None) -> Array:
    """Return ``value`` (a number, an array, a mapping by name) for one parameter: 0-d, or broadcastable to its shape.

    An array is in neutral order. Its dtype may differ only where no value changes.
    """
    wanted = parameter.dtype if dtype is None else dtype
    if isinstance(value, Mapping):
        key = next(
            (name for name in (parameter.name, *parameter.aliases, parameter.native_name) if name in value), None
        )
        if key is None:
            raise SelectionError(f"{what} has nothing for {parameter.name!r}\n{near(parameter.name, value)}")
        named_axes = getattr(value, "axes", {}).get(key)
        value = value[key]
        if named_axes is not None and parameter.axes is not None and named_axes != parameter.axes:
            value = reorder(host_array(value), named_axes, parameter.axes, what=f"{what}[{key!r}]")
    if is_number(value) and not (isinstance(value, np.ndarray) and wanted.kind == "b"):
        return as_number(value, wanted, what=what)
    array = host_array(value, what=what, dtype=wanted)
    try:
        # Comparing first: broadcasting shapes costs as much as editing a small array.
        fits = array.shape == parameter.shape or np.broadcast_shapes(array.shape, parameter.shape) == parameter.shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"{what} doesn't fit {parameter.name!r}\n{got_expected(array.shape, _shape_text(parameter))}")
    return cast_exactly(array, wanted, what=f"{what} for {parameter.name!r}")


def need_axes(parameter: Parameter, why: str) -> tuple[str, ...]:
    """Return the axes of a parameter, or refuse because they are unknown."""
    if parameter.axes is None:
        raise LayoutError(
            f"{parameter.name!r} belongs to a layer whose axes are unknown, and {why} needs them\n"
            f"shape: {parameter.shape}\n"
            "Fix: leave it out with where=, or pass the arrays as Params(..., axes={...})"
        )
    return parameter.axes


def _shape_text(parameter: Parameter) -> str:
    if parameter.axes is None:
        return str(parameter.shape)
    return f"{parameter.shape} = ({', '.join(parameter.axes)})"
