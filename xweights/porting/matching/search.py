"""Try one pairing after another until the target computes what the source does.

Where several units of the source had the same input (query, key and value), or a parameter has no input, one is tried,
and if the forward can't be finished that way, the next.
"""

from __future__ import annotations

import contextlib

from xweights.porting.matching.attempt import Attempt, StopAttempt
from xweights.porting.matching.matching import Matching

# Number of pairings that are tried before the port is given up.
BUDGET = 256


def settle(matching: Matching) -> Attempt:
    """Try one pairing after another; return the first that works, or the one that gets furthest."""
    decisions: list[int] = []
    best: Attempt | None = None
    for _ in range(BUDGET):
        attempt = run_attempt(matching, decisions)
        if not attempt.may_be_mispaired:
            return attempt  # complete, and no other pairing would remove its divergences
        if best is None or attempt.progress > best.progress:
            best = attempt
        after = _next_decisions(attempt.decisions)
        if after is None:
            break
        decisions = after
    assert best is not None
    return run_attempt(matching, [chosen for chosen, _ in best.decisions], lenient=True)


def run_attempt(matching: Matching, decisions: list[int], *, lenient: bool = False) -> Attempt:
    """Run the target once, with these decisions where there is a choice."""
    target = matching.target
    while True:
        attempt = Attempt(matching, decisions, lenient)
        with contextlib.suppress(StopAttempt):
            attempt.finish(target.porting.run(target.model, target.records, matching.sample, attempt))
        if not attempt.restart:
            matching.target_events = attempt.events
            return attempt


def _next_decisions(decisions: list[tuple[int, int]]) -> list[int] | None:
    for position in range(len(decisions) - 1, -1, -1):
        chosen, count = decisions[position]
        if chosen + 1 < count:
            return [earlier for earlier, _ in decisions[:position]] + [chosen + 1]
    return None
