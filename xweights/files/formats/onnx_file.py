"""ONNX files: a program in protocol buffers, whose initializers are the weights.

Implemented after ``onnx.proto``: the package ``onnx`` takes the whole file into memory and copies every array. Here the
file is walked from field to field, and an array stays where it is until it is read. Arrays outside of the file are
read from a plain file beside it only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from xweights.core.dtypes import Array
from xweights.files.formats.protobuf import MalformedError, as_signed, read_varint
from xweights.files.formats.sharded import resolve_beside
from xweights.files.io import journal
from xweights.files.io.dtypes import dtype_from_name
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.open_file import PIECE, OpenFile, damaged, refused
from xweights.files.io.records import ByteRange, Index, Record

ENDING = ".onnx"
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
}  # fmt: skip
_TEXTS = 8
_PACKED = {21: "uint4", 22: "int4", 23: "float4_e2m1", 25: "uint2", 26: "int2"}  # several entries in a byte
# Fields of messages: ModelProto, GraphProto, TensorProto.
_GRAPH, _MODEL_FIELDS = 7, (1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26)
_INITIALIZER, _SPARSE_INITIALIZER = 5, 15
_DIMS, _DATA_TYPE, _FLOATS, _INT32S, _INT64S, _NAME, _RAW, _DOUBLES, _UINT64S = 1, 2, 4, 5, 7, 8, 9, 10, 11
_EXTERNAL, _LOCATION = 13, 14
_LONGEST_TEXT = 1 << 16
_STEP = PIECE // 4
_MOST_TENSORS = 1_000_000


@dataclass(slots=True)
class _Field:
    """A field of a message in the file: its number, its kind, and the number in it or the place of its bytes."""

    number: int
    kind: int
    value: int
    start: int = 0
    size: int = 0


@dataclass(slots=True)
class _Tensor:
    """What the fields of a TensorProto say."""

    name: str = ""
    kind: int = 0
    shape: list[int] = field(default_factory=list)
    data: list[_Field] = field(default_factory=list)
    external: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Varints:
    """Location of entries that are written as numbers of varying length."""

    whole: ClassVar[bool] = True

    file: OpenFile
    offset: int
    length: int

    def read(self, record: Record) -> Array:
        entries: Array = np.empty(record.size, record.dtype)
        count, rest = 0, b""
        for start in range(0, self.length, _STEP):
            data = rest + self.file.read(self.offset + start, min(_STEP, self.length - start), key=record.key)
            numbers, rest = _decode(data)
            if numbers is None or count + numbers.size > entries.size:
                break
            # The lowest bits: halves and other small floats are kept in numbers of their bits.
            bits = numbers != 0 if record.dtype.kind == "b" else numbers.astype(f"u{record.dtype.itemsize}")
            entries[count : count + numbers.size] = bits.view(record.dtype)
            count += numbers.size
        if count != record.size or rest:
            reason = f"its data isn't made of as many numbers as its shape\ngot:      {count:,}, and {len(rest)} bytes"
            raise damaged(self.file.path, f"{reason}\nexpected: {record.size:,}", key=record.key)
        return entries.reshape(record.shape)

    def read_into(self, record: Record, out: Array, start: int) -> None:
        out[...] = self.read(record).reshape(-1)[start : start + out.size]


def _decode(data: bytes) -> tuple[Array | None, bytes]:
    """Return the numbers in some bytes, and the bytes of one that isn't complete; None if one is too long."""
    array = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(array < 128)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: ends.size]
    rest = data[ends[-1] + 1 :] if ends.size else data
    lengths = ends - starts + 1
    longest = int(lengths.max(initial=0))
    if longest > 10 or len(rest) >= 10:
        return None, rest
    numbers = np.zeros(ends.size, np.uint64)
    for place in range(longest):
        more = lengths > place
        numbers[more] |= (array[starts[more] + place] & 127).astype(np.uint64) << np.uint64(7 * place)
    return numbers, rest


