"""Single entries by index, in neutral order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import plain_layout
from xweights.core.numpy_backend import NumpyStorage
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.values import host_array, need_axes, operand
from xweights.errors import ArgumentError, LayoutError, SelectionError, ShapeError
from xweights.rules.base import Rule, _short


@dataclass(frozen=True, eq=False, repr=False)
class SetEntries(Rule):
    """Set the entries at ``index`` to ``value``. Exact.

    ``index``: a tuple of ints and slices, a mapping of axis names to them, or a bool array of the parameter's shape.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.SetEntries((0,), 7), where="w"); w["w"]
        array([7. , 0.5])
    """

    default_where = None
    index: Any
    value: Any

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        index = self.resolve(parameter)
        value = value_at(self.index, index, self.value, parameter)
        if not _is_mask(index):
            return (value,)
        # A mask is an operand: a compiled step can't index by values it has to read.
        if value.shape:
            full = np.zeros(parameter.shape, parameter.dtype)
            full[index] = value
            value = full
        return (value, ~index[0])

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        if len(operands) == 2:
            return ops.choose(w, operands[1], operands[0])
        return ops.set_at(w, self.resolve(parameter), operands[0])

    def resolve(self, parameter: Parameter) -> tuple[Any, ...]:
        """Return the index as a full tuple of ints and slices, or of one bool array; raise if it doesn't fit."""
        return resolve_index(self.index, parameter)


def value_at(index: Any, resolved: tuple[Any, ...], value: Any, parameter: Parameter) -> Array:
    """Return the value as an array for the entries at a resolved index; raise if there are none."""
    shape = np.broadcast_to(np.empty((), np.bool_), parameter.shape)[resolved].shape
    if 0 in shape:
        raise SelectionError(f"index={_short(index)} selects no entry of {parameter.name!r} {parameter.shape}")
    return operand(value, placeholder_parameter(parameter.name, shape, parameter.dtype), what="value")


def placeholder_parameter(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Parameter:
    """Return a placeholder parameter for an array that is none."""
    return Parameter(
        name=name, native_name=name, layout=plain_layout(shape), dtype=dtype, storage=NumpyStorage(), handle=None,
    )  # fmt: skip


# Marks, in a resolved index, a length that isn't known before the call: no real axis is that long.
_UNKNOWN = (1 << 61) - 1


def check_index(index: Any) -> None:
    """Refuse an index by axis names for arrays without named axes."""
    if hasattr(index, "keys"):
        raise LayoutError(
            f"an index by axis names needs a parameter of a known layer: nothing names these axes\ngot: {index!r}\n"
            "Fix: a tuple of ints and slices in the order of the axes, or a bool array"
        )


def resolve_entries(
    index: Any, value: Any, shape: Sequence[int | None], dtype: np.dtype[Any], *, what: str
) -> tuple[Array, Array]:
    """Return (mask of the entries that are set, their values), both with the number of axes of ``shape``.

    An axis of unknown length (None) can only be taken whole; it has length 1 in the result, to be broadcast.
    """
    check_index(index)
    if hasattr(value, "keys"):
        raise ArgumentError(f"value= is a mapping, and there is one array to set\ngot: {value!r}")
    lengths = tuple(_UNKNOWN if n is None else int(n) for n in shape)
    resolved = resolve_index(index, placeholder_parameter(what, lengths, dtype))
    small = tuple(1 if n is None else int(n) for n in shape)
    if len(resolved) == len(small):
        for axis, (item, length) in enumerate(zip(resolved, lengths, strict=True)):
            if length == _UNKNOWN and item != slice(0, _UNKNOWN, 1):
                raise ShapeError(
                    f"axis {axis} of {what} has no fixed length, so its entries can't be counted\n"
                    f"shape: {tuple(shape)}\nindex: {_short(index)}\nFix: take that axis whole, as slice(None)"
                )
        resolved = tuple(slice(0, 1) if n == _UNKNOWN else item for item, n in zip(resolved, lengths, strict=True))
    array = value_at(index, resolved, value, placeholder_parameter(what, small, dtype))
    mask, values = np.zeros(small, np.bool_), np.zeros(small, dtype)
    mask[resolved] = True
    values[resolved] = array
    return mask, values


def _is_mask(index: tuple[Any, ...]) -> bool:
    return len(index) == 1 and isinstance(index[0], np.ndarray)


def resolve_index(index: Any, parameter: Parameter) -> tuple[Any, ...]:
    """Return ``index`` as ints and slices per neutral axis of a parameter, or as one bool array."""
    shape, name = parameter.shape, parameter.name
    if hasattr(index, "keys"):
        axes = need_axes(parameter, "an index by axis names")
        unknown = [axis for axis in index if axis not in axes]
        if unknown:
            raise LayoutError(f"{name!r} has no axis {unknown[0]!r}\naxes: ({', '.join(axes)})")
        items = [index.get(axis, slice(None)) for axis in axes]
    elif not isinstance(index, (tuple, int, slice, type(...), np.integer)):
        mask = host_array(index, what="index")
        if mask.dtype.kind != "b":
            raise ArgumentError(
                "index is a list or an integer array, which NumPy and the frameworks read differently\n"
                f"got: {index!r}\n"
                "Fix: a tuple of ints and slices, {'axis': int or slice}, or a bool array of the parameter's shape"
            )
        if mask.shape != shape:
            raise ShapeError(f"the bool index doesn't fit {name!r}\ngot:      {mask.shape}\nexpected: {shape}")
        return (mask,)
    else:
        parts = index if isinstance(index, tuple) else (index,)
        if ... in [item for item in parts if isinstance(item, type(...))]:
            ellipsis = next(i for i, item in enumerate(parts) if isinstance(item, type(...)))
            parts = (*parts[:ellipsis], *[slice(None)] * (len(shape) - len(parts) + 1), *parts[ellipsis + 1 :])
        if len(parts) > len(shape):
            raise ShapeError(f"index has {len(parts)} parts, {name!r} has {len(shape)} axes\nshape: {shape}")
        items = [*parts, *[slice(None)] * (len(shape) - len(parts))]
    resolved: list[Any] = []
    for position, (item, length) in enumerate(zip(items, shape, strict=True)):
        if isinstance(item, slice):
            try:
                bounds = item.indices(length)
            except (TypeError, ValueError) as wrong:
                raise ArgumentError(f"index has a slice that can't be read: {wrong}\ngot: {item!r}") from None
            resolved.append(slice(*bounds) if bounds[2] > 0 else item)
        elif isinstance(item, (int, np.integer)) and not isinstance(item, (bool, np.bool_)):
            if not -length <= item < length:
                raise ShapeError(f"index {item} is out of range for axis {position} of {name!r}\nshape: {shape}")
            resolved.append(int(item) % length)
        else:
            raise ArgumentError(f"index may hold ints and slices\ngot: {item!r} for axis {position} of {name!r}")
    return tuple(resolved)
