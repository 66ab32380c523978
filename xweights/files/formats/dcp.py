"""Folders of torch.distributed.checkpoint: a pickle of metadata, and data files of chunks that were saved by each rank.

The metadata is described, never run (see ``pt_pickle``). A chunk is a whole .pt file at some place in a data file; the
chunks of a tensor, from whichever rank, are joined. Values that are no tensors (settings of an optimizer) are listed as
ignored: each is a pickle of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.core.shards import Ranges
from xweights.files.formats import pt
from xweights.files.formats.chunks import Chunk, JoinedChunks, check_chunks
from xweights.files.formats.dcp_metadata import NOTE, Contents, StoredArray, StoredChunk
from xweights.files.formats.pt_names import DTYPES, Name, OpaqueObject
from xweights.files.formats.pt_pickle import describe
from xweights.files.formats.safetensors import json_object, parse_metadata
from xweights.files.formats.sharded import resolve_beside
from xweights.files.io import journal
from xweights.files.io.blocks import make_block
from xweights.files.io.dtypes import dtype_from_name
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import ArrayMetadata, compact_json
from xweights.files.io.open_file import OpenFile, damaged, refused, shorten
from xweights.files.io.records import Index, Record

ENDING = ".metadata"
DATA_ENDING = ".distcp"
_MODULE = "torch.distributed.checkpoint."
_MOST_FILES = 100_000
# What stands in the tree for a value that is no tensor.
_OTHER = "a value that is no tensor"


class _Region(OpenFile):
    """A part of an open file that is read as a file of its own."""

    def __init__(self, file: OpenFile, start: int, size: int) -> None:
        self.path, self.descriptor, self.file = file.path, file.descriptor, file
        self.start, self.size = start, size

    def close(self) -> None:
        self.file.close()

    def read(self, offset: int, count: int, *, key: str | None = None) -> bytes:
        self.check_inside(offset, count, key)
        return self.file.read(self.start + offset, count, key=key)

    def read_into(self, offset: int, out: Array, *, key: str | None = None) -> None:
        self.file.read_into(self.start + offset, out, key=key)


@dataclass(frozen=True, slots=True, eq=False)
class _SavedTensor:
    """Location of a chunk: a .pt file of one tensor, which is opened when it is read."""

    region: _Region
    limits: Limits

    def read(self, record: Record) -> Array:
        return self._find(record).read()

    def read_into(self, record: Record, out: Array, start: int) -> None:
        self._find(record).read_into(out, start)

    def read_block(self, record: Record, ranges: Ranges, out: Array) -> None:
        found = self._find(record)
        block = make_block(found, ranges)
        if block is None:
            out[...] = found.read()[tuple(slice(*own) for own in ranges)]
        else:
            block.read_into(out.reshape(-1))

    def _find(self, record: Record) -> Record:
        found = pt.read(self.region, self.limits).records
        if len(found) != 1 or found[0].dtype != record.dtype or found[0].shape != record.shape:
            have = ", ".join(f"{one.dtype} {one.shape}" for one in found[:3]) or "nothing"
            reason = f"its data isn't what its metadata says\ngot:      {have}"
            raise damaged(self.region.path, f"{reason}\nexpected: {record.dtype} {record.shape}", key=record.key)
        return found[0]


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a folder of torch.distributed.checkpoint whose ``.metadata`` is open."""
    limits.check_index(file.path, file.size)
    described = describe(file.read(0, file.size), file.path, limits)
    try:
        return _Reader(file, limits, described).make_index()
    except (TypeError, KeyError, AttributeError) as wrong:
        raise damaged(file.path, f"its metadata isn't made as it should be: {shorten(str(wrong))}") from None


def read_contents(path: str) -> Contents:
    """Return what a folder's metadata says, to write it again; refuse what couldn't be written as it was."""
    file = journal.open_recovered(path)
    try:
        described = describe(file.read(0, file.size), path, Limits())
        return _Reader(file, Limits(), described).list_contents()
    except (TypeError, KeyError, AttributeError) as wrong:
        raise damaged(path, f"its metadata isn't made as it should be: {shorten(str(wrong))}") from None
    finally:
        file.close()


