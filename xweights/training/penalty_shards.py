"""A penalty on parameters that several ranks hold: its value is that of the whole model, its gradient that of a block.

Entry by entry, and for units of which sums of squares suffice, only partial sums go over the network. What looks at
a whole array (``orthogonal``, units along a part of an axis) gets one gathered parameter at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from xweights.core.agreement import shard_of
from xweights.core.dispatch import to_neutral, to_stored
from xweights.core.dtypes import Array
from xweights.core.groups import Group
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.core.targets import tracing
from xweights.edit.shards import local_parameter, whole_parameter
from xweights.errors import TraceError
from xweights.rules.base import FLOAT64
from xweights.rules.norms import per_axes
from xweights.rules.penalties import Penalty
from xweights.training.bound_penalties import BoundPenalty


@runtime_checkable
class BesideStorage(Protocol):
    """A storage of parameters of which this rank has a part: their gradients are cut as they are."""

    def beside(self, handle: Any, block: Any) -> Any:
        """Return a block as an array of the framework that is cut as the parameter is."""


class ShardedPenalty(BoundPenalty):
    """A penalty bound to this rank's blocks; every rank makes each call."""

    def __init__(self, rule: Penalty, wholes: Sequence[Parameter]) -> None:
        shards = [shard_of(p) for p in wholes]
        self._shards = shards
        self._wholes = tuple(wholes)
        super().__init__(
            rule, [p if s is None else local_parameter(p, s) for p, s in zip(wholes, shards, strict=True)], wholes
        )

    def __call__(self) -> Any:
        """Return the penalty now; a collective or two of a few bytes, and those of what has to be gathered."""
        if any(map(tracing, self.parameters)):
            raise TraceError(
                "a penalty on shards is summed over the ranks, on the host\n"
                "Fix: add it to the loss outside of the compiled part"
            )
        call = _Call(self)
        tensors = [p.storage.tracked(p.handle) for p in self._wholes]
        return self._ops.differentiable(call.value, call.gradient, tensors)

    def of(self, tensors: Sequence[Any]) -> Any:
        raise TraceError("a penalty on shards has its own parameters only\nFix: call it")

    def needs_whole(self, position: int) -> bool:
        """Return whether the terms of a parameter look at more than this rank has, and sums can't make up for it."""
        shard, p = self._shards[position], self._wholes[position]
        if shard is None or shard.is_whole:
            return False
        if self.rule.orthogonal is not None:
            return True
        if self.rule.per is None:
            return False
        return shard.ranges is None or per_axes(self.rule.per, p)[1] != p.shape


