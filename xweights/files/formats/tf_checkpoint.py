"""TensorFlow checkpoints: an index of names in a sorted table, and data files of plain bytes.

Implemented after the descriptions of LevelDB's table format and of TensorFlow's tensor bundle. Every block of the index
is checked against its CRC-32C; the checksums of the arrays themselves are not checked, as in a .pt.

The names are the attribute paths of the object that was saved. Values that aren't weights (texts, the graph of objects,
optimizer slots, counters of saves) are listed as ignored.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from xweights.files.formats.sharded import resolve_shard
from xweights.files.io import journal
from xweights.files.io.dtypes import dtype_from_name
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.open_file import OpenFile, damaged, refused
from xweights.files.io.records import ByteRange, Index, Record

ENDING = ".index"
_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 9: "int64", 10: "bool", 14: "bfloat16",
    17: "uint16", 19: "float16", 22: "uint32", 23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn",
}  # fmt: skip
_TEXT = 7
_MAX_SHARDS = 10_000


class _MalformedError(ValueError):
    """Bytes that break the rules of the format."""


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a checkpoint whose ``.index`` is open."""
    limits.check_index(file.path, file.size)
    try:
        entries = dict(_iter_table(file))
        header = _parse_message(entries.pop(b"", b""))
        return _build_index(file, limits, entries, _get_number(header, 1), big=_get_number(header, 2) == 1)
    except (_MalformedError, UnicodeDecodeError, struct.error, IndexError) as wrong:
        raise damaged(file.path, f"it is no sound index of a checkpoint: {wrong}") from None


def _build_index(file: OpenFile, limits: Limits, entries: dict[bytes, bytes], count: int, *, big: bool) -> Index:
    if not 0 < count <= _MAX_SHARDS:
        raise _MalformedError(f"it says that there are {count:,} data files")
    prefix = file.path.removesuffix(ENDING)
    data: dict[int, OpenFile] = {}
    records: list[Record] = []
    ignored: list[str] = []
    for encoded, value in entries.items():
        key = encoded.decode()
        fields = _parse_message(value)
        kind = _get_number(fields, 1)
        if kind == _TEXT or ".OPTIMIZER_SLOT" in key or key.startswith(("save_counter/", "optimizer/", "_")):
            ignored.append(key)
            continue
        if kind not in _DTYPES or 7 in fields:
            reason = "it is saved in slices" if 7 in fields else f"its dtype has the number {kind}"
            raise refused(file.path, f"{reason}, which isn't read", key=key)
        shard = _get_number(fields, 3)
        if shard not in data:
            if shard >= count:
                raise damaged(file.path, f"it is in data file {shard} of {count}", key=key)
            name = f"{prefix.rpartition('/')[2]}.data-{shard:05}-of-{count:05}"
            data[shard] = journal.open_recovered(resolve_shard(file.path, name))
        records.append(_make_record(file, limits, key, fields, data[shard], kind, big=big))
    return Index(file.path, "tensorflow", records, [file, *data.values()], ignored=ignored)


def _make_record(
    file: OpenFile, limits: Limits, key: str, fields: dict[int, Any], data: OpenFile, kind: int, *, big: bool
) -> Record:
    dtype = dtype_from_name(_DTYPES[kind])
    shape = tuple(_iter_shape(fields.get(2, [b""])[-1]))
    offset, size = _get_number(fields, 4), _get_number(fields, 5)
    if len(shape) > 64 or math.prod(shape) * dtype.itemsize != size:
        reason = f"its bytes don't fit its shape {shape[:8]}\ngot:      {size:,} bytes"
        raise damaged(file.path, f"{reason}\nexpected: {math.prod(shape) * dtype.itemsize:,} bytes", key=key)
    data.check_inside(offset, size, key)
    name = key.removesuffix(_VALUE)
    metadata = ArrayMetadata.plain(name, shape, dtype)
    record = Record(
        key, dtype, shape, metadata, ByteRange(data, offset, big == np.little_endian and dtype.itemsize > 1)
    )
    limits.check(file.path, record)
    return record


# The table: a footer leads to a block of handles, each of them to a block of (key, value).


def _iter_table(file: OpenFile) -> Iterator[tuple[bytes, bytes]]:
    if file.size < _FOOTER:
        raise _MalformedError("it is shorter than its own footer")
    footer = file.read(file.size - _FOOTER, _FOOTER)
    if int.from_bytes(footer[40:], "little") != _MAGIC:
        raise _MalformedError("its footer has another magic number")
    at = 0
    handle: list[int] = []
    for _ in range(4):  # two of the metaindex, which is empty, and two of the index
        number, at = _read_varint(footer, at)
        handle.append(number)
    last: bytes | None = None
    for _, encoded_handle in _iter_block(file, handle[2], handle[3]):
        first, at = _read_varint(encoded_handle, 0)
        size, _ = _read_varint(encoded_handle, at)
        for key, value in _iter_block(file, first, size):
            if last is not None and key <= last:
                raise _MalformedError("its names aren't in order, or one comes twice")
            last = key
            yield key, value


def _iter_block(file: OpenFile, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    file.check_inside(offset, size + 5)
    block = file.read(offset, size + 5)
    if block[size]:
        raise _MalformedError(f"a block is compressed by method {block[size]}, and TensorFlow compresses none")
    if _mask(crc32c(block[: size + 1])) != int.from_bytes(block[size + 1 :], "little"):
        raise _MalformedError("a block's CRC-32C is wrong: its bytes have changed")
    if size < 4:
        raise _MalformedError("a block is shorter than its own end")
    restarts = int.from_bytes(block[size - 4 : size], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise _MalformedError("a block is shorter than its own end")
    at, key = 0, b""
    while at < end:
        shared, at = _read_varint(block, at)
        fresh, at = _read_varint(block, at)
        length, at = _read_varint(block, at)
        if shared > len(key) or at + fresh + length > end:
            raise _MalformedError("an entry of a block is longer than the block")
        key = key[:shared] + block[at : at + fresh]
        yield key, block[at + fresh : at + fresh + length]
        at += fresh + length


# Protocol buffer messages: (field, kind) and a value, one after the other.


def _parse_message(data: bytes) -> dict[int, list[Any]]:
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        value: Any
        if kind == 0:
            value, at = _read_varint(data, at)
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        elif kind == 2:
            length, at = _read_varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            raise _MalformedError(f"a message has a field of kind {kind}")
        if at > len(data):
            raise _MalformedError("a message is cut short")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _get_number(fields: dict[int, list[Any]], field: int) -> int:
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise _MalformedError(f"field {field} of a message is no number")
    return value


def _iter_shape(data: Any) -> Iterator[int]:
    if not isinstance(data, bytes):
        raise _MalformedError("a shape is no message")
    fields = _parse_message(data)
    if _get_number(fields, 3):
        raise _MalformedError("an array has an unknown number of axes")
    for axis in fields.get(2, []):
        length = _get_number(_parse_message(axis), 1) if isinstance(axis, bytes) else -1
        if not 0 <= length < 1 << 62:
            raise _MalformedError(f"an axis has the length {length}")
        yield length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for position in range(10):
        byte = data[at + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, at + position + 1
    raise _MalformedError("a number has no end")


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of the data."""
    table = _make_crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _make_crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def _mask(crc: int) -> int:
    """Return a CRC as tables store it, masked so that a CRC over stored CRCs isn't trivial."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
