"""Names of the original as names in source code."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

from xweights.errors import PortError


def to_identifier(path: str) -> str:
    """Return a path as a valid name of an attribute."""
    name = re.sub(r"\W", "_", path)
    return f"layer_{name}" if name[:1].isdigit() or keyword.iskeyword(name) else name


def check_names(paths: Iterable[str]) -> None:
    """Refuse layers whose twins would be kept under the same attribute, where the second would replace the first."""
    seen: dict[str, str] = {}
    for path in paths:
        if seen.setdefault(to_identifier(path), path) != path:
            raise PortError(
                f"{seen[to_identifier(path)]!r} and {path!r} would both be kept as {to_identifier(path)!r}\n"
                "Fix: rename one of the two layers"
            )
