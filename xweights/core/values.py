"""Convert users' values to arrays of a parameter's dtype without silent changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xweights.core.blocks import are_surely_finite
from xweights.core.casting import as_number, cast_exactly, check_finite, is_complex_number, is_number, largest, round_to
from xweights.core.dtypes import Array, is_complex, is_floating
from xweights.core.layout import LayoutName, reorder
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.errors import (
    ArgumentError,
    DtypeError,
    LayoutError,
    NonfiniteError,
    SelectionError,
    ShapeError,
    XweightsError,
    got_expected,
    near,
)


def host_array(value: Any, *, what: str = "the value", dtype: np.dtype[Any] | None = None) -> Array:
    """Return anything array-like as a NumPy array: a view of a tensor where possible.

    A list of Python numbers is rounded to ``dtype``, as a single number is.
    """
    if isinstance(value, (np.ndarray, np.generic, int, float, complex)):
        array = np.asarray(value)
    elif isinstance(value, (list, tuple)):
        try:
            array = np.asarray(value)
        except ValueError as cause:
            raise ShapeError(f"{what} is a ragged list: {cause}") from None
        rounded = dtype is not None and (is_floating(dtype) or (is_complex(dtype) and array.dtype.kind == "c"))
        if dtype is not None and rounded and array.dtype.kind in "iufc" and _all_numbers(value):
            wide, array = array, _round(array, dtype, what)
            if bool(np.any(np.isfinite(wide) & ~np.isfinite(array))):
                raise DtypeError(f"{what} overflows {dtype.name}\nlargest: {largest(dtype)}")
    else:
        backend = backend_for(value)
        if backend is not None:
            return backend.to_host(value)
        if not hasattr(value, "__array__"):
            raise ArgumentError(f"{what} is no array\ngot: {type(value).__module__}.{type(value).__qualname__}")
        array = np.asarray(value)
    if (array.dtype.kind not in "biufV" and not is_complex(array.dtype)) or array.dtype.names:
        raise DtypeError(f"{what} holds no numbers of a kind that weights have\ngot: an array of {array.dtype}")
    return array


def _round(array: Array, dtype: np.dtype[Any], what: str) -> Array:
    if is_floating(dtype) and array.dtype.kind != "c":
        return round_to(array, dtype)
    return cast_exactly(array, dtype, what=what, cast=True)


def _all_numbers(values: Sequence[Any]) -> bool:
    return all(
        _all_numbers(value)
        if isinstance(value, (list, tuple))
        else isinstance(value, (int, float, complex)) and not isinstance(value, bool)
        for value in values
    )


def refuse_nonfinite(value: Any, what: str, *, allow: bool) -> None:
    """Raise NonfiniteError for NaN or infinity in a number, an array or a mapping of these."""
    if allow or value is None or isinstance(value, (bool, str)):
        return
    if isinstance(value, Mapping):
        arrays = list(value.values())
        if set(map(type, arrays)) == {np.ndarray} and are_surely_finite(arrays):  # in a third of the time
            return
        for name, one in value.items():
            refuse_nonfinite(one, f"{what}[{name!r}]", allow=False)
        return
    # A plain number without NumPy, whose arrays torch.compile can't trace here.
    if isinstance(value, int) or (type(value) is float and math.isfinite(value)):
        return
    try:
        array = host_array(value)
    except XweightsError:
        return  # whoever takes the value says more of what is wrong
    if array.ndim:
        check_finite(array, what)
    elif (is_floating(array.dtype) or is_complex(array.dtype)) and not np.isfinite(array):
        raise NonfiniteError(
            f"{what}= isn't finite\n{got_expected(value, 'a finite number')}\n"
            "Fix: allow_nonfinite=True if that is meant"
        )


def operand(value: Any, parameter: Parameter, *, what: str, dtype: np.dtype[Any] | None = None) -> Array:
    """Return ``value`` (a number, an array, a mapping by name) for one parameter: 0-d, or broadcastable to its shape.

    An array is in neutral order. Its dtype may differ only where no value changes.
    """
    target_dtype = parameter.dtype if dtype is None else dtype
    if isinstance(value, Mapping):
        key: str | None = parameter.name
        if key not in value:
            key = next((name for name in (*parameter.aliases, parameter.native_name) if name in value), None)
        if key is None:
            raise SelectionError(f"{what} has nothing for {parameter.name!r}\n{near(parameter.name, value)}")
        named_axes = getattr(value, "axes", {}).get(key)
        value = value[key]
        if named_axes is not None and parameter.axes is not None and named_axes != parameter.axes:
            value = reorder(host_array(value), named_axes, parameter.axes, what=f"{what}[{key!r}]")
    # The common case: what follows would take longer than editing 10,000 entries.
    if type(value) is np.ndarray and value.ndim and value.dtype == target_dtype and value.shape == parameter.shape:
        return value
    if (is_number(value) or is_complex_number(value)) and not (
        isinstance(value, np.ndarray) and target_dtype.kind == "b"
    ):
        return as_number(value, target_dtype, what=what)
    array = host_array(value, what=what, dtype=target_dtype)
    try:
        # Compared first: broadcasting shapes costs as much as editing a small array.
        fits = array.shape == parameter.shape or np.broadcast_shapes(array.shape, parameter.shape) == parameter.shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"{what} doesn't fit {parameter.name!r}\n{got_expected(array.shape, _shape_text(parameter))}")
    return cast_exactly(array, target_dtype, what=f"{what} for {parameter.name!r}")


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


def fit_value(
    value: Any, p: Parameter, order: LayoutName, *, axes: tuple[str, ...] | None, gates: tuple[str, ...] | None
) -> Array:
    """Return a value in the stored order and shape of a parameter, transposed by axis name where names are known."""
    array = (
        value
        if type(value) is np.ndarray and value.dtype == p.dtype
        else host_array(value, what=repr(p.name), dtype=p.dtype)
    )
    if gates is not None and p.gates is not None and gates != p.gates:
        raise LayoutError(
            f"{p.name!r} packs its gates in another order\n{got_expected(', '.join(gates), ', '.join(p.gates))}\n"
            "Fix: reorder them by hand, or port the model: port has the recipes of both layers"
        )
    if order == "native" and (axes is None or p.axes is None):
        if array.shape != p.layout.stored:
            raise ShapeError(f"{p.name!r} (native order)\n{got_expected(array.shape, p.layout.stored)}")
        return array
    if axes is not None and p.axes is not None and axes != p.axes:
        array = reorder(array, axes, p.axes, what=repr(p.name))
    if array.shape != p.shape:
        raise ShapeError(f"{p.name!r}{_axes_text(p)}\n{got_expected(array.shape, p.shape)}{_transposed_hint(array, p)}")
    return p.layout.to_stored(array)


def _transposed_hint(array: Array, p: Parameter) -> str:
    if array.shape == p.layout.stored and array.shape != p.shape:
        return '\nFix: these look like native values: pass layout="native"'
    return ""


def _axes_text(p: Parameter) -> str:
    return "" if p.axes is None else f" ({', '.join(p.axes)})"