class _Reader:
    """Reader of the metadata of one folder."""

    def __init__(self, file: OpenFile, limits: Limits, described: Any) -> None:
        self.file, self.limits = file, limits
        self.fields = _fields_of(described, "metadata.Metadata")
        self.data: dict[str, OpenFile] = {}
        self.places = dict(self._iter_places())
        self.notes = self._read_notes()

    def make_index(self) -> Index:
        """Return the index of all tensors; ``tree`` has them where they were in the dict that was saved."""
        records: list[Record] = []
        ignored: list[str] = []
        position_of: dict[str, int] = {}
        paths = self._read_paths()
        tree: dict[Any, Any] = {}
        for key, stored in _dict(self.fields["state_dict_metadata"]).items():
            if not isinstance(key, str):
                raise TypeError(f"a name of a tensor is {shorten(key)}")
            value: Any = _OTHER
            if _is(stored, "metadata.TensorStorageMetadata"):
                tied_to = self.notes.get(key)
                if isinstance(tied_to, str) and tied_to in position_of:
                    first = records[position_of[tied_to]]
                    records[position_of[tied_to]] = replace(first, metadata=first.metadata.with_alias(key))
                    continue
                value = self._make_record(key, stored.state)
                position_of[key] = len(records)
                records.append(value)
            else:
                ignored.append(key)
            _put(tree, paths.get(key, (key,)), key, value)
        nested = any(len(paths.get(record.key, ())) > 1 for record in records)
        files = [self.file, *self.data.values()]
        folder = os.path.dirname(self.file.path) or "."
        return Index(folder, "torch distributed", records, files, ignored=ignored, tree=tree if nested else None)

    def list_contents(self) -> Contents:
        """Return the places of all arrays and values."""
        arrays: list[StoredArray] = []
        values: dict[str, StoredChunk] = {}
        for key, stored in _dict(self.fields["state_dict_metadata"]).items():
            if not _is(stored, "metadata.TensorStorageMetadata"):
                values[key] = self._find_place(key, None, ())
                continue
            fields = _dict(stored.state)
            blocks = [_dict(_fields_of(chunk, "metadata.ChunkStorageMetadata")) for chunk in fields["chunks"]]
            chunks = [self._find_place(key, _shape(block["offsets"]), _shape(block["sizes"])) for block in blocks]
            dtype = self._find_dtype(key, fields["properties"]).name
            arrays.append(StoredArray(key, dtype, _shape(fields["size"]), chunks))
        return Contents(arrays, values, self._read_paths(), compact_json(self.notes))

    def _find_place(self, key: str, start: Shape | None, shape: Shape) -> StoredChunk:
        where = self.places.get((key, start), self.places.get((key, None)))
        if where is None or where.get("transform_descriptors"):
            raise refused(self.file.path, "its data is transformed, or in no file, and isn't written again", key=key)
        return StoredChunk(start or (), shape, where["relative_path"], where["offset"], where["length"])

    def _read_notes(self) -> dict[str, Any]:
        """Return what xweights noted of each array when it wrote the folder."""
        noted = self.fields.get("planner_data")
        text = noted.get(NOTE) if isinstance(noted, dict) else None
        return json_object(self.file.path, text.encode(), f"its note {NOTE!r}") if isinstance(text, str) else {}

    def _read_paths(self) -> dict[str, tuple[Any, ...]]:
        """Return where each value was in the nested dicts: the planner's note of how it flattened them."""
        noted = self.fields.get("planner_data")
        return {
            key: path
            for key, path in (noted.items() if isinstance(noted, dict) else ())
            if isinstance(path, tuple) and path and all(type(word) in (str, int) for word in path)
        }

    def _iter_places(self) -> Iterator[tuple[tuple[str, Any], Mapping[str, Any]]]:
        for index, stored in _dict(self.fields["storage_data"]).items():
            named, where = _fields_of(index, "metadata.MetadataIndex"), _fields_of(stored, "filesystem._StorageInfo")
            yield (named["fqn"], named.get("offset")), where

    def _make_record(self, key: str, fields: Any) -> Record:
        fields = _dict(fields)
        shape, dtype = _shape(fields["size"]), self._find_dtype(key, fields["properties"])
        chunks = [_dict(_fields_of(chunk, "metadata.ChunkStorageMetadata")) for chunk in fields["chunks"]]
        blocks = [(_shape(chunk["offsets"]), _shape(chunk["sizes"])) for chunk in chunks]
        check_chunks(self.file.path, key, shape, blocks)
        joined = [Chunk(start, self._find_chunk(key, start, sizes, dtype)) for start, sizes in blocks]
        metadata = parse_metadata(self.file.path, self.notes.get(key), key, shape, dtype)
        record = Record(key, dtype, shape, metadata, JoinedChunks(joined))
        self.limits.check(self.file.path, record)
        return record

    def _find_dtype(self, key: str, properties: Any) -> np.dtype[Any]:
        # A tuple from TensorProperties.__getstate__, a dict from the plain dataclass of older versions.
        state = properties.state
        dtype = state.get("dtype") if isinstance(state, dict) else state[0] if isinstance(state, tuple) else None
        name = dtype.text.removeprefix("torch.") if isinstance(dtype, Name) else ""
        if name not in DTYPES:
            raise refused(self.file.path, f"its dtype is {shorten(name)}, which isn't read", key=key)
        return dtype_from_name(name)

    def _find_chunk(self, key: str, start: Shape, sizes: Shape, dtype: np.dtype[Any]) -> Record:
        where = self.places.get((key, start), self.places.get((key, None)))
        if where is None:
            raise damaged(self.file.path, "one of its chunks is in no file by the metadata", key=key)
        if where.get("transform_descriptors"):
            raise refused(self.file.path, "its data is transformed (compressed, encrypted), and isn't read", key=key)
        offset, length = where["offset"], where["length"]
        if type(offset) is not int or type(length) is not int:
            raise TypeError("a place in a file is no number")
        data = self._open_data(where["relative_path"], key)
        data.check_inside(offset, length, key)
        location = _SavedTensor(_Region(data, offset, length), self.limits)
        return Record(key, dtype, sizes, ArrayMetadata.plain(key, sizes, dtype), location)

    def _open_data(self, name: Any, key: str) -> OpenFile:
        if name not in self.data:
            if len(self.data) >= _MOST_FILES:
                raise refused(self.file.path, f"it names more than {_MOST_FILES:,} data files", key=key)
            self.data[name] = journal.open_recovered(resolve_beside(self.file.path, name))
        return self.data[name]


def _is(value: Any, name: str) -> bool:
    return isinstance(value, OpaqueObject) and value.type == _MODULE + name


def _fields_of(value: Any, name: str) -> dict[str, Any]:
    if not _is(value, name):
        raise TypeError(f"there is {shorten(getattr(value, 'type', value))} where {name} is wanted")
    return _dict(value.state)


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"there is a {type(value).__name__} where a dict is wanted")
    return value


def _shape(value: Any) -> Shape:
    if not isinstance(value, tuple) or len(value) > 64 or not all(type(n) is int and 0 <= n < 1 << 62 for n in value):
        raise TypeError(f"a shape is {shorten(value)}")
    return value


def _put(tree: dict[Any, Any], path: tuple[Any, ...], key: str, value: Any) -> None:
    """Put a value at its path in nested dicts, or under its whole name where something else is there."""
    inner = tree
    for word in path[:-1]:
        inner = inner.setdefault(word, {})
        if not isinstance(inner, dict):
            tree[key] = value
            return
    if path[-1] in inner:
        tree[key] = value
    else:
        inner[path[-1]] = value
