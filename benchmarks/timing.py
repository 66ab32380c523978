"""Time candidates that take turns in one process, with one ratio per turn; measure memory.

A busy or throttled machine slows calls that run close together by the same amount. So ``ours`` and its peers run
A B C A B C ..., each round gives one ratio per peer, and the report has the median of these and the quartiles.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Call = Callable[[], object]
MIB = 1 << 20
# `run.py --processor` sets it: what the processors did, however long they had to wait for their turn.
clock = time.process_time if os.environ.get("XWEIGHTS_CLOCK") == "processor" else time.perf_counter


@dataclass(frozen=True)
class Timing:
    """One row of the table of times: times in milliseconds, ratios ours / peer."""

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
        """Return True if the ratio, as shown, is within the goal, and the idiom is slower by the promised factor."""
        quick = self.goal is None or round(self.ratio, 2) <= self.goal
        return quick and (self.idiom_goal is None or (self.faster or 0.0) >= self.idiom_goal)


@dataclass(frozen=True)
class Memory:
    """One row of the table of memory: MiB beyond the memory before the call and the size of its result."""

    operation: str
    backend: str
    shape: str
    extra: float
    goal: float

    @property
    def met(self) -> bool:
        """Return True if the call took no more than allowed."""
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
    """Time ``ours`` against hand-written ``peers`` (and, in a few rounds, the usual idiom).

    ``before`` runs before each of them, and isn't timed.
    """
    calls: dict[str, Call] = {"": ours, **peers}
    slow: list[tuple[float, float]] = []

    def compare_with_idiom(turn: int, our_time: float) -> None:
        if idiom is not None and turn < 3:
            slow.append((our_time, _once(idiom[1], before)))

    times = _in_turn(calls, before, seconds, most, compare_with_idiom)
    best = min(peers, key=lambda name: statistics.median(times[name]))
    return Timing(
        **_against(times, best),
        operation=operation,
        backend=backend,
        shape=shape,
        goal=goal,
        idiom="" if idiom is None else idiom[0],
        faster=statistics.median(idiom_time / our_time for our_time, idiom_time in slow) if slow else None,
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
    """Time ``ours`` against several peers with different work, all in one run: a row and a goal for each."""
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
    """Return the times of each call in as many rounds as fit; ``after_turn`` gets the turn and the time of ours."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        _once(call, before)
    gc.collect()
    gc.disable()  # a collection would hit the call that happens to run
    try:
        end = time.perf_counter() + seconds
        order = list(calls)
        for turn in range(most):
            # Each round begins with another call, so that no call always runs on the caches of the same other one.
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
    ours, peer_times = times[""], times[peer]
    ratios = [a / b for a, b in zip(ours, peer_times, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ours": 1e3 * statistics.median(ours),
        "peer": peer,
        "peer_ms": 1e3 * statistics.median(peer_times),
        "ratio": statistics.median(ratios),
        "quartiles": (low, high),
    }


def extra_memory(operation: str, backend: str, shape: str, call: Call, goal: float) -> Memory:
    """Return how far the resident memory rose during a call, less the size of its result (``result.nbytes``)."""
    gc.collect()
    with suppress(AttributeError):  # glibc only: return freed memory, or this call would reuse it unseen
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to the current size
    before = _status("VmRSS")
    result = call()
    extra = _status("VmHWM") - before - getattr(result, "nbytes", 0)
    return Memory(operation, backend, shape, max(0.0, extra / MIB), goal)


def can_measure_memory() -> bool:
    """Return True where the peak of the resident memory can be reset (Linux)."""
    return Path("/proc/self/clear_refs").exists()


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def _once(call: Call, before: Call | None) -> float:
    if before is not None:
        before()
    start = clock()
    call()
    return clock() - start
