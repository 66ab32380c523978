"""The .npz format: a zip file of .npy files.

Written after NumPy's description of the format (numpy.lib.format). Objects, which NumPy would unpickle, are refused.
A note is kept as an extra field of its member, where nobody else looks.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.files.formats.safetensors import read_note
from xweights.files.formats.zip_archive import Archive, Member, noted
from xweights.files.io.dtypes import dtype_named, is_special, native
from xweights.files.io.items import ArrayToWrite, Sink
from xweights.files.io.limits import Limits
from xweights.files.io.notes import packed
from xweights.files.io.open_file import OpenFile, damaged, raw, refused, shortened
from xweights.files.io.records import ByteRange, Index, Record, bytes_of

ENDING = ".npz"
_MAGIC = b"\x93NUMPY"
_HEADER_MOST = 1 << 16
_DESCRIPTION = re.compile(r"([<>|=]?)([biufcV])(\d{1,3})|\|?b1|\?")


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Entries of a compressed member, after its header."""

    archive: Archive
    member: Member
    header: int
    stored: np.dtype[Any]
    fortran: bool

    def read(self, record: Record) -> Array:
        whole = np.empty(record.shape[::-1] if self.fortran else record.shape, record.dtype)
        room = raw(whole) if whole.size else np.empty(0, np.uint8)
        at = -self.header
        for part in self.archive.stream(self.member):
            first = max(0, -at)
            if first < len(part):
                room[at + first : at + len(part)] = np.frombuffer(part, np.uint8)[first:]
            at += len(part)
        if self.stored.byteorder not in "=|" and not self.stored.isnative:
            whole.byteswap(inplace=True)
        return whole.transpose() if self.fortran else whole

    def read_into(self, record: Record, out: Array, start: int) -> None:
        out[...] = self.read(record).reshape(-1)[start : start + out.size]


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of an .npz file."""
    archive = Archive(file, limits)
    records = [_record(archive, member) for member in archive.members.values()]
    return Index(file.path, "npz", records, [file])


def _record(archive: Archive, member: Member) -> Record:
    path, key = archive.file.path, member.name.removesuffix(".npy")
    if key == member.name:
        raise refused(path, "it is no .npy file: an .npz has nothing else", key=key)
    stored, fortran, shape, header = _header(archive, member, key)
    note = _note(path, key, member)
    dtype = native(stored)
    if note is not None and isinstance(note.get("dtype"), str):
        dtype = _named(path, key, note["dtype"], stored)
    if dtype.kind == "V" and dtype.isbuiltin != 2:
        reason = f"its dtype {stored.str!r} is bytes without a meaning, as bfloat16 becomes where NumPy saves it"
        raise refused(path, reason, key=key, fix="save it with xweights, or as float32")
    if dtype.kind not in "biufV" or dtype.itemsize > 8:
        raise refused(path, f"its dtype is {stored.str!r}, and weights are real numbers of up to 64 bits", key=key)
    wanted = header + math.prod(shape) * dtype.itemsize
    if member.size != wanted:
        reason = f"its size doesn't fit its shape {shape}\ngot:      {member.size:,} bytes\nexpected: {wanted:,} bytes"
        raise damaged(path, reason, key=key)
    place: Any
    if member.deflated:
        place = Packed(archive, member, header, stored, fortran and len(shape) > 1)
    else:
        strides = _fortran(shape) if fortran and len(shape) > 1 else None
        end = member.offset + member.size
        swapped = dtype.itemsize > 1 and not stored.isnative
        place = ByteRange(
            archive.file,
            member.offset + header,
            swapped,
            strides,
            member.checks,
            member.offset,
            end,
            archive.sum_check(member),
        )
    record = Record(key, dtype, shape, read_note(path, note, key, shape, dtype), place)
    archive.limits.check(path, record)
    return record


def _note(path: str, key: str, member: Member) -> dict[str, Any] | None:
    if member.note is None:
        return None
    try:
        found = json.loads(member.note)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise damaged(path, "its note is no object of JSON", key=key)
    return found


def _named(path: str, key: str, name: str, stored: np.dtype[Any]) -> np.dtype[Any]:
    try:
        dtype = dtype_named(name)
    except (AttributeError, TypeError):
        dtype = None
    if dtype is None or dtype.itemsize != stored.itemsize or stored.kind != "V":
        raise damaged(path, f"its note says {shortened(name)}, its bytes are {stored.str!r}", key=key)
    return dtype


def _fortran(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = [1]
    for length in shape[:-1]:
        steps.append(steps[-1] * length)
    return tuple(steps)


def _header(archive: Archive, member: Member, key: str) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Return (dtype as stored, Fortran order, shape, length of the header)."""
    path = archive.file.path
    start = archive.read(member, 12)
    if start[:6] != _MAGIC or len(start) < 12 or start[6] not in (1, 2, 3):
        raise damaged(path, "it doesn't begin as a .npy file does", key=key)
    if start[6] == 1:
        length, begin = struct.unpack_from("<H", start, 8)[0], 10
    else:
        length, begin = struct.unpack_from("<L", start, 8)[0], 12
    if length > _HEADER_MOST or begin + length > member.size:
        raise damaged(path, f"its header claims {length:,} bytes", key=key)
    text = archive.read(member, begin + length)[begin:].decode("utf-8" if start[6] == 3 else "latin1", "replace")
    header = _words(text)
    if header is None or header.keys() != {"descr", "fortran_order", "shape"}:
        raise damaged(path, "its header isn't made of descr, fortran_order and shape", key=key)
    numbers = header["shape"]
    if not re.fullmatch(r"\((\d{1,18}\s*(,\s*\d{1,18}\s*)*,?\s*)?\)", numbers):
        raise damaged(path, f"its shape is {shortened(numbers)}", key=key)
    shape = tuple(int(one) for one in re.findall(r"\d+", numbers))
    if len(shape) > 64 or header["fortran_order"] not in ("True", "False"):
        raise damaged(path, "its header has a wrong shape or order", key=key)
    return _dtype(path, key, header["descr"]), header["fortran_order"] == "True", shape, begin + length


