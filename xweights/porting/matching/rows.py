"""Match the rows of two inputs, of which one has only some of the other's.

One model may send each example only to the experts that it needs, pool before a layer where the other pools after it,
call a layer step by step, or broadcast before it. A layer treats every row of its input alike, so what both were given
decides. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.pairs import Pair
from xweights.porting.matching.similarity import distance, input_tolerance, tolerance
from xweights.porting.units import LayerUnit

# Kinds that compute each entry along the first axis of their neutral input by itself.
KINDS = frozenset({"dense", "conv", "conv_transpose", "group_norm", "layer_norm", "rms_norm", "batch_norm", "multiply"})
# Inputs with more entries aren't searched for common rows.
_LARGEST = 1 << 24
# As many neighbours along a random direction are compared with each row.
_NEIGHBOURS = 3


@dataclass(frozen=True, eq=False)
class RowMatch:
    """The rows that two inputs have in common: ``target[i]`` of the target's is ``source[i]`` of the source's.

    ``counts`` are the numbers of rows of both (target's, source's).
    """

    target: Array
    source: Array
    error: float
    counts: tuple[int, int]

    def compare(self, got: Array, expected: Array) -> tuple[float, float, Array | None]:
        """Return the error of two outputs in the common rows, its limit, and ``got`` with these rows as expected."""
        if got.size % self.counts[0] or expected.size % self.counts[1]:
            return float("inf"), 0.0, None
        rows, wanted = got.reshape(self.counts[0], -1), expected.reshape(self.counts[1], -1)[self.source]
        found = rows[self.target]
        if found.shape != wanted.shape:
            return float("inf"), 0.0, None
        replaced = np.array(rows)
        replaced[self.target] = wanted
        return distance(found, wanted), tolerance(found, wanted), replaced.reshape(got.shape)

    def is_like(self, other: RowMatch | None) -> bool:
        """Return True if another match is about the same rows."""
        return (
            other is not None
            and np.array_equal(self.target, other.target)
            and np.array_equal(self.source, other.source)
        )


def match_rows(got: Array, expected: Array) -> RowMatch | None:
    """Return the common rows if all of the one that has fewer are among those of the other; None otherwise."""
    shapes = got.shape[1:], expected.shape[1:]
    counts = (got.shape[0], expected.shape[0])
    if shapes[0] != shapes[1] or not all(counts) or max(got.size, expected.size) > _LARGEST:
        return None
    if got.dtype.kind != "f" or expected.dtype.kind != "f" or got.size == got.shape[0]:
        return None
    rows, table = got.reshape(counts[0], -1), expected.reshape(counts[1], -1)
    limit = input_tolerance(got, expected) * float(np.abs(table).max())
    places, errors = _find_rows(rows, table)
    found = np.flatnonzero(errors <= limit)
    if counts[0] < counts[1]:
        if found.size < counts[0]:
            return None
    # A row of the source's may be there several times, of which only one was found.
    elif not found.size or (np.unique(places[found]).size < counts[1] and (_find_rows(table, rows)[1] > limit).any()):
        return None
    scale = float(np.abs(table).max()) or 1.0
    return RowMatch(found, places[found], float(errors[found].max()) / scale, counts)


def _find_rows(rows: Array, table: Array) -> tuple[Array, Array]:
    """Return the nearest row of a table for each row, and how far it is."""
    direction = np.random.default_rng(0).standard_normal(table.shape[1])
    keys, wanted = table @ direction, rows @ direction
    order = np.argsort(keys, kind="stable")
    above = np.searchsorted(keys[order], wanted)
    best = order[np.clip(above, 0, len(order) - 1)]
    errors = np.full(len(rows), np.inf)
    for shift in range(-_NEIGHBOURS, _NEIGHBOURS):
        near = order[np.clip(above + shift, 0, len(order) - 1)]
        far = np.abs(table[near] - rows).max(axis=1)
        closer = far < errors
        best[closer], errors[closer] = near[closer], far[closer]
    return best, errors


def place_of(unit: LayerUnit) -> int | None:
    """Return the place of a unit in a stack of equal ones, as one array or as a list of layers."""
    place = unit.attributes.get("place")
    if place is not None:
        return int(place)
    return next((int(part) for part in reversed(unit.path.split("/")) if part.isdecimal()), None)


def is_elsewhere(source: LayerUnit, target: LayerUnit) -> bool:
    """Return True if one of the two is a part of a stack, and the other has another place in its own."""
    if "place" not in source.attributes and "place" not in target.attributes:
        return False
    return place_of(source) != place_of(target)


def series_of(unit: LayerUnit) -> tuple[object, ...]:
    """Return what a unit has in common with the others of its stack."""
    if "place" in unit.attributes:
        return ("stack", unit.kind, *(p.identity() for p in unit.parameters))
    parts = unit.path.split("/")
    last = max((index for index, part in enumerate(parts) if part.isdecimal()), default=None)
    return ("list", unit.kind, *(part for index, part in enumerate(parts) if index != last))


def is_written(unit: LayerUnit, pairs: Iterable[Pair], written: Container[Hashable]) -> bool:
    """Return True if the arrays of a target's unit were written, by pairs or with the parameters that are ``written``.

    A part of a stack isn't written because another part is.
    """
    if "place" in unit.attributes:
        return any(pair.target.record is unit.record for pair in pairs)
    return all(p.identity() in written for p in unit.parameters)


def is_used(unit: LayerUnit, pairs: Iterable[Pair], ported: Container[Hashable]) -> bool:
    """Return True if the arrays of a source's unit went somewhere; ``ported`` are the parameters that did."""
    if "place" in unit.attributes:
        return any(pair.source.record is unit.record for pair in pairs)
    return all(p.identity() in ported for p in unit.parameters)