class _Walker:
    """Walks the fields of messages in an open file."""

    def __init__(self, file: OpenFile, limits: Limits) -> None:
        self.file, self.limits = file, limits
        self._start, self._buffer = 0, b""

    def _peek(self, at: int, count: int) -> bytes:
        inside = at - self._start
        if not 0 <= inside <= len(self._buffer) - count:
            self._start = at
            self._buffer = self.file.read(at, max(0, min(PIECE // 16, self.file.size - at)))
            inside = 0
        return self._buffer[inside : inside + count]

    def iter_fields(self, start: int, size: int) -> Iterator[_Field]:
        """Yield the fields of the message at a place of the file."""
        at, end = start, start + size
        while at < end:
            head = self._peek(at, 20)
            tag, length = read_varint(head, 0)
            number, kind = tag >> 3, tag & 7
            if kind == 0:
                value, length = read_varint(head, length)
                found = _Field(number, kind, value, at + length)
                at += length
            elif kind == 2:
                inner, length = read_varint(head, length)
                found = _Field(number, kind, 0, at + length, inner)
                at += length + inner
            elif kind in (1, 5):
                found = _Field(number, kind, 0, at + length, 8 if kind == 1 else 4)
                at += length + found.size
            else:
                raise MalformedError(f"a message has a field of kind {kind}")
            if not number or at > end:
                raise MalformedError("a message is cut short")
            yield found

    def text(self, found: _Field) -> str:
        if found.kind != 2 or found.size > _LONGEST_TEXT:
            raise MalformedError(f"a text has {found.size:,} bytes, and {_LONGEST_TEXT:,} are allowed")
        return self.file.read(found.start, found.size).decode()

    def numbers(self, found: _Field) -> Iterator[int]:
        """Yield the numbers of a field that may be packed."""
        if found.kind == 0:
            yield found.value
            return
        if found.kind != 2 or found.size > 640:
            raise MalformedError("a shape isn't made of numbers")
        data, at = self.file.read(found.start, found.size), 0
        while at < len(data):
            number, at = read_varint(data, at)
            yield number

    def tensor(self, found: _Field) -> _Tensor:
        tensor = _Tensor()
        for part in self.iter_fields(found.start, found.size):
            if part.number == _DIMS:
                tensor.shape += map(as_signed, self.numbers(part))
                if len(tensor.shape) > 64:
                    raise MalformedError("an array has more than 64 axes")
            elif part.number == _DATA_TYPE:
                tensor.kind = part.value
            elif part.number == _NAME:
                tensor.name = self.text(part)
            elif part.number == _EXTERNAL:
                tensor.external = tensor.external or {}
                words = {entry.number: self.text(entry) for entry in self.iter_fields(part.start, part.size)}
                tensor.external[words.get(1, "")] = words.get(2, "")
                if len(tensor.external) > 16:
                    raise MalformedError("an array outside of the file is described by too many words")
            elif part.number == _LOCATION and part.value == 1:
                tensor.external = tensor.external or {}
            elif part.number in (_FLOATS, _INT32S, _INT64S, _RAW, _DOUBLES, _UINT64S):
                tensor.data.append(part)
                if len(tensor.data) > 1:
                    raise MalformedError(f"the data of {tensor.name!r} is in several pieces")
        return tensor


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of the initializers of an ONNX file."""
    try:
        return _read(file, limits)
    except (MalformedError, UnicodeDecodeError, IndexError) as wrong:
        raise damaged(file.path, f"it is no sound ONNX file: {wrong}") from None


def _read(file: OpenFile, limits: Limits) -> Index:
    walker = _Walker(file, limits)
    opened: dict[str, OpenFile] = {}
    records: dict[str, Record] = {}
    ignored: list[str] = []
    graphs = []
    for found in walker.iter_fields(0, file.size):
        if found.number not in _MODEL_FIELDS:
            raise MalformedError(f"a model has the field {found.number}, which isn't known")
        if found.number == _GRAPH and found.kind == 2:
            graphs.append(found)
    if len(graphs) != 1:
        raise MalformedError(f"it has {len(graphs)} graphs, and one is wanted")
    for found in walker.iter_fields(graphs[0].start, graphs[0].size):
        if found.number == _SPARSE_INITIALIZER:
            raise refused(file.path, "it is sparse, and only dense arrays are read", key=_sparse_name(walker, found))
        if found.number != _INITIALIZER or found.kind != 2:
            continue
        tensor = walker.tensor(found)
        limits.check_index(file.path, (len(records) + 1) * 64)
        if not tensor.name or tensor.name in records or len(records) >= _MOST_TENSORS:
            raise damaged(file.path, "two of its initializers have one name, or one has none", key=tensor.name)
        if tensor.kind == _TEXTS:
            ignored.append(tensor.name)
            continue
        record = _make_record(file, tensor, opened)
        limits.check(file.path, record)
        records[record.key] = record
    return Index(file.path, "onnx", list(records.values()), [file, *opened.values()], ignored=ignored)


def _sparse_name(walker: _Walker, found: _Field) -> str:
    values = next((part for part in walker.iter_fields(found.start, found.size) if part.number == 1), None)
    return "" if values is None else walker.tensor(values).name


def _make_record(file: OpenFile, tensor: _Tensor, opened: dict[str, OpenFile]) -> Record:
    key, shape = tensor.name, tuple(tensor.shape)
    if tensor.kind not in _DTYPES:
        name = _PACKED.get(tensor.kind, f"number {tensor.kind}")
        raise refused(file.path, f"its dtype is {name}, which isn't read", key=key)
    if any(not 0 <= length < 1 << 62 for length in shape):
        raise damaged(file.path, f"its shape is {shape[:8]}", key=key)
    dtype = dtype_from_name(_DTYPES[tensor.kind])
    expected = math.prod(shape) * dtype.itemsize
    location: Any
    if tensor.external is not None:
        location = _find_outside(file, tensor, expected, opened)
    else:
        location = _find_inside(file, tensor, dtype, expected)
    return Record(key, dtype, shape, ArrayMetadata.plain(key, shape, dtype), location)


def _find_inside(file: OpenFile, tensor: _Tensor, dtype: np.dtype[Any], expected: int) -> Any:
    data = tensor.data[0] if tensor.data else _Field(_RAW, 2, 0, 0, 0)
    plain = {_RAW: True, _FLOATS: tensor.kind in (1, 14), _DOUBLES: tensor.kind in (11, 15)}.get(data.number, False)
    numbers = {
        _INT32S: dtype.itemsize <= 4 and tensor.kind not in (1, 12),
        _INT64S: tensor.kind == 7,
        _UINT64S: tensor.kind in (12, 13),
    }
    if plain:
        size = data.size if data.kind else 0
        if size != expected:
            raise damaged(file.path, _size_reason(size, expected), key=tensor.name)
        return ByteRange(file, data.start, not np.little_endian and dtype.itemsize > 1)
    if not numbers.get(data.number, False):
        raise damaged(
            file.path, f"its data is in the field {data.number}, which isn't one of its dtype", key=tensor.name
        )
    if data.kind == 0:  # a single number that isn't packed
        width = 0
        while data.value >> 7 * (width + 1):
            width += 1
        return _Varints(file, data.start - width - 1, width + 1)
    # Each number takes 1 to 10 bytes.
    count = expected // dtype.itemsize
    if not count <= data.size <= 10 * count:
        raise damaged(file.path, _size_reason(data.size, count), key=tensor.name)
    return _Varints(file, data.start, data.size)


def _find_outside(file: OpenFile, tensor: _Tensor, expected: int, opened: dict[str, OpenFile]) -> ByteRange:
    words = tensor.external or {}
    name = words.get("location", "").removeprefix("./")
    if name not in opened:
        if len(opened) >= 10_000:
            raise refused(file.path, "its arrays are in more than 10,000 files", key=tensor.name)
        opened[name] = journal.open_recovered(resolve_beside(file.path, name))
    try:
        offset, size = int(words.get("offset") or 0), int(words.get("length") or expected)
    except ValueError:
        raise damaged(file.path, "its place in another file is no number", key=tensor.name) from None
    if size != expected:
        raise damaged(file.path, _size_reason(size, expected), key=tensor.name)
    opened[name].check_inside(offset, size, tensor.name)
    dtype = dtype_from_name(_DTYPES[tensor.kind])
    return ByteRange(opened[name], offset, not np.little_endian and dtype.itemsize > 1)


def _size_reason(got: int, expected: int) -> str:
    return f"its bytes don't fit its shape\ngot:      {got:,} bytes\nexpected: {expected:,} bytes"
