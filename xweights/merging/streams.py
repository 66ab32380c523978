"""The entries of one parameter of one target, block by block.

Methods walk a parameter as often as they like and never hold more of it than a block of each target, so merging takes
as much memory for a gigabyte as for a megabyte. A block is good until the next one: it may be a look at the weights, or
a scratch that is used again. Nobody writes into it but where the stream says that it is its own.
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

# Entries of a block: those of two targets, and what is made of them, stay in the second-level cache. Where there are
# many targets, all their blocks together take as much memory as eight.
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

    ``read(cut, start, scratch)`` returns one block, in ``scratch`` or elsewhere; ``start`` is its place in the flat
    array. What isn't finite is counted in ``nonfinite`` while the entries are walked for the first time, or, with
    ``looks`` set to False, in a walk of its own when :meth:`look` is called. ``own``: a block is never a look at the
    weights themselves, so it may be written into.

    Example:
        >>> import numpy as np
        >>> [block.tolist() for block in Stream.of(np.array([[1.0, 2.0]], np.float16))]
        [[1.0, 2.0]]
    """

    def __init__(self, shape: Shape, dtype: np.dtype[Any], read: Callable[[Any, int, Array], Array]) -> None:
        self.shape, self.dtype = shape, dtype
        self.nonfinite = 0
        self.looks = True
        self.entries = 0  # of a block; 0: as many as is usual
        self.own = False
        self._read = read
        self._walked = False

    @classmethod
    def of(cls, array: Array, dtype: np.dtype[Any] | None = None) -> Stream:
        """Return the stream of an array, however it lies in memory."""
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
        """Return the stream of what lies elsewhere: ``read_into(out, start)`` fills a flat array from there on."""
        room = np.empty(0, stored)

        def read(cut: Any, start: int, scratch: Array) -> Array:
            nonlocal room
            if stored == dtype:
                read_into(scratch, start)
                return scratch
            if room.size < scratch.size:
                room = np.empty(scratch.size, stored)
            read_into(room[: scratch.size], start)
            with np.errstate(invalid="ignore"):
                np.copyto(scratch, room[: scratch.size], casting="unsafe")
            return scratch

        stream = cls(shape, dtype, read)
        stream.own = True
        return stream

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __iter__(self) -> Iterator[Array]:
        first, self._walked = not self._walked, True
        cuts = _cuts(self.shape, self.entries or ENTRIES)
        scratch = room_for(max(size for _, _, size in cuts), self.dtype)
        for cut, start, size in cuts:
            block = self._read(cut, start, scratch[:size])
            if first and self.looks and not is_finite(block):
                self.nonfinite += size - int(np.count_nonzero(np.isfinite(block)))
            yield block

    def look(self) -> None:
        """Count what isn't finite, if the entries were walked without looking."""
        if self._walked and not self.looks:
            self.looks, self._walked = True, False
            for _ in self:
                pass


def is_finite(block: Array) -> bool:
    """Return True if every entry of a flat array is finite."""
    # The sum of squares: the quickest look at all entries there is. If it overflows, a second one settles it.
    quick = block.dtype.itemsize >= 4 and math.isfinite(np.dot(block, block))
    return quick or bool(np.isfinite(block).all())


def room_for(size: int, dtype: np.dtype[Any]) -> Array:
    """Return a scratch that doesn't begin at the same place of a page as the last ones did.

    A processor takes two addresses with equal low 12 bits for one: adding two arrays into a third took 41 ms for 50
    million entries where all began at a page, and 25 ms where they didn't.
    """
    skipped = 1088 * (next(_made) % 3) // dtype.itemsize
    return np.empty(size + skipped, dtype)[skipped:]


_made = count()


@lru_cache(maxsize=64)
def _cuts(shape: Shape, entries: int) -> list[tuple[tuple[slice, ...], int, int]]:
    """Return the blocks of a shape, each with where it starts in the flat array and how many entries it has."""
    found, start = [], 0
    for cut in blocks(shape, entries):
        size = math.prod(one.stop - one.start for one in cut)
        found.append((cut, start, size))
        start += size
    return found


@dataclass(frozen=True)
class Inputs:
    """One parameter of all targets, and what to do with it: the one argument of every method.

    Attributes:
        targets: A stream for each target, all of one shape and dtype.
        base: The stream of the base, for methods that have one.
        options: The method's options for this parameter; those that may differ between targets as a tuple of numbers.
        name: What randomness is keyed by.
        outputs: The axes that number the units of a layer, as positions; None where they aren't known.
    """

    targets: Sequence[Stream]
    base: Stream | None
    options: Mapping[str, Any]
    name: str = ""
    outputs: Axes | tuple[int, ...] | None = None

    @property
    def shape(self) -> Shape:
        """The shape of the parameter, in the order in which it is walked."""
        return self.targets[0].shape
