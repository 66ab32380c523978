"""Files of ``flax.serialization``: MessagePack, with arrays as values of a type of its own.

Implemented after MessagePack's specification and flax/serialization.py. Arrays stay in the file until they are read;
other values (a step, a setting) are listed as ignored.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.files.formats.chunks import Chunk, JoinedChunks
from xweights.files.io.dtypes import PLAIN, dtype_from_name
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.open_file import PIECE, OpenFile, damaged, refused, shorten
from xweights.files.io.records import ByteRange, Index, Record

ENDING = ".msgpack"
_ARRAY, _SCALAR = 1, 3  # the types that Flax gives its values
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = PLAIN | {
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e4m3b11fnuz",
}
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_DEPTH = 64
_LONGEST_KEY = 10_000


@dataclass(frozen=True, slots=True)
class _Bytes:
    """Bytes in the file, or a value of an extension type: where they are."""

    kind: int
    start: int
    size: int


class _Parser:
    """Parser of the values in a file, with their places."""

    def __init__(self, file: OpenFile, limits: Limits) -> None:
        self.file, self.at = file, 0
        self.room = limits.index_room
        self._start, self._buffer = 0, b""

    def take(self, count: int) -> bytes:
        inside = self.at - self._start
        if not 0 <= inside <= len(self._buffer) - count:
            self.file.check_inside(self.at, count)
            self._start = self.at
            self._buffer = self.file.read(self.at, min(max(count, PIECE // 16), self.file.size - self.at))
            inside = 0
        self.at += count
        return self._buffer[inside : inside + count]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int = 0) -> Any:
        """Return the next value."""
        self.room -= 100
        if self.room < 0 or depth > _DEPTH:
            raise refused(self.file.path, "it has more or deeper values than allowed")
        code = self.take(1)[0]
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code < 0x90:
            return self.map(code & 15, depth)
        if code < 0xA0:
            return self.array(code & 15, depth)
        if code < 0xC0:
            return self.text(code & 31)
        if code in (0xC0, 0xC2, 0xC3):
            return None if code == 0xC0 else code == 0xC3
        if code in _NUMBERS:
            return self.number(_NUMBERS[code])
        if 0xC4 <= code <= 0xC6:
            return self.skip(0, self.number((">B", ">H", ">I")[code - 0xC4]))
        if 0xC7 <= code <= 0xC9:
            size = self.number((">B", ">H", ">I")[code - 0xC7])
            return self.skip(self.number(">b"), size)
        if 0xD4 <= code <= 0xD8:
            return self.skip(self.number(">b"), 1 << (code - 0xD4))
        if 0xD9 <= code <= 0xDB:
            return self.text(self.number((">B", ">H", ">I")[code - 0xD9]))
        if code in (0xDC, 0xDD):
            return self.array(self.number(">H" if code == 0xDC else ">I"), depth)
        if code in (0xDE, 0xDF):
            return self.map(self.number(">H" if code == 0xDE else ">I"), depth)
        raise damaged(self.file.path, f"it has the code {code:#04x}, which MessagePack hasn't")

    def skip(self, kind: int, size: int) -> _Bytes:
        self.file.check_inside(self.at, size)
        found = _Bytes(kind, self.at, size)
        self.at += size
        return found

    def text(self, count: int) -> str:
        self.room -= 2 * count
        if self.room < 0:
            raise refused(self.file.path, "it has more or longer texts than allowed")
        try:
            return self.take(count).decode()
        except UnicodeDecodeError:
            raise damaged(self.file.path, "one of its texts is no UTF-8") from None

    def array(self, count: int, depth: int) -> list[Any]:
        self.file.check_inside(self.at, count)  # each takes at least one byte
        return [self.value(depth + 1) for _ in range(count)]

    def map(self, count: int, depth: int) -> dict[str, Any]:
        self.file.check_inside(self.at, 2 * count)
        items: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, (str, int)) or len(str(key)) > _LONGEST_KEY or str(key) in items:
                raise damaged(self.file.path, f"one of its dicts has the key {shorten(key)} twice, or it is no name")
            items[str(key)] = self.value(depth + 1)
        return items


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a file of ``flax.serialization``."""
    parser = _Parser(file, limits)
    value = parser.value()
    if parser.at != file.size:
        raise damaged(file.path, f"{file.size - parser.at:,} bytes after its end belong to nothing")
    if not isinstance(value, dict):
        raise refused(file.path, f"it holds a {type(value).__name__}, and no dict of arrays")
    builder = _TreeBuilder(file, limits)
    tree = builder.build(value, "")
    if not builder.records and value:
        raise refused(file.path, "it holds no array", fix="save with flax.serialization.to_bytes")
    return Index(file.path, "msgpack", builder.records, [file], ignored=builder.ignored, tree=tree)


