"""Forms: what two units have in common if one can stand for the other, whatever class and shape each has.

A convolution of one pixel is a dense layer at every position, one as large as its stride a dense layer on patches, and
one of which an axis is 1 a convolution over the other axes. A norm is the multiplication of what it normalizes. A
parameter that is added, joined or selected as it is has no input, and neither has a table of positions that is asked
for the same rows whatever the sample is.

Everything here is pure. Inputs are brought to the common form before they are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.units import LayerUnit, can_pair

Form = tuple[Any, ...]
Bring = Callable[[Array], Array | None]


def list_forms(unit: LayerUnit) -> dict[Form, Bring]:
    """Return the forms of a unit, its own first, each with a function that brings an input to it (None: it can't)."""
    if unit.kind == "other":
        return {unit.form: _keep}
    if unit.kind == "conv":
        return _list_conv_forms(unit)
    shape = unit.form[1]
    if unit.kind == "dense":
        return {("dense", shape): lambda array: array.reshape(-1, shape[0])}
    if unit.kind in ("rms_norm", "layer_norm", "multiply"):
        offset = unit.attributes.get("offset", 0)
        forms: dict[Form, Bring] = {(unit.kind, shape, offset): _keep}
        if unit.kind != "multiply":
            forms["multiply", shape, offset] = lambda array: normalize(unit, array)
        return forms
    if unit.kind in ("rows", "embedding"):
        return {unit.form: _keep, ("rows", shape[-1]): _keep}
    return {(*unit.form, unit.attributes.get("groups", 1)): _keep}


class Forms:
    """The forms of units, each found once."""

    def __init__(self) -> None:
        self._known: dict[int, dict[Form, Bring]] = {}

    def of(self, unit: LayerUnit) -> dict[Form, Bring]:
        """Return the forms of a unit; it has to outlive this object."""
        if id(unit) not in self._known:
            self._known[id(unit)] = list_forms(unit)
        return self._known[id(unit)]

    def list_common(self, source: LayerUnit, target: LayerUnit) -> list[tuple[Form, Bring, Bring]]:
        """Return the forms that two units have in common, and what brings the input of each to them."""
        if "other" in (source.kind, target.kind):
            return [(("other",), _keep, _keep)]
        ways = self.of(source)
        return [(form, ways[form], bring) for form, bring in self.of(target).items() if form in ways]


def fit(source: LayerUnit, target: LayerUnit) -> bool:
    """Return True if the two could be twins: a form in common, or for an unknown class the same sizes."""
    if "other" in (source.kind, target.kind):
        return can_pair(source, target)
    return not list_forms(source).keys().isdisjoint(list_forms(target))


def _keep(array: Array) -> Array:
    return array


def _list_conv_forms(unit: LayerUnit) -> dict[Form, Bring]:
    *space, channels, filters = unit.slices["kernel"].shape
    groups = unit.attributes.get("groups", 1)
    strides = tuple(unit.attributes.get("strides", (1,) * len(space)))
    forms: dict[Form, Bring] = {("conv", (*space, channels, filters), groups): _keep}
    if groups == 1 and math.prod(space) == 1:
        steps = (slice(None), *(slice(None, None, stride) for stride in strides))
        forms["dense", (channels, filters)] = lambda array: array[steps].reshape(-1, channels)
    elif groups == 1:
        forms["dense", (math.prod(space) * channels, filters)] = lambda array: _cut_patches(array, space, strides)
    if len(space) > 1 and 1 in space:
        kept = tuple(length for length in space if length != 1)
        axes = tuple(axis for axis, length in enumerate(space, start=1) if length == 1)
        for count in range(1, len(axes) + 1):
            if len(space) - count:
                dropped = axes[-count:]
                ones = len(axes) - count
                left = (1,) * ones + kept if ones else kept
                forms["conv", (*left, channels, filters), groups] = partial(_drop, axes=dropped)
    if len(space) > 1 and groups == 1 and space[-1] > 1:
        merged = (*space[:-1], space[-1] * channels, filters)
        forms["conv", merged, groups] = partial(_merge_last, length=space[-1])
    return forms


def _merge_last(array: Array, length: int) -> Array | None:
    """Return an image whose last axis is as long as the kernel as a sequence of what is along it."""
    return array.reshape(*array.shape[:-2], -1) if array.shape[-2] == length else None


def _drop(array: Array, axes: tuple[int, ...]) -> Array | None:
    return array.squeeze(axes) if all(array.shape[axis] == 1 for axis in axes) else None


def _cut_patches(array: Array, space: list[int], strides: tuple[int, ...]) -> Array | None:
    """Return the patches that a convolution looks at, if they don't overlap, as rows of (positions, channels)."""
    lengths = array.shape[1:-1]
    if tuple(lengths) != tuple(space) and tuple(strides) != tuple(space):
        return None
    counts = [length // size for length, size in zip(lengths, space, strict=True)]
    if not all(counts):
        return None
    whole = array[(slice(None), *(slice(0, count * size) for count, size in zip(counts, space, strict=True)))]
    split = [part for pair in zip(counts, space, strict=True) for part in pair]
    blocks = whole.reshape(array.shape[0], *split, array.shape[-1])
    rank = len(space)
    order = (0, *range(1, 2 * rank + 1, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return blocks.transpose(order).reshape(-1, math.prod(space) * array.shape[-1])


def normalize(unit: LayerUnit, array: Array) -> Array:
    """Return what a norm multiplies with its weights: its input, normalized along the last axis."""
    wide = array.astype(np.float64)
    if unit.kind == "layer_norm":
        wide = wide - wide.mean(-1, keepdims=True)
    scale = np.sqrt(np.square(wide).mean(-1, keepdims=True) + float(unit.attributes.get("eps", 0.0)))
    normalized: Array = (wide / scale).astype(array.dtype)
    return normalized


def find_used_rows(unit: LayerUnit, ids: Array | None) -> tuple[int, int] | None:
    """Return the first row of a table that is used, and how many, if the sample doesn't decide; None otherwise."""
    if unit.kind == "rows":
        return int(unit.attributes.get("first", 0)), int(unit.attributes.get("count", unit.slices["rows"].shape[0]))
    if unit.kind != "embedding" or ids is None or not ids.size or ids.dtype.kind not in "iuf":
        return None
    numbers = ids.reshape(-1).astype(np.int64)
    first, last = int(numbers.min()), int(numbers.max())
    count = last - first + 1
    if numbers.size % count or not np.array_equal(numbers, np.tile(np.arange(first, last + 1), numbers.size // count)):
        return None
    return first, count