_PAIR = re.compile(
    r"""\s*(['"])(\w+)\1\s*:\s*(\([^()]*\)|True|False|'[^'\\]*'|"[^"\\]*"|\[.*\])\s*(,|(?=\}))""", re.DOTALL
)


def _words(text: str) -> dict[str, str] | None:
    """Return the words of a header, which is written as a dict of Python; nothing of it is evaluated."""
    text = text.strip()
    found: dict[str, str] = {}
    at = 1
    while text.startswith("{") and (pair := _PAIR.match(text, at)):
        found[pair[2]] = pair[3]
        at = pair.end()
    return found if text[at:].strip() == "}" and text.startswith("{") else None


def _dtype(path: str, key: str, description: str) -> np.dtype[Any]:
    word = description[1:-1]
    if description[0] in "\"'" and "O" in word:
        raise refused(path, "it holds pickled objects, which are never loaded", key=key, fix="save arrays of numbers")
    if description[0] not in "\"'" or not _DESCRIPTION.fullmatch(word):
        raise refused(path, f"its dtype is {shortened(description)}, and weights are real numbers", key=key)
    try:
        return np.dtype(word)
    except (TypeError, ValueError):
        raise damaged(path, f"its dtype is {shortened(description)}", key=key) from None


def write(sink: Sink, items: Sequence[ArrayToWrite], metadata: dict[str, str]) -> None:
    """Write items as an .npz file: stored, not compressed, so that single entries can be read and edited."""
    if metadata:
        raise sink.cannot(None, "an .npz has no place for metadata")
    with zipfile.ZipFile(sink.file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for item in items:
            info = zipfile.ZipInfo(f"{item.key}.npy")  # dated 1980, so that equal weights make equal files
            note = {} if item.note is None else item.note.as_json(item.key, item.dtype)
            if is_special(item.dtype):
                note["dtype"] = item.dtype.name
            info.extra = noted(packed(note).encode()) if note else b""
            if note and not info.extra:
                raise sink.cannot(item, "its names and axes take more than 32 KiB")
            with archive.open(info, "w", force_zip64=item.nbytes >= 1 << 31) as member:
                member.write(_npy_header(item))
                for part in item.checked():
                    member.write(bytes_of(part))


def _npy_header(item: ArrayToWrite) -> bytes:
    dtype = np.dtype(f"V{item.dtype.itemsize}") if is_special(item.dtype) else item.dtype
    description = dtype.newbyteorder("<").str
    text = repr({"descr": description, "fortran_order": False, "shape": tuple(item.shape)}).encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return _MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text
