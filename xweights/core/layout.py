"""Named axes: how an array stored by a framework relates to its neutral view.

A pattern reads like einops: ``"out in h w -> h w in out"`` says that the framework stores (out, in, h, w)
and that the neutral order is (h, w, in, out). ``"(in mult) 1 h w -> h w in mult"`` takes a stored axis apart
and drops one of length 1. A pattern without an arrow is stored in neutral order already. A name such as
``gate*unit`` is one axis that is known to be packed; :func:`unpacked` takes it apart for the calls that need it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from xweights.errors import LayoutError

Shape = tuple[int, ...]
Axes = tuple[str, ...]

_TOKEN = re.compile(r"\([^()]*\)|[^\s()]+")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a stored array becomes its neutral view: ``stored.reshape(split).transpose(order)``.

    ``stored`` is the shape the framework keeps, ``split`` the same with packed axes taken apart, ``order`` the
    permutation to the neutral order, ``axes`` the neutral names (None: the layer is unknown). ``shape`` is the neutral
    shape, ``inverse`` the permutation back; ``is_identity`` is True if the stored array is its own neutral view.
    """

    stored: Shape
    split: Shape
    order: tuple[int, ...]
    axes: Axes | None
    # Which of the axes the layer's output has, where the names don't say it (the letters of an einsum equation).
    outputs: Axes | None = None
    # What follows from these, worked out once: asked for several times for every parameter at every call.
    shape: Shape = field(init=False, repr=False, compare=False)
    is_identity: bool = field(init=False, repr=False, compare=False)
    inverse: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        back = [0] * len(self.order)
        for position, axis in enumerate(self.order):
            back[axis] = position
        identity = self.split == self.stored and self.order == tuple(range(len(self.order)))
        object.__setattr__(self, "shape", tuple(self.split[i] for i in self.order))
        object.__setattr__(self, "is_identity", identity)
        object.__setattr__(self, "inverse", tuple(back))

    @property
    def stored_axes(self) -> Axes | None:
        """The names of the axes as they are stored; None where one of those is several of the neutral ones."""
        if self.axes is None or self.split != self.stored:
            return None
        return tuple(self.axes[place] for place in self.inverse)

    def to_neutral(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the neutral view of a stored NumPy array (a view, writable if the array is)."""
        if self.is_identity:
            return array
        split = array if self.split == self.stored else array.reshape(self.split)
        return split.transpose(self.order)

    def to_stored(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return a neutral NumPy array in the stored order (a view where strides allow)."""
        if self.is_identity:
            return array
        turned = array.transpose(self.inverse)
        return turned if self.split == self.stored else turned.reshape(self.stored)


def plain_layout(shape: Shape, axes: Axes | None = None) -> Layout:
    """Return the layout of an array that is stored in neutral order."""
    return _plain_layout(tuple(int(n) for n in shape), axes)


@lru_cache(maxsize=4096)
def _plain_layout(shape: Shape, axes: Axes | None) -> Layout:
    # Many arrays have one shape: making a layout takes as long as copying 2,000 entries.
    return Layout(shape, shape, tuple(range(len(shape))), axes)


_layouts: dict[tuple[str, Shape, tuple[tuple[str, int], ...]], Layout] = {}


def layout_of(pattern: str, shape: Shape, **sizes: int) -> Layout:
    """Read a table's pattern for a stored ``shape``; ``sizes`` gives the axes a packed one is made of.

    Example: ``layout_of("(in mult) 1 h w -> h w in mult", (8, 1, 3, 3), mult=2).shape == (3, 3, 4, 2)``.
    """
    shape = tuple(int(n) for n in shape)
    key = (pattern, shape, tuple(sorted(sizes.items())))
    if key not in _layouts:
        _layouts[key] = _read(pattern, shape, sizes)
    return _layouts[key]


def _read(pattern: str, shape: Shape, sizes: dict[str, int]) -> Layout:
    stored, arrow, neutral = pattern.partition("->")
    tokens = _TOKEN.findall(stored)
    if len(tokens) != len(shape):
        raise LayoutError(f"the pattern {pattern!r} has {len(tokens)} stored axes, the array {shape} has {len(shape)}")
    names: list[str] = []
    split: list[int] = []
    for token, length in zip(tokens, shape, strict=True):
        if token == "1":
            if length != 1:
                raise LayoutError(f"the pattern {pattern!r} wants an axis of length 1, the array is {shape}")
            continue
        parts = token[1:-1].split() if token.startswith("(") else [token]
        known = {part: sizes[part] for part in parts if part in sizes and len(parts) > 1}
        open_parts = [part for part in parts if part not in known]
        rest = math.prod(known.values())
        if (
            len(open_parts) > 1
            or (not open_parts and rest != length)
            or (rest and length % rest)
            or (length and not rest)
        ):
            raise LayoutError(f"the pattern {pattern!r} with {sizes} doesn't fit an axis of length {length} of {shape}")
        names += parts
        split += [known[part] if part in known else length // max(rest, 1) for part in parts]
    axes = tuple(neutral.split()) if arrow else tuple(names)
    if sorted(axes) != sorted(names) or len(set(axes)) != len(axes):
        raise LayoutError(f"the two sides of {pattern!r} don't name the same axes")
    return Layout(shape, tuple(split), tuple(names.index(axis) for axis in axes), axes)


# Axes along which a kernel slides.
SPATIAL = frozenset({"t", "h", "w", "d"})

# Names that say what a layer puts out; the first group that a kernel has decides.
_OUTPUTS = (("out",), ("mult",), ("gate*unit",), ("dim",), ("head", "key"), ("head", "value"), ("unit",))


def outputs_of(layout: Layout) -> Axes:
    """Return the axes of a kernel that its layer's output has; () where the axes are unknown."""
    if layout.outputs is not None:
        return layout.outputs
    axes = layout.axes or ()
    for group in _OUTPUTS:
        if set(group) <= set(axes):
            return tuple(axis for axis in axes if axis in group)
    return axes[-1:]


def inputs_of(layout: Layout) -> Axes:
    """Return the axes of a kernel that are summed over, spatial ones left out; () where the axes are unknown."""
    outputs = outputs_of(layout)
    # Letters of an equation are no names: its h and w needn't be height and width.
    sliding = SPATIAL if layout.outputs is None else frozenset[str]()
    return tuple(axis for axis in layout.axes or () if axis not in outputs and axis not in sliding and axis != "qkv")


def unpacked(axes: Axes, shape: Shape, gates: tuple[str, ...] | None) -> tuple[Axes, Shape]:
    """Take packed axes apart: with 4 gates, ``(in, gate*unit), (3, 8)`` becomes ``(in, gate, unit), (3, 4, 2)``.

    In a recurrent kernel, ``(unit, gate*unit)``, the name ``unit`` goes to the packed one, which is the unit that is
    computed, as in the other kernel; the first becomes ``unit_before``.
    """
    names: list[str] = []
    lengths: list[int] = []
    for axis, length in zip(axes, shape, strict=True):
        first, star, second = axis.partition("*")
        if star and gates:
            names = [f"{name}_before" if name == second else name for name in names]
            names += [first, second]
            lengths += [len(gates), length // len(gates)]
        else:
            names.append(axis)
            lengths.append(length)
    return tuple(names), tuple(lengths)


def reorder(array: np.ndarray[Any, Any], have: Axes, want: Axes, *, what: str = "the array") -> np.ndarray[Any, Any]:
    """Return ``array`` (axes ``have``) with axes ``want``: transposed by name, axes of length 1 dropped or added."""
    if have == want:
        return array
    shape = dict(zip(have, array.shape, strict=True))
    lost = [axis for axis in have if axis not in want and shape[axis] != 1]
    if lost or len(set(have)) != len(have):
        raise LayoutError(
            f"{what} has the axes ({', '.join(have)}), which can't be brought to ({', '.join(want)}) by name"
        )
    shared = [axis for axis in want if axis in have]
    kept = array.reshape([shape[axis] for axis in have if axis in want])
    order = [[axis for axis in have if axis in want].index(axis) for axis in shared]
    turned = kept.transpose(order)
    return turned.reshape([shape.get(axis, 1) for axis in want])
