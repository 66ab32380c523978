"""Records of the arrays in a file: key, dtype, shape, and the location of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.core.shards import Ranges
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.open_file import PIECE, OpenFile, byte_view
from xweights.files.io.runs import list_runs

_PAGE, _LINE = 4096, 64
# Bytes of a run of entries below which runs are read together with what is between them.
SMALLEST_READ = 64


class DataLocation(Protocol):
    """The source of one array's entries.

    One that has an attribute ``whole`` that is True reads all entries for any of them, as compressed data has to be.
    """

    def read(self, record: Record) -> Array:
        """Return all entries in the stored shape, in new memory."""

    def read_into(self, record: Record, out: Array, start: int) -> None:
        """Fill a flat array with the entries from ``start`` on, counted in C order."""


@runtime_checkable
class SlicedLocation(Protocol):
    """A location that reads a block of an array without the rest of it."""

    def read_block(self, record: Record, ranges: Ranges, out: Array) -> None:
        """Fill a C-contiguous array with the entries in these ranges along each stored axis."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """An array in a file. ``dtype`` has this machine's byte order; ``location`` has the file's.

    ``inner`` is its key inside of the part of the file that it belongs to, if that isn't the whole file.
    """

    key: str
    dtype: np.dtype[Any]
    shape: Shape
    metadata: ArrayMetadata
    location: DataLocation
    inner: str | None = None

    @property
    def key_in_part(self) -> str:
        """Its key, as a file of this part alone would have it."""
        return self.key if self.inner is None else self.inner

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes in memory."""
        return self.size * self.dtype.itemsize

    def read(self) -> Array:
        """Return the array in the stored shape, a new one at each call."""
        return self.location.read(self)

    def read_into(self, out: Array, start: int = 0) -> None:
        """Fill a flat, contiguous array of the same dtype with the entries from ``start`` on, in C order."""
        if out.size:
            self.location.read_into(self, out, start)

    def pieces(self, entries: int | None = None) -> Iterator[Array]:
        """Yield all entries in C order as flat arrays that are valid until the next one (they share one buffer)."""
        step = entries or max(1, PIECE // self.dtype.itemsize)
        if getattr(self.location, "whole", False) and self.size > step:
            flat = self.read().reshape(-1)
            yield from (flat[start : start + step] for start in range(0, self.size, step))
            return
        offset = self.location.offset if isinstance(self.location, ByteRange) else 0
        _, space = allocate_buffer(min(step, self.size) * self.dtype.itemsize, offset)
        buffer = space.view(self.dtype)
        for start in range(0, self.size, step):
            part = buffer[: min(step, self.size - start)]
            self.read_into(part, start)
            yield part


@dataclass(frozen=True, slots=True, eq=False)
class ByteRange:
    """Plain bytes in a file, one entry after the other.

    ``strides`` (in entries) if they aren't in C order. ``checks``: offsets in the file of CRC-32 checksums over
    ``check_from`` to ``check_to``, which have to be updated when the bytes change. ``verify`` checks the bytes against
    them before the first read, where the format's other readers do so.
    """

    file: OpenFile
    offset: int
    swapped: bool = False
    strides: tuple[int, ...] | None = None
    checks: tuple[int, ...] = ()
    check_from: int = 0
    check_to: int = 0
    verify: Callable[[int, memoryview | None], bool] | None = None

    @property
    def whole(self) -> bool:
        """True where entries in C order lie all over the bytes."""
        return self.strides is not None

    def extent(self, record: Record) -> int:
        """Return the number of bytes from the first entry to the end of the last."""
        if not record.size:
            return 0
        if self.strides is None:
            return record.nbytes
        last = sum((n - 1) * step for n, step in zip(record.shape, self.strides, strict=True))
        return (last + 1) * record.dtype.itemsize

    def read(self, record: Record) -> Array:
        if self.strides is None:
            array = np.empty(record.shape, record.dtype)
            self._read(self.offset, array, record)
            return array
        flat = np.empty(self.extent(record) // record.dtype.itemsize, record.dtype)
        self._read(self.offset, flat, record)
        strides = [step * record.dtype.itemsize for step in self.strides]
        view: Array = np.lib.stride_tricks.as_strided(flat, record.shape, strides)
        return view if flat.size <= record.size else view.copy()

    def read_into(self, record: Record, out: Array, start: int) -> None:
        if self.strides is None:
            self._read(self.offset + start * record.dtype.itemsize, out, record)
        else:
            out[...] = self.read(record).reshape(-1)[start : start + out.size]

    def read_block(self, record: Record, ranges: Ranges, out: Array) -> None:
        if out.size == record.size:
            self.read_into(record, out.reshape(-1), 0)
        elif self.strides is not None:
            out[...] = self.read(record)[tuple(slice(*own) for own in ranges)]
        elif out.size:
            if self.verify is not None:
                self.verify(self.offset, None)
            read_runs(self.file, self.offset, record, ranges, out)
            if self.swapped:
                out.byteswap(inplace=True)

    def _read(self, offset: int, out: Array, record: Record) -> None:
        if not out.size:
            return
        reads_to_end = self.verify is not None and offset + out.nbytes == self.check_to
        if self.verify is not None and not reads_to_end:
            self.verify(offset, None)
        self.file.read_into(offset, out, key=record.key)
        if self.verify is not None and reads_to_end and self.verify(offset, byte_view(out).data):
            self.file.read_into(offset, out, key=record.key)
        if self.swapped:
            out.byteswap(inplace=True)


@dataclass(eq=False)
class Index:
    """The contents of a file: its arrays, its metadata, and the keys that were ignored.

    ``tree`` has the records where they are in the file's nested dicts and lists, beside all other values; None if the
    file isn't nested.
    """

    path: str
    format: str
    records: Sequence[Record]
    files: Sequence[OpenFile]
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    tree: Any = None

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


def allocate_buffer(nbytes: int, offset: int, space: Array | None = None) -> tuple[Array, Array]:
    """Return memory, and so many bytes of it for what lies at ``offset`` of a file; ``space`` is memory to use again.

    They begin where, in a page, the first byte lies in a page of the file, or just before. The kernel takes three times
    as long to copy to an address that, in its page, is up to 64 bytes after the source (16 MB: 7.5 ms, and 2.6 ms
    anywhere else): the processor mistakes what it reads for what it has just written.
    """
    if space is None:
        space = np.empty(nbytes + 2 * _PAGE, np.uint8)
    start = (offset // _LINE * _LINE - space.ctypes.data) % _PAGE
    return space, space[start : start + nbytes]


def read_runs(file: OpenFile, offset: int, record: Record, ranges: Ranges, out: Array) -> None:
    """Fill a C-contiguous array with a block of plain bytes: one read for each run of entries that lie together."""
    flat = out.reshape(-1)
    step, starts, length = list_runs(record.shape, ranges)
    if length * flat.itemsize >= SMALLEST_READ or len(starts) == 1:
        for position, start in enumerate(starts):
            part = flat[position * length : (position + 1) * length]
            file.read_into(offset + start * flat.itemsize, part, key=record.key)
        return
    # Runs so short that reading what is between them takes less time than asking for each.
    most = max(1, PIECE // (step * flat.itemsize))
    at = 0
    while at < len(starts):
        count = _count_together(starts[at : at + most], step)
        spanned = np.empty((count - 1) * step + length, flat.dtype)
        file.read_into(offset + starts[at] * flat.itemsize, spanned, key=record.key)
        strides = (step * flat.itemsize, flat.itemsize)
        runs = np.lib.stride_tricks.as_strided(spanned, (count, length), strides)
        flat[at * length : (at + count) * length].reshape(count, length)[...] = runs
        at += count


def _count_together(starts: Sequence[int], step: int) -> int:
    """Return how many of the first runs are one step apart."""
    count = 1
    while count < len(starts) and starts[count] - starts[count - 1] == step:
        count += 1
    return count


def little_endian_bytes(part: Array) -> memoryview:
    """Return the bytes of an array in C order and little-endian, without a copy where they are so already."""
    if part.dtype.byteorder == ">" or (part.dtype.byteorder == "=" and not np.little_endian):
        part = part.astype(part.dtype.newbyteorder("<"))
    return byte_view(np.ascontiguousarray(part)).data if part.size else memoryview(b"")
