"""Setting a few entries of a file in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import RefusedFileError
from xweights.files.edit.plan import Steps
from xweights.files.io.journal import Patch, crc_after, locked, patch, recover
from xweights.files.io.open_file import refused
from xweights.files.io.records import ByteRange, Record
from xweights.rules.entries import SetEntries, value_at

# Beyond so many bytes, writing the file anew is as quick and needs no journal as large as itself.
MOST = 1 << 20


def set_entries_in_place(path: str, steps: Steps, *, durable: bool) -> dict[str, int] | None:
    """Set entries in the file itself and return how many changed by name; None if these edits need a new file."""
    if not all(isinstance(step.rule, SetEntries) for step in steps.steps) or os.name != "posix":
        return None
    touched = [steps.parameters[position] for position in sorted(steps.touched)]
    if not all(isinstance(p.handle.place, ByteRange) for p in touched):
        return None
    files = {p.handle.place.file.path for p in touched}
    if len(files) > 1:
        return None  # two shards can't change at once
    homes = _overlapping(steps, touched)
    if homes:
        reason = f"it shares its bytes with {homes[1]!r}, which would change too"
        raise refused(path, reason, key=homes[0], fix="write a new file with out=, or edit the model")
    found: dict[str, dict[int, bytes]] = {}
    total = 0
    for step in steps.steps:
        for position in step.chosen:
            p = steps.parameters[position]
            assert isinstance(step.rule, SetEntries)
            places, values = _entries(step.rule, p)
            total += values.nbytes
            if total > MOST:
                return None
            into = found.setdefault(p.name, {})
            into.update(_bytes(p.handle, places, values))
    by_name = {p.name: p for p in touched}
    (real,) = files
    with locked(real) as descriptor:
        recover(real, descriptor)
        file = touched[0].handle.place.file
        if not os.path.sameopenfile(descriptor, file.descriptor):
            raise RefusedFileError(f"{path!r} was replaced while it was being edited\nFix: edit it again")
        patches, changed = _patches(found, by_name, descriptor)
        if patches:
            patch(real, descriptor, patches, durable=durable)
    return changed


def _overlapping(steps: Steps, touched: list[Parameter]) -> tuple[str, str] | None:
    return overlapping([p.handle for p in steps.parameters], {p.handle.key for p in touched})


def overlapping(records: list[Record], touched: set[str]) -> tuple[str, str] | None:
    """Return the keys of a touched array and of one that has bytes of it, if there are any."""
    spans = sorted(
        (record.place.offset, record.place.offset + record.place.extent(record), record.key, record.place.file.path)
        for record in records
        if isinstance(record.place, ByteRange) and record.size
    )
    reach: tuple[int, str, str] = (0, "", "")
    for first, last, key, file in sorted(spans, key=lambda one: (one[3], one[0])):
        if file == reach[2] and first < reach[0] and (key in touched or reach[1] in touched):
            return (key, reach[1]) if key in touched else (reach[1], key)
        if file != reach[2] or last > reach[0]:
            reach = (last, key, file)
    return None


def _entries(rule: SetEntries, p: Parameter) -> tuple[Array, Array]:
    """Return where in the stored array (in bytes) the chosen entries lie, and what they become."""
    index = rule.resolve(p)
    value = value_at(rule.index, index, rule.value, p)
    strides = _neutral_strides(p)
    places: Array
    if len(index) == 1 and isinstance(index[0], np.ndarray):
        places = np.zeros(int(np.count_nonzero(index[0])), np.int64)
        for at, step in zip(np.nonzero(index[0]), strides, strict=True):
            places += at * step
    else:
        places = np.zeros((), np.int64)
        for item, length, step in zip(index, p.shape, strides, strict=True):
            steps = np.arange(length, dtype=np.int64)[item] * step
            places = np.add.outer(places, steps) if isinstance(item, slice) else places + steps
    return places.reshape(-1), np.broadcast_to(value, places.shape).reshape(-1)


def _neutral_strides(p: Parameter) -> tuple[int, ...]:
    """Return how many bytes of the file lie between neighbours along each neutral axis."""
    record = p.handle
    width = record.dtype.itemsize
    stored = record.place.strides
    if stored is None:
        steps, step = [], width
        for length in reversed(p.layout.split):
            steps.append(step)
            step *= max(length, 1)
        split = tuple(reversed(steps))
    elif p.layout.split == p.layout.stored:
        split = tuple(step * width for step in stored)
    else:
        raise refused(record.place.file.path, "its bytes lie in another order than its note says", key=record.key)
    return tuple(split[axis] for axis in p.layout.order)


def _bytes(record: Record, places: Array, values: Array) -> Iterator[tuple[int, bytes]]:
    span: Any = record.place
    width = record.dtype.itemsize
    data = values.astype(values.dtype.newbyteorder("S")) if span.swapped else np.ascontiguousarray(values)
    raw = data.view(np.uint8).tobytes()
    for number, place in enumerate(places.tolist()):
        yield span.offset + place, raw[number * width : (number + 1) * width]


def _patches(
    found: dict[str, dict[int, bytes]], by_name: dict[str, Parameter], descriptor: int
) -> tuple[list[Patch], dict[str, int]]:
    patches: list[Patch] = []
    changed: dict[str, int] = {}
    summed: dict[tuple[int, int, tuple[int, ...]], list[Patch]] = {}
    for name, entries in found.items():
        record = by_name[name].handle
        mine: list[Patch] = []
        count = 0
        for first, data in _runs(entries):
            old = os.pread(descriptor, len(data), first)
            width = record.dtype.itemsize
            count += sum(old[at : at + width] != data[at : at + width] for at in range(0, len(data), width))
            if old != data:
                mine.append(Patch(first, old, data))
        changed[name] = count
        patches += mine
        span = record.place
        if mine and span.checks:
            # Several arrays may lie in one member of an archive, under one sum.
            summed.setdefault((span.check_from, span.check_to, span.checks), []).extend(mine)
    for (first, last, checks), some in summed.items():
        before = int.from_bytes(os.pread(descriptor, 4, checks[0]), "little")
        after = crc_after(before, some, first, last).to_bytes(4, "little")
        patches += [Patch(at, os.pread(descriptor, 4, at), after) for at in checks]
    return patches, changed


def _runs(entries: dict[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Join entries that lie next to each other."""
    start, end = -1, -1
    parts: list[bytes] = []
    for place in sorted(entries):
        if place != end:
            if parts:
                yield start, b"".join(parts)
            start, parts = place, []
        parts.append(entries[place])
        end = place + len(entries[place])
    if parts:
        yield start, b"".join(parts)
