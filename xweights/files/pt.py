"""The .pt format of PyTorch since 1.6: a zip file of storages, and a pickle that says which tensors lie in them.

Owns :func:`read` and :func:`write`. Imports archives, descriptors, items, limits, notes, pickles and records.

The pickle is described, never run (see pickles). Every tensor is checked against its storage, and every storage against
its member of the archive, before anything is read. Nested dicts and lists flatten with ``/``; what in them is no tensor
(an epoch, a setting) is listed as ignored.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xweights.files.archives import Archive, Member
from xweights.files.descriptors import OpenFile, damaged, refused, shortened
from xweights.files.dtypes import dtype_named
from xweights.files.items import Item, Sink
from xweights.files.limits import Limits
from xweights.files.notes import packed
from xweights.files.pickles import STORAGES, Storage, Tensor, describe
from xweights.files.records import Index, Record, Span, bytes_of
from xweights.files.safetensors import json_object, read_note

ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_NOTES = "xweights.json"
_DEPTH = 100
# Entries begin at multiples of this in a file, as other readers that map it into memory like.
_ALIGNED = 64
_PAD = struct.Struct("<HH")
_PAD_KIND = 0x4246  # "FB", as PyTorch itself pads


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a .pt file."""
    start = file.read(0, min(file.size, 4))
    if start[:2] != b"PK":
        if start[:1] == b"\x80" or b"././@LongLink" in file.read(0, min(file.size, 512)):
            reason = "it has the format of PyTorch before 1.6, which is one pickle"
            fix = "save it again: torch.save(torch.load(path, weights_only=True), path)"
            raise refused(file.path, reason, fix=fix)
        raise damaged(file.path, "it doesn't begin as a zip file does")
    archive = Archive(file, limits)
    root = _root(archive)
    known = archive.members
    if f"{root}constants.pkl" in known or any(name.startswith(f"{root}code/") for name in known):
        raise refused(file.path, "it is a TorchScript program", fix="save its state_dict()")
    tree = describe(archive.read(known[f"{root}data.pkl"]), file.path, limits)
    notes = _notes(archive, root)
    swapped = _order(archive, root) != ("little" if np.little_endian else "big")
    records: dict[Any, Record] = {}
    ignored: list[str] = []
    for key, value in _leaves(tree, file.path):
        if not isinstance(value, Tensor):
            ignored.append(key)
            continue
        seen = (value.storage.key, value.dtype, value.offset, value.shape, value.strides)
        if seen in records and value.shape and 0 not in value.shape:
            # Two names of one tensor: tied.
            first = records[seen]
            note = replace(first.note, aliases=tuple(dict.fromkeys((*first.note.aliases, key))))
            records[seen] = replace(first, note=note)
            continue
        record = _record(archive, root, key, value, swapped, notes.get(key))
        limits.check(file.path, record)
        records[seen if seen not in records else (*seen, key)] = record
    if not records and not (isinstance(tree, dict) and not tree):
        raise refused(file.path, "it holds no tensor", fix="save a state dict")
    return Index(file.path, "pt", list(records.values()), [file], ignored=ignored)


def _root(archive: Archive) -> str:
    found = [name for name in archive.members if name.count("/") <= 1 and name.endswith("data.pkl")]
    if len(found) != 1:
        raise damaged(archive.file.path, f"it has {len(found)} members named data.pkl, and one is wanted")
    return found[0].removesuffix("data.pkl")


def _notes(archive: Archive, root: str) -> dict[str, Any]:
    member = archive.members.get(root + _NOTES)
    return {} if member is None else json_object(archive.file.path, archive.read(member), f"its member {_NOTES!r}")


