"""The entries of one parameter of one target, block by block.

Owns :class:`Stream` and :class:`Inputs`, what a method gets. Imports arrays, axes and parameter.

Methods walk a parameter as often as they like and never hold more of it than a block of each target, so merging takes
as much memory for a gigabyte as for a megabyte. A block is good until the next one: it may be a look at the weights, or
a scratch that is used again. Nobody writes into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.arrays import BLOCK, blocks, quick_sum
from xweights.axes import Axes, Shape
from xweights.parameter import Array

ReadInto = Callable[[Array, int], None]


def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that entries are merged in: float64 for float64, else float32."""
    return np.dtype(np.float64) if dtype.itemsize > 4 else np.dtype(np.float32)


class Stream:
    """The entries of an array as flat blocks of the working dtype, in C order.

    ``read(cut, start, scratch)`` returns one block, in ``scratch`` or elsewhere; ``start`` is its place in the flat
    array. What isn't finite is counted in ``nonfinite`` while the entries are walked for the first time.

    Example:
        >>> import numpy as np
        >>> [block.tolist() for block in Stream.of(np.array([[1.0, 2.0]], np.float16))]
        [[1.0, 2.0]]
    """

    def __init__(self, shape: Shape, dtype: np.dtype[Any], read: Callable[[Any, int, Array], Array]) -> None:
        self.shape, self.dtype = shape, dtype
        self.nonfinite = 0
        self._read = read
        self._looked = False

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

        return cls(shape, dtype, read)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __iter__(self) -> Iterator[Array]:
        scratch = np.empty(0, self.dtype)
        first, self._looked = not self._looked, True
        start = 0
        for cut in blocks(self.shape):
            size = int(np.prod([one.stop - one.start for one in cut], dtype=np.int64))
            if size > scratch.size:
                scratch = np.empty(max(size, min(BLOCK, self.size)), self.dtype)
            block = self._read(cut, start, scratch[:size])
            start += size
            if first and not np.isfinite(quick_sum(block)):
                self.nonfinite += size - int(np.count_nonzero(np.isfinite(block)))
            yield block


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
