"""Load a weight file as a target that is read one array at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.parts import Part, find_parts, parts_named, show_parts
from xweights.errors import (
    ArgumentError,
    RefusedFileError,
    SelectionError,
    XweightsError,
    combine_kinds,
    near,
)
from xweights.files.formats import table
from xweights.files.formats.pt_tensors import merge_aliases
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.open_file import OpenFile, damaged, refused
from xweights.files.io.records import Index, Record
from xweights.files.io.storage import FILE

if TYPE_CHECKING:
    from typing import Self  # Python 3.11


class Checkpoint:
    """The weights in a file: a target like a model for everything that reads.

    Only the index has been read; each array is read when it is asked for, and not kept. The file stays open, so it may
    be replaced meanwhile and is still read as it was. Close it with :meth:`close`, or use it as a context manager.

    The file of a training run has several parts (a model, its average, an optimizer's state). It stands for the one
    that holds weights; if there are several, for the one that ``load(path, part=...)`` names.

    Attributes:
        path: Where the file is.
        format: "safetensors", "npz", ...
        part: The part that was asked for, or None.
        metadata: Other texts in the file, by name.
        ignored: Keys of its contents that are no arrays and were left out.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"dense/kernel": np.ones((3, 2))}, "w.safetensors"); xw.load("w.safetensors")
        <Checkpoint 'w.safetensors' (safetensors): 1 array, 48 bytes>
    """

    def __init__(self, index: Index, part: str | None = None) -> None:
        self._index = index
        self.path, self.format, self.part = index.path, index.format, part
        self.metadata, self.ignored = dict(index.metadata), tuple(index.ignored)
        self._parts = [_make_part(index, found) for found in _find_parts(index)]
        if part is not None:
            self._chosen()

    def __xweights_parameters__(self) -> list[Parameter]:
        """Return the parameters; any object with this method is a target."""
        return list(self._parameters)

    def __xweights_parts__(self) -> list[Part]:
        """Return all parts; their arrays are Parameters."""
        return list(self._parts)

    @property
    def parts(self) -> list[Part]:
        """All parts of the file: see :func:`xweights.parts`."""
        return list(self._parts)

    @property
    def tree(self) -> Any:
        """The nested dicts and lists of the file, Records in the place of arrays; None for a file that isn't nested."""
        return self._index.tree

    @property
    def chosen_part(self) -> str:
        """The name of the part that the file stands for; empty for a file of weights alone."""
        return self._chosen().name

    def __xweights_part__(self, part: str | None = None) -> Part:
        """Return the part of a name, or the one that the file stands for; refuse a name that means none or several."""
        return self._chosen(part)

    def _chosen(self, part: str | None = None) -> Part:
        part = self.part if part is None else part
        if part is None:
            candidates = [found for found in self._parts if found.kind == "weights"]
        else:
            candidates = parts_named(self._parts, part)
        if len(candidates) == 1:
            return candidates[0]
        if not self._parts:
            return Part("", "weights", {})
        raise _part_error(self, part, candidates)

    @property
    def _parameters(self) -> list[Parameter]:
        return list(dict.fromkeys(self._chosen().arrays.values()))

    def __getitem__(self, name: str) -> Array:
        """Return one array in neutral order, by its neutral name or by its key in the file."""
        for p in self._parameters:
            if name in (p.name, p.native_name, p.handle.key, *p.aliases, *p.handle.metadata.native_aliases):
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

    @property
    def records(self) -> list[Record]:
        """The records of all arrays in the file, those of other parts included."""
        return [p.handle for part in self._parts for p in dict.fromkeys(part.arrays.values())]

    def close(self) -> None:
        """Close the file; its arrays can't be read afterwards."""
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = os.path.basename(self.path)
        left_out = f", {len(self.ignored)} other things left out" if self.ignored else ""
        try:
            chosen = self._chosen()
        except SelectionError:
            title = f"<Checkpoint {name!r} ({self.format}): {len(self._parts)} parts, none chosen{left_out}>"
            return f"{title}\n{show_parts(self._parts)}"
        count = len(self)
        of_part = f"{chosen.name}: " if chosen.name else ""
        others = f", {len(self._parts) - 1} other parts" if len(self._parts) > 1 else ""
        return (
            f"<Checkpoint {name!r} ({self.format}): {of_part}{count} array{'s' * (count != 1)}, {self.nbytes:,} bytes"
            f"{others}{left_out}>"
        )


