"""`Shard`: the part of a parameter that this rank holds, by global index ranges.

A parameter's shape, axes and name are global. Its shard says which block of the stored array is here, who has the other
blocks, and which ranks share each axis; whatever a framework calls its placements, only ranges count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.groups import SINGLE, Group
from xweights.core.layout import Layout, Shape

# (first, last + 1) along one axis.
Range = tuple[int, int]
Ranges = tuple[Range, ...]


@dataclass(frozen=True, eq=False)
class Shard:
    """The block of a parameter that this rank holds.

    Attributes:
        layout: The layout of the whole parameter.
        stored: This rank's range along each stored axis; an empty one where this rank has no entries.
        group: All ranks that a call on the parameter concerns.
        holders: The ranks that together hold each entry once.
        groups: For each stored axis the ranks that share it, holding the same ranges of all others.
        ranges_of: The ranges of a rank of ``holders``.
        label: How the framework calls the placement: the same text on every rank.
    """

    layout: Layout
    stored: Ranges
    group: Group
    holders: Group = SINGLE
    groups: tuple[Group, ...] = ()
    ranges_of: Callable[[int], Ranges] | None = None
    label: str = ""

    @property
    def is_whole(self) -> bool:
        """True if every rank has all entries."""
        return self.holders.size == 1

    @cached_property
    def shape(self) -> Shape:
        """Shape of this rank's block, in stored order."""
        return tuple(last - first for first, last in self.stored)

    @property
    def size(self) -> int:
        """Number of entries of this rank's block."""
        return math.prod(self.shape)

    @cached_property
    def ranges(self) -> Ranges | None:
        """This rank's range along each neutral axis.

        None where a stored axis is several neutral ones and the block ends within one of them: a part of a head.
        """
        split = self._split_ranges(self.stored) if self._is_block else None
        return None if split is None else tuple(split[position] for position in self.layout.order)

    @cached_property
    def local_layout(self) -> Layout | None:
        """The layout of this rank's block by itself; None where it is no block of the neutral axes."""
        split = self._split_ranges(self.stored) if self._is_block else None
        if split is None:
            return None
        lengths = tuple(last - first for first, last in split)
        return Layout(self.shape, lengths, self.layout.order, self.layout.axes, self.layout.outputs)

    @cached_property
    def neutral_groups(self) -> tuple[Group, ...]:
        """For each neutral axis the ranks that share it."""
        by_split: list[Group] = [SINGLE] * len(self.layout.split)
        if self.layout.split == self.layout.stored:
            by_split = list(self.groups) or by_split
        else:
            for group, parts in zip(self.groups, self._split_axes, strict=False):
                cut = self._cut_part(parts)
                if cut is not None:
                    by_split[cut] = group
        return tuple(by_split[position] for position in self.layout.order)

    def cut(self, value: Array) -> Array:
        """Return this rank's part of an array that broadcasts to the neutral shape; a view."""
        ranges = self.ranges
        assert ranges is not None
        if not value.shape or self.is_whole:
            return value
        axes = zip(ranges[len(ranges) - value.ndim :], value.shape, strict=True)
        return value[tuple(slice(None) if length == 1 else slice(*own) for own, length in axes)]

    def cut_stored(self, value: Array) -> Array:
        """Return this rank's block of an array in stored order; a view."""
        return value[tuple(slice(*own) for own in self.stored)]

    def gather(self, block: Array) -> Array:
        """Return the whole array, in stored order, on every rank: one collective of all its bytes."""
        if self.is_whole:
            return block
        return self._join(self.holders.all_gather(self._pad(block)), block.dtype)

    def gather_to(self, block: Array, root: int) -> Array | None:
        """Return the whole array on the rank ``root`` of the holders, None on the others."""
        if self.is_whole:
            return block if root == self.holders.rank else None
        parts = self.holders.gather(self._pad(block), root)
        return None if parts is None else self._join(parts, block.dtype)

    def scatter(self, whole: Array | None, dtype: np.dtype[Any], root: int) -> Array:
        """Return this rank's block of the whole array (stored order) that the rank ``root`` of the holders has."""
        if self.is_whole:
            assert whole is not None
            return whole
        assert self.ranges_of is not None
        blocks = None
        if whole is not None:
            every = map(self.ranges_of, range(self.holders.size))
            blocks = [self._pad(whole[tuple(slice(*own) for own in ranges)]) for ranges in every]
        like = np.empty(max(self._sizes) * dtype.itemsize, np.uint8)
        part = self.holders.scatter(blocks, like, root)
        return part[: self.size * dtype.itemsize].view(dtype).reshape(self.shape)

    def _pad(self, block: Array) -> Array:
        """Return the bytes of a block in stored order, with zeros up to the size of the largest one."""
        return pad_bytes(block, max(self._sizes) * block.dtype.itemsize)

    def _join(self, parts: Sequence[Array], dtype: np.dtype[Any]) -> Array:
        assert self.ranges_of is not None
        whole = np.empty(self.layout.stored, dtype)
        for rank, part in enumerate(parts):
            ranges = self.ranges_of(rank)
            shape = tuple(last - first for first, last in ranges)
            block = part[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            whole[tuple(slice(*own) for own in ranges)] = block
        return whole

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        assert self.ranges_of is not None
        every = map(self.ranges_of, range(self.holders.size))
        return tuple(math.prod(last - first for first, last in ranges) for ranges in every)

    @cached_property
    def _split_axes(self) -> list[list[int]]:
        """For each stored axis, its parts as positions in the split shape; parts of length 1 may be anybody's."""
        split = self.layout.split
        axes: list[list[int]] = []
        position = 0
        for length in self.layout.stored:
            parts: list[int] = []
            product = 1
            while length != 1 and product != length:
                product *= split[position]
                parts.append(position)
                position += 1
            axes.append(parts)
        axes[-1:] = [parts + list(range(position, len(split))) for parts in axes[-1:]]
        return axes

    def _cut_part(self, parts: Sequence[int]) -> int | None:
        """Return which part of a stored axis is cut: the first that has more than one index."""
        return next((part for part in parts if self.layout.split[part] != 1), parts[0] if parts else None)

    @cached_property
    def _is_block(self) -> bool:
        """True if the blocks of all ranks are blocks of the neutral axes: all ranks must go the same way."""
        if self.layout.split == self.layout.stored or self.ranges_of is None:
            return True
        return all(self._split_ranges(self.ranges_of(rank)) is not None for rank in range(self.holders.size))

    def _split_ranges(self, stored: Ranges) -> Ranges | None:
        """Return ranges along stored axes as ranges along the split ones, or None."""
        if self.layout.split == self.layout.stored:
            return stored
        found: list[Range] = [(0, length) for length in self.layout.split]
        for (first, last), length, parts in zip(stored, self.layout.stored, self._split_axes, strict=True):
            cut = self._cut_part(parts)
            if cut is None:
                if (first, last) != (0, length):
                    return None
                continue
            inner = math.prod(self.layout.split[part] for part in parts if part > cut)
            if inner and (first % inner or last % inner):
                return None
            found[cut] = (first // max(inner, 1), last // max(inner, 1))
        return tuple(found)


def pad_bytes(block: Array, size: int) -> Array:
    """Return the bytes of a block with zeros up to a size: collectives want equal ones of all ranks."""
    raw = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
    if raw.size == size:
        return raw
    padded = np.zeros(size, np.uint8)
    padded[: raw.size] = raw
    return padded


@runtime_checkable
class ShardedStorage(Protocol):
    """A storage of parameters that several ranks hold, in parts or as copies."""

    def shard(self, handle: Any, layout: Layout) -> Shard:
        """Return this rank's part of a parameter with this layout."""

    def opened(self) -> Any:
        """Return the storage that reads and writes; the one that adapters hand out refuses until all ranks agreed."""

    def local(self, handle: Any) -> tuple[Any, Any]:
        """Return the storage and the handle of this rank's block as an array of its own."""


@runtime_checkable
class SlicedStorage(Protocol):
    """A storage that reads a block of an array without the rest of it, such as that of a file."""

    def block(self, handle: Any, ranges: Sequence[Range]) -> tuple[Any, Any] | None:
        """Return the storage and the handle of a block, by its range along each stored axis; None where it can't."""
