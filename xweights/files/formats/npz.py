"""The .npz format: a zip file of .npy files.

Implemented after NumPy's description of the format (numpy.lib.format). Objects, which NumPy would unpickle, are
refused. Metadata of an array is stored in an extra field of its member, which other readers ignore.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xweights.core.dtypes import Array
from xweights.files.formats.safetensors import parse_metadata
from xweights.files.formats.zip_archive import Archive, Member, pack_extra
from xweights.files.io.arrays_to_write import ArrayToWrite, Sink
from xweights.files.io.dtypes import dtype_from_name, is_number, is_special, to_native_byteorder
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import compact_json
from xweights.files.io.open_file import OpenFile, byte_view, damaged, refused, shorten
from xweights.files.io.records import ByteRange, Index, Record, little_endian_bytes

ENDING = ".npz"
_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 16
_DESCRIPTION = re.compile(r"([<>|=]?)([biufcV])(\d{1,3})|\|?b1|\?")


@dataclass(frozen=True, slots=True, eq=False)
class CompressedEntries:
    """Location of entries in a compressed member, after its header."""

    whole: ClassVar[bool] = True

    archive: Archive
    member: Member
    header: int
    stored: np.dtype[Any]
    fortran: bool

    def read(self, record: Record) -> Array:
        array = np.empty(record.shape[::-1] if self.fortran else record.shape, record.dtype)
        buffer = byte_view(array) if array.size else np.empty(0, np.uint8)
        at = -self.header
        for part in self.archive.stream(self.member):
            first = max(0, -at)
            if first < len(part):
                buffer[at + first : at + len(part)] = np.frombuffer(part, np.uint8)[first:]
            at += len(part)
        if self.stored.byteorder not in "=|" and not self.stored.isnative:
            array.byteswap(inplace=True)
        return array.transpose() if self.fortran else array

    def read_into(self, record: Record, out: Array, start: int) -> None:
        out[...] = self.read(record).reshape(-1)[start : start + out.size]


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of an .npz file."""
    archive = Archive(file, limits)
    records = [_make_record(archive, member) for member in archive.members.values()]
    return Index(file.path, "npz", records, [file])


def _make_record(archive: Archive, member: Member) -> Record:
    path, key = archive.file.path, member.name.removesuffix(".npy")
    if key == member.name:
        raise refused(path, "it is no .npy file: an .npz has nothing else", key=key)
    stored, fortran, shape, header = _read_header(archive, member, key)
    metadata = _read_metadata(path, key, member)
    dtype = to_native_byteorder(stored)
    if metadata is not None and isinstance(metadata.get("dtype"), str):
        dtype = _find_dtype(path, key, metadata["dtype"], stored)
    if dtype.kind == "V" and dtype.isbuiltin != 2:
        reason = f"its dtype {stored.str!r} is bytes without a meaning, as bfloat16 becomes where NumPy saves it"
        raise refused(path, reason, key=key, fix="save it with xweights, or as float32")
    if not is_number(dtype):
        raise refused(path, f"its dtype is {stored.str!r}, and weights are numbers of up to 64 bits", key=key)
    expected = header + math.prod(shape) * dtype.itemsize
    if member.size != expected:
        reason = (
            f"its size doesn't fit its shape {shape}\ngot:      {member.size:,} bytes\nexpected: {expected:,} bytes"
        )
        raise damaged(path, reason, key=key)
    location: Any
    if member.deflated:
        location = CompressedEntries(archive, member, header, stored, fortran and len(shape) > 1)
    else:
        strides = _fortran_strides(shape) if fortran and len(shape) > 1 else None
        end = member.offset + member.size
        swapped = dtype.itemsize > 1 and not stored.isnative
        location = ByteRange(
            archive.file,
            member.offset + header,
            swapped,
            strides,
            member.checks,
            member.offset,
            end,
            archive.make_crc_check(member),
        )
    record = Record(key, dtype, shape, parse_metadata(path, metadata, key, shape, dtype), location)
    archive.limits.check(path, record)
    return record


def _read_metadata(path: str, key: str, member: Member) -> dict[str, Any] | None:
    if member.metadata is None:
        return None
    try:
        parsed = json.loads(member.metadata)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise damaged(path, "its note is no object of JSON", key=key)
    return parsed


def _find_dtype(path: str, key: str, name: str, stored: np.dtype[Any]) -> np.dtype[Any]:
    try:
        dtype = dtype_from_name(name)
    except (AttributeError, TypeError):
        dtype = None
    if dtype is None or dtype.itemsize != stored.itemsize or stored.kind != "V":
        raise damaged(path, f"its note says {shorten(name)}, its bytes are {stored.str!r}", key=key)
    return dtype


