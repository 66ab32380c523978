"""Single entries by index: which ones a call means, in neutral order."""

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

    index: Any
    value: Any

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        index = self.resolve(parameter)
        value = value_at(self.index, index, self.value, parameter)
        if not _is_mask(index):
            return (value,)
        # A mask goes as an operand, since a compiled step can't hold an index that it has to look at.
        if value.shape:
            spread = np.zeros(parameter.shape, parameter.dtype)
            spread[index] = value
            value = spread
        return (value, ~index[0])

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        if len(operands) == 2:
            return ops.choose(w, operands[1], operands[0])
        return ops.set_at(w, self.resolve(parameter), operands[0])

    def resolve(self, parameter: Parameter) -> tuple[Any, ...]:
        """Return the index as a full tuple of ints and slices, or of one bool array; raise if it doesn't fit."""
        return entries_index(self.index, parameter)


def value_at(index: Any, resolved: tuple[Any, ...], value: Any, parameter: Parameter) -> Array:
    """Return the value for the entries at an index that fits; raise if there are none."""
    shape = np.broadcast_to(np.empty((), np.bool_), parameter.shape)[resolved].shape
    if 0 in shape:
        raise SelectionError(f"index={_short(index)} selects no entry of {parameter.name!r} {parameter.shape}")
    return operand(value, plain_array(parameter.name, shape, parameter.dtype), what="value")


def plain_array(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Parameter:
    """Return what stands for an array that is no parameter, where one is asked for."""
    return Parameter(
        name=name, native_name=name, layout=plain_layout(shape), dtype=dtype, storage=NumpyStorage(), handle=None,
    )  # fmt: skip


# Stands for a length that isn't known before the call, in a resolved index: no whole slice has it by chance.
_UNKNOWN = (1 << 61) - 1


def check_index(index: Any) -> None:
    """Refuse an index by axis names, for what has no named axes."""
    if hasattr(index, "keys"):
        raise LayoutError(
            f"an index by axis names needs a parameter of a known layer: nothing names these axes\ngot: {index!r}\n"
            "Fix: a tuple of ints and slices in the order of the axes, or a bool array"
        )


def overwritten(
    index: Any, value: Any, shape: Sequence[int | None], dtype: np.dtype[Any], *, what: str
) -> tuple[Array, Array]:
    """Return which entries of an array of ``shape`` are set (bool), and to what, both with its number of axes.

    An axis of unknown length (None) can only be taken whole; it has length 1 in what comes back, to be broadcast.
    """
    check_index(index)
    if hasattr(value, "keys"):
        raise ArgumentError(f"value= is a mapping, and there is one array to set\ngot: {value!r}")
    lengths = tuple(_UNKNOWN if n is None else int(n) for n in shape)
    resolved = entries_index(index, plain_array(what, lengths, dtype))
    small = tuple(1 if n is None else int(n) for n in shape)
    if len(resolved) == len(small):
        for axis, (item, length) in enumerate(zip(resolved, lengths, strict=True)):
            if length == _UNKNOWN and item != slice(0, _UNKNOWN, 1):
                raise ShapeError(
                    f"axis {axis} of {what} has no fixed length, so its entries can't be counted\n"
                    f"shape: {tuple(shape)}\nindex: {_short(index)}\nFix: take that axis whole, as slice(None)"
                )
        resolved = tuple(slice(0, 1) if n == _UNKNOWN else one for one, n in zip(resolved, lengths, strict=True))
    array = value_at(index, resolved, value, plain_array(what, small, dtype))
    mask, values = np.zeros(small, np.bool_), np.zeros(small, dtype)
    mask[resolved] = True
    values[resolved] = array
    return mask, values


def _is_mask(index: tuple[Any, ...]) -> bool:
    return len(index) == 1 and isinstance(index[0], np.ndarray)


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
                "index is a list or an integer array, which NumPy and the frameworks read differently\n"
                f"got: {index!r}\n"
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
            try:
                bounds = item.indices(length)
            except (TypeError, ValueError) as wrong:
                raise ArgumentError(f"index has a slice that can't be read: {wrong}\ngot: {item!r}") from None
            full.append(slice(*bounds) if bounds[2] > 0 else item)
        elif isinstance(item, (int, np.integer)) and not isinstance(item, (bool, np.bool_)):
            if not -length <= item < length:
                raise ShapeError(f"index {item} is out of range for axis {position} of {name!r}\nshape: {shape}")
            full.append(int(item) % length)
        else:
            raise ArgumentError(f"index may hold ints and slices\ngot: {item!r} for axis {position} of {name!r}")
    return tuple(full)
