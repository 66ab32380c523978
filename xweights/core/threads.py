"""Do independent array work on several threads: NumPy's draws, sums and copies release the interpreter."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

# More threads than this gain nothing: two or three of them use all the bandwidth of a desktop's memory.
MOST = 8


def count_threads() -> int:
    """Return how many threads to use: as many as processors, and no more than OMP_NUM_THREADS allows.

    Example:
        >>> from xweights.core.threads import count_threads
        >>> count_threads() >= 1
        True
    """
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        usable = os.cpu_count() or 1
    # The variable by which every other numeric library is told; "4,2" is for nested regions.
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked):
        usable = min(usable, int(asked))
    return min(usable, MOST)


def run_all(calls: Iterable[Callable[[], Any]], *, threads: int | None = None) -> None:
    """Run the calls, each once, on this thread and others; raise what the first of them in order raised.

    After an error no further call begins, and those that have begun end first.
    """
    pending = list(enumerate(calls))
    pending.reverse()
    errors: dict[int, BaseException] = {}

    def work() -> None:
        while pending and not errors:
            try:
                number, call = pending.pop()
            except IndexError:  # another thread was quicker
                return
            try:
                call()
            except BaseException as wrong:  # noqa: BLE001 - raised below, on the thread of the caller
                errors[number] = wrong

    helpers = _start(work, min(count_threads() if threads is None else threads, len(pending)) - 1)
    try:
        work()
    finally:
        for helper in helpers:
            helper.join()
    if errors:
        raise errors[min(errors)]


def _start(work: Callable[[], None], count: int) -> list[threading.Thread]:
    """Start up to so many threads."""
    started: list[threading.Thread] = []
    for _ in range(count):
        helper = threading.Thread(target=work, name="xweights", daemon=True)
        try:
            helper.start()
        except RuntimeError:  # no more threads here, or none at all: this one does the work
            break
        started.append(helper)
    return started
