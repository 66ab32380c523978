"""A file as a target: looked at like a model, read one array at a time."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.targets import register_opener
from xweights.errors import ArgumentError, SelectionError, WriteError, near
from xweights.files.formats import table
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import OpenFile
from xweights.files.io.records import ByteRange, Index, Record

_READ_ONLY = "it is in a file\nFix: xweights.edit_file(path, rule, where=...), or get_params and save"


class FileStorage:
    """Arrays in files: read one at a time, never written through a verb. A handle is a Record."""

    fallible = True
    fresh = True
    """What :meth:`read` returns is nobody else's, so that it needn't be copied to be kept."""

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
        """Yield the entries in stored order, as flat arrays that are good until the next one."""
        return handle.pieces()

    def read_into(self, handle: Record, out: Array) -> None:
        """Fill a flat, contiguous array with all entries in stored order."""
        handle.read_into(out)

    def may_fail(self, handle: Record) -> bool:
        """Return whether reading may find damage that opening the file couldn't: a wrong sum, or what is packed."""
        return not isinstance(handle.place, ByteRange) or handle.place.verify is not None

    def trainable(self, handle: Record) -> bool:
        return handle.note.trainable

    def set_trainable(self, handle: Record, flag: bool) -> None:
        raise WriteError(_READ_ONLY)


FILE = FileStorage()


class Checkpoint:
    """The weights in a file: a target like a model for everything that reads.

    Nothing but the index has been read; each array is read when it is asked for, and not kept. The file stays open, so
    it can be replaced meanwhile and is still read as it was. Close it with :meth:`close`, or as a context manager.

    Attributes:
        path: Where the file is.
        format: "safetensors", "npz", ...
        metadata: What else the file says, texts by name.
        ignored: What is in it besides arrays and was left out.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"dense/kernel": np.ones((3, 2))}, "w.safetensors"); xw.load("w.safetensors")
        <Checkpoint 'w.safetensors' (safetensors): 1 array, 48 bytes>
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self.path, self.format = index.path, index.format
        self.metadata, self.ignored = dict(index.metadata), tuple(index.ignored)
        self._parameters = [_parameter(record) for record in _distinct(index)]

    def __xweights_parameters__(self) -> list[Parameter]:
        """Return the parameters: the door by which any object becomes a target."""
        return list(self._parameters)

    def __getitem__(self, name: str) -> Array:
        """Return one array in neutral order, by its neutral name or by its key in the file."""
        for p in self._parameters:
            if name in (p.name, p.native_name, p.handle.key, *p.aliases):
                return p.layout.to_neutral(p.handle.read())
        known = [p.name for p in self._parameters]
        raise SelectionError(f"{self.path!r} has no array {name!r}\n{near(name, known)}")

    def __iter__(self) -> Iterator[str]:
        return (p.name for p in self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays in memory."""
        return sum(p.handle.nbytes for p in self._parameters)

    @property
    def files(self) -> list[OpenFile]:
        """The open files: one, or an index and its shards."""
        return list(self._index.files)

    def close(self) -> None:
        """Close the file; its arrays can't be read any more."""
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        count = len(self)
        more = f", {len(self.ignored)} other things left out" if self.ignored else ""
        name = os.path.basename(self.path)
        return f"<Checkpoint {name!r} ({self.format}): {count} array{'s' * (count != 1)}, {self.nbytes:,} bytes{more}>"


def load(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Checkpoint:
    """Open a file of weights as a target. Nothing but its index is read, and nothing in it is ever executed.

    Args:
        path: A file; its ending says the format.
        max_bytes: How large one array may be in memory, and compressed data when unpacked. Default: plain data may be
            as large as the file, compressed data 64 times as large as it is in the file (or 256 MiB).

    Raises:
        DamagedFileError: the file breaks the rules of its format.
        RefusedFileError: it holds what is never loaded, or more than ``max_bytes``.
        FileAccessError: it can't be opened.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.npz"); xw.get_params(xw.load("w.npz"))["b"]
        array([1., 1.])
    """
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 0):
        raise ArgumentError(f"max_bytes= is a whole number >= 0\ngot: {max_bytes!r}")
    return Checkpoint(table.read(os.fspath(path), Limits(max_bytes)))


def _open(path: Any) -> list[Parameter]:
    return load(path).__xweights_parameters__()


register_opener(_open)


def _distinct(index: Index) -> Iterator[Record]:
    """Yield the records; raise if two of them have one neutral name."""
    seen: dict[str, str] = {}
    for record in index.records:
        for name in (record.note.name, *record.note.aliases):
            if name in seen:
                from xweights.files.io.open_file import damaged

                raise damaged(index.path, f"it has the name {name!r}, as has {seen[name]!r}", key=record.key)
            seen[name] = record.key
        yield record


def _parameter(record: Record) -> Parameter:
    note = record.note
    return Parameter(
        name=note.name,
        native_name=note.native or record.key,
        role=note.role,
        layer=note.layer,
        layout=note.layout,
        dtype=record.dtype,
        storage=FILE,
        handle=record,
        gates=note.gates,
        aliases=note.aliases,
    )
