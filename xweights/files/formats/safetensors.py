"""The safetensors format: a header in JSON, then the arrays one after the other.

Written after the format's description (https://github.com/huggingface/safetensors, "Format"); its package isn't
needed.

The header is at most 100 MB and begins with ``{``; no key comes twice; the arrays cover the rest of the file without
holes or overlaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xweights.errors import DamagedFileError
from xweights.files.io.dtypes import dtype_named
from xweights.files.io.items import ArrayToWrite, Sink
from xweights.files.io.limits import Limits
from xweights.files.io.notes import NOTE, ArrayMetadata, packed
from xweights.files.io.open_file import OpenFile, damaged, refused, shortened
from xweights.files.io.records import ByteRange, Index, Record, bytes_of

ENDING = ".safetensors"
HEADER_MOST = 100_000_000
# The format's words for dtypes, and NumPy's (or ml_dtypes').
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
WORDS = {name: word for word, name in DTYPES.items()}
_FIELDS = {"dtype", "shape", "data_offsets"}


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a safetensors file; everything the format demands is checked here."""
    header, start = _header(file, limits)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(file.path, "its __metadata__ is no mapping of texts to texts")
    notes = _notes(file, metadata)
    records: list[Record] = []
    spans: list[tuple[int, int, str]] = []
    for key, entry in header.items():
        record, first, last = _record(file, key, entry, start, notes.pop(key, None))
        limits.check(file.path, record)
        records.append(record)
        spans.append((first, last, key))
    _check_cover(file, spans, file.size - start)
    return Index(file.path, "safetensors", records, [file], {k: v for k, v in metadata.items() if k != NOTE})


def _header(file: OpenFile, limits: Limits) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(0, 8), "little")
    if length > HEADER_MOST:
        raise damaged(file.path, f"its header claims {length:,} bytes, and {HEADER_MOST:,} are allowed")
    file.check_inside(8, length)
    limits.check_index(file.path, length)
    text = file.read(8, length)
    if not text.startswith(b"{"):
        raise damaged(file.path, "its header doesn't begin with {")
    header = json_object(file.path, text, "its header")
    return header, 8 + length


def json_object(path: str, text: bytes, what: str) -> dict[str, Any]:
    """Return a JSON object without repeated keys."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise damaged(path, f"{what} has one key twice", key=twice)
        return found

    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=_no_constant)
    except RecursionError:
        raise damaged(path, f"{what} is nested too deeply") from None
    except DamagedFileError:
        raise
    except ValueError as wrong:
        raise damaged(path, f"{what} is no JSON: {str(wrong)[:120]}") from None
    if not isinstance(found, dict):
        raise damaged(path, f"{what} is no object of JSON")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _notes(file: OpenFile, metadata: dict[str, str]) -> dict[str, Any]:
    if NOTE not in metadata:
        return {}
    return json_object(file.path, metadata[NOTE].encode(), f"its note {NOTE!r}")


def _record(file: OpenFile, key: str, entry: Any, start: int, note: Any) -> tuple[Record, int, int]:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise damaged(file.path, "its entry in the header isn't made of dtype, shape and data_offsets", key=key)
    word, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(word, str) or word not in DTYPES:
        raise refused(file.path, f"its dtype {shortened(word)} has no counterpart in NumPy", key=key)
    if not _counts(shape) or len(shape) > 64:
        raise damaged(file.path, f"its shape is {shortened(shape)}", key=key)
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(file.path, f"its data_offsets are {shortened(offsets)}", key=key)
    dtype = dtype_named(DTYPES[word])
    first, last = offsets
    wanted = math.prod(shape) * dtype.itemsize
    if last - first != wanted:
        reason = f"its bytes don't fit its shape\ngot:      {last - first:,} bytes\nexpected: {wanted:,} bytes"
        raise damaged(file.path, reason, key=key)
    file.check_inside(start + first, wanted, key)
    span = ByteRange(file, start + first, swapped=not np.little_endian and dtype.itemsize > 1)
    return Record(key, dtype, tuple(shape), read_note(file.path, note, key, tuple(shape), dtype), span), first, last


def read_note(path: str, found: Any, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ArrayMetadata:
    """Return the note of an array, or what its key says where there is none."""
    if found is None:
        return ArrayMetadata.plain(key, shape, dtype)
    try:
        return ArrayMetadata.from_json(found, key, shape, dtype)
    except ValueError as wrong:
        raise damaged(path, str(wrong), key=key) from None


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 62 for one in value)


def _check_cover(file: OpenFile, spans: list[tuple[int, int, str]], size: int) -> None:
    at = 0
    for first, last, key in sorted(spans):
        if first != at:
            what = "overlaps the one before it" if first < at else "leaves a hole before it"
            raise damaged(file.path, f"its data {what}, at byte {first:,}", key=key)
        at = last
    if at != size:
        raise damaged(file.path, f"{size - at:,} bytes after its last array belong to none")


def write(sink: Sink, items: Sequence[ArrayToWrite], metadata: dict[str, str]) -> None:
    """Write items as a safetensors file: the widest dtypes first, as its readers expect for alignment."""
    ordered = sorted(items, key=lambda item: -item.dtype.itemsize)
    header: dict[str, Any] = {}
    notes = {item.key: item.note.as_json(item.key, item.dtype) for item in items if item.note is not None}
    words = dict(metadata)
    if notes:
        words[NOTE] = packed({key: note for key, note in notes.items() if note})
    if words:
        header["__metadata__"] = words
    first: dict[str, int] = {}
    at = 0
    for item in ordered:
        first[item.key] = at
        at += item.nbytes
    for item in items:
        word = WORDS.get(item.dtype.name)
        if word is None:
            raise sink.cannot(item, f"safetensors has no dtype {item.dtype.name}")
        begin = first[item.key]
        header[item.key] = {"dtype": word, "shape": item.shape, "data_offsets": (begin, begin + item.nbytes)}
    text = packed(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_MOST:
        raise sink.cannot(None, f"the names take {len(text):,} bytes, and a header has at most {HEADER_MOST:,}")
    sink.write(len(text).to_bytes(8, "little") + text)
    for item in ordered:
        for part in item.checked():
            sink.write(bytes_of(part))
