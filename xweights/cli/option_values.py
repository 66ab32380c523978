"""Values of options that are more than a number: pairs, entries, what differs from layer to layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xweights.errors import XweightsError

_ENTRIES = re.compile(r"\[(?P<index>[^\]]*)\]\s*=\s*(?P<value>.+)", re.DOTALL)
_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::(-?\d+))?")


def number(text: str, option: str) -> float:
    """Return a number."""
    try:
        return float(text)
    except ValueError:
        raise _wrong(option, "a number", text) from None


def numbers(text: str, option: str) -> float | tuple[float, ...]:
    """Return a number, or several between commas."""
    found = tuple(number(one, option) for one in text.split(","))
    return found[0] if len(found) == 1 else found


def bounds(text: str, option: str) -> tuple[float | None, float | None]:
    """Return (low, high) of ``-1,1``; either may be left out."""
    low, comma, high = text.partition(",")
    if not comma or not (low or high):
        raise _wrong(option, "LOW,HIGH; one of them may be left out, as in ',1'", text)
    return (number(low, option) if low else None, number(high, option) if high else None)


def entries(text: str, option: str) -> tuple[Any, float] | float:
    """Return ``(index, value)`` of ``[0,:3]=1.5`` or ``[in=0,out=:3]=1.5``; a number alone is a value for all."""
    found = _ENTRIES.fullmatch(text.strip())
    if found is None:
        if text.strip().startswith("["):
            raise _wrong(option, "VALUE, or [INDEX]=VALUE as in [0,:3]=1.5 or [in=0,out=:3]=1.5", text)
        return number(text, option)
    parts = [part.strip() for part in found["index"].split(",")]
    value = number(found["value"], option)
    if any("=" in part for part in parts):
        pairs = [part.partition("=") for part in parts]
        if not all(axis and equals for axis, equals, _ in pairs):
            raise _wrong(option, "an index by place or by name of the axis, not both", text)
        return {axis.strip(): _place(at.strip(), option, text) for axis, _, at in pairs}, value
    return tuple(_place(part, option, text) for part in parts), value


def _place(part: str, option: str, text: str) -> Any:
    if re.fullmatch(r"-?\d+", part):
        return int(part)
    found = _SLICE.fullmatch(part)
    if found is None:
        raise _wrong(option, "an index of whole numbers and slices, as in [0,:3]=1.5", text)
    return slice(*(None if one is None else int(one) for one in found.groups()))


def pattern(text: str, option: str) -> tuple[int, int, str]:
    """Return ``(2, 4, "in")`` of ``2:4:in``."""
    found = re.fullmatch(r"(\d+):(\d+):(.+)", text)
    if found is None:
        raise _wrong(option, "N:M:AXIS, as in 2:4:in", text)
    return int(found[1]), int(found[2]), found[3]


def axes(text: str | None) -> str | tuple[str, ...] | None:
    """Return one axis, or several between commas."""
    if text is None:
        return None
    found = tuple(text.split(","))
    return found[0] if len(found) == 1 else found


def by_where(given: Sequence[str] | None, option: str, where_of: Callable[[list[str]], Any]) -> Any:
    """Return what a merge takes for ``0.5``, ``1,2`` or, one a where, ``head/*=0,1``; None for nothing."""
    if not given:
        return None
    if len(given) == 1 and "=" not in given[0]:
        return numbers(given[0], option)
    found = {}
    for one in given:
        where, equals, rest = one.rpartition("=")
        key = where_of([where]) if equals else "*"
        if key in found:
            raise _wrong(option, "one value a WHERE", ", ".join(given))
        found[key] = numbers(rest, option)
    return found


def once(given: Sequence[str] | None, option: str) -> str | None:
    """Return the one value of an option; refuse a second one, which would replace the first without a word."""
    if given and len(given) > 1:
        raise _wrong(option, "given once: edits are done one after the other, in calls of their own", ", ".join(given))
    return given[0] if given else None


def _wrong(option: str, expected: str, got: str) -> XweightsError:
    from xweights.errors import ArgumentError, got_expected

    return ArgumentError(f"{option} can't be understood\n{got_expected(got, expected)}")
