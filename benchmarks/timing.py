"""How things are timed: candidates take turns in one process, and ratios are taken turn by turn.

Owns :func:`compare`, :func:`compare_each`, :func:`extra_memory` and the two kinds of rows. Imports the standard
library only.

A busy or throttled machine slows neighbours in time alike. So ``ours`` and its peers run A B C A B C ..., each round
gives one ratio per peer, and the median of these is what is reported, with the quartiles beside it.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Call = Callable[[], object]
MIB = 1 << 20


@dataclass(frozen=True)
class Timing:
    """One row of the table of times; times in milliseconds, ratios are ours / theirs."""

    operation: str
    backend: str
    shape: str
    ours: float
    peer: str
    peer_ms: float
    ratio: float
    quartiles: tuple[float, float]
    goal: float | None
    idiom: str = ""
    faster: float | None = None
    idiom_goal: float | None = None

    @property
    def met(self) -> bool:
        """True if the ratio, as shown, is within the goal, and the idiom is beaten by as much as was promised."""
        quick = self.goal is None or round(self.ratio, 2) <= self.goal
        return quick and (self.idiom_goal is None or (self.faster or 0.0) >= self.idiom_goal)


@dataclass(frozen=True)
class Memory:
    """One row of the table of memory; MiB beyond what was there before the call and what the call returns."""

    operation: str
    backend: str
    shape: str
    extra: float
    goal: float

    @property
    def met(self) -> bool:
        """True if the call took no more than it may."""
        return self.extra <= self.goal


def compare(
    operation: str,
    backend: str,
    shape: str,
    ours: Call,
    peers: Mapping[str, Call],
    goal: float | None,
    *,
    idiom: tuple[str, Call] | None = None,
    idiom_goal: float | None = None,
    before: Call | None = None,
    seconds: float = 2.5,
    most: int = 40,
) -> Timing:
    """Time ``ours`` against hand-written ``peers`` (and, in a few rounds, the idiom that people use).

    ``before`` runs before each of them, and outside of its time.
    """
    calls: dict[str, Call] = {"": ours, **peers}
    slow: list[tuple[float, float]] = []

    def compare_with_idiom(turn: int, mine: float) -> None:
        if idiom is not None and turn < 3:
            slow.append((mine, _once(idiom[1], before)))

    times = _in_turn(calls, before, seconds, most, compare_with_idiom)
    best = min(peers, key=lambda name: statistics.median(times[name]))
    return Timing(
        **_against(times, best),
        operation=operation,
        backend=backend,
        shape=shape,
        goal=goal,
        idiom="" if idiom is None else idiom[0],
        faster=statistics.median(theirs / own for own, theirs in slow) if slow else None,
        idiom_goal=idiom_goal,
    )


def compare_each(
    operation: str,
    backend: str,
    shape: str,
    ours: Call,
    peers: Mapping[str, tuple[Call, float | None]],
    *,
    seconds: float = 10.0,
    most: int = 200,
) -> Iterator[Timing]:
    """Time ``ours`` against several ways that differ in what they do, all in one run: a row and a goal for each."""
    calls: dict[str, Call] = {"": ours, **{name: call for name, (call, _) in peers.items()}}
    times = _in_turn(calls, None, seconds, most)
    for name, (_, goal) in peers.items():
        yield Timing(**_against(times, name), operation=operation, backend=backend, shape=shape, goal=goal)


def _in_turn(
    calls: Mapping[str, Call],
    before: Call | None,
    seconds: float,
    most: int,
    after_turn: Callable[[int, float], None] | None = None,
) -> dict[str, list[float]]:
    """Return the times of each call, of as many rounds as fit; ``after_turn`` gets the turn and the time of ours."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        _once(call, before)
    gc.collect()
    gc.disable()  # a collection would hit whoever happens to run
    try:
        end = time.perf_counter() + seconds
        order = list(calls)
        for turn in range(most):
            # Each round begins with another one, so that nobody always runs on the caches that a given other one left.
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                times[name].append(_once(calls[name], before))
            if after_turn is not None:
                after_turn(turn, times[""][-1])
            if turn >= 4 and time.perf_counter() > end:
                break
    finally:
        gc.enable()
    return times


def _against(times: Mapping[str, list[float]], peer: str) -> dict[str, Any]:
    mine, theirs = times[""], times[peer]
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ours": 1e3 * statistics.median(mine),
        "peer": peer,
        "peer_ms": 1e3 * statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "quartiles": (low, high),
    }


def extra_memory(operation: str, backend: str, shape: str, call: Call, goal: float) -> Memory:
    """Return how far the resident memory rose above where it was, less what the call returns (``result.nbytes``)."""
    gc.collect()
    with suppress(AttributeError):  # glibc only: what was freed goes back, or it would serve this call unseen
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the peak to what there is now
    before = _status("VmRSS")
    result = call()
    extra = _status("VmHWM") - before - getattr(result, "nbytes", 0)
    return Memory(operation, backend, shape, max(0.0, extra / MIB), goal)


def can_measure_memory() -> bool:
    """Return True where the peak of the resident memory can be set back (Linux)."""
    return Path("/proc/self/clear_refs").exists()


def _status(word: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(word + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(word)


def _once(call: Call, before: Call | None) -> float:
    if before is not None:
        before()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
