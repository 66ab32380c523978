"""Try one pairing after another until the target computes what the source does.

Where several units of the source had the same input (query, key and value), or a parameter has no input, one is tried,
and if the forward can't be finished that way, the next.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.absorbing import list_absorptions
from xweights.porting.matching.attempt import Attempt, StopAttempt
from xweights.porting.matching.forms import fit
from xweights.porting.matching.matching import Matching
from xweights.porting.matching.orders import MOST, find_reordered, list_orders
from xweights.porting.matching.pairs import Pair
from xweights.porting.matching.samples import is_even
from xweights.porting.progress import count_layers
from xweights.porting.units import LayerUnit

# Number of pairings that are tried before the port is given up.
BUDGET = 256
# Pairs of parameters without an input, or of layers with the same one, that are exchanged,
# to see whether the sample tells them apart.
RIVALS = 8


def settle(matching: Matching) -> Attempt:
    """Return the first pairing that works, or the one that gets furthest.

    If none works, other orders of features are tried, and rows of the source that are always added elsewhere.
    """
    attempt = _settle(matching)
    for _ in range(MOST):
        if not attempt.divergences:
            break
        better = _reorder(matching, attempt) or _absorb(matching, attempt)
        if better is None:
            break
        attempt = better
    return attempt


def _reorder(matching: Matching, attempt: Attempt) -> Attempt | None:
    """Return an attempt that gets further because the features of one layer are in another order; None if none does."""
    maker = find_reordered(matching, attempt)
    if maker is None:
        return None
    decisions = [chosen for chosen, _ in attempt.decisions]
    reached: list[tuple[float, Array]] = []
    for order in list_orders(maker.form[1][-2 if maker.kind == "conv_transpose" else -1]):
        matching.columns[id(maker)] = order
        reached.append((run_attempt(matching, decisions, lenient=True).reach, order))
    matching.columns.pop(id(maker), None)
    furthest = max((far for far, _ in reached), default=0.0)
    if furthest > attempt.reach:
        orders = [order for far, order in reached if far == furthest]
        matching.columns[id(maker)] = orders[0]
        better = _settle(matching)
        if len(orders) > 1:
            text = (
                f"the sample doesn't tell in which of {len(orders)} orders the features of {maker.path!r} are reshaped"
            )
            better.candidates.doubts.append(text)
        return better
    run_attempt(matching, decisions, lenient=True)
    return None


def _absorb(matching: Matching, attempt: Attempt) -> Attempt | None:
    """Return an attempt that gets further because a row that is always added is part of a table; None if none does."""
    decisions = [chosen for chosen, _ in attempt.decisions]
    hypotheses = list_absorptions(matching, attempt)
    for row, table in hypotheses:
        before = matching.absorbed.get(id(table), ())
        matching.absorbed[id(table)] = (*before, row)
        if run_attempt(matching, decisions, lenient=True).reach > attempt.reach:
            return _settle(matching)
        matching.absorbed[id(table)] = before
    if hypotheses:
        run_attempt(matching, decisions, lenient=True)
    return None


def _settle(matching: Matching) -> Attempt:
    """Try one pairing after another; return the first that works, or the one that gets furthest."""
    decisions: list[int] = []
    best: Attempt | None = None
    for _ in range(BUDGET):
        attempt = run_attempt(matching, decisions)
        if not attempt.may_be_mispaired:  # complete, and no other pairing would remove its divergences
            return attempt if attempt.divergences else _doubt_rivals(matching, attempt)
        if best is None or attempt.progress > best.progress:
            best = attempt
        after = _next_decisions(attempt.decisions)
        if after is None:
            break
        decisions = after
    assert best is not None
    return run_attempt(matching, [chosen for chosen, _ in best.decisions], lenient=True)


def _doubt_rivals(matching: Matching, attempt: Attempt) -> Attempt:
    """Return a complete attempt, with a doubt for each two parameters without an input that could change places.

    Likewise for layers that were given the same numbers if the sample is even along an axis, because others may tell
    apart what they are given.
    """
    even = matching.assign is not None and is_even(matching.sample)
    unseen = [pair for pair in attempt.pairs.values() if pair.permutation.shift is not None]
    pairs: Iterator[tuple[Pair, Pair]] = itertools.combinations(unseen, 2)
    if even:
        seen = [pair for pair in attempt.pairs.values() if pair.seen and pair.permutation.shift is None]
        chosen = ((one, other) for one, other in itertools.combinations(seen, 2) if one.rivals or other.rivals)
        pairs = itertools.chain(pairs, chosen)
    fitting = (
        (one, other)
        for one, other in pairs
        if fit(one.source, other.target)
        and fit(other.source, one.target)
        and not matching.same(one.source, other.source)
    )
    rivals = list(itertools.islice(fitting, RIVALS))
    allowed, doubts = matching.allowed, []
    for one, other in rivals:
        swapped = {id(one.target): other.source, id(other.target): one.source}
        matching.allowed = partial(_is_swapped, swapped, allowed)
        try:
            again = run_attempt(matching, [])
        finally:
            matching.allowed = allowed
        exchanged = all(again.pairs[key].source is source for key, source in swapped.items() if key in again.pairs)
        if not again.divergences and exchanged and swapped.keys() <= again.pairs.keys():
            paths = f"{one.source.path!r} and {other.source.path!r}"
            doubts.append(f"{paths} could change places at {one.target.path!r}: the sample doesn't tell them apart")
    outputs = matching.expected.values()
    if even and attempt.pairs and outputs and not any(np.any(array) for array in outputs):
        doubts.append("every output is zero with this sample, whatever the weights are")
    if rivals:
        doubts = [*dict.fromkeys((*attempt.candidates.doubts, *doubts))]
        attempt = run_attempt(matching, [chosen for chosen, _ in attempt.decisions])
    attempt.candidates.doubts += doubts
    return attempt


def _is_swapped(
    swapped: Mapping[int, LayerUnit],
    allowed: Callable[[LayerUnit, LayerUnit], bool],
    source: LayerUnit,
    target: LayerUnit,
) -> bool:
    wanted = swapped.get(id(target))
    return allowed(source, target) and (source is wanted if wanted is not None else source not in swapped.values())


def run_attempt(matching: Matching, decisions: list[int], *, lenient: bool = False) -> Attempt:
    """Run the target once, with these decisions where there is a choice."""
    target = matching.target
    while True:
        attempt = Attempt(matching, decisions, lenient)
        with contextlib.suppress(StopAttempt):
            watcher = count_layers(attempt, "pairing the layers", target.count_layers())
            attempt.finish(target.porting.run(target.model, target.records, matching.sample, watcher))
        if not attempt.restart:
            matching.target_events = attempt.events
            return attempt


def _next_decisions(decisions: list[tuple[int, int]]) -> list[int] | None:
    for position in range(len(decisions) - 1, -1, -1):
        chosen, count = decisions[position]
        if chosen + 1 < count:
            return [earlier for earlier, _ in decisions[:position]] + [chosen + 1]
    return None
