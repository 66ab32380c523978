"""Rules on one rank's block of a parameter: the same rule with the part of its operands that belongs to the block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xweights.core.dtypes import Array, is_complex
from xweights.core.layout import plain_layout
from xweights.core.parameter import Parameter
from xweights.core.shards import Ranges, Shard
from xweights.rules.base import Rule
from xweights.rules.entries import SetEntries

Operands = tuple[Array, ...]


def cut_rule(rule: Rule, p: Parameter, shard: Shard, operands: Operands) -> tuple[Rule, Operands] | None:
    """Return a rule and its operands for the entries of one block; None if the rule has to see the whole parameter."""
    if shard.is_whole:
        return rule, operands
    if rule.elementwise and not is_complex(p.dtype):
        return rule, tuple(cut_operand(value, p, shard) for value in operands)
    if isinstance(rule, SetEntries):
        return _cut_entries(rule, p, shard, operands)
    return None


def local_layout(p: Parameter, shard: Shard) -> Any:
    """Return the layout of a block: as stored where it is no block of the neutral axes."""
    return shard.local_layout or plain_layout(shard.shape)


def cut_operand(value: Array, p: Parameter, shard: Shard) -> Array:
    """Return the part of an operand (neutral order) for one block, in the order of :func:`local_layout`."""
    if not value.shape:
        return value
    if shard.ranges is not None:
        return shard.cut(value)
    return shard.cut_stored(p.layout.to_stored(np.broadcast_to(value, p.shape)))


def _cut_entries(rule: SetEntries, p: Parameter, shard: Shard, operands: Operands) -> tuple[Rule, Operands] | None:
    if len(operands) == 2:  # a mask: entry by entry
        return rule, tuple(cut_operand(value, p, shard) for value in operands)
    if shard.ranges is None:
        return None
    index = rule.resolve(p)
    lengths = [len(range(*item.indices(n))) for item, n in zip(index, p.shape, strict=True) if isinstance(item, slice)]
    value = np.broadcast_to(operands[0], tuple(lengths)) if operands[0].shape else operands[0]
    cut = _cut_index(index, p.shape, shard.ranges)
    if cut is None:  # none of the entries is here
        return replace(rule, index=tuple(slice(0, 0) for _ in p.shape), value=0), (np.zeros((), p.dtype),)
    inside, taken = cut
    return replace(rule, index=inside, value=0), (value[taken] if value.shape else value,)


def _cut_index(
    index: Sequence[Any], shape: Sequence[int], ranges: Ranges
) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """Return an index within the block, and which part of the value belongs there; None if there is none."""
    inside: list[Any] = []
    taken: list[slice] = []
    for item, length, (first, last) in zip(index, shape, ranges, strict=True):
        if not isinstance(item, slice):
            if not first <= item < last:
                return None
            inside.append(item - first)
            continue
        every = range(*item.indices(length))
        begin, end = _places_between(every, first, last)
        if begin >= end:
            return None
        stop = every[end - 1] - first + every.step
        inside.append(slice(every[begin] - first, stop if stop >= 0 else None, every.step))
        taken.append(slice(begin, end))
    return tuple(inside), tuple(taken)


def _places_between(every: range, first: int, last: int) -> tuple[int, int]:
    """Return (begin, end) of the places in an arithmetic sequence whose values are in [first, last)."""
    if not every:
        return 0, 0
    if every.step > 0:
        begin = max(0, -(-(first - every.start) // every.step))
        end = max(0, -(-(last - every.start) // every.step))
    else:
        begin = max(0, -(-(every.start - (last - 1)) // -every.step))
        end = max(0, -(-(every.start - (first - 1)) // -every.step))
    return min(begin, len(every)), min(end, len(every))
