"""The journal of a transaction: a list of the files that it replaces, in JSON under a checksum."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import zlib
from dataclasses import dataclass

from xweights.files.io.open_file import damaged

_MAGIC = b"xweights transaction 1\n"
_MAX_BYTES = 8 << 20  # 40,000 files
# .NAME.TOKEN.xweights-old
KEPT_NAME = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.xweights-old")

# Size and time of the last change.
Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class FileChange:
    """What happens to one file. ``kept`` is the second name of the old file, None if there was none."""

    name: str
    kept: str | None
    old: Identity | None
    new: Identity | None  # None: it is removed


def write_journal(descriptor: int, changes: list[FileChange], *, durable: bool) -> None:
    """Write what will happen into an empty journal, and wait for the disk if asked to."""
    body = json.dumps([[change.name, change.kept, change.old, change.new] for change in changes]).encode()
    content = _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body
    if len(content) > _MAX_BYTES:
        raise OSError(errno.EFBIG, f"{len(changes):,} files are too many to be replaced together")
    done = 0
    while done < len(content):
        done += os.write(descriptor, content[done:])
    if durable:
        os.fsync(descriptor)


def read_journal(path: str, descriptor: int) -> list[FileChange]:
    """Return what a journal lists; nothing if it was cut short, because nothing was changed then."""
    content = bytearray()
    while len(content) < _MAX_BYTES and (part := os.pread(descriptor, _MAX_BYTES, len(content))):
        content += part
    body = content[len(_MAGIC) + 4 :]
    if content[: len(_MAGIC) + 4] != _MAGIC + zlib.crc32(body).to_bytes(4, "little"):
        return []
    try:
        parsed = json.loads(body)
        return [_parse_change(*fields) for fields in parsed]
    except (ValueError, TypeError, RecursionError):
        raise damaged(path, "its journal isn't one that xweights wrote", fix="remove the journal") from None


def _parse_change(name: object, kept: object, old: object, new: object) -> FileChange:
    """Return a change; raise ValueError unless it names files beside the journal."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError(name)
    if kept is None:
        return FileChange(name, None, None, _parse_identity(new))
    match = KEPT_NAME.fullmatch(kept) if isinstance(kept, str) else None
    if match is None or match["name"] != name:
        raise ValueError(kept)
    return FileChange(name, match[0], _parse_identity(old), None if new is None else _parse_identity(new))


def _parse_identity(value: object) -> Identity:
    if isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value):
        return value[0], value[1]
    raise ValueError(value)


def make_kept_name(name: str) -> str:
    """Return a second name for an old file, which no other one has."""
    return f".{name}.{secrets.token_hex(4)}.xweights-old"
