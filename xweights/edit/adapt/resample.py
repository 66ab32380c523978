"""`Resample`: bring tables of positions to another grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    show_axis,
)
from xweights.edit.adapt.interpolation import Mode, interpolate
from xweights.errors import ArgumentError, ShapeError, got_expected

Grid = tuple[int, ...]


class _Place(NamedTuple):
    """Where the grid is: over these axes, or along the one axis, flattened, between entries that stay."""

    axes: tuple[int, ...]
    flat: bool


@dataclass(frozen=True)
class Resample(Adapter):
    """Interpolate a table of positions from one grid to another, as timm does for another image size.

    Tables are (..., positions, dim), with the grid flattened along one axis, or (..., h, w, dim). Also tables of
    relative positions (Swin, BEiT): a window of 7 has the grid (13, 13), and timm resamples them with
    ``antialias=False``.

    Args:
        old: The grid of the value, such as (14, 14): one to three lengths.
        new: The grid afterwards, as many lengths.
        skip: How many entries before the grid stay as they are: class and register tokens.
        skip_last: How many entries behind the grid stay as they are, as in BEiT's tables of relative positions.
        mode: "bicubic" or "bilinear", along each axis of the grid.
        antialias: True widens the kernel where the grid gets smaller, and has another cubic kernel than False, as in
            torch.
        axis: The axis of the positions. Default: the one with the name "position" (or those named t, h and w), else the
            last but one.

    Close (rtol 1e-5) to ``torch.nn.functional.interpolate(..., align_corners=False)``, relative to the largest entry of
    the table; the same bits on every machine: float64 throughout, rounded once.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"pos_embed": np.zeros((1, 5, 1))}; table = np.array([9.0, 0.0, 1.0]).reshape(1, 3, 1)
        >>> resample = xw.adapt.Resample((2, 1), (4, 1), skip=1, mode="bilinear")
        >>> report = xw.set_params(w, {"pos_embed": table}, adapt={"pos_embed": resample}); w["pos_embed"].ravel()
        array([9.  , 0.  , 0.25, 0.75, 1.  ])
    """

    old: Grid
    new: Grid
    skip: int = 0
    skip_last: int = 0
    mode: Mode = "bicubic"
    antialias: bool = True
    axis: Axis | None = None

    def __post_init__(self) -> None:
        for name in ("old", "new"):
            object.__setattr__(self, name, _read_grid(getattr(self, name), name))
        if len(self.old) != len(self.new):
            raise ArgumentError(f"both grids have as many lengths\ngot: {self.old} and {self.new}")
        check_count(self.skip, "skip=")
        check_count(self.skip_last, "skip_last=")
        if self.mode not in ("bicubic", "bilinear"):
            raise ArgumentError(f'mode= is "bicubic" or "bilinear"\ngot: {self.mode!r}')
        if not isinstance(self.antialias, bool):
            raise ArgumentError(f"antialias= is True or False\ngot: {self.antialias!r}")
        if self.axis is not None:
            check_axis(self.axis)

    def __repr__(self) -> str:
        shown = [f"{self.old}, {self.new}"]
        shown += [f"{name}={getattr(self, name)}" for name in ("skip", "skip_last") if getattr(self, name)]
        shown += [f"mode={self.mode!r}"] * (self.mode != "bicubic") + ["antialias=False"] * (not self.antialias)
        shown += [] if self.axis is None else [f"axis={show_axis(self.axis)}"]
        return f"Resample({', '.join(shown)})"

    def check(self, shape: Shape, wanted: Wanted) -> Shape:
        need_floating_value(wanted, self)
        place = self._find_grid(shape, wanted)
        lengths = list(shape)
        for axis, length in zip(place.axes, (self._count(self.new),) if place.flat else self.new, strict=True):
            lengths[axis] = length
        return tuple(lengths)

    def __call__(self, array: Array, wanted: Wanted) -> Array:
        place = self._find_grid(array.shape, wanted)
        if not place.flat:
            return round_to(self._interpolate(array, place.axes), array.dtype)
        (axis,) = place.axes
        before, end = array.shape[:axis], array.shape[axis] - self.skip_last
        first, positions, last = np.split(array, [self.skip, end], axis)
        grid = positions.reshape(*before, *self.old, *array.shape[axis + 1 :])
        spread = self._interpolate(grid, tuple(range(axis, axis + len(self.old))))
        flat = round_to(spread.reshape(*before, math.prod(self.new), *array.shape[axis + 1 :]), array.dtype)
        return np.concatenate([first, flat, last], axis)

    def _interpolate(self, grid: Array, axes: tuple[int, ...]) -> Array:
        return interpolate(grid, axes, self.new, self.mode, antialias=self.antialias)

    def _count(self, grid: Grid) -> int:
        return self.skip + math.prod(grid) + self.skip_last

    def _find_grid(self, shape: Shape, wanted: Wanted) -> _Place:
        """Return where the grid is; raise if the shape doesn't have it there."""
        names = wanted.axes if wanted.axes is not None and len(wanted.axes) == len(shape) else None
        dims = len(self.old)
        axes: tuple[int, ...]
        if self.axis is not None:
            axes = (find_axis(self.axis, shape, wanted, self),)
        elif names is not None and "position" in names:
            axes = (names.index("position"),)
        elif names is not None and len(found := [i for i, name in enumerate(names) if name in ("t", "h", "w")]) == dims:
            axes = tuple(found)
        elif dims > 1 and not self.skip + self.skip_last and shape[-1 - dims : -1] == self.old:
            axes = tuple(range(len(shape) - 1 - dims, len(shape) - 1))
        else:
            axes = (max(len(shape) - 2, 0),)
        flat = len(axes) == 1
        if not shape or (flat and shape[axes[0]] != self._count(self.old)):
            got = f"{shape[axes[0]]} entries along axis {axes[0]} of {shape}" if shape else "a single number"
            skipped = "".join(f" + {n} skipped" for n in (self.skip, self.skip_last) if n)
            expected = f"{self._count(self.old)} = {' * '.join(map(str, self.old))}{skipped}"
            raise ShapeError(f"{self} isn't for {wanted.name!r}\n{got_expected(got, expected)}{_suggest_axis(shape)}")
        if not flat and (tuple(shape[axis] for axis in axes) != self.old or self.skip + self.skip_last):
            raise ShapeError(f"{self} isn't for {wanted.name!r}\n{got_expected(shape, f'the grid {self.old} alone')}")
        return _Place(axes, flat)


def _suggest_axis(shape: Shape) -> str:
    return "\nFix: axis=, if the positions are along another one" if len(shape) > 1 else ""


def _read_grid(grid: Any, name: str) -> Grid:
    """Return a grid as a tuple of lengths."""
    lengths = tuple(grid) if isinstance(grid, (tuple, list)) else (grid,)
    if not 1 <= len(lengths) <= 3:
        raise ArgumentError(f"the grid {name}= has one to three lengths\ngot: {grid!r}")
    for length in lengths:
        check_count(length, f"a length of the grid {name}=", least=1)
    return tuple(int(length) for length in lengths)
