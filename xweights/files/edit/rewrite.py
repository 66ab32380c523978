"""Stream a file into its replacement, with new bytes where arrays were edited.

No array changes its size, so everything keeps its offset, and unedited bytes are copied as they are.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.files.edit.in_place import find_overlap
from xweights.files.edit.plan import Steps
from xweights.files.formats.h5 import need_h5py
from xweights.files.io.atomic import Replacement, replace_file
from xweights.files.io.open_file import PIECE, OpenFile, refused
from xweights.files.io.records import ByteRange, Record, little_endian_bytes
from xweights.files.load import Checkpoint


def can_rewrite(checkpoint: Checkpoint, steps: Steps) -> bool:
    """Return whether the edited arrays are plain bytes of one file."""
    touched = [steps.parameters[position].handle for position in steps.touched]
    if not all(isinstance(record.location, ByteRange) for record in touched):
        return False
    files = {p.handle.location.file for p in steps.parameters if isinstance(p.handle.location, ByteRange)}
    return len(files) <= 1 and len(checkpoint.files) == 1


def rewrite(
    checkpoint: Checkpoint, steps: Steps, edit: Callable[[int], Array], destination: str, *, durable: bool
) -> None:
    """Rewrite the file, edited arrays in the order of their offsets."""
    records = [p.handle for p in steps.parameters]
    overlap = find_overlap(records, {records[position].key for position in steps.touched})
    if overlap:
        reason = f"it shares its bytes with {overlap[1]!r}, which would change too"
        raise refused(checkpoint.path, reason, key=overlap[0], fix="convert the file to .safetensors first")
    (file,) = checkpoint.files
    with replace_file(destination, durable=durable) as sink:
        at = 0
        for position in sorted(steps.touched, key=lambda touched: records[touched].location.offset):
            record = records[position]
            location: Any = record.location
            if not record.size:
                edit(position)
                continue
            _copy(file, sink, at, location.offset)
            sink.write(_encode(record, edit(position)))
            at = location.offset + location.extent(record)
        _copy(file, sink, at, file.size)
        sink.file.flush()
        _renew_sums(sink, [records[position] for position in steps.touched])


def can_repack(checkpoint: Checkpoint) -> bool:
    """Return whether compressed arrays can be replaced in a copy of the file, as in HDF5."""
    return checkpoint.format == "h5" and len(checkpoint.files) == 1


def repack(
    checkpoint: Checkpoint, steps: Steps, edit: Callable[[int], Array], destination: str, *, durable: bool
) -> None:
    """Copy the file and have h5py replace the edited arrays in the copy, leaving everything else as it is."""
    h5py = need_h5py(checkpoint.path)
    (file,) = checkpoint.files
    with replace_file(destination, durable=durable) as sink:
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


def _encode(record: Record, array: Array) -> Any:
    """Return an array as its bytes in the file."""
    location: Any = record.location
    if location.strides is not None:
        # The bytes between its entries are kept.
        flat = np.frombuffer(bytearray(location.file.read(location.offset, location.extent(record))), record.dtype)
        strides = [step * record.dtype.itemsize for step in location.strides]
        entries = np.lib.stride_tricks.as_strided(flat, record.shape, strides)
        entries[...] = array.byteswap() if location.swapped else array
        return flat.view(np.uint8).data
    return little_endian_bytes(array.byteswap()) if location.swapped else little_endian_bytes(array)


def _renew_sums(sink: Replacement, records: list[Record]) -> None:
    descriptor = sink.file.fileno()
    for first, last, checks in {
        (record.location.check_from, record.location.check_to, record.location.checks)
        for record in records
        if isinstance(record.location, ByteRange) and record.location.checks
    }:
        crc = 0
        for start in range(first, last, PIECE):
            crc = zlib.crc32(os.pread(descriptor, min(PIECE, last - start), start), crc)
        for offset in checks:
            os.pwrite(descriptor, crc.to_bytes(4, "little"), offset)
