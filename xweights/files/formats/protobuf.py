"""Protocol buffer messages: (field, kind) and a value, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Fields = dict[int, list[Any]]


class MalformedError(ValueError):
    """Bytes that break the rules of a format that is built of messages."""


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of up to 64 bits, seven in each byte, and the position after it."""
    value = 0
    for position in range(10):
        byte = data[at + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, at + position + 1
    raise MalformedError("a number has no end")


def parse_message(data: bytes) -> Fields:
    """Return the values of a message by the numbers of its fields."""
    fields: Fields = {}
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        kind = tag & 7
        value: Any
        if kind == 0:
            value, at = read_varint(data, at)
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        elif kind == 2:
            length, at = read_varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            raise MalformedError(f"a message has a field of kind {kind}")
        if at > len(data):
            raise MalformedError("a message is cut short")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def get_number(fields: Fields, field: int) -> int:
    """Return the number in a field, 0 if it isn't there."""
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise MalformedError(f"field {field} of a message is no number")
    return value


def get_text(fields: Fields, field: int) -> str:
    """Return the text in a field, an empty one if it isn't there."""
    value = fields.get(field, [b""])[-1]
    if not isinstance(value, bytes):
        raise MalformedError(f"field {field} of a message is no text")
    return value.decode()


def iter_messages(fields: Fields, field: int) -> Iterator[Fields]:
    """Yield the messages in a field, parsed."""
    for value in fields.get(field, ()):
        if not isinstance(value, bytes):
            raise MalformedError(f"field {field} of a message is no message")
        yield parse_message(value)


def as_signed(number: int) -> int:
    """Return a number of 64 bits with its sign."""
    return number - (1 << 64) if number >> 63 else number