def load(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    part: str | None = None,
    max_bytes: int | None = None,
    dequantize: bool = False,
) -> Checkpoint:
    """Open a file of weights as a target. Nothing but its index is read, and nothing in it is ever executed.

    Args:
        path: A file of any format: its first bytes say which. A folder stands for the one set of weights in it, a list
            of files or a glob (``"model-*.safetensors"``) for one checkpoint of several files.
        part: Which part of a training run's file is meant (``"model"``, ``"ema"``): see :func:`xweights.parts`.
            Default: the one that holds weights; if there are several, whoever reads it asks for one.
        max_bytes: The largest size of one array in memory, and of compressed data when unpacked. Default: plain data
            may be as large as the file, compressed data 64 times as large as it is in the file (or 256 MiB).
        dequantize: True reads quantised tensors of a GGUF as float32; otherwise they are listed as ignored.

    Raises:
        DamagedFileError: the file breaks the rules of its format.
        RefusedFileError: it contains data that is never loaded, or more than ``max_bytes``.
        FileAccessError: it can't be opened.
        SelectionError: it has no part of that name.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.npz"); xw.get_params(xw.load("w.npz"))["b"]
        array([1., 1.])
    """
    if max_bytes is not None and (type(max_bytes) is not int or max_bytes < 0):
        raise ArgumentError(f"max_bytes= is a whole number >= 0\ngot: {max_bytes!r}")
    limits = Limits(max_bytes, dequantize)
    if not isinstance(path, (str, os.PathLike)):
        return Checkpoint(table.read_many([os.fspath(one) for one in path], limits), part)
    return Checkpoint(table.read(os.fspath(path), limits), part)


def parts(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> list[Part]:
    """Return the parts of a file: a model, its average, an optimizer's state, random states.

    They are told apart by what they contain: dotted names and the names that layers give their arrays for weights,
    slots for each parameter for an optimizer.

    Args:
        path: A file that :func:`xweights.load` reads.
        max_bytes: As for :func:`xweights.load`.

    Raises the errors of :func:`xweights.load`.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.npz"); xw.parts("w.npz")
        [<Part '': weights, 1 array, 2 entries>]
    """
    return load(path, max_bytes=max_bytes).parts


def _part_error(checkpoint: Checkpoint, part: str | None, candidates: list[Part]) -> XweightsError:
    """Return the error for a file in which no part, or more than one, is meant."""
    weights = [found for found in checkpoint.parts if found.kind == "weights"]
    if part is None:
        reason = f"it has {len(weights)} parts that hold weights" if weights else "it has no part that holds weights"
        first = weights[0].name if weights else ""
        typed = f"{os.path.basename(checkpoint.path)}#{first}"
        fix = (
            f"part={first!r}, or xweights.load(path, part={first!r}) ({typed} on the command line)" if weights else None
        )
    else:
        many = "no part" if not candidates else f"{len(candidates)} parts"
        reason = f"it has {many} of the name {part!r}"
        fix = f"part={weights[0].name!r}" if weights else None
    shown = "\n".join(f"  {line}" for line in show_parts(checkpoint.parts).splitlines())
    error = refused(checkpoint.path, f"{reason}\n{shown}", fix=fix)
    kind = combine_kinds((RefusedFileError, SelectionError))
    both: Any = kind(str(error))
    both.path, both.key, both.reason = error.path, error.key, error.reason
    return both  # type: ignore[no-any-return]


def _find_parts(index: Index) -> list[Part]:
    if index.tree is None:
        return [Part("", "weights", {record.key: record for record in index.records})]
    return find_parts(index.tree)


def _make_part(index: Index, part: Part) -> Part:
    """Return a part with Parameters in the place of records, under their names inside of it."""
    records = list(part.arrays.values())
    if index.tree is not None:
        renamed = [record if record.key == name else _rename(record, name) for name, record in part.arrays.items()]
        records = merge_aliases(renamed)
    arrays: dict[str, Any] = {}
    for record in _check_names(index.path, records):
        parameter = _make_parameter(record)
        for name in dict.fromkeys((record.key_in_part, *record.metadata.aliases, *record.metadata.native_aliases)):
            arrays.setdefault(name, parameter)
    return Part(part.name, part.kind, arrays)


def _rename(record: Record, name: str) -> Record:
    """Return a record under its name inside of a part."""
    plain = ArrayMetadata.plain(name, record.shape, record.dtype)
    return replace(record, inner=name, metadata=plain if record.metadata.name == record.key else record.metadata)


def _check_names(path: str, records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records; raise if two of them have the same neutral name."""
    seen: dict[str, str] = {}
    for record in records:
        for name in (record.metadata.name, *record.metadata.aliases):
            if name in seen:
                raise damaged(path, f"it has the name {name!r}, as has {seen[name]!r}", key=record.key)
            seen[name] = record.key
        yield record


def _make_parameter(record: Record) -> Parameter:
    metadata = record.metadata
    return Parameter(
        name=metadata.name,
        native_name=metadata.native or record.key_in_part,
        role=metadata.role,
        layer=metadata.layer,
        layout=metadata.layout,
        dtype=record.dtype,
        storage=FILE,
        handle=record,
        gates=metadata.gates,
        aliases=metadata.aliases,
        native_aliases=metadata.native_aliases,
    )
