"""Changing a few bytes of a file in place, so that a crash leaves them all changed or none.

What will change is first written to a journal beside the file and brought to the disk; then the file is changed and
brought to the disk; then the journal is removed. A journal that is whole is carried out by whoever opens the file next;
one that isn't was cut short before the file was touched, and is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from xweights.files.io.atomic import lock, sync_folder
from xweights.files.io.open_file import OpenFile, damaged, inaccessible

_MAGIC = b"xweights journal 1\n"
_MOST = 64 << 20


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes at one place of a file: what they were, and what they become."""

    offset: int
    old: bytes
    new: bytes


def journal_of(path: str) -> str:
    """Return where the journal of a file is."""
    folder, name = os.path.split(os.path.realpath(path))
    return os.path.join(folder, f".{name}.xweights-journal")


def opened(path: str) -> OpenFile:
    """Open a file for reading, after carrying out what a journal says is still to be done."""
    if os.path.lexists(journal_of(path)):
        with locked(path) as descriptor:
            recover(path, descriptor)
    return OpenFile(path)


@contextlib.contextmanager
def locked(path: str) -> Iterator[int]:
    """Open a file for changing it, and keep out everybody else who would."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as cause:
        raise inaccessible(path, cause, "change it") from None
    try:
        lock(descriptor, wait=True)
        yield descriptor
    except OSError as cause:
        raise inaccessible(path, cause, "change it") from cause
    finally:
        os.close(descriptor)


def patch(path: str, descriptor: int, patches: Sequence[Patch], *, durable: bool = True) -> None:
    """Carry out the patches on a locked file."""
    journal = journal_of(path)
    body = json.dumps(
        {
            "size": os.fstat(descriptor).st_size,
            "patches": [[one.offset, one.old.hex(), one.new.hex()] for one in patches],
        }
    ).encode()
    whole = _MAGIC + zlib.crc32(body).to_bytes(4, "little") + len(body).to_bytes(8, "little") + body
    room = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        _write_all(room, whole, 0)
        if durable:
            sync(room)
    except BaseException:
        os.unlink(journal)
        raise
    finally:
        os.close(room)
    if durable:
        sync_folder(journal)
    _carry_out(descriptor, patches, durable=durable)
    # Should a power cut bring it back, it says what was done anyway; whatever changes the folder next removes it.
    _remove(journal, durable=False)


def recover(path: str, descriptor: int) -> None:
    """Finish what a journal says, if there is one; the file is locked."""
    journal = journal_of(path)
    found = _read(journal)
    if found is None:
        _remove(journal, durable=True)
        return
    size, patches = found
    now = [os.pread(descriptor, len(one.new), one.offset) for one in patches]
    if size != os.fstat(descriptor).st_size or not all(map(_half_done, patches, now)):
        reason = f"a journal beside it, {os.path.basename(journal)!r}, speaks of another file than this one"
        raise damaged(path, reason, fix="remove the journal if the file is as it should be")
    _carry_out(descriptor, patches, durable=True)
    _remove(journal, durable=True)


def _half_done(one: Patch, now: bytes) -> bool:
    if len(now) != len(one.new):
        return False
    seen, old, new = (np.frombuffer(part, np.uint8) for part in (now, one.old, one.new))
    return bool(((seen == old) | (seen == new)).all())


def _read(journal: str) -> tuple[int, list[Patch]] | None:
    """Return what a journal says, or None if it was cut short."""
    try:
        with open(journal, "rb") as file:
            whole = file.read(_MOST)
    except FileNotFoundError:
        return None
    head = len(_MAGIC)
    body = whole[head + 12 :]
    crc, length = (
        int.from_bytes(whole[head : head + 4], "little"),
        int.from_bytes(whole[head + 4 : head + 12], "little"),
    )
    if whole[:head] != _MAGIC or len(body) != length or zlib.crc32(body) != crc:
        return None
    found = json.loads(body)
    patches = [Patch(offset, bytes.fromhex(old), bytes.fromhex(new)) for offset, old, new in found["patches"]]
    return found["size"], patches


def _carry_out(descriptor: int, patches: Sequence[Patch], *, durable: bool) -> None:
    for one in patches:
        _write_all(descriptor, one.new, one.offset)
    if durable:
        sync(descriptor)


def sync(descriptor: int) -> None:
    """Bring a file's bytes to the disk, and what it takes to find them."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _remove(journal: str, *, durable: bool) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(journal)
        if durable:
            sync_folder(journal)


# CRC-32 is linear, so the sum of a changed file follows from the old sum and the change, however long the file is.


def crc_after(crc: int, patches: Sequence[Patch], start: int, end: int) -> int:
    """Return the CRC-32 of the bytes from ``start`` to ``end`` after the patches."""
    for one in patches:
        if not start <= one.offset < end:
            continue
        change = bytes(a ^ b for a, b in zip(one.old, one.new, strict=True))
        # The sum of a change alone: crc(change) without its usual start and end, then zeros up to the end.
        bare = zlib.crc32(change) ^ zlib.crc32(bytes(len(change)))
        crc ^= _followed_by_zeros(bare, end - one.offset - len(change))
    return crc


def _followed_by_zeros(crc: int, count: int) -> int:
    """Return what a bare CRC becomes when so many zero bytes follow."""
    power = 0
    while count:
        if count & 1:
            crc = _times(_zeros(power), crc)
        count >>= 1
        power += 1
    return crc


@cache
def _zeros(power: int) -> tuple[int, ...]:
    """Return the matrix that 2**power zero bytes stand for, as columns of 32 bits."""
    if power < 0:  # less than a byte: 2**(power + 3) bits
        before = (0xEDB88320, *(1 << place for place in range(31))) if power == -3 else _zeros(power - 1)
        return before if power == -3 else tuple(_times(before, column) for column in before)
    before = _zeros(power - 1)
    return tuple(_times(before, column) for column in before)


def _times(matrix: Sequence[int], vector: int) -> int:
    total = place = 0
    while vector:
        if vector & 1:
            total ^= matrix[place]
        vector >>= 1
        place += 1
    return total
