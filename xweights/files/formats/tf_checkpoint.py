"""TensorFlow checkpoints: an index of names in a sorted table, and data files of plain bytes.

Implemented after the descriptions of LevelDB's table format and of TensorFlow's tensor bundle. Every block of the index
is checked against its CRC-32C; the checksums of the arrays themselves are not checked, as in a .pt.

What an array is, and its name, is told by the graph of the saved objects (TensorFlow 2) or by its name
(TensorFlow 1): see ``tf_names``. Values that aren't weights (texts, optimizer slots, counters of saves) are listed as
ignored; slots and averages are parts of their own.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from typing import Any

import numpy as np

from xweights.core.layout import Shape
from xweights.files.formats.chunks import Chunk, JoinedChunks, check_chunks
from xweights.files.formats.protobuf import (
    Fields,
    MalformedError,
    get_number,
    iter_messages,
    parse_message,
    read_varint,
)
from xweights.files.formats.sharded import resolve_shard
from xweights.files.formats.tf_names import VALUE, Variable, describe_by_graph, describe_by_names, parse_graph
from xweights.files.io import journal
from xweights.files.io.dtypes import dtype_from_name
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.open_file import OpenFile, damaged, refused
from xweights.files.io.records import ByteRange, Index, Record

ENDING = ".index"
_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 9: "int64", 10: "bool", 14: "bfloat16",
    8: "complex64", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64", 24: "float8_e5m2",
    25: "float8_e4m3fn",
}  # fmt: skip
_NO_NUMBERS = (7, 20, 21)  # texts, handles, and states of iterators
_GRAPH = b"_CHECKPOINTABLE_OBJECT_GRAPH"
_SLICE = b"\x00"
_MAX_SHARDS = 10_000


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a checkpoint whose ``.index`` is open."""
    limits.check_index(file.path, file.size)
    try:
        entries = dict(_iter_table(file))
        header = parse_message(entries.pop(b"", b""))
        bundle = _Bundle(file, limits, entries, get_number(header, 1), big=get_number(header, 2) == 1)
        return bundle.make_index()
    except (MalformedError, UnicodeDecodeError, struct.error, IndexError) as wrong:
        raise damaged(file.path, f"it is no sound index of a checkpoint: {wrong}") from None


