"""An array in a file: its key, dtype, shape, and where its bytes are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.files.io.notes import ArrayMetadata
from xweights.files.io.open_file import PIECE, OpenFile, raw


class DataLocation(Protocol):
    """Where the entries of one array come from."""

    def read(self, record: Record) -> Array:
        """Return all entries in the stored shape, in memory that is nobody else's."""

    def read_into(self, record: Record, out: Array, start: int) -> None:
        """Fill a flat array with the entries from ``start`` on, counted in C order."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """An array in a file. ``dtype`` is in this machine's byte order; ``place`` knows the file's."""

    key: str
    dtype: np.dtype[Any]
    shape: Shape
    note: ArrayMetadata
    place: DataLocation

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes in memory."""
        return self.size * self.dtype.itemsize

    def read(self) -> Array:
        """Return the array in the stored shape: a fresh one at each call."""
        return self.place.read(self)

    def read_into(self, out: Array, start: int = 0) -> None:
        """Fill a flat, contiguous array of the same dtype with the entries from ``start`` on, in C order."""
        if out.size:
            self.place.read_into(self, out, start)

    def pieces(self, entries: int | None = None) -> Iterator[Array]:
        """Yield all entries in C order as flat arrays that are good until the next one (they share one buffer)."""
        step = entries or max(1, PIECE // self.dtype.itemsize)
        room = np.empty(min(step, self.size), self.dtype)
        for start in range(0, self.size, step):
            part = room[: min(step, self.size - start)]
            self.read_into(part, start)
            yield part


@dataclass(frozen=True, slots=True, eq=False)
class ByteRange:
    """Plain bytes in a file, one entry after the other.

    ``strides`` (in entries) if they don't lie in C order. ``checks``: positions in the file of CRC-32 sums over
    ``check_from`` to ``check_to``, which have to follow when the bytes change. ``verify`` holds the bytes against them
    before they are first looked at, where the format's other readers do so.
    """

    file: OpenFile
    offset: int
    swapped: bool = False
    strides: tuple[int, ...] | None = None
    checks: tuple[int, ...] = ()
    check_from: int = 0
    check_to: int = 0
    verify: Callable[[int, memoryview | None], bool] | None = None

    def extent(self, record: Record) -> int:
        """Return how many bytes lie between the first and the last entry."""
        if not record.size:
            return 0
        if self.strides is None:
            return record.nbytes
        last = sum((n - 1) * step for n, step in zip(record.shape, self.strides, strict=True))
        return (last + 1) * record.dtype.itemsize

    def read(self, record: Record) -> Array:
        if self.strides is None:
            whole = np.empty(record.shape, record.dtype)
            self._read(self.offset, whole, record)
            return whole
        flat = np.empty(self.extent(record) // record.dtype.itemsize, record.dtype)
        self._read(self.offset, flat, record)
        strides = [step * record.dtype.itemsize for step in self.strides]
        seen: Array = np.lib.stride_tricks.as_strided(flat, record.shape, strides)
        return seen if flat.size <= record.size else seen.copy()

    def read_into(self, record: Record, out: Array, start: int) -> None:
        if self.strides is None:
            self._read(self.offset + start * record.dtype.itemsize, out, record)
        else:
            out[...] = self.read(record).reshape(-1)[start : start + out.size]

    def _read(self, offset: int, out: Array, record: Record) -> None:
        if not out.size:
            return
        rest = self.verify is not None and offset + out.nbytes == self.check_to
        if self.verify is not None and not rest:
            self.verify(offset, None)
        self.file.read_into(offset, out, key=record.key)
        if self.verify is not None and rest and self.verify(offset, raw(out).data):
            self.file.read_into(offset, out, key=record.key)
        if self.swapped:
            out.byteswap(inplace=True)


@dataclass(eq=False)
class Index:
    """What one reader found in a file: its arrays, and what else is worth knowing."""

    path: str
    format: str
    records: Sequence[Record]
    files: Sequence[OpenFile]
    metadata: dict[str, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()

    def close(self) -> None:
        """Close the files."""
        for one in self.files:
            one.close()


def bytes_of(part: Array) -> memoryview:
    """Return the bytes of an array in C order and little-endian, without a copy where it lies so already."""
    if part.dtype.byteorder == ">" or (part.dtype.byteorder == "=" and not np.little_endian):
        part = part.astype(part.dtype.newbyteorder("<"))
    return raw(np.ascontiguousarray(part)).data if part.size else memoryview(b"")
