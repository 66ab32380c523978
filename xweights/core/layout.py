"""Named axes: how a stored array relates to its neutral view.

A pattern reads like einops: ``"out in h w -> h w in out"`` says that the framework stores (out, in, h, w)
and that the neutral order is (h, w, in, out). ``"(in mult) 1 h w -> h w in mult"`` splits a stored axis
and drops one of length 1. A pattern without an arrow is stored in neutral order already. A name such as
``gate*unit`` is one packed axis; :func:`unpack_axes` splits it for the calls that need it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from xweights.errors import LayoutError

# "neutral": Keras' axis order, whatever the framework; "native": as the framework stores it.
LayoutName = Literal["neutral", "native"]
Shape = tuple[int, ...]
Axes = tuple[str, ...]

_TOKEN = r"\([^()]*\)|[^\s()]+"


@dataclass(frozen=True, slots=True)
class Layout:
    """The way from a stored array to its neutral view: ``stored.reshape(split).transpose(order)``.

    ``stored`` is the framework's shape, ``split`` the same with packed axes split, ``order`` the
    permutation to the neutral order, ``axes`` the neutral names (None: the layer is unknown). ``shape`` is the neutral
    shape, ``inverse`` the permutation back; ``is_identity`` is True if the stored array is its own neutral view.
    """

    stored: Shape
    split: Shape
    order: tuple[int, ...]
    axes: Axes | None
    # The axes that the layer's output has, where the names don't say it (letters of an einsum equation).
    outputs: Axes | None = None
    # Derived once, because every call reads them several times for each parameter.
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
        """The names of the axes as stored; None where a stored axis is several neutral ones."""
        if self.axes is None or self.split != self.stored:
            return None
        return tuple(self.axes[position] for position in self.inverse)

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
        transposed = array.transpose(self.inverse)
        return transposed if self.split == self.stored else transposed.reshape(self.stored)


def plain_layout(shape: Shape, axes: Axes | None = None) -> Layout:
    """Return the layout of an array that is stored in neutral order."""
    return _plain_layout(tuple(map(int, shape)), axes)


@lru_cache(maxsize=4096)
def _plain_layout(shape: Shape, axes: Axes | None) -> Layout:
    # Many arrays have one shape: making a layout takes as long as copying 2,000 entries.
    return Layout(shape, shape, tuple(range(len(shape))), axes)


_layouts: dict[tuple[str, Shape, tuple[tuple[str, int], ...]], Layout] = {}


def layout_of(pattern: str, shape: Shape, **sizes: int) -> Layout:
    """Return the layout that a pattern gives a stored ``shape``; ``sizes`` has the lengths of packed axes' parts.

    Example: ``layout_of("(in mult) 1 h w -> h w in mult", (8, 1, 3, 3), mult=2).shape == (3, 3, 4, 2)``.
    """
    shape = tuple(int(n) for n in shape)
    key = (pattern, shape, tuple(sorted(sizes.items())))
    if key not in _layouts:
        _layouts[key] = _read(pattern, shape, sizes)
    return _layouts[key]


def _read(pattern: str, shape: Shape, sizes: dict[str, int]) -> Layout:
    stored, arrow, neutral = pattern.partition("->")
    tokens = re.findall(_TOKEN, stored)
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
        fixed = {part: sizes[part] for part in parts if part in sizes and len(parts) > 1}
        open_parts = [part for part in parts if part not in fixed]
        product = math.prod(fixed.values())
        if (
            len(open_parts) > 1
            or (not open_parts and product != length)
            or (product and length % product)
            or (length and not product)
        ):
            raise LayoutError(f"the pattern {pattern!r} with {sizes} doesn't fit an axis of length {length} of {shape}")
        names += parts
        split += [fixed[part] if part in fixed else length // max(product, 1) for part in parts]
    axes = tuple(neutral.split()) if arrow else tuple(names)
    if sorted(axes) != sorted(names) or len(set(axes)) != len(axes):
        raise LayoutError(f"the two sides of {pattern!r} don't name the same axes")
    return Layout(shape, tuple(split), tuple(names.index(axis) for axis in axes), axes)


def read_names(pattern: str) -> Axes:
    """Return the neutral axes that a pattern names; raise LayoutError where its two sides contradict each other."""
    stored, arrow, neutral = pattern.partition("->")
    tokens = re.findall(_TOKEN, stored)
    names = [part for token in tokens if token != "1" for part in token.strip("()").split()]
    axes = tuple(neutral.split()) if arrow else tuple(names)
    if "".join(tokens).replace(" ", "") != "".join(stored.split()) or sorted(axes) != sorted(names):
        raise LayoutError(f"the two sides of {pattern!r} don't name the same axes")
    if len(set(axes)) != len(axes):
        raise LayoutError(f"{pattern!r} has two axes of one name")
    return axes


# Axes along which a kernel slides.
SPATIAL = frozenset({"t", "h", "w", "d"})

# Axes of a layer's output, by name; the first group that a kernel has decides.
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
    # The letters of an equation aren't axis names: its h and w needn't be height and width.
    sliding = SPATIAL if layout.outputs is None else frozenset[str]()
    return tuple(axis for axis in layout.axes or () if axis not in outputs and axis not in sliding and axis != "qkv")


def unpack_axes(axes: Axes, shape: Shape, gates: tuple[str, ...] | None) -> tuple[Axes, Shape]:
    """Split packed axes: with 4 gates, ``(in, gate*unit), (3, 8)`` becomes ``(in, gate, unit), (3, 4, 2)``.

    In a recurrent kernel, ``(unit, gate*unit)``, ``unit`` names the computed unit of the packed axis, as in the input
    kernel; the first axis becomes ``unit_before``.
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
    dropped = [axis for axis in have if axis not in want and shape[axis] != 1]
    if dropped or len(set(have)) != len(have):
        raise LayoutError(
            f"{what} has the axes ({', '.join(have)}), which can't be brought to ({', '.join(want)}) by name"
        )
    shared = [axis for axis in want if axis in have]
    kept = array.reshape([shape[axis] for axis in have if axis in want])
    order = [[axis for axis in have if axis in want].index(axis) for axis in shared]
    transposed = kept.transpose(order)
    return transposed.reshape([shape.get(axis, 1) for axis in want])
