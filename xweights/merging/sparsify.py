"""Drop entries of task vectors.

Each function gets a task vector, as a stream that can be iterated repeatedly, and returns a function that makes a
:class:`Cut`, which sets the dropped entries of one block after the other to 0, in place, for one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.merging.ranks import order_statistics
from xweights.merging.streams import Inputs
from xweights.rules.noise import generator

Cut = Callable[[Array], None]
# (inputs, number of the target, its task vector) -> function that makes a cut
Drop = Callable[[Inputs, int, Iterable[Array]], Callable[[], Cut]]


def keep_largest(inputs: Inputs, i: int, vector: Iterable[Array]) -> Callable[[], Cut]:
    """Keep the int(density n) largest magnitudes, at least one if density > 0; ties are dropped in flat order."""
    size, density = inputs.targets[i].size, inputs.options["density"][i]
    kept = min(size, max(1, int(density * size))) if density > 0 else 0
    return _keep_ranks(vector, size, size - kept, size)


def drop_outliers(inputs: Inputs, i: int, vector: Iterable[Array]) -> Callable[[], Cut]:
    """Drop the int(gamma n) largest magnitudes, and of the smallest as many as leave int(density n).

    Where both are impossible, fewer of the largest are dropped. Ties are dropped in flat order.
    """
    size, density = inputs.targets[i].size, inputs.options["density"][i]
    kept, top = int(density * size), int(inputs.options["gamma"][i] * size)
    bottom = size - kept - top if density < 1 else 0
    return _keep_ranks(vector, size, max(0, bottom), max(0, bottom) + kept)


def _keep_ranks(vector: Iterable[Array], size: int, first: int, last: int) -> Callable[[], Cut]:
    """Keep the ranks first .. last - 1 in ascending order of magnitude; ties are ranked in flat order."""
    if first >= last:
        return lambda: lambda block: block.fill(0.0)
    if first == 0 and last >= size:
        return lambda: lambda block: None
    (low, below_low), (high, below_high) = order_statistics(vector, [first + 1, last])

    def make() -> Cut:
        # The number of entries up to an edge that have been seen, from which the ranks of entries equal to it follow.
        seen = {float(low): below_low, float(high): below_high}

        def cut(block: Array) -> None:
            magnitudes = np.abs(block)
            keep = (magnitudes > low) & (magnitudes < high)
            for edge, before in seen.items():
                equal = np.flatnonzero(magnitudes == edge)
                ranks = np.arange(before, before + equal.size)
                keep[equal] = (ranks >= first) & (ranks < last)
                seen[edge] = before + equal.size
            np.multiply(block, keep, out=block)

        return cut

    return make


def keep_at_random(inputs: Inputs, i: int, vector: Iterable[Array]) -> Callable[[], Cut]:
    """Keep each entry with probability density, by random numbers keyed by (seed, name, number of the target)."""
    density = inputs.options["density"][i]
    if density >= 1:
        return lambda: lambda block: None

    def make() -> Cut:
        source = generator(inputs.options["seed"], inputs.name, i)

        def cut(block: Array) -> None:
            drawn = source.random(block.size, dtype=np.float32)
            np.multiply(block, drawn < density, out=block)
            if density > 0 and inputs.options["rescale"] == "density":
                np.divide(block, density, out=block)

        return cut

    return make


def keep_by_rank(inputs: Inputs, i: int, vector: Iterable[Array]) -> Callable[[], Cut]:
    """Keep each entry with a probability that grows with its rank by magnitude among those of its unit.

    From density - epsilon, for the smallest, to density + epsilon in even steps; ties are ranked in flat order. Reads
    the whole parameter into memory.
    """
    density, epsilon = inputs.options["density"][i], inputs.options["epsilon"][i]
    if density >= 1:
        return lambda: lambda block: None
    magnitudes = np.concatenate([np.abs(block) for block in vector])
    ranks = _rank_in_units(magnitudes.reshape(inputs.shape), inputs.outputs)
    chance = ranks.reshape(-1) * (2 * epsilon) + (density - epsilon)

    def make() -> Cut:
        source = generator(inputs.options["seed"], inputs.name, i)
        start = 0

        def cut(block: Array) -> None:
            nonlocal start
            chances = chance[start : start + block.size]
            start += block.size
            drawn = source.random(block.size, dtype=np.float32)
            np.multiply(block, drawn < chances, out=block)
            if inputs.options["rescale"] == "density":
                np.divide(block, chances, out=block, where=chances > 0)

        return cut

    return make


def _rank_in_units(magnitudes: Array, units: Any) -> Array:
    """Return the rank of each entry within its unit, 0 for the smallest to 1; 1/2 where a unit has one entry."""
    units = () if units is None or len(units) == magnitudes.ndim else tuple(units)
    others = tuple(axis for axis in range(magnitudes.ndim) if axis not in units)
    by_unit = magnitudes.transpose(*units, *others)
    rows = by_unit.reshape(-1, int(np.prod([magnitudes.shape[axis] for axis in others], dtype=np.int64)))
    if rows.shape[1] == 1:
        return np.full(magnitudes.shape, 0.5)
    order = np.argsort(rows, axis=1, kind="stable")
    ranks = np.empty(rows.shape, np.float64)
    np.put_along_axis(ranks, order, np.arange(rows.shape[1]) / max(1, rows.shape[1] - 1), axis=1)
    return ranks.reshape(by_unit.shape).transpose(np.argsort((*units, *others)))
