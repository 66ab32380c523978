"""Set a few entries of a file in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import RefusedFileError
from xweights.files.edit.plan import Steps
from xweights.files.io.journal import Patch, crc_after, open_locked, patch, recover
from xweights.files.io.open_file import refused
from xweights.files.io.records import ByteRange, Record
from xweights.rules.entries import SetEntries, value_at

# Beyond this many bytes, rewriting the file is as quick and needs no journal of its own size.
MAX_BYTES = 1 << 20


def set_entries_in_place(path: str, steps: Steps, records: list[Record], *, durable: bool) -> dict[str, int] | None:
    """Set entries in the file itself; return how many changed, by name, or None if these edits need a new file.

    ``records`` are all arrays of the file, those of parts that aren't edited included.
    """
    if not all(isinstance(step.rule, SetEntries) for step in steps.steps) or os.name != "posix":
        return None
    touched = [steps.parameters[position] for position in sorted(steps.touched)]
    if not all(isinstance(p.handle.location, ByteRange) for p in touched):
        return None
    files = {p.handle.location.file.path for p in touched}
    if len(files) > 1:
        return None  # two shards can't change at once
    overlap = find_overlap(records, {p.handle.key for p in touched})
    if overlap:
        reason = f"it shares its bytes with {overlap[1]!r}, which would change too"
        raise refused(path, reason, key=overlap[0], fix="write a new file with out=, or edit the model")
    new_bytes: dict[str, dict[int, bytes]] = {}
    total = 0
    for step in steps.steps:
        for position in step.chosen:
            p = steps.parameters[position]
            assert isinstance(step.rule, SetEntries)
            offsets, values = _locate_entries(step.rule, p)
            total += values.nbytes
            if total > MAX_BYTES:
                return None
            entries = new_bytes.setdefault(p.name, {})
            entries.update(_iter_bytes(p.handle, offsets, values))
    by_name = {p.name: p for p in touched}
    (real_path,) = files
    with open_locked(real_path) as descriptor:
        recover(real_path, descriptor)
        file = touched[0].handle.location.file
        if not os.path.sameopenfile(descriptor, file.descriptor):
            raise RefusedFileError(f"{path!r} was replaced while it was being edited\nFix: edit it again")
        patches, changed = _make_patches(new_bytes, by_name, descriptor)
        if patches:
            patch(real_path, descriptor, patches, durable=durable)
    return changed


def find_overlap(records: list[Record], touched: set[str]) -> tuple[str, str] | None:
    """Return the keys of a touched array and of another array that shares bytes with it, if there are any."""
    ranges = sorted(
        (
            record.location.offset,
            record.location.offset + record.location.extent(record),
            record.key,
            record.location.file.path,
        )
        for record in records
        if isinstance(record.location, ByteRange) and record.size
    )
    reach: tuple[int, str, str] = (0, "", "")
    for first, last, key, file in sorted(ranges, key=lambda span: (span[3], span[0])):
        if file == reach[2] and first < reach[0] and (key in touched or reach[1] in touched):
            return (key, reach[1]) if key in touched else (reach[1], key)
        if file != reach[2] or last > reach[0]:
            reach = (last, key, file)
    return None


def _locate_entries(rule: SetEntries, p: Parameter) -> tuple[Array, Array]:
    """Return the byte offsets of the chosen entries within the stored array, and their new values."""
    index = rule.resolve(p)
    value = value_at(rule.index, index, rule.value, p)
    strides = _neutral_strides(p)
    offsets: Array
    if len(index) == 1 and isinstance(index[0], np.ndarray):
        offsets = np.zeros(int(np.count_nonzero(index[0])), np.int64)
        for at, step in zip(np.nonzero(index[0]), strides, strict=True):
            offsets += at * step
    else:
        offsets = np.zeros((), np.int64)
        for picked, length, step in zip(index, p.shape, strides, strict=True):
            steps = np.arange(length, dtype=np.int64)[picked] * step
            offsets = np.add.outer(offsets, steps) if isinstance(picked, slice) else offsets + steps
    return offsets.reshape(-1), np.broadcast_to(value, offsets.shape).reshape(-1)


def _neutral_strides(p: Parameter) -> tuple[int, ...]:
    """Return the distance in the file, in bytes, between neighbours along each neutral axis."""
    record = p.handle
    width = record.dtype.itemsize
    stored = record.location.strides
    if stored is None:
        steps, step = [], width
        for length in reversed(p.layout.split):
            steps.append(step)
            step *= max(length, 1)
        split = tuple(reversed(steps))
    elif p.layout.split == p.layout.stored:
        split = tuple(step * width for step in stored)
    else:
        raise refused(record.location.file.path, "its bytes lie in another order than its note says", key=record.key)
    return tuple(split[axis] for axis in p.layout.order)


def _iter_bytes(record: Record, offsets: Array, values: Array) -> Iterator[tuple[int, bytes]]:
    location: Any = record.location
    width = record.dtype.itemsize
    data = values.astype(values.dtype.newbyteorder("S")) if location.swapped else np.ascontiguousarray(values)
    raw = data.view(np.uint8).tobytes()
    for number, offset in enumerate(offsets.tolist()):
        yield location.offset + offset, raw[number * width : (number + 1) * width]


def _make_patches(
    new_bytes: dict[str, dict[int, bytes]], by_name: dict[str, Parameter], descriptor: int
) -> tuple[list[Patch], dict[str, int]]:
    patches: list[Patch] = []
    changed: dict[str, int] = {}
    by_checksum: dict[tuple[int, int, tuple[int, ...]], list[Patch]] = {}
    for name, entries in new_bytes.items():
        record = by_name[name].handle
        patches_here: list[Patch] = []
        count = 0
        for first, data in _join_runs(entries):
            old = os.pread(descriptor, len(data), first)
            width = record.dtype.itemsize
            count += sum(old[at : at + width] != data[at : at + width] for at in range(0, len(data), width))
            if old != data:
                patches_here.append(Patch(first, old, data))
        changed[name] = count
        patches += patches_here
        location = record.location
        if patches_here and location.checks:
            # Several arrays may be in one member of an archive, under one checksum.
            by_checksum.setdefault((location.check_from, location.check_to, location.checks), []).extend(patches_here)
    for (first, last, checks), patches_under_sum in by_checksum.items():
        before = int.from_bytes(os.pread(descriptor, 4, checks[0]), "little")
        after = crc_after(before, patches_under_sum, first, last).to_bytes(4, "little")
        patches += [Patch(at, os.pread(descriptor, 4, at), after) for at in checks]
    return patches, changed


def _join_runs(entries: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Join entries that are next to each other."""
    start, end = -1, -1
    parts: list[bytes] = []
    for offset in sorted(entries):
        if offset != end:
            if parts:
                yield start, b"".join(parts)
            start, parts = offset, []
        parts.append(entries[offset])
        end = offset + len(entries[offset])
    if parts:
        yield start, b"".join(parts)
