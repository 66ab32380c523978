"""Turn the tensors that a pickle describes into records, and check that each is within its storage.

Nested dicts and lists are flattened with ``/``; values in them that are no tensors (an epoch, a setting) are listed as
ignored. Every tensor is checked against its storage, and every storage against the file, before anything is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from xweights.files.formats.pt_pickle import PickledStorage, Tensor
from xweights.files.formats.safetensors import parse_metadata
from xweights.files.io.dtypes import dtype_from_name
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import OpenFile, damaged, refused, shorten
from xweights.files.io.records import ByteRange, Index, Record

_DEPTH = 100


@dataclass(frozen=True, slots=True)
class StorageLocation:
    """The location of a storage's bytes in a file. ``checks`` are the offsets of CRC-32 checksums over them."""

    offset: int
    size: int
    checks: tuple[int, ...] = ()


# (storage, name of the tensor that refers to it) -> its location; raises if there is none.
Locate = Callable[[PickledStorage, str], StorageLocation]


def build_index(
    file: OpenFile, tree: Any, locate: Locate, *, swapped: bool, metadata_by_key: Mapping[str, Any], limits: Limits
) -> Index:
    """Return the index of a file whose pickle describes ``tree``."""
    records: dict[Any, Record] = {}
    ignored: list[str] = []
    for key, value in _iter_values(tree, file.path):
        if not isinstance(value, Tensor):
            ignored.append(key)
            continue
        seen = (value.storage.key, value.dtype, value.offset, value.shape, value.strides)
        if seen in records and value.shape and 0 not in value.shape:
            # Two names of one tensor: tied.
            first = records[seen]
            metadata = replace(first.metadata, aliases=tuple(dict.fromkeys((*first.metadata.aliases, key))))
            records[seen] = replace(first, metadata=metadata)
            continue
        record = _make_record(file, locate(value.storage, key), key, value, swapped, metadata_by_key.get(key))
        limits.check(file.path, record)
        records[seen if seen not in records else (*seen, key)] = record
    if not records and not (isinstance(tree, dict) and not tree):
        raise refused(file.path, "it holds no tensor", fix="save a state dict")
    return Index(file.path, "pt", list(records.values()), [file], ignored=ignored)


def _iter_values(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) for everything in nested containers, each name once."""
    if not isinstance(tree, (dict, Tensor, list, tuple)):
        raise refused(path, f"it holds a {type(tree).__name__}, and no dict of tensors", fix="save a state dict")
    seen: set[str] = set()
    for name, value in _walk(tree, "", path, []):
        if name in seen:
            raise damaged(path, "two of its tensors have one name", key=name)
        if len(seen) > 10_000_000 or len(name) > 10_000:
            raise refused(path, "it has more names, or longer ones, than weights have")
        seen.add(name)
        yield name, value


def _walk(value: Any, name: str, path: str, above: list[int], seen: dict[int, int] | None = None) -> Iterator[Any]:
    seen = {} if seen is None else seen
    if not isinstance(value, (dict, list, tuple)):
        yield name or "tensor", value
        return
    if id(value) in above or len(above) > _DEPTH:
        raise damaged(path, "its dicts contain themselves, or are nested too deeply", key=name)
    seen[id(value)] = seen.get(id(value), 0) + 1
    if value and seen[id(value)] > 100:
        raise refused(path, "one of its dicts is used over and over, which would make endless names", key=name)
    above.append(id(value))
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _walk(item, f"{name}/{key}" if name else str(key), path, above, seen)
    above.pop()


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
    data = ByteRange(file, offset, swapped and dtype.itemsize > 1, strides, location.checks, location.offset, end)
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
