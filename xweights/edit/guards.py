"""All or nothing: order, back up and undo writes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from xweights.core.blocks import aliased_values
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter


def fallible_first(chosen: Sequence[Parameter]) -> list[int]:
    """Return the positions with those first whose write may fail: then nothing else has been written yet."""
    return sorted(range(len(chosen)), key=lambda position: not chosen[position].storage.fallible)


def detached(chosen: Sequence[Parameter], values: Sequence[tuple[Array, ...]]) -> list[tuple[Array, ...]]:
    """Return the values with copies of those that lie in the memory of another of these parameters."""
    mine = [
        (position, value)
        for position, p in enumerate(chosen)
        for value in values[position]
        # What had to be cast is an array of our own.
        if value.shape and value.size and value.dtype == p.dtype
    ]
    # A storage that puts a new buffer in the old one's place never writes where somebody may still look.
    homes = [p for p in chosen if not getattr(p.storage, "replaces", False)]
    if not mine or len(chosen) < 2 or not homes:
        return list(values)
    at = {id(p): position for position, p in enumerate(homes)}
    placed = [(at.get(id(chosen[position]), -1), value) for position, value in mine]
    astray = aliased_values(placed, [p.read() for p in homes])
    moved = {id(placed[position][1]) for position in astray}
    return [tuple(one.copy() if id(one) in moved else one for one in some) for some in values]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the checked writes inside are all done, so that it never leaves half of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGINT)
    if former is None:  # set by something that isn't Python, which couldn't be put back
        yield
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
        if waiting:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def undone_on_error(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Back up now, and restore these parameters if anything is raised inside."""
    kept = [(p, p.backup()) for p in parameters]
    try:
        yield
    except BaseException:
        with uninterrupted():
            for p, backup in kept:
                p.restore(backup)
        raise


@contextmanager
def guarded(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Enter the edit context of each framework involved, once."""
    with ExitStack() as stack:
        for storage in {id(p.storage): p.storage for p in parameters}.values():
            stack.enter_context(storage.guard())
        yield
