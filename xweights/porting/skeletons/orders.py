"""Orders of axes: how a framework keeps a value whose axes another framework has in another order.

An order lists the value's axes as they are kept: ``(0, 2, 3, 1)`` is an image of torch that is kept with its channels
last. A permutation is then a change of the order alone, and a value is only moved where an operation needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from xweights.porting.skeletons.graph import BatchTimes, Length, Shape

Order = tuple[int, ...]


def plain(rank: int) -> Order:
    """Return the order in which the axes are as they are."""
    return tuple(range(rank))


def with_channels(rank: int, axis: int, *, last: bool) -> Order:
    """Return the order in which a framework keeps an image whose channels are ``axis``: last, or second."""
    rest = [a for a in range(1, rank) if a != axis % rank]
    return (0, *rest, axis % rank) if last else (0, axis % rank, *rest)


def moves(kept: Order, wanted: Order) -> Order:
    """Return the permutation that turns one order into another."""
    return tuple(kept.index(axis) for axis in wanted)


def inverse(order: Sequence[int]) -> Order:
    """Return the permutation that undoes ``order``."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def permuted(kept: Order, axes: Sequence[int]) -> Order:
    """Return the order of a value after a permutation that moves nothing: new axis i is the old axis ``axes[i]``."""
    return tuple(list(axes).index(axis) for axis in kept)


def without(kept: Order, dropped: Sequence[int]) -> Order:
    """Return the order of what is left when axes are gone."""
    left = [axis for axis in range(len(kept)) if axis not in dropped]
    return tuple(left.index(axis) for axis in kept if axis in left)


def with_new(kept: Order, new: Sequence[int]) -> Order:
    """Return the order after axes of length 1 were added at the places ``new``; each follows the axis before it."""
    rank = len(kept) + len(new)
    old = [axis for axis in range(rank) if axis not in new]
    order = [old[axis] for axis in kept]
    for axis in sorted(new):
        order.insert(order.index(axis - 1) + 1 if axis - 1 in order else 0, axis)
    return tuple(order)


def reshaped(kept: Order, before: Shape, after: Shape) -> Order | None:
    """Return the order of a value that is reshaped as it is kept; None where it has to be put in plain order first."""
    ones = [axis for axis, length in enumerate(before) if length == 1]
    new = [axis for axis, length in enumerate(after) if length == 1]
    kept = without(kept, ones)
    groups = list(_groups([n for n in before if n != 1], [n for n in after if n != 1]))
    if not groups and kept:
        return None
    order: list[int] = []
    place = 0
    while place < len(kept):
        group = next((group for group in groups if kept[place] in group[0]), None)
        if group is None:
            return None
        old, made = group
        if tuple(kept[place : place + len(old)]) != tuple(old):
            return None
        order.extend(made)
        place += len(old)
    return with_new(tuple(order), new)


def _groups(before: Sequence[Length], after: Sequence[Length]) -> Iterator[tuple[range, range]]:
    """Yield the smallest groups of axes of which one becomes the other."""
    i = j = 0
    while i < len(before) and j < len(after):
        start, started = i, j
        i, j = i + 1, j + 1
        left, right = count(before[start:i]), count(after[started:j])
        while left != right:
            if left < right and i < len(before):
                i += 1
            elif right < left and j < len(after):
                j += 1
            else:
                return
            left, right = count(before[start:i]), count(after[started:j])
        yield range(start, i), range(started, j)


_BATCH = 1_000_003  # a prime that no shape has as a factor, so that equal products have the batch equally often


def count(shape: Sequence[Length]) -> int:
    """Return the number of entries, for a batch of a size that no other length has."""
    return math.prod(n.factor * _BATCH if isinstance(n, BatchTimes) else n for n in shape)
