"""Replace a file atomically: completely or not at all.

The new file is written next to the old one, synced to disk, and moved into its place by one rename, which is then
synced as well. A reader that has the old file open goes on reading that. Temporary files are locked by the process that
writes them, so one without a lock was left behind by a process that has ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

from xweights.errors import CheckpointError
from xweights.files.io.arrays_to_write import ArrayToWrite
from xweights.files.io.open_file import inaccessible, refused

# .NAME.PID-TOKEN.xweights-tmp
_TEMPORARY_NAME = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}\.xweights-tmp")
# Seconds that certainly suffice between creating a temporary file and locking it.
GRACE = 60.0
# Inside of replace_together: (temporary file, path, descriptor that keeps its lock, whether to sync the folder).
_waiting: ContextVar[list[tuple[str, str, int, bool]] | None] = ContextVar("waiting", default=None)


class Replacement:
    """The temporary file that will replace the old one; formats write into it."""

    def __init__(self, path: str, file: BinaryIO, temporary: str) -> None:
        self.path, self.file, self.temporary = path, file, temporary

    def write(self, data: Any) -> int:
        """Write all of these bytes."""
        return self.file.write(data)

    def cannot(self, array: ArrayToWrite | None, reason: str) -> CheckpointError:
        """Return the error to raise for an array that this format can't hold."""
        fix = "choose another format by the ending of the path, or leave it out with where="
        return refused(self.path, reason, key=None if array is None else array.key, fix=fix)


@contextlib.contextmanager
def replace_file(path: str, *, durable: bool = True) -> Iterator[Replacement]:
    """Yield a file to write into; it replaces ``path`` if the block succeeds, and is removed otherwise."""
    path = os.path.realpath(path)
    temporary = ""
    try:
        sweep(path)
        temporary, descriptor = create_temporary(path)
        with open(descriptor, "w+b", buffering=1 << 16) as file:
            yield Replacement(path, file, temporary)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            waiting = _waiting.get()
            if waiting is None:
                os.replace(temporary, path)
            else:
                waiting.append((temporary, path, os.dup(file.fileno()), durable))
        temporary = ""
        if durable and waiting is None:
            sync_folder(path)
    except OSError as cause:
        if isinstance(cause, CheckpointError):
            raise
        raise inaccessible(path, cause, "write it") from cause
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextlib.contextmanager
def replace_together() -> Iterator[None]:
    """Replace no file before all that are written in this block are complete, and none if it fails.

    Each takes its place by a rename of its own, one after the other: only a crash in that moment leaves some replaced.
    """
    waiting: list[tuple[str, str, int, bool]] = []
    token = _waiting.set(waiting)
    folders = {}
    try:
        yield
        while waiting:
            temporary, path, descriptor, durable = waiting[0]
            try:
                os.replace(temporary, path)
            except OSError as cause:
                raise inaccessible(path, cause, "write it") from cause
            del waiting[0]
            os.close(descriptor)
            if durable:
                folders[os.path.dirname(path)] = path
        for path in folders.values():
            sync_folder(path)
    finally:
        _waiting.reset(token)
        for temporary, _, descriptor, _ in waiting:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def are_replaced_together() -> bool:
    """Return whether files are only replaced once all of them are written."""
    return _waiting.get() is not None


def count_written_bytes(path: str) -> int:
    """Return how many bytes this process has written so far of the file that will replace ``path``."""
    folder, name = os.path.split(os.path.realpath(path))
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY_NAME.fullmatch(entry.name)
            if match is not None and match["name"] == name and int(match["pid"]) == os.getpid():
                return entry.stat().st_size
    return 0


def sync_folder(path: str) -> None:
    """Sync a rename to disk; it is recorded in the folder, not in the file."""
    if os.name != "posix":
        return
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_temporary(path: str) -> tuple[str, int]:
    """Create a locked temporary file with the permissions of ``path``; return its path and descriptor."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}-{secrets.token_hex(4)}.xweights-tmp")
    descriptor = os.open(
        temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), permissions_of(path)
    )
    lock(descriptor, wait=False)
    with contextlib.suppress(OSError, AttributeError):
        os.fchmod(
            descriptor, permissions_of(path) if os.path.exists(path) else stat.S_IMODE(os.fstat(descriptor).st_mode)
        )
    return temporary, descriptor


def permissions_of(path: str) -> int:
    """Return the permissions of a file, or those of a new one."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return 0o666


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file for this process; return whether that succeeded. The lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # not POSIX
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def sweep(path: str, names: re.Pattern[str] | None = None) -> None:
    """Remove temporary files of ``path``, or of all ``names`` in its folder, whose process has ended."""
    folder, name = os.path.split(path)
    for entry in os.scandir(folder or "."):
        match = _TEMPORARY_NAME.fullmatch(entry.name)
        if match is None or not (match["name"] == name or (names is not None and names.fullmatch(match["name"]))):
            continue
        with contextlib.suppress(OSError):
            if _is_abandoned(entry.path, int(match["pid"])):
                Path(entry.path).unlink()


def _is_abandoned(temporary: str, pid: int) -> bool:
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        if not lock(descriptor, wait=False):
            return False
        # Not locked: its process has ended, or has only just created it.
        return not _is_alive(pid) or time.time() - os.fstat(descriptor).st_mtime > GRACE
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
