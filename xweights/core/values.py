"""What users pass as values, brought to arrays of a parameter's dtype without a silent change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xweights.core.casting import as_number, cast_exactly, is_number, largest, rounded
from xweights.core.dtypes import Array, is_floating
from xweights.core.layout import reorder
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.errors import ArgumentError, DtypeError, LayoutError, SelectionError, ShapeError, got_expected, near


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
