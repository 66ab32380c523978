"""The registry of holds, used by several threads at once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from xweights.core import hold_registry


class Entry:
    """A held parameter of which only the identity is asked."""

    def __init__(self, identity: Callable[[], str]) -> None:
        self.parameter: Any = SimpleNamespace(identity=identity)


def test_holds_are_found_and_made_while_another_thread_looks_them_up_again() -> None:
    """What another thread does at that time is done here whenever the identity of a held array is asked for."""
    found: list[Any] = []
    made: list[Any] = []

    def ask() -> str:
        if watching:
            found.append(hold_registry.find(other.parameter))
            made.append(Entry(lambda: f"new {len(made)}"))
            hold_registry.register(made[-1], keep=False)
        return "first"

    watching = False
    first, other = Entry(ask), Entry(lambda: "other")
    for entry in (first, other):
        hold_registry.register(entry, keep=False)
    watching = True
    hold_registry.refresh()
    watching = False
    assert found == [other]
    hold_registry.refresh()
    assert hold_registry.find(made[0].parameter) is made[0]
    for entry in (first, other, *made):
        hold_registry.unregister(entry)
