"""Storage of arrays in files: read one at a time, or many that lie side by side together."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.protocols import BaseStorage
from xweights.errors import WriteError
from xweights.files.io.blocks import make_block
from xweights.files.io.open_file import PIECE, OpenFile
from xweights.files.io.records import ByteRange, Record, allocate_buffer

_READ_ONLY = "it is in a file\nFix: xweights.edit_file(path, rule, where=...), or get_params and save"


class FileStorage(BaseStorage):
    """Storage of arrays in files: read one at a time, never written through a verb. A handle is a Record."""

    fallible = True
    fresh = True

    def identity(self, handle: Record) -> Hashable:
        return id(handle)

    def refusal(self, handle: Record, *, writing: bool) -> str | None:
        return _READ_ONLY if writing else None

    def read(self, handle: Record) -> Array:
        return handle.read()

    def write(self, handle: Record, value: Array) -> None:
        raise WriteError(_READ_ONLY)

    def native_array(self, handle: Record, *, tensor: bool = False) -> Any:
        return handle.read()

    def tracked(self, handle: Record) -> Any:
        return handle.read()

    def commit(self, handle: Record, native: Any, value: Any) -> None:
        raise WriteError(_READ_ONLY)

    def guard(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backup(self, handle: Record) -> Any:
        raise WriteError(_READ_ONLY)

    def restore(self, handle: Record, kept: Any) -> None:
        raise WriteError(_READ_ONLY)

    def pieces(self, handle: Record) -> Iterator[Array]:
        """Yield the entries in stored order, as flat arrays that are valid until the next one."""
        return handle.pieces()

    def read_into(self, handle: Record, out: Array) -> None:
        """Fill a flat, contiguous array with all entries in stored order."""
        handle.read_into(out)

    def may_fail(self, handle: Record) -> bool:
        """Return whether reading may find damage that opening didn't: a wrong checksum or bad compressed data."""
        location = handle.location
        verify = location.verify if isinstance(location, ByteRange) else None
        return not isinstance(location, ByteRange) or (verify is not None and not getattr(verify, "sound", False))

    def unpacks(self, handle: Record) -> bool:
        """Return whether reading the array means unpacking it: decompressing, decoding, joining."""
        return not isinstance(handle.location, ByteRange)

    def is_plain(self, handle: Record) -> bool:
        """Return whether the array is plain bytes that nothing else checks: several threads may read them."""
        location = handle.location
        return type(location) is ByteRange and location.strides is None and location.verify is None

    def block(self, handle: Record, ranges: Sequence[tuple[int, int]]) -> tuple[FileStorage, Record] | None:
        """Return the storage and the record of a block; None where the array can only be read as a whole."""
        block = make_block(handle, tuple(ranges))
        return None if block is None else (self, block)

    def trainable(self, handle: Record) -> bool:
        return handle.metadata.trainable

    def set_trainable(self, handle: Record, flag: bool) -> None:
        raise WriteError(_READ_ONLY)

    def split(self, handles: Sequence[Record], count: int) -> list[list[int]]:
        """Return the positions of plain arrays in parts of about as many bytes, in the order of the file."""
        sizes = [record.nbytes for record in handles]
        total, done = sum(sizes), 0
        parts = [[position for position, size in enumerate(sizes) if not size]]
        for run in _find_runs(handles):
            for position in run.positions:
                if done and done * count >= total * len(parts):
                    parts.append([])
                parts[-1].append(position)
                done += sizes[position]
        return parts

    def pieces_together(self, handles: Sequence[Record]) -> Iterator[Array]:
        """Yield all entries of plain arrays, as flat arrays that are valid until the next one (they share a buffer)."""
        runs = _find_runs(handles)
        most = min(PIECE, max((run.nbytes for run in runs), default=0))
        space = None
        for run in runs:
            space, buffer = allocate_buffer(most, run.offset, space)
            for start in range(0, run.nbytes, PIECE):
                part = buffer[: min(PIECE, run.nbytes - start)]
                run.file.read_into(run.offset + start, part)
                entries = part.view(run.dtype)
                if run.swapped:
                    entries.byteswap(inplace=True)
                yield entries

    def read_together(self, handles: Sequence[Record], outs: Sequence[Array]) -> None:
        """Fill contiguous arrays with all entries of plain arrays; those side by side in the file in one read."""
        for run in _find_runs(handles):
            into = [outs[position] for position in run.positions]
            run.file.read_into_all(run.offset, into)
            if run.swapped:
                for out in into:
                    out.byteswap(inplace=True)


FILE = FileStorage()


@dataclass(slots=True, eq=False)
class _Run:
    """Plain arrays of one dtype whose bytes follow each other in a file: their positions among those asked for."""

    file: OpenFile
    offset: int
    nbytes: int
    dtype: np.dtype[Any]
    swapped: bool
    positions: list[int]


def _find_runs(records: Sequence[Record]) -> list[_Run]:
    """Return the runs of plain arrays, in the order of the file."""
    places: list[Any] = [record.location for record in records]
    order = sorted(range(len(records)), key=[(id(place.file), place.offset) for place in places].__getitem__)
    runs: list[_Run] = []
    for position in order:
        place, record = places[position], records[position]
        nbytes = record.nbytes
        if not nbytes:
            continue
        run = runs[-1] if runs else None
        follows = run is not None and place.file is run.file and place.offset == run.offset + run.nbytes
        if run is None or not follows or record.dtype != run.dtype or place.swapped != run.swapped:
            run = _Run(place.file, place.offset, 0, record.dtype, place.swapped, [])
            runs.append(run)
        run.nbytes += nbytes
        run.positions.append(position)
    return runs
