"""Merge methods that add task vectors (target minus base) to a base.

They differ in which entries of a task vector are dropped, and in whether the rest elect a sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from xweights.core.dtypes import Array
from xweights.merging.sparsify import Cut, Drop, drop_outliers, keep_at_random, keep_by_rank, keep_largest
from xweights.merging.streams import Inputs, allocate_scratch


def task_arithmetic(inputs: Inputs) -> Iterator[Array]:
    """Add task vectors: base + scale sum(w_i (x_i - base)).

    Ilharco et al., arXiv:2212.04089.
    """
    return add_task_vectors(inputs, None, elect=False)


def ties(inputs: Inputs) -> Iterator[Array]:
    """Trim each task vector to its largest entries, elect a sign per entry, add the mean of those that agree.

    The sign is that of the sum, + for 0. Yadav et al., arXiv:2306.01708.
    """
    return add_task_vectors(inputs, keep_largest, elect=True)


def dare_linear(inputs: Inputs) -> Iterator[Array]:
    """Drop entries of each task vector at random, divide the others by density, add them.

    Yu et al., arXiv:2311.03099.
    """
    return add_task_vectors(inputs, keep_at_random, elect=False)


def dare_ties(inputs: Inputs) -> Iterator[Array]:
    """Drop at random as dare_linear does, then elect a sign per entry as ties does.

    Yu et al., arXiv:2311.03099; Yadav et al., arXiv:2306.01708.
    """
    return add_task_vectors(inputs, keep_at_random, elect=True)


def della(inputs: Inputs) -> Iterator[Array]:
    """Drop at random, small entries of a unit more likely, divide by the probability to stay, then as ties does.

    The probability grows from density - epsilon to density + epsilon with the rank in the unit, in even steps (the
    paper's epsilon is twice this one). Deep et al., arXiv:2406.11617.
    """
    return add_task_vectors(inputs, keep_by_rank, elect=True)


def della_linear(inputs: Inputs) -> Iterator[Array]:
    """Drop as della does, and add what is left without an election.

    Deep et al., arXiv:2406.11617.
    """
    return add_task_vectors(inputs, keep_by_rank, elect=False)


def breadcrumbs(inputs: Inputs) -> Iterator[Array]:
    """Drop the largest entries of each task vector, and the smallest, and add the others.

    Davari & Belilovsky, arXiv:2312.06795.
    """
    return add_task_vectors(inputs, drop_outliers, elect=False)


def breadcrumbs_ties(inputs: Inputs) -> Iterator[Array]:
    """Drop as breadcrumbs does, then elect a sign per entry as ties does.

    Davari & Belilovsky, arXiv:2312.06795; Yadav et al., arXiv:2306.01708.
    """
    return add_task_vectors(inputs, drop_outliers, elect=True)


class TaskVector:
    """Target minus base, block by block; it can be iterated repeatedly."""

    def __init__(self, inputs: Inputs, i: int) -> None:
        self._inputs, self._i = inputs, i

    def __iter__(self) -> Iterator[Array]:
        assert self._inputs.base is not None
        scratch = np.empty(0)
        for x, origin in zip(self._inputs.targets[self._i], self._inputs.base, strict=True):
            if scratch.size < x.size:
                scratch = allocate_scratch(x.size, x.dtype)
            yield np.subtract(x, origin, out=scratch[: x.size])


def add_task_vectors(inputs: Inputs, drop: Drop | None, *, elect: bool) -> Iterator[Array]:
    """Yield base + scale * (the weighted sum of the remaining entries of the task vectors)."""
    assert inputs.base is not None
    weights = inputs.options["weights"]
    cuts = [_make_cut(inputs, i, drop) for i in range(len(weights))]
    total = math.fsum(weights)
    vectors: list[Array] = []
    for origin, *xs in zip(inputs.base, *inputs.targets, strict=True):
        if not vectors or vectors[0].size < origin.size:
            vectors = [allocate_scratch(origin.size, origin.dtype) for _ in range(len(xs) + 1)]
        *parts, out = (vector[: origin.size] for vector in vectors)
        for x, part, cut, weight in zip(xs, parts, cuts, weights, strict=True):
            np.subtract(x, origin, out=part)
            cut(part)
            np.multiply(part, weight, out=part)
        np.copyto(out, parts[0])
        for part in parts[1:]:
            np.add(out, part, out=out)
        if elect:
            share = _elect_signs(parts, weights, out)
            if inputs.options["normalize"]:
                np.divide(out, share, out=out)
        elif inputs.options["normalize"]:
            np.divide(out, total, out=out)
        np.multiply(out, inputs.options["scale"], out=out)
        yield np.add(origin, out, out=out)


def _elect_signs(parts: list[Array], weights: tuple[float, ...], out: Array) -> Array:
    """Set ``out`` to the sum of the parts that agree with its sign; return the sum of their weights, 1 for none."""
    positive = out >= 0
    share = np.zeros_like(out)
    out.fill(0.0)
    for part, weight in zip(parts, weights, strict=True):
        agrees = (part > 0) == positive
        agrees &= part != 0
        # Products with True and False; additions with where= take 8 times as long.
        np.multiply(part, agrees, out=part)
        np.add(out, part, out=out)
        np.multiply(agrees, weight, out=part)
        np.add(share, part, out=share)
    share += share == 0
    return share


def _make_cut(inputs: Inputs, i: int, drop: Drop | None) -> Cut:
    if drop is None:
        return lambda block: None
    vector = TaskVector(inputs, i)
    make = drop(inputs, i, vector)
    factor = _rescaling_factor(inputs, i, vector, make())
    cut = make()
    if factor == 1.0:
        return cut

    def rescaled(block: Array) -> None:
        cut(block)
        np.multiply(block, factor, out=block)

    return rescaled


def _rescaling_factor(inputs: Inputs, i: int, vector: TaskVector, cut: Cut) -> float:
    """Return the factor that keeps the sum of all magnitudes with rescale="l1", else 1."""
    if inputs.options["rescale"] != "l1":
        return 1.0
    before = after = 0.0
    for block in vector:
        before += float(np.sum(np.abs(block), dtype=np.float64))
        cut(block)
        after += float(np.sum(np.abs(block), dtype=np.float64))
    return before / after if before and after else 1.0
