"""The safetensors format: a header in JSON, then the arrays one after the other.

Implemented after the format's description (https://github.com/huggingface/safetensors, "Format"); its package isn't
needed.

The header is at most 100 MB and begins with ``{``; no key occurs twice; the arrays cover the rest of the file without
gaps or overlaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xweights.errors import DamagedFileError
from xweights.files.io.arrays_to_write import ArrayToWrite, Sink
from xweights.files.io.dtypes import dtype_from_name
from xweights.files.io.limits import Limits
from xweights.files.io.metadata import METADATA_KEY, ArrayMetadata, compact_json
from xweights.files.io.open_file import OpenFile, damaged, refused, shorten
from xweights.files.io.records import ByteRange, Index, Record, little_endian_bytes

ENDING = ".safetensors"
MAX_HEADER = 100_000_000
# The format's names of dtypes, and NumPy's (or ml_dtypes').
DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "C64": "complex64",
}  # fmt: skip
DTYPE_NAMES = {name: code for code, name in DTYPES.items()}
_FIELDS = {"dtype", "shape", "data_offsets"}


def read(file: OpenFile, limits: Limits) -> Index:
    """Return the index of a safetensors file, after checking everything that the format demands."""
    header, start = _read_header(file, limits)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(file.path, "its __metadata__ is no mapping of texts to texts")
    metadata_by_key = _read_array_metadata(file, metadata)
    aliases = _read_aliases(metadata, header)
    records: list[Record] = []
    ranges: list[tuple[int, int, str]] = []
    for key, entry in header.items():
        record, first, last = _make_record(file, key, entry, start, metadata_by_key.pop(key, None))
        for alias in aliases.get(key, ()):
            record = replace(record, metadata=record.metadata.with_alias(alias))
        limits.check(file.path, record)
        records.append(record)
        ranges.append((first, last, key))
    _check_cover(file, ranges, file.size - start)
    return Index(file.path, "safetensors", records, [file], {k: v for k, v in metadata.items() if k != METADATA_KEY})


def _read_header(file: OpenFile, limits: Limits) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER:
        raise damaged(file.path, f"its header claims {length:,} bytes, and {MAX_HEADER:,} are allowed")
    file.check_inside(8, length)
    limits.check_index(file.path, length)
    text = file.read(8, length)
    if not text.startswith(b"{"):
        raise damaged(file.path, "its header doesn't begin with {")
    header = json_object(file.path, text, "its header")
    return header, 8 + length


def json_object(path: str, text: bytes, what: str) -> dict[str, Any]:
    """Return a JSON object; refuse repeated keys."""

    def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise damaged(path, f"{what} has one key twice", key=repeated)
        return parsed

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=refuse_repeats, parse_constant=_refuse_constant)
    except RecursionError:
        raise damaged(path, f"{what} is nested too deeply") from None
    except DamagedFileError:
        raise
    except ValueError as wrong:
        raise damaged(path, f"{what} is no JSON: {str(wrong)[:120]}") from None
    if not isinstance(parsed, dict):
        raise damaged(path, f"{what} is no object of JSON")
    return parsed


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _read_array_metadata(file: OpenFile, metadata: dict[str, str]) -> dict[str, Any]:
    if METADATA_KEY not in metadata:
        return {}
    return json_object(file.path, metadata[METADATA_KEY].encode(), f"its note {METADATA_KEY!r}")


def _read_aliases(metadata: dict[str, str], header: dict[str, Any]) -> dict[str, list[str]]:
    """Return the further keys of tied arrays: ``safetensors.torch.save_model`` notes ``{dropped key: kept key}``."""
    aliases: dict[str, list[str]] = {}
    for dropped, kept in metadata.items():
        if kept in header and dropped not in header:
            aliases.setdefault(kept, []).append(dropped)
    return aliases


def _make_record(file: OpenFile, key: str, entry: Any, start: int, metadata: Any) -> tuple[Record, int, int]:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise damaged(file.path, "its entry in the header isn't made of dtype, shape and data_offsets", key=key)
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise refused(file.path, f"its dtype {shorten(code)} has no counterpart in NumPy", key=key)
    if not _are_counts(shape) or len(shape) > 64:
        raise damaged(file.path, f"its shape is {shorten(shape)}", key=key)
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(file.path, f"its data_offsets are {shorten(offsets)}", key=key)
    dtype = dtype_from_name(DTYPES[code])
    first, last = offsets
    expected = math.prod(shape) * dtype.itemsize
    if last - first != expected:
        reason = f"its bytes don't fit its shape\ngot:      {last - first:,} bytes\nexpected: {expected:,} bytes"
        raise damaged(file.path, reason, key=key)
    file.check_inside(start + first, expected, key)
    location = ByteRange(file, start + first, swapped=not np.little_endian and dtype.itemsize > 1)
    return (
        Record(key, dtype, tuple(shape), parse_metadata(file.path, metadata, key, tuple(shape), dtype), location),
        first,
        last,
    )


def parse_metadata(path: str, fields: Any, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ArrayMetadata:
    """Return the metadata of an array, or the metadata that follows from its key where there is none."""
    if fields is None:
        return ArrayMetadata.plain(key, shape, dtype)
    try:
        return ArrayMetadata.from_json(fields, key, shape, dtype)
    except ValueError as wrong:
        raise damaged(path, str(wrong), key=key) from None


def _are_counts(value: Any) -> bool:
    if type(value) is not list:
        return False
    # For each of 1,000 small arrays twice: a loop in Python takes as long as reading one.
    return not value or (set(map(type, value)) == {int} and min(value) >= 0 and max(value) < 1 << 62)


def _check_cover(file: OpenFile, ranges: list[tuple[int, int, str]], size: int) -> None:
    at = 0
    for first, last, key in sorted(ranges):
        if first != at:
            fault = "overlaps the one before it" if first < at else "leaves a hole before it"
            raise damaged(file.path, f"its data {fault}, at byte {first:,}", key=key)
        at = last
    if at != size:
        raise damaged(file.path, f"{size - at:,} bytes after its last array belong to none")


def write(sink: Sink, arrays: Sequence[ArrayToWrite], metadata: dict[str, str]) -> None:
    """Write arrays as a safetensors file, the widest dtypes first, as its readers expect for alignment."""
    ordered = sorted(arrays, key=lambda array: -array.dtype.itemsize)
    header: dict[str, Any] = {}
    metadata_by_key = {
        array.key: array.metadata.as_json(array.key, array.dtype) for array in arrays if array.metadata is not None
    }
    texts = dict(metadata)
    if metadata_by_key:
        texts[METADATA_KEY] = compact_json({key: fields for key, fields in metadata_by_key.items() if fields})
    for array in arrays:
        for alias in array.aliases:
            texts.setdefault(alias, array.key)
    if texts:
        header["__metadata__"] = texts
    first: dict[str, int] = {}
    at = 0
    for array in ordered:
        first[array.key] = at
        at += array.nbytes
    for array in arrays:
        code = DTYPE_NAMES.get(array.dtype.name)
        if code is None:
            raise sink.cannot(array, f"safetensors has no dtype {array.dtype.name}")
        begin = first[array.key]
        header[array.key] = {"dtype": code, "shape": array.shape, "data_offsets": (begin, begin + array.nbytes)}
    text = compact_json(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise sink.cannot(None, f"the names take {len(text):,} bytes, and a header has at most {MAX_HEADER:,}")
    sink.write(len(text).to_bytes(8, "little") + text)
    for array in ordered:
        if array.place is not None:
            end = sink.file.tell() + array.nbytes
            array.place(sink, sink.file.tell())
            sink.file.truncate(end)
            sink.file.seek(end)
            continue
        for part in array.iter_checked():
            sink.write(little_endian_bytes(part))
