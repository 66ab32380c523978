"""Write a folder of torch.distributed.checkpoint: each rank its own blocks into a file of its own.

The data files get names that are in no metadata yet, so the folder is what it was until ``.metadata`` is replaced, by
one rename; then the data files of before are removed. A rank that is killed leaves a data file that nothing names; the
next save removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from xweights.core.agreement import Outcome, shard_of
from xweights.core.dtypes import Array
from xweights.core.groups import SINGLE, Group
from xweights.core.owners import settle_owners
from xweights.core.shards import Ranges
from xweights.edit.shards import local_parameter
from xweights.errors import CheckpointError
from xweights.files.formats import pt
from xweights.files.formats.dcp_metadata import Contents, StoredArray, StoredChunk, pickle_metadata
from xweights.files.io.arrays_to_write import ArrayToWrite
from xweights.files.io.atomic import lock, replace_file, sync_folder
from xweights.files.io.metadata import compact_json
from xweights.files.io.open_file import inaccessible, refused

_DATA_NAME = re.compile(r"__(?P<rank>\d+)_(?P<save>\d+)\.distcp")


def write(path: str, arrays: Sequence[ArrayToWrite], durable: bool, group: Group | None) -> None:
    """Write arrays as the folder whose ``.metadata`` is ``path``; of a group every rank makes this call."""
    folder = os.path.dirname(path) or "."
    ranks = group or SINGLE
    with Outcome(group):
        number = _begin(folder) if ranks.rank == 0 else 0
    number = int(ranks.all_reduce(np.array([number], np.int64), "max")[0])
    owned = _list_owned(arrays, group)
    data = _DataFile(folder, ranks.rank, number)
    is_unnamed = True
    try:
        with Outcome(group), _naming(data.path):
            places = data.write(arrays, owned, durable=durable)
        # From here on the first rank may name this file, whatever this rank gets to know of that.
        is_unnamed = False
        every = ranks.gather(places, 0)
        with Outcome(group):
            if every is not None:
                with replace_file(path, durable=durable) as sink:
                    sink.write(_describe(arrays, every, number))
    finally:
        data.close(remove=is_unnamed)
    if ranks.rank == 0:
        _remove_former(folder, {f"__{rank}_{number}.distcp" for rank in range(ranks.size)})


def _begin(folder: str) -> int:
    """Make the folder, and return a number for the names of data files that no file there has."""
    try:
        os.makedirs(folder, exist_ok=True)
        return 1 + max((int(match["save"]) for match in _find_data(folder)), default=-1)
    except OSError as cause:
        raise inaccessible(folder, cause, "write into it") from cause


def _find_data(folder: str) -> Iterator[re.Match[str]]:
    return (match for name in os.listdir(folder) if (match := _DATA_NAME.fullmatch(name)))


def replace_values(
    path: str, contents: Contents, values: Mapping[str, tuple[Callable[[], Array], Sequence[str]]], *, durable: bool
) -> None:
    """Replace some arrays of the folder whose ``.metadata`` is ``path``, and leave everything else where it is.

    ``values``: by key, the function that returns the whole array, and the further keys that it has.
    """
    folder = os.path.dirname(path) or "."
    number = _begin(folder)
    data = _DataFile(folder, 0, number)
    is_unnamed = True
    try:
        places: dict[str, StoredChunk] = {}
        with _naming(data.path):
            for array in contents.arrays:
                if array.key in values:
                    value, aliases = values[array.key]
                    begin, length = data.append(array.key, value())
                    chunk = StoredChunk((0,) * len(array.shape), array.shape, data.name, begin, length)
                    places |= dict.fromkeys((array.key, *aliases), chunk)
            data.sync(durable=durable)
        arrays = [
            replace(array, chunks=[places[array.key]]) if array.key in places else array for array in contents.arrays
        ]
        replaced = replace(contents, arrays=arrays)
        is_unnamed = False
        with replace_file(path, durable=durable) as sink:
            sink.write(pickle_metadata(replaced))
    finally:
        data.close(remove=is_unnamed)
    _remove_former(folder, replaced.files)


def _remove_former(folder: str, kept: Collection[str]) -> None:
    """Remove the data files that the metadata names no more, but for those that somebody is writing."""
    with contextlib.suppress(OSError):
        for match in _find_data(folder):
            if match.string in kept:
                continue
            name = os.path.join(folder, match.string)
            with contextlib.suppress(OSError), open(name, "rb") as file:
                if lock(file.fileno(), wait=False):
                    os.unlink(name)


def _list_owned(arrays: Sequence[ArrayToWrite], group: Group | None) -> list[bool]:
    """Return for each array whether this rank writes the block that it has."""
    if group is None:
        return [True] * len(arrays)
    shared = {at: array.parameter for at, array in enumerate(arrays) if array.parameter is not None}
    cut = {at: p for at, p in shared.items() if shard_of(p) is not None}
    owners = dict(zip(cut, settle_owners(group, list(cut.values()), known=False), strict=True))
    return [owners.get(at, group.rank == 0) for at in range(len(arrays))]


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Raise what the system refuses as FileAccessError."""
    try:
        yield
    except OSError as cause:
        if isinstance(cause, CheckpointError):
            raise
        raise inaccessible(path, cause, "write it") from cause