class _TreeBuilder:
    """Builds the tree of a file: its dicts, with a record in the place of each array."""

    def __init__(self, file: OpenFile, limits: Limits) -> None:
        self.file, self.limits = file, limits
        self.records: list[Record] = []
        self.ignored: list[str] = []

    def build(self, value: Any, name: str) -> Any:
        if isinstance(value, _Bytes) and value.kind in (_ARRAY, _SCALAR):
            return self.add(self.make_record(value, name))
        if isinstance(value, dict) and _CHUNKED in value:
            return self.add(self.join(value, name))
        if isinstance(value, (dict, list)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            return {str(key): self.build(item, f"{name}/{key}" if name else str(key)) for key, item in items}
        self.ignored.append(name)
        return value

    def add(self, record: Record) -> Record:
        self.limits.check(self.file.path, record)
        self.records.append(record)
        return record

    def make_record(self, found: _Bytes, name: str) -> Record:
        parser = _Parser(self.file, self.limits)
        parser.at = found.start
        described = parser.value()
        whole = isinstance(described, list) and len(described) == 3 and parser.at == found.start + found.size
        shape, dtype_name, data = described if whole else ([], None, None)
        if isinstance(dtype_name, _Bytes) and dtype_name.size < 40:
            dtype_name = self.file.read(dtype_name.start, dtype_name.size).decode("latin1")
        sound = isinstance(shape, list) and len(shape) <= 64 and all(type(n) is int and 0 <= n < 1 << 62 for n in shape)
        if not sound or not isinstance(data, _Bytes):
            raise damaged(self.file.path, "it isn't described by a shape, a dtype and bytes", key=name)
        if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
            raise refused(self.file.path, f"its dtype is {shorten(dtype_name)}, which isn't read", key=name)
        dtype = dtype_from_name(dtype_name)
        if math.prod(shape) * dtype.itemsize != data.size:
            reason = f"its bytes don't fit its shape {tuple(shape[:8])}\ngot:      {data.size:,} bytes"
            raise damaged(self.file.path, f"{reason}\nexpected: {math.prod(shape) * dtype.itemsize:,} bytes", key=name)
        metadata = ArrayMetadata.plain(name, tuple(shape), dtype)
        swapped = not np.little_endian and dtype.itemsize > 1
        return Record(name, dtype, tuple(shape), metadata, ByteRange(self.file, data.start, swapped))

    def join(self, value: dict[str, Any], name: str) -> Record:
        """Return the record of an array of more than 1 GiB, which Flax cuts into flat pieces."""
        shape, pieces = value.get("shape"), value.get("chunks")
        if not isinstance(shape, dict) or not isinstance(pieces, dict) or not pieces:
            raise damaged(self.file.path, "it isn't described by a shape and chunks", key=name)
        axes = tuple(shape.get(str(axis), -1) for axis in range(len(shape)))
        parts = [self.build_piece(pieces.get(str(number)), name) for number in range(len(pieces))]
        total = sum(part.size for part in parts)
        if any(type(n) is not int or n < 0 for n in axes) or {part.dtype for part in parts} != {parts[0].dtype}:
            raise damaged(self.file.path, "its chunks are of different dtypes, or its shape is no shape", key=name)
        if math.prod(axes) != total or any(len(part.shape) != 1 for part in parts):
            reason = f"its chunks don't make it up\ngot:      {total:,} entries"
            raise damaged(self.file.path, f"{reason}\nexpected: {math.prod(axes):,}", key=name)
        starts = np.cumsum([0, *(part.size for part in parts)]).tolist()
        flat = JoinedChunks([Chunk((start,), part) for start, part in zip(starts, parts, strict=False)])
        dtype = parts[0].dtype
        return Record(name, dtype, axes, ArrayMetadata.plain(name, axes, dtype), _Reshaped(flat))

    def build_piece(self, piece: Any, name: str) -> Record:
        if not isinstance(piece, _Bytes) or piece.kind != _ARRAY:
            raise damaged(self.file.path, "one of its chunks is no array", key=name)
        return self.make_record(piece, name)


@dataclass(frozen=True, slots=True, eq=False)
class _Reshaped:
    """Location of an array whose entries are stored as a flat one."""

    flat: JoinedChunks

    def read(self, record: Record) -> Array:
        array = np.empty(record.shape, record.dtype)
        self.read_into(record, array.reshape(-1), 0)
        return array

    def read_into(self, record: Record, out: Array, start: int) -> None:
        flat = Record(record.key, record.dtype, (record.size,), record.metadata, self.flat)
        self.flat.read_into(flat, out, start)