class _Bundle:
    """The entries of an index, and the data files that hold their bytes."""

    def __init__(
        self, file: OpenFile, limits: Limits, entries: Mapping[bytes, bytes], count: int, *, big: bool
    ) -> None:
        if not 0 < count <= _MAX_SHARDS:
            raise MalformedError(f"it says that there are {count:,} data files")
        self.file, self.limits, self.entries, self.count, self.big = file, limits, entries, count, big
        self.data: dict[int, OpenFile] = {}

    def make_index(self) -> Index:
        """Return the index of the arrays, each under the name and in the part that it belongs to."""
        records: list[Record] = []
        ignored: list[str] = []
        parts: dict[str, dict[Any, Any]] = {"model": {}, "ema": {}, "optimizer": {}}
        kept: list[tuple[str, Fields, int]] = []
        for encoded, value in self.entries.items():
            if encoded.startswith(_SLICE):
                continue  # found by the array that it is a slice of
            key, fields = encoded.decode(), parse_message(value)
            kind = get_number(fields, 1)
            if kind in _NO_NUMBERS:
                ignored.append(key)
                continue
            if kind not in _DTYPES:
                raise refused(self.file.path, f"its dtype has the number {kind}, which isn't read", key=key)
            kept.append((key, fields, kind))
        described = self._describe([key for key, _, _ in kept])
        for key, fields, kind in kept:
            found = described[key]
            if found.kind != "weights":
                ignored.append(key)
            if found.kind == "ignored":
                continue
            record = self._make_record(key, fields, kind, found)
            records.append(record)
            if found.kind == "optimizer":
                _put(parts["optimizer"], found.place, record)
            else:
                parts["model" if found.kind == "weights" else "ema"][found.names[0]] = record
        while len(parts["optimizer"]) == 1 and isinstance(inner := next(iter(parts["optimizer"].values())), dict):
            parts["optimizer"] = inner
        filled = {name: part for name, part in parts.items() if part}
        tree = filled if filled.keys() - {"model"} else None
        return Index(
            self.file.path, "tensorflow", records, [self.file, *self.data.values()], ignored=ignored, tree=tree
        )

    def _describe(self, keys: Sequence[str]) -> dict[str, Variable]:
        entry = self.entries.get(_GRAPH)
        if entry is None:
            return describe_by_names(keys)
        return describe_by_graph(parse_graph(self._read_text(parse_message(entry), _GRAPH.decode())), keys)

    def _read_text(self, fields: Fields, key: str) -> bytes:
        """Return a single text: its length, a checksum of that, and its bytes."""
        offset, size = get_number(fields, 4), get_number(fields, 5)
        self.limits.check_index(self.file.path, size)
        data = self._open_data(get_number(fields, 3), key).read(offset, size, key=key)
        length, at = read_varint(data, 0)
        if at + 4 + length != size:
            raise damaged(self.file.path, "its bytes don't fit its length", key=key)
        return data[at + 4 :]

    def _open_data(self, shard: int, key: str) -> OpenFile:
        if shard not in self.data:
            if shard >= self.count:
                raise damaged(self.file.path, f"it is in data file {shard} of {self.count}", key=key)
            prefix = os.path.basename(self.file.path).removesuffix(ENDING)
            name = f"{prefix}.data-{shard:05}-of-{self.count:05}"
            self.data[shard] = journal.open_recovered(resolve_shard(self.file.path, name))
        return self.data[shard]

    def _make_record(self, key: str, fields: Fields, kind: int, found: Variable) -> Record:
        dtype = dtype_from_name(_DTYPES[kind])
        shape = _parse_shape(fields)
        location = self._join(key, fields, shape) if 7 in fields else self._locate(key, fields, shape, dtype)
        name, *aliases = found.names
        metadata = replace(
            ArrayMetadata.plain(name, shape, dtype),
            native=key.removesuffix(VALUE),
            aliases=tuple(aliases),
        )
        record = Record(key, dtype, shape, metadata, location, inner=name)
        self.limits.check(self.file.path, record)
        return record

    def _locate(self, key: str, fields: Fields, shape: Shape, dtype: np.dtype[Any]) -> ByteRange:
        offset, size = get_number(fields, 4), get_number(fields, 5)
        if math.prod(shape) * dtype.itemsize != size:
            reason = f"its bytes don't fit its shape {shape[:8]}\ngot:      {size:,} bytes"
            raise damaged(self.file.path, f"{reason}\nexpected: {math.prod(shape) * dtype.itemsize:,} bytes", key=key)
        data = self._open_data(get_number(fields, 3), key)
        data.check_inside(offset, size, key)
        return ByteRange(data, offset, self.big == np.little_endian and dtype.itemsize > 1)

    def _join(self, key: str, fields: Fields, shape: Shape) -> JoinedChunks:
        """Return the location of an array that is saved in slices, as the parts of a partitioned variable are."""
        blocks = [_parse_slice(part, shape) for part in iter_messages(fields, 7)]
        check_chunks(self.file.path, key, shape, [(start, sizes) for start, sizes, _ in blocks])
        chunks = []
        for start, sizes, extents in blocks:
            entry = self.entries.get(encode_slice(key, extents))
            if entry is None:
                raise damaged(self.file.path, "one of its slices isn't there", key=key)
            of_slice = parse_message(entry)
            kind = get_number(of_slice, 1)
            if _parse_shape(of_slice) != sizes or kind != get_number(fields, 1):
                raise damaged(self.file.path, "one of its slices has another shape or dtype than described", key=key)
            dtype = dtype_from_name(_DTYPES[kind])
            location = self._locate(key, of_slice, sizes, dtype)
            chunks.append(Chunk(start, Record(key, dtype, sizes, ArrayMetadata.plain(key, sizes, dtype), location)))
        return JoinedChunks(chunks)


def _put(tree: dict[Any, Any], place: Sequence[str], record: Record) -> None:
    """Put a record at its place in nested dicts, or under its whole name where another is in the way."""
    inner = tree
    for word in place[:-1]:
        inner = inner.setdefault(word, {})
        if not isinstance(inner, dict):
            tree[record.key] = record
            return
    if inner.setdefault(place[-1], record) is not record:
        tree[record.key] = record


