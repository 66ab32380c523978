"""Packings: several dense layers with one input that are one layer in the other model.

Query, key and value, gate and up may be one kernel, in blocks or interleaved by head (or by group of heads: as many
query heads as belong to one key). Which of them it is, the layers that follow decide: each packing is a candidate, and
those are tried first that were right in the layers before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.units import LayerUnit

# A fused layer has at most so many parts, and at most so many layers with one input are combined.
_PARTS, _POOL = 4, 8
# The usual order of parts that are told by their names.
_ORDER = ("query", "q", "key", "k", "value", "v", "gate", "w1", "up", "w3", "w2")


class Packing(NamedTuple):
    """An order of the parts, and the number of groups in which they take turns (1: whole blocks)."""

    order: tuple[int, ...]
    groups: int

    def describe(self, names: Sequence[str]) -> str:
        """Return the packing in a few words."""
        text = "packed as " + ", ".join(names[part] for part in self.order)
        return text if self.groups == 1 else f"{text} in each of {self.groups} groups"


def list_packings(widths: Sequence[int], heads: Iterable[int], names: Sequence[str] = ()) -> list[Packing]:
    """Return the packings of parts of these widths, the likeliest first."""
    parts = range(len(widths))
    first = tuple(sorted(parts, key=lambda part: _rank(names[part]))) if names else tuple(parts)
    orders = [first, *(order for order in itertools.permutations(parts) if order != first)]
    common = math.gcd(*widths)
    groups = [count for count in dict.fromkeys((*heads, common)) if 1 < count <= common and common % count == 0]
    return [Packing(orders[0], 1), *(Packing(orders[0], count) for count in groups)] + [
        Packing(order, count) for order in orders[1:] for count in (1, *groups)
    ]


def find_columns(widths: Sequence[int], packing: Packing) -> list[Array]:
    """Return the columns of the fused layer that each part fills, in the part's own order."""
    columns: list[list[Array]] = [[] for _ in widths]
    at = 0
    for _ in range(packing.groups):
        for part in packing.order:
            count = widths[part] // packing.groups
            columns[part].append(np.arange(at, at + count))
            at += count
    return [np.concatenate(pieces) for pieces in columns]


def as_slice(columns: Array) -> slice | Array:
    """Return columns as a slice if they are one block."""
    start, stop = int(columns[0]), int(columns[-1]) + 1
    return slice(start, stop) if stop - start == columns.size and (np.diff(columns) == 1).all() else columns


def list_combinations(widths: Sequence[int], total: int) -> Iterator[tuple[int, ...]]:
    """Yield the indices of layers whose widths add up to a total, the first ones first."""
    count = min(len(widths), _POOL)
    for size in range(2, _PARTS + 1):
        for chosen in itertools.combinations(range(count), size):
            if sum(widths[index] for index in chosen) == total:
                yield chosen


def list_splits(total: int, width: int) -> list[tuple[tuple[int, ...], int]]:
    """Return how a fused layer may be split so that a part has this width: the widths, and the part's place."""
    splits: list[tuple[tuple[int, ...], int]] = []
    if total % width == 0 and 2 <= total // width <= _PARTS:
        count = total // width
        splits += [((width,) * count, place) for place in range(count)]
    rest = total - width
    if rest > 0 and rest % 2 == 0 and rest // 2 != width:
        splits.append(((width, rest // 2, rest // 2), 0))  # query, and fewer heads of key and value
    if total - 2 * width > 0 and total - 2 * width != width:
        splits += [((total - 2 * width, width, width), place) for place in (1, 2)]
    if rest > 0 and rest != width:
        splits += [((width, rest), 0), ((rest, width), 1)]
    return splits


def get_name(unit: LayerUnit) -> str:
    """Return the last part of a unit's path."""
    return unit.path.rpartition("/")[2]


def _rank(name: str) -> int:
    words = name.lower().replace("_proj", "").split("_")
    return next((place for place, word in enumerate(_ORDER) if word in words), len(_ORDER))


def rank_in(name: str, count: int) -> int | None:
    """Return the place that a part of this name has among so many, or None."""
    rank = _rank(name)
    if rank == len(_ORDER):
        return None
    word = _ORDER[rank]
    if count == 3:
        return {"query": 0, "q": 0, "key": 1, "k": 1, "value": 2, "v": 2}.get(word)
    return {"gate": 0, "w1": 0, "up": 1, "w3": 1, "key": 0, "k": 0, "value": 1, "v": 1}.get(word)
