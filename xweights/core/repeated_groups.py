"""The same edit of the same host arrays again and again, as after each step of an optimizer.

What follows from the operands alone is computed in the first call. A bool mask is then as wide as the weights, as in
the loop that an expert writes, who keeps it in their dtype: of 1,000 arrays of 100 entries each takes 0.3 microseconds
in place of 1.9, of 10,000 entries 3.5 in place of 6.5, of 400,000 105 in place of 160.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, compress
from operator import is_
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.numpy_backend import BITS
from xweights.core.numpy_groups import NUMPY_GROUP_OPS, NumpyGroupOps
from xweights.core.protocols import Ops

# How many bytes of wide masks are kept for one group, small arrays first; masks beyond that stay as they are.
MOST_BYTES = 1 << 28


def repeat_edit(edit: Callable[..., Any], views: Sequence[Array] | None) -> Callable[..., Any]:
    """Return an edit that is called again and again with these views, and with operands that stay as they are."""
    if not views:
        return edit
    repeated: Any = RepeatedGroupOps(views)

    def edit_again(ws: Any, ops: Ops, *operands: Any) -> Any:
        return edit(ws, repeated if ops is NUMPY_GROUP_OPS else ops, *operands)

    return edit_again


class RepeatedGroupOps(NumpyGroupOps):
    """The group ops of NumPy for certain arrays, with what was derived from their masks.

    A list of operands must stay as it is after the first call. Other arrays are edited as by any group ops.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = list(arrays)
        by_size = sorted(range(len(arrays)), key=lambda position: arrays[position].nbytes)
        sizes = accumulate(arrays[position].nbytes for position in by_size)
        wide = {position for position, size in zip(by_size, sizes, strict=True) if size <= MOST_BYTES}
        self._wide = [at in wide and array.dtype.itemsize in BITS for at, array in enumerate(arrays)]
        self._plain = [not is_wide for is_wide in self._wide]
        self._masks: dict[tuple[int, ...], _Masks] = {}

    def keep(self, xs: list[Array], mask: Any) -> list[Array]:
        if not self._are_known(xs, mask):
            return super().keep(xs, mask)
        masks = self._prepare(mask)
        # A loop in C: one in Python takes twice as long.
        deque(map(np.bitwise_and, masks.entries, masks.kept, masks.entries), maxlen=0)
        if masks.plain:
            super().keep(*masks.plain)
        return xs

    def choose(self, xs: list[Array], mask: Any, y: Any) -> list[Array]:
        if not self._are_known(xs, mask, y):
            return super().choose(xs, mask, y)
        masks = self._prepare(mask, y)
        for entries, kept, others in zip(masks.entries, masks.kept, masks.others, strict=True):
            np.bitwise_and(entries, kept, entries)
            np.bitwise_or(entries, others, entries)
        if masks.plain:
            super().choose(*masks.plain)
        return xs

    def _are_known(self, xs: list[Array], *operands: Any) -> bool:
        """Return whether these are the arrays, and each has operands of its own."""
        return (
            all(type(operand) is list for operand in operands)
            and len(xs) == len(self._arrays)
            and all(map(is_, xs, self._arrays))
        )

    def _prepare(self, *operands: list[Array]) -> _Masks:
        key = tuple(map(id, operands))
        if key not in self._masks:
            wide, plain = (
                [list(compress(arrays, chosen)) for arrays in (self._arrays, *operands)]
                for chosen in (self._wide, self._plain)
            )
            self._masks[key] = _Masks(operands, *wide, plain=plain if plain[0] else ())
        return self._masks[key]


class _Masks:
    """Masks as integers of the width of the weights: all bits of each entry that stays.

    Attributes:
        entries: The arrays as integers.
        kept: The masks, in the memory order of the arrays.
        others: What the other entries become.
        plain: Those arrays that are edited by a mask as it is, with their operands.
    """

    def __init__(
        self,
        operands: Sequence[list[Array]],
        arrays: list[Array],
        masks: list[Array],
        values: Sequence[Array] = (),
        *,
        plain: Sequence[list[Array]],
    ) -> None:
        self.operands = operands  # so that their ids aren't used again
        self.entries = [array.view(BITS[array.dtype.itemsize]) for array in arrays]
        self.kept = [np.negative(_match(mask, bits)) for mask, bits in zip(masks, self.entries, strict=True)]
        self.others = [
            _match(value, array).view(kept.dtype) & ~kept
            for value, array, kept in zip(values, arrays, self.kept, strict=False)
        ]
        self.plain = plain


def _match(value: Array, like: Array) -> Array:
    """Return a copy of an operand in the shape, dtype and memory order of an array."""
    copy = np.empty_like(like)
    np.copyto(copy, value)
    return copy
