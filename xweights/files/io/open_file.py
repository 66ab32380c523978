"""Files that are opened once and read by position.

All reads of a checkpoint go through one descriptor: replacing the file meanwhile replaces its name only, and the old
file is read to the end.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import CheckpointError, DamagedFileError, FileAccessError, RefusedFileError

# Bytes per step where data only passes through: few enough for the second-level cache.
PIECE = 1 << 20
# Linux reads and writes at most 2 GiB less a page at once, and into 1,024 places.
_MAX_READ = 1 << 30
_MOST_PLACES = 1024

_READ_FLAGS = os.O_RDONLY
for _flag in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"):  # those that the system has
    _READ_FLAGS |= getattr(os, _flag, 0)

_Error = TypeVar("_Error", bound=CheckpointError)
_FIXES = {
    errno.ENOENT: "check the path",
    errno.ENOSPC: "make room on the disk; the file that was there before is untouched",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f); the file that was there before is untouched",
    errno.EDQUOT: "make room in the quota; the file that was there before is untouched",
    errno.EROFS: "choose another place",
    errno.EACCES: "ask for the right to it, or choose another place",
    errno.EISDIR: "name a file in it",
}


def damaged(path: str, reason: str, *, key: str | None = None, fix: str | None = None) -> DamagedFileError:
    """Return the error for a file that breaks the rules of its format."""
    return _make_error(DamagedFileError, path, reason, key, fix or "get the file again: this one can't be trusted")


def refused(path: str, reason: str, *, key: str | None = None, fix: str | None = None) -> RefusedFileError:
    """Return the error for a file with contents that are never loaded."""
    return _make_error(RefusedFileError, path, reason, key, fix)


def inaccessible(path: str, cause: OSError, doing: str) -> FileAccessError:
    """Return the error for a file that the system doesn't let us use."""
    reason = f"the system doesn't let us {doing}: {cause.strerror or cause}"
    error = _make_error(FileAccessError, path, reason, None, _FIXES.get(cause.errno or 0))
    error.errno = cause.errno
    return error


def _make_error(kind: type[_Error], path: str, reason: str, key: str | None, fix: str | None) -> _Error:
    inside = "" if key is None else f", {shorten(key)}"
    text = f"{os.path.basename(path)!r}{inside}: {reason}\nfile: {path}"
    error = kind(text if fix is None else f"{text}\nFix: {fix}")
    error.path, error.key, error.reason = path, key, reason
    return error


def shorten(text: object, limit: int = 120) -> str:
    """Return the repr of a value from a file, cut to a length that fits in a message."""
    shown = repr(text[: 2 * limit] if isinstance(text, (str, bytes)) else text)
    return shown if len(shown) <= limit else f"{shown[:limit]}..."


class OpenFile:
    """A regular file, opened for reading; safe to read from several threads at once."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # O_NONBLOCK: if it is a pipe, don't wait for a writer.
            self.descriptor = os.open(path, _READ_FLAGS)
        except OSError as cause:
            raise inaccessible(path, cause, "open it") from None
        except ValueError as cause:  # a null character in the path
            raise refused(path, f"this is no path: {cause}") from None
        self._close = weakref.finalize(self, os.close, self.descriptor)
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            self._close()
            raise refused(path, "it is no regular file", fix="name a file")
        self.size = status.st_size
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lock_shared(self) -> Iterator[None]:
        """Hold a shared lock, so that nobody changes the file in place, where the file system supports locks."""
        try:
            import fcntl

            fcntl.flock(self.descriptor, fcntl.LOCK_SH)
        except (ImportError, OSError):
            yield
            return
        try:
            yield
        finally:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close it now; reading then fails."""
        self._close()

    def read(self, offset: int, count: int, *, key: str | None = None) -> bytes:
        """Return exactly ``count`` bytes; raise DamagedFileError if the file ends before."""
        self.check_inside(offset, count, key)
        buffer = bytearray(count)
        self._fill(offset, memoryview(buffer), key)
        return bytes(buffer)

    def read_into(self, offset: int, out: Array, *, key: str | None = None) -> None:
        """Fill a C-contiguous array with the bytes from ``offset`` on."""
        if out.size:
            self._fill(offset, byte_view(out).data, key)

    def read_into_all(self, offset: int, outs: Sequence[Array]) -> None:
        """Fill C-contiguous arrays, one after the other, with the bytes from ``offset`` on: one read for many."""
        views = [byte_view(out).data for out in outs if out.size]
        first = 0
        while first < len(views):
            last, size = first, 0
            while last < len(views) and last - first < _MOST_PLACES and size < _MAX_READ:
                size += len(views[last])
                last += 1
            if last - first == 1 or not hasattr(os, "preadv"):
                self._fill(offset, views[first], None)
                got = len(views[first])
            else:
                got = self._read_places(offset, views[first:last])
            offset += got
            while first < last and got >= len(views[first]):
                got -= len(views[first])
                first += 1
            if got:
                views[first] = views[first][got:]

    def _read_places(self, offset: int, views: list[memoryview]) -> int:
        self._check_open()
        try:
            got = os.preadv(self.descriptor, views, offset)
        except OSError as cause:
            raise inaccessible(self.path, cause, "read it") from None
        if not got:
            raise damaged(self.path, "it became shorter while it was read")
        return got

    def _check_open(self) -> None:
        if not self._close.alive:
            raise refused(self.path, "it has been closed", fix="load it again")

    def check_inside(self, offset: int, count: int, key: str | None = None) -> None:
        """Raise DamagedFileError unless the file has all of these bytes."""
        if offset < 0 or count < 0 or offset + count > self.size:
            reason = f"it ends before its data does\ngot:      {self.size:,} bytes\nexpected: {offset + count:,} bytes"
            raise damaged(self.path, reason, key=key)

    def _fill(self, offset: int, out: memoryview, key: str | None) -> None:
        done = 0
        try:
            while done < len(out):
                got = self._read_some(offset + done, out[done : done + _MAX_READ])
                if not got:
                    raise damaged(self.path, "it became shorter while it was read", key=key)
                done += got
        except OSError as cause:
            raise inaccessible(self.path, cause, "read it") from None

    def _read_some(self, offset: int, out: memoryview) -> int:
        self._check_open()
        if hasattr(os, "preadv"):
            return os.preadv(self.descriptor, [out], offset)
        with self._lock:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            part = os.read(self.descriptor, len(out))
        out[: len(part)] = part
        return len(part)


class Window(io.RawIOBase):
    """A part of an open file as a file object, for parsers that want one."""

    def __init__(self, file: OpenFile, start: int = 0, size: int | None = None) -> None:
        super().__init__()
        self.file, self.start = file, start
        self.size = file.size - start if size is None else size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a position before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, out: Any) -> int:
        view = memoryview(out).cast("B")
        count = max(0, min(len(view), self.size - self._at))
        if count:
            view[:count] = self.file.read(self.start + self._at, count)
        self._at += count
        return count


def byte_view(array: Array) -> Array:
    """Return the bytes of a C-contiguous array as a flat array that shares its memory."""
    return array.reshape(-1).view(np.uint8)
