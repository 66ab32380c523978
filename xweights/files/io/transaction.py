"""Replace and remove several files of one folder together: all of them or none.

The new files are first written next to the old ones and synced. A journal then lists what will happen, every old file
gets a second name, and the new files are moved into their places; the change is made at the moment that the journal is
removed. Whoever finds a journal waits for the process that holds its lock; if that has ended, the old files are put
back by their second names. No reader of the whole sees some old and some new files.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack

from xweights.errors import CheckpointError
from xweights.files.io.atomic import (
    GRACE,
    Replacement,
    are_replaced_together,
    create_temporary,
    lock,
    permissions_of,
    sweep,
    sync_folder,
)
from xweights.files.io.open_file import OpenFile, damaged, inaccessible, refused, shorten
from xweights.files.io.transaction_journal import (
    KEPT_NAME,
    FileChange,
    Identity,
    make_kept_name,
    read_journal,
    write_journal,
)


def transaction_path(path: str) -> str:
    """Return the path of the journal beside a file; the path of the file is a real one, but for a link at its end."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.xweights-transaction")


class Transaction:
    """The files that will be replaced and removed; made by :func:`transaction`."""

    def __init__(self, path: str, *, durable: bool) -> None:
        self.folder = os.path.dirname(path)
        self.durable = durable
        self._journal = transaction_path(path)
        self._open = ExitStack()
        self._temporaries: dict[str, str] = {}
        self._expected: list[tuple[OpenFile, os.stat_result]] = []
        self._list_removed: Callable[[], Iterable[str]] = tuple

    @contextlib.contextmanager
    def replace(self, path: str) -> Iterator[Replacement]:
        """Yield a file to write into, which will replace ``path``; its folder is that of the transaction."""
        folder, name = os.path.split(path)
        if folder != self.folder:
            reason = "it isn't in the folder of the index, so that they can't be replaced together"
            raise refused(path, reason, fix="write a new file with out=")
        temporary, descriptor = create_temporary(path)
        self._temporaries[name] = temporary
        self._open.callback(os.close, descriptor)  # it stays open, and so locked, until all is done
        with open(os.dup(descriptor), "w+b", buffering=1 << 16) as file:
            yield Replacement(path, file, temporary)
            file.flush()
            if self.durable:
                os.fsync(file.fileno())

    def discard(self, path: str) -> None:
        """Drop what was written to replace ``path``."""
        os.unlink(self._temporaries.pop(os.path.basename(path)))

    def remove(self, list_names: Callable[[], Iterable[str]]) -> None:
        """Remove the files that ``list_names`` returns when nobody else can change the checkpoint any more."""
        self._list_removed = list_names

    def expect(self, file: OpenFile, status: os.stat_result) -> None:
        """Demand that a file is still the open one, and as it was then, when it is replaced."""
        self._expected.append((file, status))

    def commit(self) -> None:
        """Make the change."""
        if not self._temporaries:
            return
        with _acquire(self._journal) as descriptor:
            try:
                changes = self._check_and_list()
                if len(changes) == 1 and changes[0].new is not None:
                    self._move(changes[0].name)  # one rename is all or nothing by itself
                else:
                    write_journal(descriptor, changes, durable=self.durable)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(self._journal)
                raise
            if not self._temporaries:
                with contextlib.suppress(OSError):  # an empty journal says that nothing is left to do
                    os.unlink(self._journal)
                self._sync()
                return
            try:
                for change in changes:
                    if change.kept is not None:
                        _link(self._at(change.name), self._at(change.kept), durable=self.durable)
                self._sync()
                for change in changes:
                    if change.new is not None:
                        self._move(change.name)
                for change in changes:
                    if change.new is None:
                        os.unlink(self._at(change.name))
                self._sync()
                os.unlink(self._journal)
            except BaseException:
                with contextlib.suppress(OSError, CheckpointError):  # if that fails too, the next opener does it
                    _undo(self._journal, changes)
                    os.unlink(self._journal)
                raise
            self._sync()
            _forget(self.folder, changes)

    def close(self) -> None:
        """Remove what wasn't moved, and release the locks."""
        for temporary in self._temporaries.values():
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        self._open.close()

    def _check_and_list(self) -> list[FileChange]:
        for file, status in self._expected:
            # Entries are set in place under the same lock.
            lock(file.descriptor, wait=True)
            now = os.stat(file.path)
            if not os.path.samestat(now, status) or _identity(now) != _identity(status):
                raise refused(file.path, "it was changed while it was being edited", fix="edit it again")
        changes = [self._list_change(name) for name in self._temporaries]
        for name in self._list_removed():
            old = _find_identity(self._at(name))
            if name not in self._temporaries and old is not None:
                changes.append(FileChange(name, make_kept_name(name), old, None))
        return changes

    def _list_change(self, name: str) -> FileChange:
        old = _find_identity(self._at(name))
        status = os.stat(self._temporaries[name])
        if old == _identity(status):
            # Written within one tick of the file system's clock; the journal has to tell old from new.
            later = status.st_mtime_ns + 1_000_000
            os.utime(self._temporaries[name], ns=(later, later))
            status = os.stat(self._temporaries[name])
        return FileChange(name, None if old is None else make_kept_name(name), old, _identity(status))

    def _move(self, name: str) -> None:
        os.replace(self._temporaries[name], self._at(name))
        del self._temporaries[name]

    def _sync(self) -> None:
        if self.durable:
            sync_folder(self._journal)

    def _at(self, name: str) -> str:
        return os.path.join(self.folder, name)


