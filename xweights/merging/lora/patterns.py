"""PEFT's patterns: regular expressions from a file, of which only those are used that can't take long to match."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Letters, digits and dots, \d and \d+, .*, and alternatives in brackets: nothing that could be repeated is repeated.
_HARMLESS = re.compile(r"\^?(?:[A-Za-z0-9_\-/]|\\\.|\.\*|\.|\\d\+?|\[\d-\d\]\+?|\((?:[A-Za-z0-9_.\-]+\|?)+\))*\$?")
_LONGEST = 500
_MOST_STARS = 3


def find_pattern(patterns: Mapping[str, float], module: str) -> float | None:
    """Return the value of the first pattern that matches the end of a module's name, as PEFT does; None for none.

    Example:
        >>> from xweights.merging.lora.patterns import find_pattern
        >>> find_pattern({"q_proj": 16, "layers.0.*": 4}, "layers.0.q_proj")
        16
    """
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return None


def is_harmless(pattern: str) -> bool:
    """Return whether a regular expression is of the simple kind whose matching takes time in proportion to a name."""
    return (
        len(pattern) <= _LONGEST
        and pattern.count("*") <= _MOST_STARS
        and all(mark not in pattern for mark in (")*", ")+", ")?", "){"))
        and _HARMLESS.fullmatch(pattern) is not None
    )
