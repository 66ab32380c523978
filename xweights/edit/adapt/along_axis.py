"""Adapters that sum, repeat or take the entries along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.casting import round_to
from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.edit.adapt.base import (
    Adapter,
    Axis,
    Wanted,
    check_axis,
    check_count,
    find_axis,
    need_floating_value,
    need_length,
    show_axis,
    with_length,
)
from xweights.errors import ArgumentError, ShapeError

# Rows that are added at once: a sum needs no more memory than these, in float64.
_ROWS = 1024


def sum_in_order(array: Array, axis: int) -> Array:
    """Return the sum along an axis in float64, added in one order whatever the machine.

    Entries are added pairwise, halves to halves: NumPy's own sum adds in the order that memory suggests, and a matrix
    product in that of the processor's BLAS.
    """
    rows = np.moveaxis(array, axis, 0)
    total = np.zeros(rows.shape[1:], np.float64)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS].astype(np.float64)
        while len(part) > 1:
            half = len(part) // 2
            folded = part[:half] + part[half : 2 * half]
            if len(part) % 2:
                folded[0] += part[-1]
            part = folded
        total += part[0]
    return total


@dataclass(frozen=True)
class Sum(Adapter):
    """Sum over an axis, which has length 1 afterwards: a first convolution for RGB, made one for gray images.

    A gray image gives what the same image as RGB, all channels equal, gave before.

    Args:
        axis: The axis, by name or by number in neutral order.
        groups: The length of the axis afterwards: neighbours are summed in that many groups. For stems behind a
            space-to-depth step, as in timm.

    Exact: summed in float64 in one order, rounded once.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"kernel": np.zeros((1, 2))}
        >>> report = xw.set_params(w, {"kernel": np.ones((3, 2))}, adapt={"kernel": xw.adapt.Sum(0)}); w["kernel"]
        array([[3., 3.]])
    """

    axis: Axis
    groups: int = 1

    def __post_init__(self) -> None:
        check_axis(self.axis)
        check_count(self.groups, "groups=", least=1)

    def __repr__(self) -> str:
        groups = f", groups={self.groups}" if self.groups != 1 else ""
        return f"{type(self).__name__}({show_axis(self.axis)}{groups})"

    def check(self, shape: Shape, wanted: Wanted) -> Shape:
        need_floating_value(wanted, self)
        axis = find_axis(self.axis, shape, wanted, self)
        if not shape[axis] or shape[axis] % self.groups:
            raise ShapeError(f"{self} can't divide the {shape[axis]} entries of {wanted.name!r} along its axis")
        return with_length(shape, axis, self.groups)

    def __call__(self, array: Array, wanted: Wanted) -> Array:
        return round_to(self._total(array, wanted), array.dtype)

    def _total(self, array: Array, wanted: Wanted) -> Array:
        shape = array.shape
        axis = find_axis(self.axis, shape, wanted, self)
        grouped = array.reshape(*shape[:axis], self.groups, shape[axis] // self.groups, *shape[axis + 1 :])
        return sum_in_order(grouped, axis + 1)


@dataclass(frozen=True, repr=False)
class Mean(Sum):
    """Average over an axis, which has length 1 afterwards: for means, embeddings, what isn't summed over.

    Args:
        axis: The axis, by name or by number in neutral order.
        groups: As for :class:`Sum`.

    Exact: summed in float64 in one order, divided, rounded once.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"kernel": np.zeros((1, 2))}
        >>> report = xw.set_params(w, {"kernel": np.ones((3, 2))}, adapt={"kernel": xw.adapt.Mean(0)}); w["kernel"]
        array([[1., 1.]])
    """

    def __call__(self, array: Array, wanted: Wanted) -> Array:
        axis = find_axis(self.axis, array.shape, wanted, self)
        return round_to(self._total(array, wanted) / (array.shape[axis] // self.groups), array.dtype)


@dataclass(frozen=True)
class Repeat(Adapter):
    """Repeat the entries along an axis in turn, up to a length: a first convolution for gray, made one for RGB.

    Args:
        axis: The axis, by name or by number in neutral order.
        length: The length afterwards. Default: the target's.
        keep_sum: True scales by the old length over the new one, so that the sum over the axis stays (for a length that
            is no multiple: about). It is what timm does to the input convolution of a pretrained model.

    Exact: one product in float64, rounded once.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"kernel": np.zeros((2, 2))}; repeat = xw.adapt.Repeat(0, keep_sum=True)
        >>> report = xw.set_params(w, {"kernel": np.ones((1, 2))}, adapt={"kernel": repeat}); w["kernel"]
        array([[0.5, 0.5],
               [0.5, 0.5]])
    """

    axis: Axis
    length: int | None = None
    keep_sum: bool = False

    def __post_init__(self) -> None:
        check_axis(self.axis)
        if self.length is not None:
            check_count(self.length, "length=", least=1)
        if not isinstance(self.keep_sum, bool):
            raise ArgumentError(f"keep_sum= is True or False\ngot: {self.keep_sum!r}")

    def __repr__(self) -> str:
        length = "" if self.length is None else f", {self.length}"
        return f"Repeat({show_axis(self.axis)}{length}{', keep_sum=True' * self.keep_sum})"

    def check(self, shape: Shape, wanted: Wanted) -> Shape:
        if self.keep_sum:
            need_floating_value(wanted, self)
        axis = find_axis(self.axis, shape, wanted, self)
        length = self._length(axis, shape, wanted)
        if not 0 < shape[axis] <= length:
            raise ShapeError(
                f"{self} can't make {length} of the {shape[axis]} entries of {wanted.name!r} along its axis\n"
                "Fix: Take(axis, indices) for fewer entries"
            )
        return with_length(shape, axis, length)

    def __call__(self, array: Array, wanted: Wanted) -> Array:
        axis = find_axis(self.axis, array.shape, wanted, self)
        length, old = self._length(axis, array.shape, wanted), array.shape[axis]
        repeated: Array = np.take(array, np.arange(length) % old, axis)
        return round_to(repeated.astype(np.float64) * (old / length), array.dtype) if self.keep_sum else repeated

    def _length(self, axis: int, shape: Shape, wanted: Wanted) -> int:
        return self.length or need_length(wanted, axis, len(shape), self, f"{type(self).__name__}(axis, length)")


@dataclass(frozen=True)
class Take(Adapter):
    """Take some entries along an axis, in the order given: classes, channels, heads.

    Args:
        axis: The axis, by name or by number in neutral order.
        indices: The positions to take, or a slice.

    Exact: bits are copied.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"bias": np.zeros(2)}; take = xw.adapt.Take(0, [2, 0])
        >>> report = xw.set_params(w, {"bias": [0.0, 1.0, 2.0]}, adapt={"bias": take}); w["bias"]
        array([2., 0.])
    """

    axis: Axis
    indices: Sequence[int] | slice

    def __post_init__(self) -> None:
        check_axis(self.axis)
        if isinstance(self.indices, slice):
            return
        indices: Any = self.indices
        if isinstance(indices, str) or not hasattr(indices, "__len__"):
            raise ArgumentError(f"Take needs a list of positions, or a slice\ngot: {indices!r}")
        positions = tuple(indices)
        for position in positions:
            if isinstance(position, (bool, np.bool_)) or not isinstance(position, (int, np.integer)):
                raise ArgumentError(f"Take needs whole numbers\ngot: {position!r}")
        object.__setattr__(self, "indices", tuple(int(position) for position in positions))

    def __repr__(self) -> str:
        if isinstance(self.indices, slice):
            shown = f"slice({self.indices.start}, {self.indices.stop}, {self.indices.step})"
        else:
            some = ", ".join(map(str, self.indices[:8]))
            shown = f"[{some}{f', ... ({len(self.indices):,})' if len(self.indices) > 8 else ''}]"
        return f"Take({show_axis(self.axis)}, {shown})"

    def check(self, shape: Shape, wanted: Wanted) -> Shape:
        axis = find_axis(self.axis, shape, wanted, self)
        taken = len(self._positions(shape[axis], wanted))
        # Python cuts a slice off at the end, so that one beyond it is empty: in a file, nothing else would say so.
        if shape[axis] and not taken and wanted.length(axis, len(shape)) != 0:
            raise ShapeError(
                f"{self} takes none of the {shape[axis]} entries of {wanted.name!r} along its axis\n"
                "Fix: Take(axis, indices) of entries that are there"
            )
        return with_length(shape, axis, taken)

    def __call__(self, array: Array, wanted: Wanted) -> Array:
        axis = find_axis(self.axis, array.shape, wanted, self)
        taken: Array = np.take(array, self._positions(array.shape[axis], wanted), axis)
        return taken

    def _positions(self, length: int, wanted: Wanted) -> Array:
        if isinstance(self.indices, slice):
            return np.arange(length)[self.indices]
        outside = [position for position in self.indices if not -length <= position < length]
        if outside:
            raise ShapeError(
                f"{self} wants the position {outside[0]}, and {wanted.name!r} has {length} entries along its axis"
            )
        return np.asarray(self.indices, np.int64)
