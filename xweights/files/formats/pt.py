"""The .pt format of PyTorch since 1.6: a zip file of storages, and a pickle that says which tensors lie in them.

The pickle is described, never run (see pickles). Files of the format before it are read by legacy.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from xweights.files.formats import pt_legacy
from xweights.files.formats.pt_pickle import STORAGES, PickledStorage, describe
from xweights.files.formats.pt_tensors import StorageLocation, c_strides, index_of
from xweights.files.formats.safetensors import json_object
from xweights.files.formats.zip_archive import Archive
from xweights.files.io.items import ArrayToWrite, Sink
from xweights.files.io.limits import Limits
from xweights.files.io.notes import packed
from xweights.files.io.open_file import OpenFile, damaged, refused, shortened
from xweights.files.io.records import Index, bytes_of

ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_NOTES = "xweights.json"
# Entries begin at multiples of this in a file, as other readers that map it into memory like.
_ALIGNED = 64
_PAD = struct.Struct("<HH")
_PAD_KIND = 0x4246  # "FB", as PyTorch itself pads


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a .pt file, of this format or the one before it."""
    if file.read(0, min(file.size, 2)) != b"PK":
        return pt_legacy.read(file, limits)
    archive = Archive(file, limits)
    root = _root(archive)
    known = archive.members
    if f"{root}constants.pkl" in known or any(name.startswith(f"{root}code/") for name in known):
        raise refused(file.path, "it is a TorchScript program", fix="save its state_dict()")
    tree = describe(archive.read(known[f"{root}data.pkl"]), file.path, limits)
    swapped = _order(archive, root) != ("little" if np.little_endian else "big")

    def place_of(storage: PickledStorage, key: str) -> StorageLocation:
        member = known.get(f"{root}data/{storage.key}")
        if member is None:
            raise damaged(file.path, f"its storage {shortened(storage.key)} isn't in the archive", key=key)
        if member.deflated:
            raise refused(file.path, "its storage is compressed, as PyTorch never does", key=key)
        return StorageLocation(member.offset, member.size, member.checks)

    return index_of(file, tree, place_of, swapped=swapped, notes=_notes(archive, root), limits=limits)


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


def write(sink: Sink, items: Sequence[ArrayToWrite], metadata: dict[str, str]) -> None:
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


def _pickle(sink: Sink, items: Sequence[ArrayToWrite]) -> bytes:
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
        out += [_integer(0), _integers(shape), _integers(c_strides(shape)), b"\x89ccollections\nOrderedDict\n)R"]
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