@contextlib.contextmanager
def transaction(path: str, *, durable: bool = True) -> Iterator[Transaction]:
    """Yield a transaction beside ``path``, whose name its journal bears; it is committed if the block succeeds."""
    if are_replaced_together():
        reason = "a checkpoint of several files is changed by itself"
        raise refused(path, reason, fix="a call of its own for it, and one for all other files")
    changes = Transaction(path, durable=durable)
    try:
        yield changes
        changes.commit()
    except OSError as cause:
        if isinstance(cause, CheckpointError):
            raise
        raise inaccessible(path, cause, "write it") from cause
    finally:
        changes.close()


def in_transaction(path: str) -> bool:
    """Return whether files that belong to ``path`` are being replaced, or were when a process ended."""
    return os.path.lexists(transaction_path(path))


def settle(path: str) -> None:
    """Wait for the transaction beside a file, or undo it if its process has ended."""
    journal = transaction_path(path)
    try:
        # Looked for first, so that nothing but what the user named is opened.
        while os.path.lexists(journal) and (descriptor := _open_journal(journal)) is not None:
            try:
                if not lock(descriptor, wait=True) and not _is_old(descriptor):
                    time.sleep(0.01)  # a file system without locks
                elif _is_at(descriptor, journal):
                    changes = read_journal(path, descriptor)
                    _undo(journal, changes)
                    os.unlink(journal)
                    _forget(os.path.dirname(journal), changes)
            finally:
                os.close(descriptor)
    except OSError as cause:
        if isinstance(cause, CheckpointError):
            raise
        raise inaccessible(path, cause, "undo a change that was cut short") from cause


def has_litter(folder: str) -> bool:
    """Return whether a folder has temporary files or second names, of living processes or of others."""
    try:
        return any(name.endswith((".xweights-tmp", ".xweights-old")) for name in os.listdir(folder))
    except OSError:
        return False


def remove_litter(path: str, names: re.Pattern[str]) -> None:
    """Remove what processes that have ended left behind of the files with such names in the folder of ``path``."""
    with contextlib.suppress(OSError):
        folder = os.path.dirname(path)
        hidden = [name for name in os.listdir(folder) if name.endswith(".xweights-old")]
        # Second names are given and removed while there is a journal, so these are nobody's.
        for name in [] if in_transaction(path) else hidden:
            match = KEPT_NAME.fullmatch(name)
            if match is not None and names.fullmatch(match["name"]):
                os.unlink(os.path.join(folder, name))
        sweep(path, names)


@contextlib.contextmanager
def _acquire(journal: str) -> Iterator[int]:
    """Create the journal and lock it, once nobody else has one."""
    while True:
        settle(_owner(journal))
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(
                journal,
                os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0),
                permissions_of(_owner(journal)),
            )
            lock(descriptor, wait=True)
            if _is_at(descriptor, journal):  # else somebody took the empty journal for one of a process that has ended
                break
            os.close(descriptor)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _owner(journal: str) -> str:
    folder, name = os.path.split(journal)
    return os.path.join(folder, name[1:].removesuffix(".xweights-transaction"))


def _open_journal(journal: str) -> int | None:
    flags = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        try:
            return os.open(journal, os.O_RDWR | flags)
        except PermissionError:  # waiting for its end needs no right to write
            return os.open(journal, os.O_RDONLY | flags)
    except FileNotFoundError:
        return None


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _is_old(descriptor: int) -> bool:
    return time.time() - os.fstat(descriptor).st_mtime > GRACE


def _undo(journal: str, changes: list[FileChange]) -> None:
    """Put the old files back."""
    folder = os.path.dirname(journal)
    present = {change.name: _find_identity(os.path.join(folder, change.name)) for change in changes}
    kept = {change.name for change in changes if change.kept and os.path.lexists(os.path.join(folder, change.kept))}
    # Second names are removed after the change was made: then a power cut brought its journal back.
    made = any(change.kept and change.name not in kept and present[change.name] == change.new for change in changes)
    for change in changes:
        if present[change.name] not in ((change.new,) if made else (change.old, change.new)):
            reason = f"a journal beside it, {os.path.basename(journal)!r}, speaks of another {shorten(change.name)}"
            raise damaged(_owner(journal), reason, fix="remove the journal if the files are as they should be")
    for change in [] if made else changes:
        target = os.path.join(folder, change.name)
        if change.kept is not None and change.name in kept:
            _put_back(os.path.join(folder, change.kept), target)
        elif change.old is None and present[change.name] is not None:
            os.unlink(target)
    sync_folder(journal)


def _put_back(kept: str, target: str) -> None:
    try:
        same = os.path.samestat(os.lstat(kept), os.lstat(target))
    except FileNotFoundError:
        same = False
    if same:
        os.unlink(kept)  # renaming one of two names of a file to the other does nothing
    else:
        os.replace(kept, target)


def _forget(folder: str, changes: list[FileChange]) -> None:
    """Remove the second names of old files; a sweep removes those that can't be removed now."""
    for change in changes:
        if change.kept is not None:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, change.kept))


def _link(path: str, kept: str, *, durable: bool) -> None:
    """Give a file a second name; copy it where the system doesn't allow that."""
    try:
        os.link(path, kept, follow_symlinks=False)
    except (OSError, NotImplementedError):  # a file system without links, or another user's file
        part = os.path.join(os.path.dirname(path), make_kept_name(os.path.basename(path)))
        try:
            shutil.copy2(path, part, follow_symlinks=False)
            if durable and not os.path.islink(part):
                with open(part, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(part, kept)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise


def _identity(status: os.stat_result) -> Identity:
    return status.st_size, status.st_mtime_ns


def _find_identity(path: str) -> Identity | None:
    """Return the identity of the file or link at a path, None if there is none; refuse anything else."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        raise refused(path, "it is no regular file", fix="name a file")
    return _identity(status)
