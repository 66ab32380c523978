"""Streaming a file into its replacement, with other bytes where arrays were edited.

No array changes its size, so everything keeps its place: what wasn't edited is copied as it is, whatever it means.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.files.edit.in_place import overlapping
from xweights.files.edit.plan import Steps
from xweights.files.formats.h5 import need_h5py
from xweights.files.io.atomic import Replacement, replacing
from xweights.files.io.open_file import PIECE, OpenFile, refused
from xweights.files.io.records import ByteRange, Record, bytes_of
from xweights.files.load import Checkpoint


def rewritable(opened: Checkpoint, steps: Steps) -> bool:
    """Return whether the edited arrays are plain bytes of one file."""
    touched = [steps.parameters[position].handle for position in steps.touched]
    if not all(isinstance(record.place, ByteRange) for record in touched):
        return False
    files = {p.handle.place.file for p in steps.parameters if isinstance(p.handle.place, ByteRange)}
    return len(files) <= 1 and len(opened.files) == 1


def rewritten(
    opened: Checkpoint, steps: Steps, edit: Callable[[int], Array], destination: str, *, durable: bool
) -> None:
    """Write the file anew, arrays in the order in which they lie in it."""
    records = [p.handle for p in steps.parameters]
    both = overlapping(records, {records[position].key for position in steps.touched})
    if both:
        reason = f"it shares its bytes with {both[1]!r}, which would change too"
        raise refused(opened.path, reason, key=both[0], fix="convert the file to .safetensors first")
    (file,) = opened.files
    with replacing(destination, durable=durable) as sink:
        at = 0
        for position in sorted(steps.touched, key=lambda one: records[one].place.offset):
            record = records[position]
            span: Any = record.place
            if not record.size:
                edit(position)
                continue
            _copy(file, sink, at, span.offset)
            sink.write(_encoded(record, edit(position)))
            at = span.offset + span.extent(record)
        _copy(file, sink, at, file.size)
        sink.file.flush()
        _renew_sums(sink, [records[position] for position in steps.touched])


def repackable(opened: Checkpoint) -> bool:
    """Return whether packed arrays can be replaced inside of a copy of the file: in HDF5."""
    return opened.format == "h5" and len(opened.files) == 1


def repacked(
    opened: Checkpoint, steps: Steps, edit: Callable[[int], Array], destination: str, *, durable: bool
) -> None:
    """Copy the file and have h5py replace the edited arrays in the copy, so that all else in it stays."""
    h5py = need_h5py(opened.path)
    (file,) = opened.files
    with replacing(destination, durable=durable) as sink:
        _copy(file, sink, 0, file.size)
        sink.file.flush()
        with h5py.File(sink.temporary, "r+", locking=False) as copy:  # we have locked it ourselves
            for position in sorted(steps.touched):
                record = steps.parameters[position].handle
                array, dataset = edit(position), copy[record.key]
                dataset[...] = array.view(dataset.dtype) if dataset.dtype.kind == "V" else array


def _copy(file: OpenFile, sink: Replacement, start: int, end: int) -> None:
    sink.file.flush()
    while start < end:
        count = min(end - start, 1 << 30)
        try:
            done = os.sendfile(sink.file.fileno(), file.descriptor, start, count)
        except (AttributeError, OSError):
            done = 0
        if not done:
            done = sink.write(file.read(start, min(count, PIECE)))
            sink.file.flush()
        else:
            sink.file.seek(0, os.SEEK_END)
        start += done


def _encoded(record: Record, array: Array) -> Any:
    """Return an array as the bytes that lie in the file."""
    span: Any = record.place
    if span.strides is not None:
        # What lies between its entries stays as it is.
        flat = np.frombuffer(bytearray(span.file.read(span.offset, span.extent(record))), record.dtype)
        strides = [step * record.dtype.itemsize for step in span.strides]
        into = np.lib.stride_tricks.as_strided(flat, record.shape, strides)
        into[...] = array.byteswap() if span.swapped else array
        return flat.view(np.uint8).data
    return bytes_of(array.byteswap()) if span.swapped else bytes_of(array)


def _renew_sums(sink: Replacement, records: list[Record]) -> None:
    descriptor = sink.file.fileno()
    for first, last, checks in {
        (record.place.check_from, record.place.check_to, record.place.checks)
        for record in records
        if isinstance(record.place, ByteRange) and record.place.checks
    }:
        crc = 0
        for start in range(first, last, PIECE):
            crc = zlib.crc32(os.pread(descriptor, min(PIECE, last - start), start), crc)
        for place in checks:
            os.pwrite(descriptor, crc.to_bytes(4, "little"), place)
