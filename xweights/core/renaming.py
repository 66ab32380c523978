"""Where twins' names differ: ``{"0/*": "dense/0/*"}``, target glob to twin glob."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from xweights.errors import ArgumentError

Names = Mapping[str, str]


def renamer(names: Names | None) -> Callable[[str], str]:
    """Return the function from a target's name to its twin's; the first glob that matches decides.

    Example:
        >>> from xweights.core.renaming import renamer
        >>> renamer({"0/*": "dense/0/*"})("0/kernel")
        'dense/0/kernel'
    """
    rules = []
    for mine, theirs in (names or {}).items():
        if mine.count("*") != theirs.count("*"):
            raise ArgumentError(f"names= needs as many * on both sides\ngot: {mine!r}: {theirs!r}")
        pattern = "".join("(.*)" if c == "*" else re.escape(c) for c in mine)
        rules.append((re.compile(pattern, re.DOTALL), theirs.split("*")))

    def rename(name: str) -> str:
        for pattern, pieces in rules:
            match = pattern.fullmatch(name)
            if match:
                carried = [*match.groups(), ""]
                return "".join(piece + part for piece, part in zip(pieces, carried, strict=True))
        return name

    return rename
