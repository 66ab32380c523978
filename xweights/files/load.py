"""Load a weight file as a target that is read one array at a time."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.protocols import BaseStorage
from xweights.errors import ArgumentError, SelectionError, WriteError, near
from xweights.files.formats import table
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import OpenFile
from xweights.files.io.records import ByteRange, Index, Record

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
        return not isinstance(handle.location, ByteRange) or handle.location.verify is not None

    def trainable(self, handle: Record) -> bool:
        return handle.metadata.trainable

    def set_trainable(self, handle: Record, flag: bool) -> None:
        raise WriteError(_READ_ONLY)


FILE = FileStorage()


class Checkpoint:
    """The weights in a file: a target like a model for everything that reads.

    Only the index has been read; each array is read when it is asked for, and not kept. The file stays open, so it may
    be replaced meanwhile and is still read as it was. Close it with :meth:`close`, or use it as a context manager.

    Attributes:
        path: Where the file is.
        format: "safetensors", "npz", ...
        metadata: Other texts in the file, by name.
        ignored: Keys of its contents that are no weights and were left out.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"dense/kernel": np.ones((3, 2))}, "w.safetensors"); xw.load("w.safetensors")
        <Checkpoint 'w.safetensors' (safetensors): 1 array, 48 bytes>
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self.path, self.format = index.path, index.format
        self.metadata, self.ignored = dict(index.metadata), tuple(index.ignored)
        self._parameters = [_make_parameter(record) for record in _check_names(index)]

    def __xweights_parameters__(self) -> list[Parameter]:
        """Return the parameters; any object with this method is a target."""
        return list(self._parameters)

    def __getitem__(self, name: str) -> Array:
        """Return one array in neutral order, by its neutral name or by its key in the file."""
        for p in self._parameters:
            if name in (p.name, p.native_name, p.handle.key, *p.aliases):
                return p.layout.to_neutral(p.handle.read())
        names = [p.name for p in self._parameters]
        raise SelectionError(f"{self.path!r} has no array {name!r}\n{near(name, names)}")

    def __iter__(self) -> Iterator[str]:
        return (p.name for p in self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    @property
    def nbytes(self) -> int:
        """Number of bytes of all arrays in memory."""
        return sum(p.handle.nbytes for p in self._parameters)

    @property
    def files(self) -> list[OpenFile]:
        """The open files: one, or an index and its shards."""
        return list(self._index.files)

    def close(self) -> None:
        """Close the file; its arrays can't be read afterwards."""
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        count = len(self)
        left_out = f", {len(self.ignored)} other things left out" if self.ignored else ""
        name = os.path.basename(self.path)
        return (
            f"<Checkpoint {name!r} ({self.format}): {count} array{'s' * (count != 1)}, {self.nbytes:,} bytes{left_out}>"
        )


def load(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Checkpoint:
    """Open a file of weights as a target. Nothing but its index is read, and nothing in it is ever executed.

    Args:
        path: A file; its ending determines the format.
        max_bytes: The largest size of one array in memory, and of compressed data when unpacked. Default: plain data
            may be as large as the file, compressed data 64 times as large as it is in the file (or 256 MiB).

    Raises:
        DamagedFileError: the file breaks the rules of its format.
        RefusedFileError: it contains data that is never loaded, or more than ``max_bytes``.
        FileAccessError: it can't be opened.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.npz"); xw.get_params(xw.load("w.npz"))["b"]
        array([1., 1.])
    """
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 0):
        raise ArgumentError(f"max_bytes= is a whole number >= 0\ngot: {max_bytes!r}")
    return Checkpoint(table.read(os.fspath(path), Limits(max_bytes)))


def open_path(path: Any) -> list[Parameter]:
    """Return the parameters of a file: what `xweights.core.openers` is told to call."""
    return load(path).__xweights_parameters__()


def _check_names(index: Index) -> Iterator[Record]:
    """Yield the records; raise if two of them have the same neutral name."""
    seen: dict[str, str] = {}
    for record in index.records:
        for name in (record.metadata.name, *record.metadata.aliases):
            if name in seen:
                from xweights.files.io.open_file import damaged

                raise damaged(index.path, f"it has the name {name!r}, as has {seen[name]!r}", key=record.key)
            seen[name] = record.key
        yield record


def _make_parameter(record: Record) -> Parameter:
    metadata = record.metadata
    return Parameter(
        name=metadata.name,
        native_name=metadata.native or record.key,
        role=metadata.role,
        layer=metadata.layer,
        layout=metadata.layout,
        dtype=record.dtype,
        storage=FILE,
        handle=record,
        gates=metadata.gates,
        aliases=metadata.aliases,
    )
