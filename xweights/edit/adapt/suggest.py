"""Suggest the adapter for a value of another shape, where one clearly fits."""

from __future__ import annotations

import math

from xweights.core.layout import SPATIAL, Shape
from xweights.edit.adapt.along_axis import Repeat, Sum
from xweights.edit.adapt.base import Adapter, Wanted
from xweights.edit.adapt.resample import Resample
from xweights.edit.adapt.rows import Rows

# Numbers of class, distillation and register tokens before a grid of positions.
_SKIPPED = (0, 1, 2)


def suggest(before: Shape, wanted: Wanted) -> Adapter | None:
    """Return the adapter for a value of the shape ``before``; None where none or several may be meant."""
    after = wanted.shape
    if after is None or len(before) != len(after):
        return None
    differing = [axis for axis, lengths in enumerate(zip(before, after, strict=True)) if lengths[0] != lengths[1]]
    if len(differing) != 1:
        return None
    (axis,) = differing
    old, new = before[axis], after[axis]
    name = wanted.axes[axis] if wanted.axes is not None and len(wanted.axes) == len(before) else None
    if name == "in" and SPATIAL & set(wanted.axes or ()):
        # RGB and gray: nothing but a first convolution has so few inputs.
        rgb_to_gray, gray_to_rgb = (old, new) == (3, 1), (old, new) == (1, 3)
        return Sum("in") if rgb_to_gray else Repeat("in", keep_sum=True) if gray_to_rgb else None
    if wanted.role == "embeddings" and name in (None, "vocab") and axis == 0 and old < new:
        return Rows()
    words = wanted.name.replace(".", "/").rsplit("/", 1)[-1]
    if name in (None, "position") and axis == max(len(before) - 2, 0):
        if wanted.role == "relative_position_bias" or "relative_position_bias" in words:
            # BEiT has three more entries behind the grid, for its class token.
            return _suggest_grid(old, new, (0,), antialias=False) or _suggest_grid(
                old, new, (3,), antialias=False, behind=True
            )
        if wanted.role == "position_embeddings" or "pos_embed" in words or "position_embed" in words:
            return _suggest_grid(old, new, _SKIPPED, antialias=True)
    return None


def _suggest_grid(
    old: int, new: int, skipped: tuple[int, ...], *, antialias: bool, behind: bool = False
) -> Resample | None:
    """Return the adapter between two square grids, if there is one number of skipped entries that makes both square."""
    found = []
    for skip in skipped:
        sides = [math.isqrt(max(count - skip, 0)) for count in (old, new)]
        if min(sides) > 1 and [side * side + skip for side in sides] == [old, new]:
            grids = [(side, side) for side in sides]
            first, last = (0, skip) if behind else (skip, 0)
            found.append(Resample(grids[0], grids[1], skip=first, skip_last=last, antialias=antialias))
    return found[0] if len(found) == 1 else None
