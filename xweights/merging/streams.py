"""Streams: the entries of one parameter of one target, block by block.

Methods iterate over a parameter repeatedly and never hold more of it than a block of each target, so merging takes as
much memory for a gigabyte as for a megabyte. A block is valid until the next one: it may be a view of the weights, or a
scratch array that is reused. It is written to only where the stream is ``writable``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np

from xweights.core.blocks import blocks
from xweights.core.dtypes import Array
from xweights.core.layout import Axes, Shape

# Entries of a block: few enough that those of two targets and of the result stay in the second-level cache. With many
# targets, all their blocks together take as much memory as eight.
ENTRIES = 1 << 17
MANY = 8
ReadInto = Callable[[Array, int], None]


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that entries are merged in: float64 for float64, else float32."""
    return np.dtype(np.float64) if dtype.itemsize > 4 else np.dtype(np.float32)


def block_entries(streams: int) -> int:
    """Return how many entries the blocks of so many streams have."""
    return ENTRIES * MANY // max(MANY, streams)


class Stream:
    """The entries of an array as flat blocks of the working dtype, in C order.

    ``read(cut, start, scratch)`` returns one block, in ``scratch`` or elsewhere; ``start`` is its offset in the flat
    array. Nonfinite entries are counted in ``nonfinite`` during the first pass, or, with ``counts_nonfinite`` False, in
    a separate pass by :meth:`count_nonfinite`. ``writable``: a block is never a view of the weights themselves, so it
    may be written to.

    Example:
        >>> import numpy as np
        >>> [block.tolist() for block in Stream.of(np.array([[1.0, 2.0]], np.float16))]
        [[1.0, 2.0]]
    """

    def __init__(self, shape: Shape, dtype: np.dtype[Any], read: Callable[[Any, int, Array], Array]) -> None:
        self.shape, self.dtype = shape, dtype
        self.nonfinite = 0
        self.counts_nonfinite = True
        self.entries = 0  # of a block; 0: the default
        self.writable = False
        self._read = read
        self._walked = False

    @classmethod
    def of(cls, array: Array, dtype: np.dtype[Any] | None = None) -> Stream:
        """Return the stream of an array with any memory layout."""
        dtype = working_dtype(array.dtype) if dtype is None else dtype

        def read(cut: Any, start: int, scratch: Array) -> Array:
            part = array[(*cut, ...)]
            if part.dtype == dtype and part.flags.c_contiguous and part.flags.aligned:
                return part.reshape(-1)
            with np.errstate(invalid="ignore"):  # a signalling NaN is a value like any other here
                np.copyto(scratch.reshape(part.shape), part, casting="unsafe")
            return scratch

        return cls(array.shape, dtype, read)

    @classmethod
    def of_parts(cls, shape: Shape, stored: np.dtype[Any], dtype: np.dtype[Any], read_into: ReadInto) -> Stream:
        """Return a stream of data read by ``read_into(out, start)``, which fills a flat array from ``start`` on."""
        buffer = np.empty(0, stored)

        def read(cut: Any, start: int, scratch: Array) -> Array:
            nonlocal buffer
            if stored == dtype:
                read_into(scratch, start)
                return scratch
            if buffer.size < scratch.size:
                buffer = np.empty(scratch.size, stored)
            read_into(buffer[: scratch.size], start)
            with np.errstate(invalid="ignore"):
                np.copyto(scratch, buffer[: scratch.size], casting="unsafe")
            return scratch

        stream = cls(shape, dtype, read)
        stream.writable = True
        return stream

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __iter__(self) -> Iterator[Array]:
        first, self._walked = not self._walked, True
        cuts = _list_blocks(self.shape, self.entries or ENTRIES)
        scratch = allocate_scratch(max(size for _, _, size in cuts), self.dtype)
        for cut, start, size in cuts:
            block = self._read(cut, start, scratch[:size])
            if first and self.counts_nonfinite and not is_finite(block):
                self.nonfinite += size - int(np.count_nonzero(np.isfinite(block)))
            yield block

    def count_nonfinite(self) -> None:
        """Count the nonfinite entries, if they weren't counted in the first pass."""
        if self._walked and not self.counts_nonfinite:
            self.counts_nonfinite, self._walked = True, False
            for _ in self:
                pass


def is_finite(block: Array) -> bool:
    """Return True if every entry of a flat array is finite."""
    # The sum of squares is the quickest check of all entries. If it overflows, a second check settles it.
    quick = block.dtype.itemsize >= 4 and math.isfinite(np.dot(block, block))
    return quick or bool(np.isfinite(block).all())


def allocate_scratch(size: int, dtype: np.dtype[Any]) -> Array:
    """Return a scratch array that doesn't begin at the same offset in a page as the last ones.

    Processors mistake two addresses with equal low 12 bits for the same one: adding two arrays into a third took 41 ms
    for 50 million entries where all began at a page, and 25 ms where they didn't.
    """
    skipped = 1088 * (next(_allocations) % 3) // dtype.itemsize
    return np.empty(size + skipped, dtype)[skipped:]


_allocations = count()


@lru_cache(maxsize=64)
def _list_blocks(shape: Shape, entries: int) -> list[tuple[tuple[slice, ...], int, int]]:
    """Return the blocks of a shape, each with its offset in the flat array and its number of entries."""
    listed, start = [], 0
    for cut in blocks(shape, entries):
        size = math.prod(extent.stop - extent.start for extent in cut)
        listed.append((cut, start, size))
        start += size
    return listed


@dataclass(frozen=True)
class Inputs:
    """One parameter of all targets and its options: the argument of every method.

    Attributes:
        targets: A stream for each target, all of one shape and dtype.
        base: The stream of the base, for methods that have one.
        options: The method's options for this parameter; those that may differ between targets as a tuple of numbers.
        name: The key of randomness.
        outputs: The positions of the axes that number the units of a layer; None where they aren't known.
    """

    targets: Sequence[Stream]
    base: Stream | None
    options: Mapping[str, Any]
    name: str = ""
    outputs: Axes | tuple[int, ...] | None = None

    @property
    def shape(self) -> Shape:
        """The shape of the parameter, in the order in which it is read."""
        return self.targets[0].shape
