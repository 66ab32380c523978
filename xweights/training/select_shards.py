"""Find the value of a rank among entries that lie on several ranks: exact, and no entry is gathered.

Values are bit patterns (uint64) in the order of the numbers, so each collective settles 11 bits of the answer by a
histogram: three for float32. Of many entries a sample of all ranks brackets the answer first, so that the histograms
are of the few entries inside; to make three of all of them took six times as long.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.groups import Group
from xweights.rules.order_statistics import SAMPLE, entries_between, sample_entries

DIGIT = 11
# How many standard deviations of the sample the bracket is wide.
WIDTH = 4.0


class Found(NamedTuple):
    """A value as bits, how many entries are below it, and how many are equal to it."""

    bits: int
    below: int
    equal: int


def select(pools: Sequence[Sequence[Iterable[Array]]], ranks: Sequence[int], bits: int, group: Group) -> list[Found]:
    """Return the value of a rank (from 1) in each pool of uint64; one collective for each 11 bits, for all pools."""
    found = [Found(0, 0, 0)] * len(pools)
    for shift in reversed(range(0, bits, DIGIT)):
        histogram = np.zeros((len(pools), 1 << DIGIT), np.int64)
        for at, pool in enumerate(pools):
            for values in pool:
                for part in values:
                    histogram[at] += _count_digits(part, found[at].bits, shift)
        histogram = group.all_reduce(histogram)
        found = [_settle(before, counts, rank) for before, counts, rank in zip(found, histogram, ranks, strict=True)]
    return found


def select_in_bracket(
    arrays: Sequence[Array], total: int, rank: int, wide: np.dtype[Any], group: Group
) -> Found | None:
    """Return the magnitude of a rank (from 1) among this rank's arrays and those of the others; None for a miss.

    Two or three collectives beside that of the sample: the bits in which the ends of the bracket differ, by 11. All
    ranks get the same answer, a miss included: few entries, or many that equal an end.
    """
    if total <= 4 * SAMPLE:
        return None
    arrays = [array for array in arrays if array.size]
    low, high = _bracket(arrays, rank / total, wide, group)
    inside, up_to_low = entries_between(arrays, low, high) if arrays else (np.empty(0, wide), 0)
    unsigned = f"u{wide.itemsize}"
    start = int(low.view(unsigned))
    offsets = inside.view(unsigned).astype(np.uint64) - np.uint64(start)
    shifts = list(reversed(range(0, max((int(high.view(unsigned)) - start).bit_length(), 1), DIGIT)))
    found = Found(0, 0, 0)
    for shift in shifts:
        # The number of entries below the bracket is summed with the first histogram.
        sums = group.all_reduce(np.append(_count_digits(offsets, found.bits, shift), up_to_low))
        if shift == shifts[0]:
            found = Found(0, int(sums[-1]), 0)
            if start == 0 and rank <= found.below:
                return Found(0, 0, found.below)  # zeros, of a model that was pruned before: nothing is below them
            if not 0 < rank - found.below <= int(sums[:-1].sum()):
                return None
        found = _settle(found, sums[:-1], rank)
    return found._replace(bits=start + found.bits)


def _bracket(arrays: Sequence[Array], fraction: float, wide: np.dtype[Any], group: Group) -> tuple[Any, Any]:
    """Return two magnitudes that the answer is most likely between; the same ones on every rank."""
    each = max(SAMPLE // group.size, 64)
    own = np.zeros(each + 1, np.float64)
    count = sum(array.size for array in arrays)
    if count:
        own[:each] = sample_entries(arrays, each)
    own[each] = count
    everybody = np.stack(group.all_gather(own))
    # An entry of a rank's sample stands for as many entries as the rank has for each of them.
    weights = np.repeat(everybody[:, each] / everybody[:, each].sum() / each, each)
    values = everybody[:, :each].reshape(-1)
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(weights[order])
    counts = [int(sent) for sent in everybody[:, each]]  # whole numbers: no rank may round another way than others
    spread = (WIDTH * math.sqrt(0.25 * each * sum(n * n for n in counts)) + max(counts)) / (each * sum(counts))
    low, high = np.searchsorted(upto, [fraction - spread, fraction + spread])
    smallest, largest = np.zeros((), wide), np.array(np.inf, wide)
    return (
        values[order[low]].astype(wide) if fraction > spread else smallest,
        values[order[high]].astype(wide) if high < len(order) else largest,
    )


def _settle(before: Found, counts: Array, rank: int) -> Found:
    """Return what is known once the next digit is counted."""
    upto = np.cumsum(counts)
    digit = int(np.searchsorted(upto, rank - before.below))
    below = before.below + (int(upto[digit - 1]) if digit else 0)
    return Found(before.bits << DIGIT | digit, below, int(counts[digit]))


def _count_digits(part: Array, prefix: int, shift: int) -> Array:
    """Return how often each digit at ``shift`` occurs among the values that begin with a prefix."""
    above = shift + DIGIT
    inside = part if above >= 64 else part[part >> np.uint64(above) == np.uint64(prefix)]
    digits = (inside >> np.uint64(shift)) & np.uint64((1 << DIGIT) - 1)
    return np.bincount(digits.astype(np.int64), minlength=1 << DIGIT)
