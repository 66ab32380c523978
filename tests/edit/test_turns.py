"""Calls on the same arrays take turns, and none keeps its turn for longer than it runs."""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import Any

import pytest

from xweights.edit import guards


@pytest.mark.parametrize("method", ["__setitem__", "pop"])
def test_ctrl_c_between_two_lines_leaves_no_turn_behind(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it did, every later edit of these arrays in another thread waited for ever."""
    kind = type(guards._writing)

    def then_interrupt(self: Any, *args: Any) -> None:
        if method == "__setitem__":
            kind.__setitem__(self, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(guards, "_writing", type("Interrupted", (kind,), {method: then_interrupt})())
    keys = frozenset({"an array"})
    with contextlib.suppress(KeyboardInterrupt), guards.alone(keys):
        pass
    gc.collect()
    monkeypatch.setattr(type(guards._writing), method, getattr(kind, method))
    done = threading.Event()

    def edit() -> None:
        with guards.alone(keys):
            done.set()

    threading.Thread(target=edit, daemon=True).start()
    assert done.wait(10)