def _order(archive: Archive, root: str) -> str:
    member = archive.members.get(f"{root}byteorder")
    if member is None:
        return "little"
    word = archive.read(member, 16).decode("latin1")
    if word not in ("little", "big"):
        raise damaged(archive.file.path, f"its byte order is {shortened(word)}", key=member.name)
    return word


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of everything in nested containers, each name once."""
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
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _walk(one, f"{name}/{key}" if name else str(key), path, above, seen)
    above.pop()


def _record(archive: Archive, root: str, key: str, tensor: Tensor, swapped: bool, note: Any) -> Record:
    path, storage = archive.file.path, tensor.storage
    member = archive.members.get(f"{root}data/{storage.key}")
    if member is None:
        raise damaged(path, f"its storage {shortened(storage.key)} isn't in the archive", key=key)
    if member.deflated:
        raise refused(path, "its storage is compressed, as PyTorch never does", key=key)
    _check_storage(path, key, storage, member)
    dtype = dtype_named(tensor.dtype)
    size = math.prod(tensor.shape)
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True)) if size else -1
    if size and (tensor.offset + last + 1) * dtype.itemsize > member.size:
        reason = f"it reaches beyond its storage\ngot:      {tensor.offset + last + 1:,} entries"
        raise damaged(path, f"{reason}\nexpected: {member.size // dtype.itemsize:,} at most", key=key)
    if size * dtype.itemsize > member.size:
        reason = f"its {size:,} entries share a storage of {member.size // dtype.itemsize:,}: it is expanded"
        raise refused(path, reason, key=key, fix="save tensor.contiguous()")
    plain = tensor.strides == _c_strides(tensor.shape) or size <= 1
    end = member.offset + member.size
    offset = member.offset + tensor.offset * dtype.itemsize
    strides = None if plain else tensor.strides
    span = Span(archive.file, offset, swapped and dtype.itemsize > 1, strides, member.checks, member.offset, end)
    return Record(key, dtype, tensor.shape, read_note(path, note, key, tensor.shape, dtype), span)


def _check_storage(path: str, key: str, storage: Storage, member: Member) -> None:
    wanted = storage.count * dtype_named(storage.dtype).itemsize
    if member.size != wanted:
        reason = f"its storage {shortened(storage.key)} has another size than described"
        raise damaged(path, f"{reason}\ngot:      {member.size:,} bytes\nexpected: {wanted:,} bytes", key=key)


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps: list[int] = []
    step = 1
    for length in reversed(shape):
        steps.append(step)
        step *= max(length, 1)
    return tuple(reversed(steps))


def write(sink: Sink, items: Sequence[Item], metadata: dict[str, str]) -> None:
    """Write items as a state dict that ``torch.load(path, weights_only=True)`` reads."""
    if metadata:
        raise sink.cannot(None, "a .pt has no place for metadata")
    notes = {item.key: item.note.as_json(item.key, item.dtype) for item in items if item.note is not None}
    with zipfile.ZipFile(sink.file, "w", zipfile.ZIP_STORED) as archive:
        _small(archive, "data.pkl", _pickle(sink, items))
        _small(archive, "byteorder", b"little")
        _small(archive, "version", b"3\n")
        if notes := {key: note for key, note in notes.items() if note}:
            _small(archive, _NOTES, packed(notes).encode())
        for place, item in enumerate(items):
            info = zipfile.ZipInfo(f"archive/data/{place}")
            wide = item.nbytes >= 1 << 31
            begin = sink.file.tell() + 30 + len(info.filename) + _PAD.size + 20 * wide
            pad = -begin % _ALIGNED
            info.extra = _PAD.pack(_PAD_KIND, pad) + b"Z" * pad
            with archive.open(info, "w", force_zip64=wide) as member:
                for part in item.checked():
                    member.write(bytes_of(part))


def _small(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


_TYPED = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}


def _pickle(sink: Sink, items: Sequence[Item]) -> bytes:
    out = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    for place, item in enumerate(items):
        shape, word = tuple(item.shape), item.dtype.name
        typed = word in _TYPED
        if not typed and f"{word}" not in _UNTYPED:
            raise sink.cannot(item, f"PyTorch has no dtype {word}")
        size = math.prod(shape)
        out.append(_text(item.key))
        out.append(b"ctorch._utils\n_rebuild_tensor_v2\n(" if typed else b"ctorch._utils\n_rebuild_tensor_v3\n(")
        kind = f"ctorch\n{_TYPED[word]}\n" if typed else "ctorch.storage\nUntypedStorage\n"
        count = size if typed else item.nbytes
        out += [b"(", _text("storage"), kind.encode(), _text(str(place)), _text("cpu"), _integer(count), b"tQ"]
        out += [_integer(0), _integers(shape), _integers(_c_strides(shape)), b"\x89ccollections\nOrderedDict\n)R"]
        out.append(b"tR" if typed else f"ctorch\n{word}\ntR".encode())
    return b"".join([*out, b"u."])


_UNTYPED = frozenset(
    {"uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}
    | {"float8_e8m0fnu"}
)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    data = number.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _integers(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