def _fortran_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = [1]
    for length in shape[:-1]:
        steps.append(steps[-1] * length)
    return tuple(steps)


def _read_header(archive: Archive, member: Member, key: str) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Return (dtype as stored, Fortran order, shape, length of the header)."""
    path = archive.file.path
    start = archive.read(member, 12)
    if start[:6] != _MAGIC or len(start) < 12 or start[6] not in (1, 2, 3):
        raise damaged(path, "it doesn't begin as a .npy file does", key=key)
    if start[6] == 1:
        length, begin = struct.unpack_from("<H", start, 8)[0], 10
    else:
        length, begin = struct.unpack_from("<L", start, 8)[0], 12
    if length > _MAX_HEADER or begin + length > member.size:
        raise damaged(path, f"its header claims {length:,} bytes", key=key)
    text = archive.read(member, begin + length)[begin:].decode("utf-8" if start[6] == 3 else "latin1", "replace")
    header = _parse_header(text)
    if header is None or header.keys() != {"descr", "fortran_order", "shape"}:
        raise damaged(path, "its header isn't made of descr, fortran_order and shape", key=key)
    numbers = header["shape"]
    if not re.fullmatch(r"\((\d{1,18}\s*(,\s*\d{1,18}\s*)*,?\s*)?\)", numbers):
        raise damaged(path, f"its shape is {shorten(numbers)}", key=key)
    shape = tuple(int(length) for length in re.findall(r"\d+", numbers))
    if len(shape) > 64 or header["fortran_order"] not in ("True", "False"):
        raise damaged(path, "its header has a wrong shape or order", key=key)
    return _parse_dtype(path, key, header["descr"]), header["fortran_order"] == "True", shape, begin + length


_PAIR = re.compile(
    r"""\s*(['"])(\w+)\1\s*:\s*(\([^()]*\)|True|False|'[^'\\]*'|"[^"\\]*"|\[.*\])\s*(,|(?=\}))""", re.DOTALL
)


def _parse_header(text: str) -> dict[str, str] | None:
    """Return the fields of a header, which is written as a Python dict, without evaluating it."""
    text = text.strip()
    fields: dict[str, str] = {}
    at = 1
    while text.startswith("{") and (pair := _PAIR.match(text, at)):
        fields[pair[2]] = pair[3]
        at = pair.end()
    return fields if text[at:].strip() == "}" and text.startswith("{") else None


def _parse_dtype(path: str, key: str, description: str) -> np.dtype[Any]:
    name = description[1:-1]
    if description[0] in "\"'" and "O" in name:
        raise refused(path, "it holds pickled objects, which are never loaded", key=key, fix="save arrays of numbers")
    if description[0] not in "\"'" or not _DESCRIPTION.fullmatch(name):
        raise refused(path, f"its dtype is {shorten(description)}, and weights are numbers", key=key)
    try:
        return np.dtype(name)
    except (TypeError, ValueError):
        raise damaged(path, f"its dtype is {shorten(description)}", key=key) from None


def write(sink: Sink, arrays: Sequence[ArrayToWrite], metadata: dict[str, str]) -> None:
    """Write arrays as an .npz file: stored, not compressed, so that single entries can be read and edited."""
    if metadata:
        raise sink.cannot(None, "an .npz has no place for metadata")
    with zipfile.ZipFile(sink.file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for array in arrays:
            info = zipfile.ZipInfo(f"{array.key}.npy")  # dated 1980, so that equal weights make equal files
            fields = {} if array.metadata is None else array.metadata.as_json(array.key, array.dtype)
            if is_special(array.dtype):
                fields["dtype"] = array.dtype.name
            info.extra = pack_extra(compact_json(fields).encode()) if fields else b""
            if fields and not info.extra:
                raise sink.cannot(array, "its names and axes take more than 32 KiB")
            with archive.open(info, "w", force_zip64=array.nbytes >= 1 << 31) as member:
                member.write(_npy_header(array))
                for part in array.iter_checked():
                    member.write(little_endian_bytes(part))


def _npy_header(array: ArrayToWrite) -> bytes:
    dtype = np.dtype(f"V{array.dtype.itemsize}") if is_special(array.dtype) else array.dtype
    description = dtype.newbyteorder("<").str
    text = repr({"descr": description, "fortran_order": False, "shape": tuple(array.shape)}).encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return _MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text
