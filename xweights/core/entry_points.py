"""What installed packages register for xweights: the entry points of groups called ``xweights.``."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def entry_points_of(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; of two with one name the one that Python's path has first."""
    return {point.name: point for point in reversed(_find_all()) if point.group == group}


@cache
def _find_all() -> list[EntryPoint]:
    from importlib.metadata import distributions

    # `importlib.metadata.entry_points` reads the names of all packages, and parses what each of them registers: 4.5 ms
    # for each group in an environment of 128 packages, where this takes 1.6 ms once.
    found: list[EntryPoint] = []
    for distribution in distributions():
        if "[xweights." in (distribution.read_text("entry_points.txt") or ""):
            found += distribution.entry_points
    return found
