"""Stream a file into its replacement, with new bytes where arrays were edited.

No array changes its size, so everything keeps its offset, and unedited bytes are copied as they are. Of a checkpoint of
several files, those are replaced that hold something that changes; its index says the same as before.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.files.edit.in_place import find_overlap
from xweights.files.edit.plan import Steps
from xweights.files.formats import h5
from xweights.files.formats.sharded import list_places
from xweights.files.io.atomic import Replacement, replace_file
from xweights.files.io.open_file import PIECE, OpenFile, refused
from xweights.files.io.records import ByteRange, Record, little_endian_bytes
from xweights.files.io.transaction import transaction
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
    _refuse_overlap(checkpoint, steps)
    (file,) = checkpoint.files
    with replace_file(destination, durable=durable) as sink:
        _rewrite_into(sink, file, steps, sorted(steps.touched), edit)


def can_repack(checkpoint: Checkpoint) -> bool:
    """Return whether compressed arrays can be replaced in a copy of the file, as in HDF5."""
    return checkpoint.format == "h5" and len(checkpoint.files) == 1


def repack(
    checkpoint: Checkpoint, steps: Steps, edit: Callable[[int], Array], destination: str, *, durable: bool
) -> None:
    """Copy the file and have h5py replace the edited arrays in the copy, leaving everything else as it is."""
    (file,) = checkpoint.files
    with replace_file(destination, durable=durable) as sink:
        _repack_into(sink, file, steps, sorted(steps.touched), edit)


def can_rewrite_shards(checkpoint: Checkpoint, steps: Steps) -> bool:
    """Return whether the checkpoint has shards, each of which can be rewritten or repacked."""
    shards = {file.path for file in checkpoint.files[1:]}
    return bool(shards) and all(_find_path(steps.parameters[position]) in shards for position in steps.touched)


def rewrite_shards(
    checkpoint: Checkpoint, steps: Steps, edit: Callable[[int], Array], changed: dict[str, int], *, durable: bool
) -> None:
    """Replace the shards in which ``edit`` changes something, as it counts in ``changed``: all of them or none."""
    _refuse_overlap(checkpoint, steps)
    positions_in: dict[str, list[int]] = {}
    for position in sorted(steps.touched):
        positions_in.setdefault(_find_path(steps.parameters[position]) or "", []).append(position)
    folders = {os.path.dirname(path) for path in positions_in}
    places = list_places(checkpoint.path)
    beside = next((place for place in places if os.path.dirname(place) in folders), places[0])
    with transaction(beside, durable=durable) as changes:
        touched = [file for file in checkpoint.files[1:] if file.path in positions_in]
        for file in touched:
            changes.expect(file, os.fstat(file.descriptor))
        for file in touched:
            positions = positions_in[file.path]
            plain = all(isinstance(steps.parameters[at].handle.location, ByteRange) for at in positions)
            with changes.replace(file.path) as sink:
                (_rewrite_into if plain else _repack_into)(sink, file, steps, positions, edit)
            if not any(changed[steps.parameters[at].name] for at in positions):
                changes.discard(file.path)


def _find_path(p: Parameter) -> str | None:
    """Return the path of the file that holds an array which can be replaced there."""
    location = p.handle.location
    if isinstance(location, ByteRange):
        return location.file.path
    return location.path if isinstance(location, h5.PackedDataset) else None


def _refuse_overlap(checkpoint: Checkpoint, steps: Steps) -> None:
    records = [p.handle for p in steps.parameters]
    overlap = find_overlap(checkpoint.records, {records[position].key for position in steps.touched})
    if overlap:
        reason = f"it shares its bytes with {overlap[1]!r}, which would change too"
        raise refused(checkpoint.path, reason, key=overlap[0], fix="convert the file to .safetensors first")


def _rewrite_into(
    sink: Replacement, file: OpenFile, steps: Steps, positions: list[int], edit: Callable[[int], Array]
) -> None:
    """Copy a file, with new bytes at the edited arrays, in the order of their offsets."""
    records = [p.handle for p in steps.parameters]
    at = 0
    for position in sorted(positions, key=lambda touched: records[touched].location.offset):
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
    _renew_sums(sink, [records[position] for position in positions])


def _repack_into(
    sink: Replacement, file: OpenFile, steps: Steps, positions: list[int], edit: Callable[[int], Array]
) -> None:
    """Copy an HDF5 file, and have h5py replace the edited arrays in the copy."""
    h5py = h5.need_h5py(file.path)
    _copy(file, sink, 0, file.size)
    sink.file.flush()
    with h5py.File(sink.temporary, "r+", locking=False) as copy:  # we have locked it ourselves
        replace_datasets(file.path, copy, steps, positions, edit)


def replace_datasets(
    path: str, structure: Any, steps: Steps, positions: list[int], edit: Callable[[int], Array]
) -> None:
    """Replace the edited arrays in an HDF5 file that h5py has opened for writing."""
    for position in positions:
        record = steps.parameters[position].handle
        if not isinstance(record.location, (ByteRange, h5.PackedDataset)):
            reason = "it is computed from what the file holds, the arrays of a CuDNN layer in their own order"
            raise refused(path, reason, key=record.key, fix="out=, in another format")
        array, dataset = edit(position), structure[record.key]
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
