"""Which entries of a task vector are dropped.

Each gets a task vector, as a stream that can be walked again, and returns a function that makes a :class:`Cut`: what
sets the dropped entries of one block after the other to 0, in place, for one walk.
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
# (inputs, number of the target, its task vector) -> what makes a cut
Drop = Callable[[Inputs, int, Iterable[Array]], Callable[[], Cut]]


def largest(one: Inputs, i: int, vector: Iterable[Array]) -> Callable[[], Cut]:
    """Keep the int(density n) largest magnitudes, at least one if density > 0; ties fall in flat order, first first."""
    size, density = one.targets[i].size, one.options["density"][i]
    kept = min(size, max(1, int(density * size))) if density > 0 else 0
    return _between(vector, size, size - kept, size)


def outliers(one: Inputs, i: int, vector: Iterable[Array]) -> Callable[[], Cut]:
    """Drop the int(gamma n) largest magnitudes, and of the smallest as many as leave int(density n).

    Where both can't be, fewer of the largest are dropped. Ties fall in flat order, first first.
    """
    size, density = one.targets[i].size, one.options["density"][i]
    kept, top = int(density * size), int(one.options["gamma"][i] * size)
    bottom = size - kept - top if density < 1 else 0
    return _between(vector, size, max(0, bottom), max(0, bottom) + kept)


def _between(vector: Iterable[Array], size: int, first: int, last: int) -> Callable[[], Cut]:
    """Keep what has the places first .. last - 1 in ascending order of magnitude; ties are in flat order."""
    if first >= last:
        return lambda: lambda block: block.fill(0.0)
    if first == 0 and last >= size:
        return lambda: lambda block: None
    (low, below_low), (high, below_high) = order_statistics(vector, [first + 1, last])

    def make() -> Cut:
        # How many of the entries that equal an edge have been met: their places follow from it.
        met = {float(low): below_low, float(high): below_high}

        def cut(block: Array) -> None:
            size_of = np.abs(block)
            keep = (size_of > low) & (size_of < high)
            for edge, before in met.items():
                equal = np.flatnonzero(size_of == edge)
                places = np.arange(before, before + equal.size)
                keep[equal] = (places >= first) & (places < last)
                met[edge] = before + equal.size
            np.multiply(block, keep, out=block)

        return cut

    return make


def at_random(one: Inputs, i: int, vector: Iterable[Array]) -> Callable[[], Cut]:
    """Keep each entry with the probability density, by numbers keyed by (seed, name, number of the target)."""
    density = one.options["density"][i]
    if density >= 1:
        return lambda: lambda block: None

    def make() -> Cut:
        source = generator(one.options["seed"], one.name, i)

        def cut(block: Array) -> None:
            drawn = source.random(block.size, dtype=np.float32)
            np.multiply(block, drawn < density, out=block)
            if density > 0 and one.options["rescale"] == "density":
                np.divide(block, density, out=block)

        return cut

    return make


def by_rank(one: Inputs, i: int, vector: Iterable[Array]) -> Callable[[], Cut]:
    """Keep each entry with a probability that grows with its rank by magnitude among those of its unit.

    From density - epsilon, for the smallest, to density + epsilon in even steps; ties rank in flat order. Takes the
    whole parameter into memory.
    """
    density, epsilon = one.options["density"][i], one.options["epsilon"][i]
    if density >= 1:
        return lambda: lambda block: None
    whole = np.concatenate([np.abs(block) for block in vector])
    ranks = _ranks(whole.reshape(one.shape), one.outputs)
    chance = ranks.reshape(-1) * (2 * epsilon) + (density - epsilon)

    def make() -> Cut:
        source = generator(one.options["seed"], one.name, i)
        start = 0

        def cut(block: Array) -> None:
            nonlocal start
            here = chance[start : start + block.size]
            start += block.size
            drawn = source.random(block.size, dtype=np.float32)
            np.multiply(block, drawn < here, out=block)
            if one.options["rescale"] == "density":
                np.divide(block, here, out=block, where=here > 0)

        return cut

    return make


def _ranks(whole: Array, units: Any) -> Array:
    """Return the rank of each entry within its unit, 0 for the smallest to 1; 1/2 where a unit has one entry."""
    units = () if units is None or len(units) == whole.ndim else tuple(units)
    rest = tuple(axis for axis in range(whole.ndim) if axis not in units)
    turned = whole.transpose(*units, *rest)
    rows = turned.reshape(-1, int(np.prod([whole.shape[axis] for axis in rest], dtype=np.int64)))
    if rows.shape[1] == 1:
        return np.full(whole.shape, 0.5)
    order = np.argsort(rows, axis=1, kind="stable")
    ranks = np.empty(rows.shape, np.float64)
    np.put_along_axis(ranks, order, np.arange(rows.shape[1]) / max(1, rows.shape[1] - 1), axis=1)
    return ranks.reshape(turned.shape).transpose(np.argsort((*units, *rest)))