class _DataFile:
    """The data file of one rank, locked until all is done."""

    def __init__(self, folder: str, rank: int, number: int) -> None:
        self.name = f"__{rank}_{number}.distcp"
        self.path = os.path.join(folder, self.name)
        self.file: BinaryIO | None = None

    def write(self, arrays: Sequence[ArrayToWrite], owned: Sequence[bool], *, durable: bool) -> Array:
        """Write this rank's blocks; return for each array (offset, length, first and last index of each axis)."""
        numbers: list[int] = []
        for array, is_owned in zip(arrays, owned, strict=True):
            numbers += self._write_block(array) if is_owned else [0] * (2 + 2 * len(array.shape))
        self.sync(durable=durable)
        return np.array(numbers, np.int64)

    def _write_block(self, array: ArrayToWrite) -> list[int]:
        p = array.parameter
        shard = None if p is None else shard_of(p)
        ranges: Ranges = tuple((0, length) for length in array.shape)
        block = array
        if p is not None and shard is not None:
            ranges = shard.stored
            values = local_parameter(p, shard).read()
            values = values if values.dtype == array.dtype else values.astype(array.dtype)
            block = ArrayToWrite(array.key, array.dtype, shard.shape, None, lambda: [values])
        if not block.nbytes and array.nbytes:
            return [0] * (2 + 2 * len(array.shape))
        return [*self._append(block), *(end for span in ranges for end in span)]

    def append(self, key: str, value: Array) -> tuple[int, int]:
        """Write an array; return where it begins, and its length."""
        return self._append(ArrayToWrite(key, value.dtype, value.shape, None, lambda: [value]))

    def _append(self, array: ArrayToWrite) -> tuple[int, int]:
        if self.file is None:
            self.file = open(self.path, "xb", buffering=1 << 16)  # noqa: SIM115 - closed when all ranks are done
            lock(self.file.fileno(), wait=False)
        begin = self.file.tell()
        pt.write_tensor(_Part(self.file, self.path, begin), array)
        return begin, self.file.tell() - begin

    def sync(self, *, durable: bool) -> None:
        """Have the system take what was written, and wait until it is on disk."""
        if self.file is not None:
            self.file.flush()
            if durable:
                os.fsync(self.file.fileno())
                sync_folder(self.path)

    def close(self, *, remove: bool) -> None:
        """Close the file; ``remove`` it where nothing names it."""
        if self.file is None:
            return
        if remove:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.file.close()


class _Part:
    """The rest of a file, as a file of its own: positions are counted from where it begins."""

    def __init__(self, file: BinaryIO, path: str, begin: int) -> None:
        self.path, self.temporary, self._file, self._begin = path, path, file, begin
        self.file: Any = self  # zipfile wants no more than these methods

    def tell(self) -> int:
        return self._file.tell() - self._begin

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset + self._begin * (whence == os.SEEK_SET), whence) - self._begin

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def cannot(self, array: ArrayToWrite | None, reason: str) -> CheckpointError:
        """Return the error to raise for an array that this format can't hold."""
        fix = "leave it out with where="
        return refused(self.path, reason, key=None if array is None else array.key, fix=fix)


def _describe(arrays: Sequence[ArrayToWrite], every: Sequence[Array], number: int) -> bytes:
    """Return the contents of the metadata from where each rank has put its blocks."""
    stored: list[StoredArray] = []
    at = 0
    for array in arrays:
        count = 2 + 2 * len(array.shape)
        chunks = [
            _read_place(places[at : at + count].tolist(), f"__{rank}_{number}.distcp")
            for rank, places in enumerate(every)
            if places[at + 1]
        ]
        at += count
        stored += [StoredArray(key, array.dtype.name, array.shape, chunks) for key in (array.key, *array.aliases)]
    notes: dict[str, Any] = {
        array.key: array.metadata.as_json(array.key, array.dtype) for array in arrays if array.metadata is not None
    }
    notes |= {alias: array.key for array in arrays for alias in array.aliases}
    note = compact_json({key: noted for key, noted in notes.items() if noted})
    return pickle_metadata(Contents(stored, note=note))


def _read_place(numbers: Sequence[int], file: str) -> StoredChunk:
    first, last = numbers[2::2], numbers[3::2]
    shape = tuple(end - begin for begin, end in zip(first, last, strict=True))
    return StoredChunk(tuple(first), shape, file, numbers[0], numbers[1])