class _Call:
    """One call, with what its backward pass needs of the forward pass: it makes no collective."""

    def __init__(self, bound: ShardedPenalty) -> None:
        self.bound, self.rule, self.ops = bound, bound.rule, bound._ops
        self.wholes: dict[int, Any] = {}
        self.squares: dict[int, Any] = {}

    def value(self, *tensors: Any) -> Any:
        bound, ops = self.bound, self.ops
        totals = np.zeros(len(bound._wholes), FLOAT64)
        sums: dict[int, dict[str, float]] = {}
        self._sum_units()
        for position, (p, block) in enumerate(zip(bound._wholes, bound.parameters, strict=True)):
            shard, operands = bound._shards[position], bound._operands[position]
            if bound.needs_whole(position):
                whole = whole_parameter(p).native(tensor=True)
                self.wholes[position] = whole
                totals[position] = _number(self.rule.value(to_neutral(ops, whole, p.layout), ops, p, operands))
            elif shard is None or shard.is_whole:
                native = block.native(tensor=True)
                totals[position] = _number(self.rule.value(to_neutral(ops, native, p.layout), ops, p, operands))
            else:
                sums[position] = self._sum_block(position, block)
        self._add_sums(totals, sums)
        total = np.zeros((), FLOAT64)
        for count, position in enumerate(bound._order):
            total = totals[position] if count == 0 else totals[position] + total
        like = bound.parameters[0].native(tensor=True)
        return ops.cast(ops.constant(np.asarray(total, FLOAT64), like), bound._dtype)

    def gradient(self, upstream: Any, *tensors: Any) -> list[Any]:
        bound, ops = self.bound, self.ops
        found = []
        for position, (p, block) in enumerate(zip(bound._wholes, bound.parameters, strict=True)):
            shard, operands = bound._shards[position], bound._operands[position]
            native = self.wholes.get(position)
            if native is not None:
                w = to_neutral(ops, native, p.layout)
                whole = to_stored(ops, self.rule.gradient(upstream, w, ops, p, operands), p.layout)
                assert shard is not None
                new = whole[tuple(slice(*own) for own in shard.stored)]
            else:
                w = to_neutral(ops, block.native(tensor=True), block.layout)
                squares = self.squares.get(position)
                new = self.rule.gradient(upstream, w, ops, block, operands, squares)
                new = to_stored(ops, new, block.layout)
            found.append(p.storage.beside(p.handle, new) if isinstance(p.storage, BesideStorage) else new)
        return found

    def _sum_units(self) -> None:
        """Sum the squares of units over the ranks that have parts of them: one collective for each group of these."""
        if self.rule.per is None:
            return
        bound, ops = self.bound, self.ops
        own: dict[int, Array] = {}
        pending: dict[Group, list[int]] = {}
        for position, (p, block) in enumerate(zip(bound._wholes, bound.parameters, strict=True)):
            shard = bound._shards[position]
            if shard is None or shard.is_whole or bound.needs_whole(position):
                continue
            others = per_axes(self.rule.per, p)[2]
            native = block.native(tensor=True)
            wide = ops.cast(to_neutral(ops, native, block.layout), FLOAT64)
            own[position] = np.array(_host(ops.sum_squares(wide, others)), FLOAT64)
            for axis in others:
                if shard.neutral_groups[axis].size > 1:
                    pending.setdefault(shard.neutral_groups[axis], []).append(position)
        for group, positions in pending.items():
            joined = group.all_reduce(np.concatenate([np.ravel(own[position]) for position in positions]))
            parts = np.split(joined, np.cumsum([own[position].size for position in positions])[:-1])
            for position, part in zip(positions, parts, strict=True):
                own[position] = part.reshape(own[position].shape)
        for position, squares in own.items():
            self.squares[position] = ops.constant(squares, bound.parameters[position].native(tensor=True))

    def _sum_block(self, position: int, block: Parameter) -> dict[str, float]:
        """Return the sum of each term, without its weight, over this rank's entries or units."""
        ops, everything = self.ops, tuple(range(len(block.shape)))
        wide = ops.cast(to_neutral(ops, block.native(tensor=True), block.layout), FLOAT64)
        sums = {}
        if self.rule.l1 is not None:
            sums["l1"] = _number(ops.sum(ops.abs(wide), everything))
        if self.rule.l2 is not None:
            sums["l2"] = _number(ops.sum_squares(wide, None))
        if self.rule.group is not None:
            sums["group"] = float(np.sqrt(np.asarray(_host(self.squares[position]))).sum())
        return sums

    def _add_sums(self, totals: Array, sums: dict[int, dict[str, float]]) -> None:
        """Sum the terms over all ranks, for all parameters together, and add them to the totals."""
        bound = self.bound
        pending: dict[Group, list[tuple[int, str]]] = {}
        for position, terms in sums.items():
            shard, p = bound._shards[position], bound._wholes[position]
            assert shard is not None
            units = () if self.rule.per is None else per_axes(self.rule.per, p)[2]
            for term in terms:
                # Ranks that share the axes inside of a unit have the same sums of units.
                axes = [axis for axis in range(len(p.shape)) if term == "group" and axis not in units]
                cut = [shard.neutral_groups[axis] for axis in axes] if term == "group" else [shard.holders]
                for group in cut:
                    if group.size > 1:
                        pending.setdefault(group, []).append((position, term))
        for group, members in pending.items():
            reduced = group.all_reduce(np.array([sums[position][term] for position, term in members], FLOAT64))
            for (position, term), value in zip(members, reduced, strict=True):
                sums[position][term] = float(value)
        for position, terms in sums.items():
            weights = {key: _host(bound._operands[position][key]) for key in terms}
            for term, value in terms.items():
                totals[position] += np.float64(value) * np.float64(weights[term])


def _host(value: Any) -> Array:
    backend = backend_for(value)
    return np.asarray(value if backend is None else backend.to_host(value))


def _number(value: Any) -> float:
    return float(_host(value).reshape(()))