def _parse_slice(fields: Fields, shape: Shape) -> tuple[Shape, Shape, list[tuple[int, int]]]:
    """Return where a slice begins, its shape, and its extents as TensorFlow writes them, -1 for a whole axis."""
    start, sizes, extents = [], [], []
    for extent, length in zip_longest(iter_messages(fields, 1), shape):
        if extent is None or length is None:
            raise MalformedError("a slice has another number of axes than its array")
        first, count = get_number(extent, 1), get_number(extent, 2) if 2 in extent else -1
        extents.append((first, count))
        start.append(first)
        sizes.append(length if count == -1 else count)
    return tuple(start), tuple(sizes), extents


def encode_slice(name: str, extents: Sequence[tuple[int, int]]) -> bytes:
    """Return the key of a slice, by which slices stand in the order of their places (TensorFlow's ordered code)."""
    text = name.encode().replace(b"\xff", b"\xff\x00").replace(b"\x00", b"\x00\xff")
    numbers = [number for extent in extents for number in extent]
    return b"\x00" + text + b"\x00\x01" + _encode_count(len(extents)) + b"".join(map(_encode_signed, numbers))


def _encode_count(number: int) -> bytes:
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes([len(data)]) + data


def _encode_signed(number: int) -> bytes:
    """Return a number in as few bytes as it needs; as many bits as there are bytes say so at its front."""
    length = 1
    while not -(1 << (7 * length - 1)) <= number < 1 << (7 * length - 1):
        length += 1
    header = ((1 << length) - 1) << (8 * length - length)
    return (number % (1 << 8 * length) ^ header).to_bytes(length, "big")


# The table: a footer leads to a block of handles, each of them to a block of (key, value).


def _iter_table(file: OpenFile) -> Iterator[tuple[bytes, bytes]]:
    if file.size < _FOOTER:
        raise MalformedError("it is shorter than its own footer")
    footer = file.read(file.size - _FOOTER, _FOOTER)
    if int.from_bytes(footer[40:], "little") != _MAGIC:
        raise MalformedError("its footer has another magic number")
    at = 0
    handle: list[int] = []
    for _ in range(4):  # two of the metaindex, which is empty, and two of the index
        number, at = read_varint(footer, at)
        handle.append(number)
    last: bytes | None = None
    for _, encoded_handle in _iter_block(file, handle[2], handle[3]):
        first, at = read_varint(encoded_handle, 0)
        size, _ = read_varint(encoded_handle, at)
        for key, value in _iter_block(file, first, size):
            if last is not None and key <= last:
                raise MalformedError("its names aren't in order, or one comes twice")
            last = key
            yield key, value


def _iter_block(file: OpenFile, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    file.check_inside(offset, size + 5)
    block = file.read(offset, size + 5)
    if block[size]:
        raise MalformedError(f"a block is compressed by method {block[size]}, and TensorFlow compresses none")
    if _mask(crc32c(block[: size + 1])) != int.from_bytes(block[size + 1 :], "little"):
        raise MalformedError("a block's CRC-32C is wrong: its bytes have changed")
    if size < 4:
        raise MalformedError("a block is shorter than its own end")
    restarts = int.from_bytes(block[size - 4 : size], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise MalformedError("a block is shorter than its own end")
    at, key = 0, b""
    while at < end:
        shared, at = read_varint(block, at)
        fresh, at = read_varint(block, at)
        length, at = read_varint(block, at)
        if shared > len(key) or at + fresh + length > end:
            raise MalformedError("an entry of a block is longer than the block")
        key = key[:shared] + block[at : at + fresh]
        yield key, block[at + fresh : at + fresh + length]
        at += fresh + length


def _parse_shape(fields: Fields) -> Shape:
    shape = [get_number(axis, 1) for message in iter_messages(fields, 2) for axis in iter_messages(message, 2)]
    if any(get_number(message, 3) for message in iter_messages(fields, 2)):
        raise MalformedError("an array has an unknown number of axes")
    wrong = next((length for length in shape if not 0 <= length < 1 << 62), None)
    if wrong is not None or len(shape) > 64:
        raise MalformedError(f"an array has {len(shape)} axes" if wrong is None else f"an axis has the length {wrong}")
    return tuple(shape)


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
