"""Parse option values: numbers, bounds, entries, patterns, axes, and values that differ by parameter."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xweights.errors import XweightsError

_ENTRIES = re.compile(r"\[(?P<index>[^\]]*)\]\s*=\s*(?P<value>.+)", re.DOTALL)
_SLICE = re.compile(r"(-?\d{1,18})?:(-?\d{1,18})?(?::(-?\d{1,18}))?")


def parse_number(text: str, option: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError:
        raise _error(option, "a number", text) from None


def parse_numbers(text: str, option: str) -> float | tuple[float, ...]:
    """Parse a number, or several separated by commas."""
    numbers = tuple(parse_number(part, option) for part in text.split(","))
    return numbers[0] if len(numbers) == 1 else numbers


def parse_bounds(text: str, option: str) -> tuple[float | None, float | None]:
    """Parse ``-1,1`` into (low, high); either may be left out."""
    low, comma, high = text.partition(",")
    if not comma or not (low or high):
        raise _error(option, "LOW,HIGH; one of them may be left out, as in ',1'", text)
    return (parse_number(low, option) if low else None, parse_number(high, option) if high else None)


def parse_entries(text: str, option: str) -> tuple[Any, float] | float:
    """Parse ``[0,:3]=1.5`` or ``[in=0,out=:3]=1.5`` into ``(index, value)``; a number alone is a value for all."""
    match = _ENTRIES.fullmatch(text.strip())
    if match is None:
        if text.strip().startswith("["):
            raise _error(option, "VALUE, or [INDEX]=VALUE as in [0,:3]=1.5 or [in=0,out=:3]=1.5", text)
        return parse_number(text, option)
    parts = [part.strip() for part in match["index"].split(",")]
    value = parse_number(match["value"], option)
    if any("=" in part for part in parts):
        pairs = [part.partition("=") for part in parts]
        if not all(axis and equals for axis, equals, _ in pairs):
            raise _error(option, "an index by position or by name of the axis, not both", text)
        return {axis.strip(): _parse_index(at.strip(), option, text) for axis, _, at in pairs}, value
    return tuple(_parse_index(part, option, text) for part in parts), value


def _parse_index(part: str, option: str, text: str) -> Any:
    # Python itself refuses to read numbers of more than 4,300 digits.
    if re.fullmatch(r"-?\d{1,18}", part):
        return int(part)
    found = parse_slice(part)
    if found is None:
        raise _error(option, "an index of whole numbers and slices, as in [0,:3]=1.5", text)
    return found


def parse_slice(text: str) -> slice | None:
    """Parse ``:3`` or ``0:9:2``; None for anything else."""
    match = _SLICE.fullmatch(text)
    return None if match is None else slice(*(None if bound is None else int(bound) for bound in match.groups()))


def parse_pattern(text: str, option: str) -> tuple[int, int, str]:
    """Parse ``2:4:in`` into ``(2, 4, "in")``."""
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18}):(.+)", text)
    if match is None:
        raise _error(option, "N:M:AXIS, as in 2:4:in", text)
    return int(match[1]), int(match[2]), match[3]


def parse_axes(text: str | None) -> str | tuple[str, ...] | None:
    """Parse one axis, or several separated by commas."""
    if text is None:
        return None
    names = tuple(text.split(","))
    return names[0] if len(names) == 1 else names


def parse_by_where(values: Sequence[str] | None, option: str, parse_where: Callable[[list[str]], Any]) -> Any:
    """Parse ``0.5``, ``1,2`` or, repeated, ``head/*=0,1`` into a merge setting; None for no values."""
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return parse_numbers(values[0], option)
    by_where = {}
    for text in values:
        where, equals, rest = text.rpartition("=")
        key = parse_where([where]) if equals else "*"
        if key in by_where:
            raise _error(option, "one value per WHERE", ", ".join(values))
        by_where[key] = parse_numbers(rest, option)
    return by_where


def single_value(values: Sequence[str] | None, option: str) -> str | None:
    """Return the only value of an option; refuse a second one, which would silently replace the first."""
    if values and len(values) > 1:
        raise _error(option, "given once: run one edit after the other, each in its own call", ", ".join(values))
    return values[0] if values else None


def _error(option: str, expected: str, got: str) -> XweightsError:
    from xweights.errors import ArgumentError, got_expected

    return ArgumentError(f"{option} can't be understood\n{got_expected(got, expected)}")
