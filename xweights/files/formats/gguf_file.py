"""GGUF files (llama.cpp): settings, a table of tensors, and their data.

Implemented after the format's description (ggml, ``docs/gguf.md``): its package maps the whole file into memory and
trusts the sizes in it. Axes are listed from the innermost out in the file, and here as NumPy has them. Tensors of
quantized types are ignored, or read as float32 if ``Limits.dequantize`` says so, by the tables of the ``gguf`` package.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import BackendMissingError
from xweights.files.io.dtypes import dtype_from_name
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.open_file import PIECE, OpenFile, damaged, refused, shorten
from xweights.files.io.records import ByteRange, Index, Record

ENDING = ".gguf"
MAGIC = b"GGUF"
_PLAIN = {
    0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16",
}  # fmt: skip
# The numbers of quantized types, by ggml's own names.
_QUANTIZED = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
# The numbers of the types of settings, as struct names them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_ALIGNMENT = "general.alignment"
_MOST_AXES = 4  # as in ggml
_LONGEST_TEXT = 1 << 20
_DEEPEST = 8


def need_gguf(path: str) -> Any:
    """Return the gguf package; raise BackendMissingError if it isn't installed."""
    try:
        import gguf
    except ImportError:
        raise BackendMissingError(
            f"{path!r} has quantized tensors, and gguf isn't installed, which has their tables\n"
            "Fix: python -m pip install 'xweights-nn[gguf]'"
        ) from None
    return gguf


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedEntries:
    """Location of entries of a quantized type: blocks of so many entries in so many bytes."""

    file: OpenFile
    offset: int
    kind: Any
    block: int
    block_bytes: int

    def read(self, record: Record) -> Array:
        array = np.empty(record.shape, record.dtype)
        self.read_into(record, array.reshape(-1), 0)
        return array

    def read_into(self, record: Record, out: Array, start: int) -> None:
        gguf = need_gguf(self.file.path)
        end = start + out.size
        step = max(1, PIECE // self.block)  # blocks at once
        for first in range(start // self.block, -(-end // self.block), step):
            count = min(step, -(-end // self.block) - first)
            packed = np.empty(count * self.block_bytes, np.uint8)
            self.file.read_into(self.offset + first * self.block_bytes, packed, key=record.key)
            with np.errstate(all="ignore"):  # damaged scales may be infinite
                part = gguf.dequantize(packed, self.kind).reshape(-1)
            at = first * self.block
            begin, last = max(start, at), min(end, at + part.size)
            out[begin - start : last - start] = part[begin - at : last - at]


class _Cursor:
    """Reads values one after the other, in the file's byte order."""

    def __init__(self, file: OpenFile, limits: Limits) -> None:
        self.file, self.limits = file, limits
        self.at = 0
        self.order = "<"
        self._start, self._buffer = 0, b""

    def take(self, count: int) -> bytes:
        inside = self.at - self._start
        if not 0 <= inside <= len(self._buffer) - count:
            self.file.check_inside(self.at, count)
            self.limits.check_index(self.file.path, self.at + count)
            self._start = self.at
            self._buffer = self.file.read(self.at, min(max(count, PIECE), self.file.size - self.at))
            inside = 0
        self.at += count
        return self._buffer[inside : inside + count]

    def number(self, code: str) -> Any:
        form = struct.Struct(self.order + code)
        return form.unpack(self.take(form.size))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > _LONGEST_TEXT:
            raise damaged(self.file.path, f"it has a text of {length:,} bytes, and {_LONGEST_TEXT:,} are allowed")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """Return a setting's value; the contents of arrays, which are vocabularies, are passed over."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY or depth > _DEEPEST:
            raise damaged(self.file.path, f"it has a setting of the type {kind}, or arrays nested too deeply")
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            self.file.check_inside(self.at, count * struct.calcsize(_NUMBERS[inner]))
            self.at += count * struct.calcsize(_NUMBERS[inner])
        else:
            # Each takes at least a length of 8 bytes (a text) or a type and a length (an array).
            self.file.check_inside(self.at, count * 8)
            for _ in range(count):
                self.value(inner, depth + 1)
        return None


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a GGUF file."""
    cursor = _Cursor(file, limits)
    if cursor.take(4) != MAGIC:
        raise damaged(file.path, "it doesn't begin with GGUF")
    version = cursor.number("I")
    if version and not version & 0xFFFF:  # of the other byte order
        cursor.order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        fix = "convert it with llama.cpp" if version == 1 else None
        raise refused(file.path, f"its version is {version}, and 2 and 3 are read", fix=fix)
    tensors, settings = cursor.number("Q"), cursor.number("Q")
    # A tensor's entry takes at least 24 bytes, a setting 13.
    file.check_inside(cursor.at, tensors * 24 + settings * 13)
    texts, alignment = _read_settings(cursor, settings)
    entries = [_read_entry(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    records: list[Record] = []
    ignored: list[str] = []
    seen: set[str] = set()
    for name, shape, kind, offset in entries:
        if name in seen:
            raise damaged(file.path, "two of its tensors have this name", key=name)
        seen.add(name)
        if offset % alignment:
            raise damaged(file.path, f"it begins at {offset:,}, which is no multiple of {alignment}", key=name)
        if kind in _PLAIN:
            records.append(_make_record(cursor, name, shape, kind, start + offset))
        elif kind not in _QUANTIZED:
            raise refused(file.path, f"its type has the number {kind}, which isn't known", key=name)
        elif limits.dequantize:
            records.append(_make_quantized(file, name, shape, kind, start + offset))
        else:
            ignored.append(f"{name} (quantized, {_QUANTIZED[kind]}: dequantize=True reads it)")
    for record in records:
        limits.check(file.path, record)
    return Index(file.path, "gguf", records, [file], texts, ignored)


def _read_settings(cursor: _Cursor, count: int) -> tuple[dict[str, str], int]:
    """Return the settings that are texts or numbers, and the alignment of the data."""
    texts: dict[str, str] = {}
    alignment = 32
    for _ in range(count):
        name = cursor.text()
        value = cursor.value(cursor.number("I"))
        if name == _ALIGNMENT:
            if type(value) is not int or not 0 < value <= 1 << 20 or value & (value - 1):
                raise damaged(cursor.file.path, f"its alignment is {shorten(value)}, and a power of two is wanted")
            alignment = value
        if value is not None and len(str(value)) <= 1000:
            texts[name] = str(value)
    return texts, alignment


def _read_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text()
    axes = cursor.number("I")
    if axes > _MOST_AXES:
        raise damaged(cursor.file.path, f"it has {axes} axes, and {_MOST_AXES} are allowed", key=name)
    shape = tuple(cursor.number("Q") for _ in range(axes))[::-1]
    if any(length >= 1 << 62 for length in shape):
        raise damaged(cursor.file.path, f"its shape is {shape}", key=name)
    return name, shape, cursor.number("I"), cursor.number("Q")


def _make_record(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Record:
    dtype = dtype_from_name(_PLAIN[kind])
    cursor.file.check_inside(offset, math.prod(shape) * dtype.itemsize, name)
    swapped = (cursor.order == ">") == bool(np.little_endian) and dtype.itemsize > 1
    return Record(name, dtype, shape, ArrayMetadata.plain(name, shape, dtype), ByteRange(cursor.file, offset, swapped))


def _make_quantized(file: OpenFile, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Record:
    gguf = need_gguf(file.path)
    try:
        quantized = gguf.GGMLQuantizationType(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[quantized]
        readable = quantized in gguf.quants._type_traits
    except (ValueError, KeyError):
        readable = False
    if not readable:
        reason = f"its type is {_QUANTIZED[kind]}, which this version of the gguf package can't dequantize"
        raise refused(file.path, reason, key=name, fix="leave out dequantize=True, which leaves out such tensors")
    if not shape or shape[-1] % block:
        raise damaged(file.path, f"its rows of {shape[-1:]} entries aren't made of blocks of {block}", key=name)
    file.check_inside(offset, math.prod(shape) // block * block_bytes, name)
    dtype = np.dtype(np.float32)
    location = QuantizedEntries(file, offset, quantized, block, block_bytes)
    return Record(name, dtype, shape, ArrayMetadata.plain(name, shape, dtype), location)
