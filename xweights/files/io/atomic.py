"""Replacing a file: wholly, or not at all.

The new file is written beside the old one, brought to the disk, and put in its place by one rename, which is then
brought to the disk as well. Whoever reads meanwhile has the old file open and goes on reading that. Temporary files are
locked by the process that writes them, so one without a lock was left by a process that is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from xweights.errors import CheckpointError
from xweights.files.io.items import ArrayToWrite
from xweights.files.io.open_file import inaccessible, refused

# .NAME.PID-TOKEN.xweights-tmp
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}\.xweights-tmp")
# Between making a temporary file and locking it, in seconds, and then some.
_GRACE = 60.0


class Replacement:
    """The file that will take the old one's place, for a format to write into."""

    def __init__(self, path: str, file: BinaryIO, temporary: str) -> None:
        self.path, self.file, self.temporary = path, file, temporary

    def write(self, data: Any) -> int:
        """Write all of these bytes."""
        return self.file.write(data)

    def cannot(self, item: ArrayToWrite | None, reason: str) -> CheckpointError:
        """Return the error to raise for an array that this format can't hold."""
        fix = "choose another format by the ending of the path, or leave it out with where="
        return refused(self.path, reason, key=None if item is None else item.key, fix=fix)


@contextlib.contextmanager
def replacing(path: str, *, durable: bool = True) -> Iterator[Replacement]:
    """Yield a file to write into; it takes the place of ``path`` if the block ends well, and is removed if not."""
    path = os.path.realpath(path)
    temporary = ""
    try:
        sweep(path)
        temporary, descriptor = _temporary(path)
        with open(descriptor, "w+b", buffering=1 << 16) as file:
            yield Replacement(path, file, temporary)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        temporary = ""
        if durable:
            sync_folder(path)
    except OSError as cause:
        if isinstance(cause, CheckpointError):
            raise
        raise inaccessible(path, cause, "write it") from cause
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def written_so_far(path: str) -> int:
    """Return how many bytes this process has written of what will take the place of ``path``."""
    folder, name = os.path.split(os.path.realpath(path))
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for one in entries:
            found = _TEMPORARY.fullmatch(one.name)
            if found is not None and found["name"] == name and int(found["pid"]) == os.getpid():
                return one.stat().st_size
    return 0


def sync_folder(path: str) -> None:
    """Bring a rename to the disk: it is kept in the folder, not in the file."""
    if os.name != "posix":
        return
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: str) -> tuple[str, int]:
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}-{secrets.token_hex(4)}.xweights-tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), _mode(path))
    lock(descriptor, wait=False)
    with contextlib.suppress(OSError, AttributeError):
        os.fchmod(descriptor, _mode(path) if os.path.exists(path) else stat.S_IMODE(os.fstat(descriptor).st_mode))
    return temporary, descriptor


def _mode(path: str) -> int:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return 0o666


def lock(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file for this process; return whether that was done. It ends with the process at the latest."""
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
    """Remove temporary files for ``path``, or for all ``names`` beside it, whose process is gone."""
    folder, name = os.path.split(path)
    for one in os.scandir(folder or "."):
        found = _TEMPORARY.fullmatch(one.name)
        if found is None or not (found["name"] == name or (names is not None and names.fullmatch(found["name"]))):
            continue
        with contextlib.suppress(OSError):
            if _abandoned(one.path, int(found["pid"])):
                Path(one.path).unlink()


def _abandoned(temporary: str, pid: int) -> bool:
    descriptor = os.open(temporary, os.O_RDWR)
    try:
        if not lock(descriptor, wait=False):
            return False
        # Not locked: its process is gone, or has just made it.
        return not _alive(pid) or time.time() - os.fstat(descriptor).st_mtime > _GRACE
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
