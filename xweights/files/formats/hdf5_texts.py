"""Measure the texts in an HDF5 attribute before HDF5 reads them.

HDF5 keeps texts of variable length in a heap, and nothing forbids a file to name one long text ten thousand times: a
small file then fills the memory, because HDF5 copies each. It has no call that says how long they are, so their lengths
are looked up in the object's header (versions 1 and 2 of the format's description, sections IV.A.1 and IV.A.2.m).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_CONTINUED, _ATTRIBUTE = 0x10, 0x0C
_MOST_CHUNKS = 1000
# Each text: its length, and where it lies: the address of the heap and the number in it.
_TEXT = struct.Struct("<LQL")


def measure_texts(source: Any, address: int, name: str, count: int) -> int | None:
    """Return the bytes of all texts of an attribute; None if they aren't in the object's header.

    ``source`` is the file as a file object, ``address`` that of the object's header in it.
    """
    try:
        for kind, data in _iter_messages(source, address):
            if kind == _ATTRIBUTE:
                found, value = _parse_attribute(data)
                if found == name.encode():
                    return sum(int(_TEXT.unpack_from(value, at * _TEXT.size)[0]) for at in range(count))
    except (struct.error, IndexError):
        pass
    return None


def _read(source: Any, start: int, count: int) -> bytes:
    source.seek(start)
    data: bytes = source.read(count)
    return data


def _iter_messages(source: Any, address: int) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and the data of each message of an object's header."""
    start = _read(source, address, 64)
    if start[:4] == b"OHDR":
        flags = start[5]
        at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        size, head = int.from_bytes(start[at : at + width], "little"), 6 if flags & 4 else 4
        chunks, mark, end = [(address + at + width, size)], 4, 4
    else:
        size, head = struct.unpack_from("<L", start, 8)[0], 8
        chunks, mark, end = [(address + 16, size)], 0, 0
    for number, (first, length) in enumerate(chunks):
        if number > _MOST_CHUNKS or length > 1 << 24:
            return
        data = _read(source, first, length)
        at = 0 if number == 0 else mark  # later chunks of version 2 have a mark before and a sum after them
        while at + head <= length - (end if number else 0):
            kind, size = struct.unpack_from("<HH", data, at) if head == 8 else struct.unpack_from("<BH", data, at)
            message = data[at + head : at + head + size]
            if kind == _CONTINUED:
                chunks.append(struct.unpack_from("<QQ", message))
            yield kind, message
            at += head + size


def _parse_attribute(data: bytes) -> tuple[bytes, bytes]:
    """Return the name and the value of an attribute."""
    version, sizes = data[0], struct.unpack_from("<3H", data, 2)
    at = 9 if version == 3 else 8
    name = data[at : at + sizes[0]].split(b"\0")[0]
    for size in sizes:
        at += -(-size // 8) * 8 if version == 1 else size
    return name, data[at:]
