"""Methods that add task vectors, target less base, to a base.

They differ in which entries of a task vector are dropped, and in whether the rest elects a sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from xweights.core.dtypes import Array
from xweights.merging.sparsify import Cut, Drop, at_random, by_rank, largest, outliers
from xweights.merging.streams import Inputs, room_for


def task_arithmetic(one: Inputs) -> Iterator[Array]:
    """Add task vectors: base + scale sum(w_i (x_i - base)).

    Ilharco et al., arXiv:2212.04089.
    """
    return added(one, None, elect=False)


def ties(one: Inputs) -> Iterator[Array]:
    """Trim each task vector to its largest entries, elect a sign per entry, add the mean of those that agree.

    The sign is that of the sum, + for 0. Yadav et al., arXiv:2306.01708.
    """
    return added(one, largest, elect=True)


def dare_linear(one: Inputs) -> Iterator[Array]:
    """Drop entries of each task vector at random, divide the others by density, add them.

    Yu et al., arXiv:2311.03099.
    """
    return added(one, at_random, elect=False)


def dare_ties(one: Inputs) -> Iterator[Array]:
    """Drop at random as dare_linear does, then elect a sign per entry as ties does.

    Yu et al., arXiv:2311.03099; Yadav et al., arXiv:2306.01708.
    """
    return added(one, at_random, elect=True)


def della(one: Inputs) -> Iterator[Array]:
    """Drop at random, small entries of a unit more likely, divide by the probability to stay, then as ties does.

    The probability grows from density - epsilon to density + epsilon with the rank in the unit, in even steps (the
    paper's epsilon is twice this one). Deep et al., arXiv:2406.11617.
    """
    return added(one, by_rank, elect=True)


def della_linear(one: Inputs) -> Iterator[Array]:
    """Drop as della does, and add what is left without an election.

    Deep et al., arXiv:2406.11617.
    """
    return added(one, by_rank, elect=False)


def breadcrumbs(one: Inputs) -> Iterator[Array]:
    """Drop the largest entries of each task vector, and the smallest, and add the others.

    Davari & Belilovsky, arXiv:2312.06795.
    """
    return added(one, outliers, elect=False)


def breadcrumbs_ties(one: Inputs) -> Iterator[Array]:
    """Drop as breadcrumbs does, then elect a sign per entry as ties does.

    Davari & Belilovsky, arXiv:2312.06795; Yadav et al., arXiv:2306.01708.
    """
    return added(one, outliers, elect=True)


class TaskVector:
    """Target less base, block by block, as often as it is asked for."""

    def __init__(self, one: Inputs, i: int) -> None:
        self._one, self._i = one, i

    def __iter__(self) -> Iterator[Array]:
        assert self._one.base is not None
        scratch = np.empty(0)
        for x, origin in zip(self._one.targets[self._i], self._one.base, strict=True):
            if scratch.size < x.size:
                scratch = room_for(x.size, x.dtype)
            yield np.subtract(x, origin, out=scratch[: x.size])


def added(one: Inputs, drop: Drop | None, *, elect: bool) -> Iterator[Array]:
    """Yield base + scale * (the weighted sum of what is left of the task vectors)."""
    assert one.base is not None
    weights = one.options["weights"]
    cuts = [_cut(one, i, drop) for i in range(len(weights))]
    total = math.fsum(weights)
    vectors: list[Array] = []
    for origin, *xs in zip(one.base, *one.targets, strict=True):
        if not vectors or vectors[0].size < origin.size:
            vectors = [room_for(origin.size, origin.dtype) for _ in range(len(xs) + 1)]
        *parts, out = (vector[: origin.size] for vector in vectors)
        for x, part, cut, weight in zip(xs, parts, cuts, weights, strict=True):
            np.subtract(x, origin, out=part)
            cut(part)
            np.multiply(part, weight, out=part)
        np.copyto(out, parts[0])
        for part in parts[1:]:
            np.add(out, part, out=out)
        if elect:
            share = _elected(parts, weights, out)
            if one.options["normalize"]:
                np.divide(out, share, out=out)
        elif one.options["normalize"]:
            np.divide(out, total, out=out)
        np.multiply(out, one.options["scale"], out=out)
        yield np.add(origin, out, out=out)


def _elected(parts: list[Array], weights: tuple[float, ...], out: Array) -> Array:
    """Leave in ``out`` the sum of those that agree with its sign, and return the sum of their weights, 1 for none."""
    positive = out >= 0
    share = np.zeros_like(out)
    out.fill(0.0)
    for part, weight in zip(parts, weights, strict=True):
        agrees = (part > 0) == positive
        agrees &= part != 0
        # Products with True and False: additions with where= take 8 times as long.
        np.multiply(part, agrees, out=part)
        np.add(out, part, out=out)
        np.multiply(agrees, weight, out=part)
        np.add(share, part, out=share)
    share += share == 0
    return share


def _cut(one: Inputs, i: int, drop: Drop | None) -> Cut:
    if drop is None:
        return lambda block: None
    vector = TaskVector(one, i)
    make = drop(one, i, vector)
    factor = _factor(one, i, vector, make())
    cut = make()
    if factor == 1.0:
        return cut

    def rescaled(block: Array) -> None:
        cut(block)
        np.multiply(block, factor, out=block)

    return rescaled


def _factor(one: Inputs, i: int, vector: TaskVector, cut: Cut) -> float:
    """Return what keeps the sum of all magnitudes as it was, if that is what is asked for."""
    if one.options["rescale"] != "l1":
        return 1.0
    before = after = 0.0
    for block in vector:
        before += float(np.sum(np.abs(block), dtype=np.float64))
        cut(block)
        after += float(np.sum(np.abs(block), dtype=np.float64))
    return before / after if before and after else 1.0
