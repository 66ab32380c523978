"""Turn the tensors that a pickle describes into records, and check that each is within its storage.

The names of tensors in nested dicts and lists are joined with ``/``; values in them that are no tensors (an epoch, a
setting) are listed as ignored. A module that was pickled as a whole is read as its state dict.

Every tensor is checked against its storage, and every storage against the file, before anything is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from xweights.core.dtypes import Array
from xweights.files.formats.pt_names import OpaqueObject, PickledArray, PickledStorage, Tensor
from xweights.files.formats.safetensors import parse_metadata
from xweights.files.io.dtypes import dtype_from_name
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.open_file import OpenFile, damaged, refused, shorten
from xweights.files.io.records import ByteRange, Index, Record

_DEPTH = 100


@dataclass(frozen=True, slots=True)
class StorageLocation:
    """The location of a storage's bytes in a file.

    ``checks`` are the offsets of CRC-32 checksums over them, ``verify`` checks the bytes before the first is used.
    """

    offset: int
    size: int
    checks: tuple[int, ...] = ()
    verify: Callable[[int, memoryview | None], bool] | None = None


# (storage, name of the tensor that refers to it) -> its location; raises if there is none.
Locate = Callable[[PickledStorage, str], StorageLocation]


def build_index(
    file: OpenFile, tree: Any, locate: Locate, *, swapped: bool, metadata_by_key: Mapping[str, Any], limits: Limits
) -> Index:
    """Return the index of a file whose pickle describes ``tree``."""
    if not isinstance(tree, (dict, Tensor, list, tuple, OpaqueObject)):
        raise refused(file.path, f"it holds a {type(tree).__name__}, and no dict of tensors", fix="save a state dict")
    builder = _TreeBuilder(file, locate, swapped, metadata_by_key, limits)
    built = builder.build(tree, "", [])
    if not builder.records and not (isinstance(tree, dict) and not tree):
        kinds = ", ".join(sorted(builder.kinds)[:5])
        but = f", but objects of {kinds}, of which nothing was imported or run" if kinds else ""
        raise refused(file.path, f"it holds no tensor{but}", fix="save a state dict")
    return Index(file.path, "pt", merge_aliases(builder.records), [file], ignored=builder.ignored, tree=built)


def merge_aliases(records: Iterable[Record]) -> list[Record]:
    """Return the records, one for all names of a tensor: names that share their bytes are tied."""
    merged: dict[Any, Record] = {}
    for record in records:
        where = record.location
        seen: Any = record.key
        if isinstance(where, ByteRange) and record.shape and 0 not in record.shape:
            seen = (id(where.file), where.offset, where.strides, record.dtype, record.shape)
        first = merged.get(seen)
        alias = None if first is None else first.metadata.with_alias(record.key_in_part)
        merged[seen] = record if first is None or alias is None else replace(first, metadata=alias)
    return list(merged.values())


class _TreeBuilder:
    """Builds the tree of a file: the pickle's containers, with a record in the place of each tensor."""

    def __init__(
        self, file: OpenFile, locate: Locate, swapped: bool, metadata_by_key: Mapping[str, Any], limits: Limits
    ) -> None:
        self.file, self.locate, self.swapped, self.limits = file, locate, swapped, limits
        self.metadata_by_key = metadata_by_key
        self.records: list[Record] = []
        self.ignored: list[str] = []
        self.kinds: set[str] = set()
        self.names: set[str] = set()
        self.uses: dict[int, int] = {}

    def build(self, value: Any, name: str, above: list[int]) -> Any:
        """Return the tree of a value of the pickle."""
        key, value = id(value), self.contents_of(value)
        if isinstance(value, (Tensor, PickledArray)):
            return self.add_record(value, name or "tensor")
        if not isinstance(value, (dict, list, tuple)):
            self.take_name(name)
            self.ignored.append(name)
            if isinstance(value, OpaqueObject):
                self.kinds.add(value.type[:200])
            return value
        if key in above or len(above) > _DEPTH:
            raise damaged(self.file.path, "its dicts contain themselves, or are nested too deeply", key=name)
        if value:
            self.count_use(key, name)
        found, left_out = len(self.records), len(self.ignored)
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        inner = {
            k: self.build(item, f"{name}/{_show_key(k)}" if name else _show_key(k), [*above, key]) for k, item in pairs
        }
        if name and value and len(self.records) == found:
            self.ignored[left_out:] = [name]  # as a whole: a random state is a list of 600 numbers
        return inner if isinstance(value, dict) else list(inner.values())

    def count_use(self, key: int, name: str) -> None:
        """Refuse a container that is used over and over: a few of them in each other make endless names."""
        self.uses[key] = self.uses.get(key, 0) + 1
        if self.uses[key] > 100:
            reason = "one of its dicts is used over and over, which would make endless names"
            raise refused(self.file.path, reason, key=name)

    def contents_of(self, value: Any) -> Any:
        """Return what an object of an unknown class holds: a module's state dict, or the dict or list that it is."""
        if not isinstance(value, OpaqueObject):
            return value
        if isinstance(value.state, PickledArray):
            return value.state
        if _is_module(value):
            return dict(self.iter_state(value, "", 0))
        if value.entries or value.items:
            return value.entries or value.items
        return value.state if isinstance(value.state, dict) and _holds_tensors(value.state, 4) else value

    def iter_state(self, module: OpaqueObject, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        """Yield the (key, tensor) pairs of the state dict that a pickled module would have."""
        self.count_use(id(module.state), prefix)
        passing = module.state.get("_non_persistent_buffers_set")
        for table, left_out in (("_parameters", ()), ("_buffers", passing if isinstance(passing, list) else ())):
            tensors = module.state.get(table)
            for key, tensor in tensors.items() if isinstance(tensors, dict) else ():
                if tensor is not None and key not in left_out:
                    yield f"{prefix}{key}", tensor
        for key, child in module.state["_modules"].items():
            if not _is_module(child):
                continue
            if depth > _DEPTH:
                raise damaged(self.file.path, "its modules contain themselves, or are nested too deeply", key=prefix)
            yield from self.iter_state(child, f"{prefix}{key}.", depth + 1)

    def take_name(self, name: str) -> None:
        if name in self.names:
            raise damaged(self.file.path, "two of its tensors have one name", key=name)
        if len(self.names) > 10_000_000 or len(name) > 10_000:
            raise refused(self.file.path, "it has more names, or longer ones, than weights have")
        self.names.add(name)

    def add_record(self, value: Tensor | PickledArray, name: str) -> Any:
        self.take_name(name)
        metadata = self.metadata_by_key.get(name)
        if isinstance(value, PickledArray):
            record = _make_array_record(self.file, name, value)
        else:
            record = _make_record(self.file, self.locate(value.storage, name), name, value, self.swapped, metadata)
        self.limits.check(self.file.path, record)
        self.records.append(record)
        return record


def _show_key(key: Any) -> str:
    return key if isinstance(key, str) else getattr(key, "text", str(key)[:200])


def _is_module(value: Any) -> bool:
    state = value.state if isinstance(value, OpaqueObject) else None
    return isinstance(state, dict) and all(isinstance(state.get(name), dict) for name in ("_parameters", "_modules"))


def _holds_tensors(value: Any, depth: int) -> bool:
    if isinstance(value, (Tensor, PickledArray)) or _is_module(value):
        return True
    if isinstance(value, OpaqueObject):
        return isinstance(value.state, PickledArray)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return depth > 0 and any(_holds_tensors(item, depth - 1) for item in inner)


@dataclass(frozen=True, slots=True, eq=False)
class _PickledEntries:
    """Location of an array whose bytes are inside the pickle."""

    array: Array

    def read(self, record: Record) -> Array:
        return self.array.copy()

    def read_into(self, record: Record, out: Array, start: int) -> None:
        out[...] = self.array.reshape(-1)[start : start + out.size]


def _make_array_record(file: OpenFile, key: str, described: PickledArray) -> Record:
    try:
        stored = np.dtype(described.dtype)
        if stored.kind not in "biufc" or stored.itemsize * math.prod(described.shape) != len(described.data):
            raise ValueError("its bytes don't fit its shape")  # noqa: TRY301 - told with the others below
        order: Literal["F", "C"] = "F" if described.fortran else "C"
        flat = np.frombuffer(described.data, stored) if described.data else np.empty(0, stored)
        array = flat.reshape(described.shape, order=order)
        array = np.ascontiguousarray(array.astype(stored.newbyteorder("="))).reshape(described.shape)
    except (ValueError, TypeError) as wrong:
        raise refused(file.path, f"it is a NumPy array that can't be read: {wrong}", key=key) from None
    metadata = ArrayMetadata.plain(key, array.shape, array.dtype)
    return Record(key, array.dtype, array.shape, metadata, _PickledEntries(array))


def _make_record(
    file: OpenFile, location: StorageLocation, key: str, tensor: Tensor, swapped: bool, metadata: Any
) -> Record:
    path = file.path
    _check_storage(path, key, tensor.storage, location)
    dtype = dtype_from_name(tensor.dtype)
    size = math.prod(tensor.shape)
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True)) if size else -1
    if size and (tensor.offset + last + 1) * dtype.itemsize > location.size:
        reason = f"it reaches beyond its storage\ngot:      {tensor.offset + last + 1:,} entries"
        raise damaged(path, f"{reason}\nexpected: {location.size // dtype.itemsize:,} at most", key=key)
    if size * dtype.itemsize > location.size:
        reason = f"its {size:,} entries share a storage of {location.size // dtype.itemsize:,}: it is expanded"
        raise refused(path, reason, key=key, fix="save tensor.contiguous()")
    plain = tensor.strides == c_strides(tensor.shape) or size <= 1
    offset = location.offset + tensor.offset * dtype.itemsize
    strides = None if plain else tensor.strides
    end = location.offset + location.size
    swapped = swapped and dtype.itemsize > 1
    data = ByteRange(file, offset, swapped, strides, location.checks, location.offset, end, location.verify)
    return Record(key, dtype, tensor.shape, parse_metadata(path, metadata, key, tensor.shape, dtype), data)


def _check_storage(path: str, key: str, storage: PickledStorage, location: StorageLocation) -> None:
    expected = storage.count * dtype_from_name(storage.dtype).itemsize
    if location.size != expected:
        reason = f"its storage {shorten(storage.key)} has another size than described"
        raise damaged(path, f"{reason}\ngot:      {location.size:,} bytes\nexpected: {expected:,} bytes", key=key)


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in entries, of an array in C order."""
    steps: list[int] = []
    step = 1
    for length in reversed(shape):
        steps.append(step)
        step *= max(length, 1)
    return tuple(reversed(steps))
