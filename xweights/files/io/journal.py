"""Change a few bytes of a file in place, so that a crash leaves either all of them changed or none.

The changes are first written to a journal next to the file and synced to disk; then the file is changed and synced;
then the journal is removed. A complete journal is applied by whoever opens the file next; an incomplete one was cut
short before the file was touched, and is removed.
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
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes at one offset of a file, before and after the change."""

    offset: int
    old: bytes
    new: bytes


def journal_path(path: str) -> str:
    """Return the path of a file's journal."""
    folder, name = os.path.split(os.path.realpath(path))
    return os.path.join(folder, f".{name}.xweights-journal")


def open_recovered(path: str) -> OpenFile:
    """Open a file for reading, after applying its journal if there is one."""
    if os.path.lexists(journal_path(path)):
        with open_locked(path) as descriptor:
            recover(path, descriptor)
    return OpenFile(path)


@contextlib.contextmanager
def open_locked(path: str) -> Iterator[int]:
    """Open a file for changing it, under an exclusive lock."""
    try:
        descriptor = _open_and_lock(path)
    except OSError as cause:
        raise inaccessible(path, cause, "change it") from None
    try:
        yield descriptor
    except OSError as cause:
        raise inaccessible(path, cause, "change it") from cause
    finally:
        os.close(descriptor)


def _open_and_lock(path: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            lock(descriptor, wait=True)
            is_current = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except BaseException:
            os.close(descriptor)
            raise
        if is_current:
            return descriptor
        os.close(descriptor)  # it was replaced while we waited


def patch(path: str, descriptor: int, patches: Sequence[Patch], *, durable: bool = True) -> None:
    """Apply the patches to a locked file."""
    journal = journal_path(path)
    body = json.dumps(
        {
            "size": os.fstat(descriptor).st_size,
            "patches": [[change.offset, change.old.hex(), change.new.hex()] for change in patches],
        }
    ).encode()
    content = _MAGIC + zlib.crc32(body).to_bytes(4, "little") + len(body).to_bytes(8, "little") + body
    journal_descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        _write_all(journal_descriptor, content, 0)
        if durable:
            sync(journal_descriptor)
    except BaseException:
        os.unlink(journal)
        raise
    finally:
        os.close(journal_descriptor)
    if durable:
        sync_folder(journal)
    _apply(descriptor, patches, durable=durable)
    # If a power cut brings it back, it repeats changes that were made anyway; the folder's next change removes it.
    _remove(journal, durable=False)


def recover(path: str, descriptor: int) -> None:
    """Apply the journal of a locked file, if there is one."""
    journal = journal_path(path)
    content = _read_journal(journal)
    if content is None:
        _remove(journal, durable=True)
        return
    size, patches = content
    current = [os.pread(descriptor, len(change.new), change.offset) for change in patches]
    if size != os.fstat(descriptor).st_size or not all(map(_is_old_or_new, patches, current)):
        reason = f"a journal beside it, {os.path.basename(journal)!r}, speaks of another file than this one"
        raise damaged(path, reason, fix="remove the journal if the file is as it should be")
    _apply(descriptor, patches, durable=True)
    _remove(journal, durable=True)


def _is_old_or_new(change: Patch, current: bytes) -> bool:
    if len(current) != len(change.new):
        return False
    present, old, new = (np.frombuffer(part, np.uint8) for part in (current, change.old, change.new))
    return bool(((present == old) | (present == new)).all())


def _read_journal(journal: str) -> tuple[int, list[Patch]] | None:
    """Return the file size and the patches in a journal, or None if it was cut short."""
    try:
        with open(journal, "rb") as file:
            content = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    head = len(_MAGIC)
    body = content[head + 12 :]
    crc, length = (
        int.from_bytes(content[head : head + 4], "little"),
        int.from_bytes(content[head + 4 : head + 12], "little"),
    )
    if content[:head] != _MAGIC or len(body) != length or zlib.crc32(body) != crc:
        return None
    parsed = json.loads(body)
    patches = [Patch(offset, bytes.fromhex(old), bytes.fromhex(new)) for offset, old, new in parsed["patches"]]
    return parsed["size"], patches


def _apply(descriptor: int, patches: Sequence[Patch], *, durable: bool) -> None:
    for change in patches:
        _write_all(descriptor, change.new, change.offset)
    if durable:
        sync(descriptor)


def sync(descriptor: int) -> None:
    """Sync a file's bytes to disk, and the metadata needed to find them."""
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


# CRC-32 is linear, so the checksum of a changed file follows from the old one and the change, whatever its length.


def crc_after(crc: int, patches: Sequence[Patch], start: int, end: int) -> int:
    """Return the CRC-32 of the bytes from ``start`` to ``end`` after the patches."""
    for change in patches:
        if not start <= change.offset < end:
            continue
        difference = bytes(a ^ b for a, b in zip(change.old, change.new, strict=True))
        # The checksum of a change alone: crc(change) without its usual start and end, then zeros up to the end.
        bare = zlib.crc32(difference) ^ zlib.crc32(bytes(len(difference)))
        crc ^= _append_zeros(bare, end - change.offset - len(difference))
    return crc


def _append_zeros(crc: int, count: int) -> int:
    """Return a bare CRC after so many zero bytes have followed."""
    power = 0
    while count:
        if count & 1:
            crc = _multiply(_zeros_matrix(power), crc)
        count >>= 1
        power += 1
    return crc


@cache
def _zeros_matrix(power: int) -> tuple[int, ...]:
    """Return the matrix that applies 2**power zero bytes to a CRC, as columns of 32 bits."""
    if power < 0:  # less than a byte: 2**(power + 3) bits
        before = (0xEDB88320, *(1 << bit for bit in range(31))) if power == -3 else _zeros_matrix(power - 1)
        return before if power == -3 else tuple(_multiply(before, column) for column in before)
    before = _zeros_matrix(power - 1)
    return tuple(_multiply(before, column) for column in before)


def _multiply(matrix: Sequence[int], vector: int) -> int:
    total = column = 0
    while vector:
        if vector & 1:
            total ^= matrix[column]
        vector >>= 1
        column += 1
    return total
