"""What an adapter is, and how it finds its axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array, is_floating
from xweights.core.layout import Axes, Shape
from xweights.errors import ArgumentError, DtypeError, LayoutError, ShapeError, got_expected

# An axis by its name, or by its number in neutral order.
Axis = str | int


@dataclass(frozen=True)
class Wanted:
    """What a value is adapted to.

    Attributes:
        name: The neutral name of the parameter.
        axes: The names of the axes of both, in neutral order; None if they aren't known.
        shape: The shape to reach; None where a file is written and nothing says it.
        dtype: The dtype of the value, and so of the result.
        role: The role of the parameter.
        current: Returns what the target has now; None where it has nothing.

    Example:
        >>> import numpy as np, xweights as xw
        >>> wanted = xw.adapt.Wanted("stem/kernel", ("in", "out"), (1, 2), np.dtype("float32"))
        >>> xw.adapt.Mean("in")(np.ones((3, 2), np.float32), wanted)
        array([[1., 1.]], dtype=float32)
    """

    name: str
    axes: Axes | None
    shape: Shape | None
    dtype: np.dtype[Any]
    role: str = ""
    current: Callable[[], Array] | None = None

    def length(self, axis: int, dims: int) -> int | None:
        """Return the length to reach along an axis of an array of ``dims`` axes; None where nothing says it."""
        return self.shape[axis] if self.shape is not None and len(self.shape) == dims else None


@dataclass(frozen=True)
class Adapter:
    """Base class of adapters: a pure function of an array in neutral order and of what is wanted.

    ``check`` returns the shape of the result without reading a value, and raises what can't be done.

    Example:
        >>> import xweights as xw
        >>> isinstance(xw.adapt.Leave(), xw.adapt.Adapter)
        True
    """

    def check(self, shape: Shape, wanted: Wanted) -> Shape:
        """Return the shape of the result; raise if the adapter can't do it."""
        raise NotImplementedError

    def __call__(self, array: Array, wanted: Wanted) -> Array:
        """Return a new array of the same dtype; the one passed is read-only."""
        raise NotImplementedError

    def describe(self, shape: Shape, wanted: Wanted) -> str:
        """Return what it does, for the report."""
        return repr(self)


@dataclass(frozen=True)
class Leave(Adapter):
    """Keep what the target has, whatever the value is and whether there is one.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"head": np.ones(3)}; report = xw.set_params(w, {"head": np.zeros(9)}, adapt={"head": xw.adapt.Leave()})
        >>> w["head"]
        array([1., 1., 1.])
    """


def apply_adapter(adapter: Adapter, array: Array, wanted: Wanted) -> Array:
    """Return what an adapter makes of an array, which it can't change: it may be the caller's, or a live weight."""
    guarded = array.view()
    guarded.flags.writeable = False
    result: Any = adapter(guarded, wanted)
    if not isinstance(result, np.ndarray):
        raise ArgumentError(
            f"{adapter!r} of {wanted.name!r} returns no NumPy array\ngot: {type(result).__name__}\n"
            "Fix: __call__(array, wanted) returns a new array of the same dtype"
        )
    return result


def find_axis(axis: Axis, shape: Shape, wanted: Wanted, what: object) -> int:
    """Return the position of an axis given by its name, or by its number."""
    if isinstance(axis, str):
        if wanted.axes is None or len(wanted.axes) != len(shape):
            raise LayoutError(
                f"nothing tells the axes of {wanted.name!r} {shape}, and {what} needs its axis {axis!r}\n"
                f"Fix: the number of the axis in the place of {axis!r}"
            )
        if axis not in wanted.axes:
            raise LayoutError(
                f"{wanted.name!r} has no axis {axis!r}, which {what} needs\nits axes: {', '.join(wanted.axes)}"
            )
        position = wanted.axes.index(axis)
    elif not -len(shape) <= axis < len(shape):
        raise LayoutError(f"{wanted.name!r} has no axis {axis}, which {what} needs\nits shape: {shape}")
    else:
        position = axis % len(shape)
    name = wanted.axes[position] if wanted.axes is not None and len(wanted.axes) == len(shape) else ""
    if "*" in name:
        # New entries behind the last gate would shift all others into their neighbours.
        raise LayoutError(
            f"the axis {name!r} of {wanted.name!r} packs several, as the gates of a recurrent layer, and {what} would "
            "mix them\nFix: adapt each gate by hand, and pass the result"
        )
    return position


def check_axis(axis: Any) -> None:
    """Refuse anything that can't name an axis."""
    if isinstance(axis, (bool, np.bool_)) or not isinstance(axis, (str, int, np.integer)) or axis == "":
        raise ArgumentError(f"an axis is its name, or its number\ngot: {axis!r}")


def check_count(value: Any, what: str, *, least: int = 0) -> None:
    """Refuse anything that isn't a whole number of at least ``least``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise ArgumentError(f"{what} is a whole number >= {least}\ngot: {value!r}")


def need_floating_value(wanted: Wanted, what: object) -> None:
    """Refuse arithmetic on integers, bools and complex numbers."""
    if not is_floating(wanted.dtype):
        raise DtypeError(f"{what} is for floating-point weights\n{wanted.name!r} is {wanted.dtype.name}")


def need_length(wanted: Wanted, axis: int, dims: int, what: object, option: str) -> int:
    """Return the length that the target has along an axis; raise where there is no target."""
    length = wanted.length(axis, dims)
    if length is None and wanted.shape is None:
        raise ShapeError(f"nothing says how long {what} makes axis {axis} of {wanted.name!r}\nFix: {option}")
    if length is None:
        raise ShapeError(
            f"{what} can't change the number of axes of {wanted.name!r}\n"
            + got_expected(f"{dims} axes", f"{len(wanted.shape or ())} axes")
        )
    return length


def with_length(shape: Shape, axis: int, length: int) -> Shape:
    """Return a shape with another length along one axis."""
    return (*shape[:axis], length, *shape[axis + 1 :])


def show_axis(axis: Axis) -> str:
    """Return an axis as it is written in a call."""
    return repr(axis) if isinstance(axis, str) else str(int(axis))
