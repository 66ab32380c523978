"""Merge models that several ranks hold: each rank its own blocks where entries are merged one by one.

Methods that look at whole parameters get one gathered parameter of each target at a time, and every rank keeps its part
of the result. Nothing is written before all ranks have their part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xweights.core import hold_registry
from xweights.core.agreement import Outcome, is_cut, open_shard, shard_of
from xweights.core.dtypes import Array
from xweights.core.groups import Group as Ranks
from xweights.core.layout import plain_layout, reorder
from xweights.core.openers import HasParts
from xweights.core.parameter import Parameter, is_shared
from xweights.core.params import Params
from xweights.core.shards import Ranges, Shard
from xweights.core.targets import is_path, open_target
from xweights.edit.adapting import AdaptedValue
from xweights.edit.guards import alone, defer_interrupts, enter_guards, keys_of, undo_on_error
from xweights.edit.serve import ServedStorage
from xweights.edit.shards import local_parameter
from xweights.errors import XweightsError
from xweights.files.io.blocks import make_block
from xweights.files.io.records import Record
from xweights.merging.engine import MergeEngine
from xweights.merging.groups import Group, Member

View = Callable[[Parameter], Parameter]


def list_shared(targets: Sequence[Any]) -> list[Parameter]:
    """Return the parameters that other ranks hold, too, of all targets that are models."""
    found: list[Parameter] = []
    for target in targets:
        if target is None or is_path(target) or isinstance(target, (Mapping, HasParts)):
            continue
        try:
            found += [p for p in open_target(target) if is_shared(p)]
        except XweightsError:
            continue  # told with everything else that is wrong
    return found


def serve_by(everything: Sequence[Parameter], served: Sequence[Parameter]) -> View:
    """Return the function that gives the served parameter of each that other ranks hold, too."""
    by_identity = {p.identity(): at for at, p in enumerate(everything)}

    def view(p: Parameter) -> Parameter:
        at = by_identity.get(p.identity()) if is_shared(p) else None
        return p if at is None else p.replace(storage=served[at].storage)

    return view


def merge_on_ranks(engine: MergeEngine, groups: Sequence[Group], ranks: Ranks, *, has_into: bool) -> Params | None:
    """Return the result as whole arrays on every rank, or write it to ``into``, each rank its blocks.

    ``groups`` are of opened parameters; the ranks have agreed.
    """
    results = [_Result(group, engine, has_into) for group in groups if not has_into or group.into is not None]
    # Where a rank needs blocks of others, one that fails by itself would leave them waiting.
    votes_on_each = any(result.gathers for result in results)
    with Outcome(ranks):
        for result in results:
            result.gather()
            with Outcome(ranks if votes_on_each else None):
                result.compute()
        engine.problems.check()
    if not has_into:
        return _to_params(results)
    _write([result for result in results if result.into is not None], ranks)
    return None


class _Result:
    """One merged parameter, or this rank's block of it."""

    def __init__(self, group: Group, engine: MergeEngine, has_into: bool) -> None:
        self.group, self.engine = group, engine
        self.into = None if group.into is None or not has_into else open_shard(group.into)
        shard = None if self.into is None else shard_of(self.into)
        self.shard = shard if shard is not None and not shard.is_whole else None
        self.ranges = self._find_ranges() if engine.method.linear else None
        self.parts = [_Part(member, group, self.ranges, self.shard) for member in group.all_members]
        self.array: Array = np.empty(0)

    @property
    def gathers(self) -> bool:
        """True if blocks of other ranks are needed."""
        return any(part.gathers for part in self.parts)

    def _find_ranges(self) -> Ranges | None:
        """Return this rank's range along each axis of the group; None where its block isn't one of them."""
        if self.shard is None or self.into is None or self.shard.ranges is None:
            return None
        ours, theirs = self.into.axes, self.group.axes
        if ours is None or theirs is None or ours == theirs:
            return self.shard.ranges
        return tuple(self.shard.ranges[ours.index(axis)] for axis in theirs)

    def gather(self) -> None:
        """Read what other ranks have to send: every rank makes the same collectives."""
        for part in self.parts:
            if part.gathers:
                part.read()

    def compute(self) -> None:
        """Merge, and keep the result in the stored order of this rank's block."""
        members = [part.member() for part in self.parts]
        has_base = self.group.base is not None
        local = replace(
            self.group, members=members[:-1] if has_base else members, base=members[-1] if has_base else None
        )
        for part in self.parts:
            part.array = None
        walk = tuple(range(len(local.shape)))
        flat = np.empty(int(np.prod(local.shape, dtype=np.int64)), local.dtype)
        start = 0
        for block in self.engine.blocks(local, walk) if flat.size else ():
            flat[start : start + block.size] = block
            start += block.size
        merged = flat.reshape(local.shape)
        self.array = merged if self.into is None else self._to_block(merged, local, self.into)

    def _to_block(self, merged: Array, local: Group, into: Parameter) -> Array:
        if local.axes is not None and into.axes is not None and local.axes != into.axes:
            merged = reorder(merged, local.axes, into.axes, what=repr(into.name))
        if self.shard is None:
            return into.layout.to_stored(merged)
        if self.ranges is None:
            return self.shard.cut_stored(into.layout.to_stored(merged)).copy()
        return local_parameter(into, self.shard).layout.to_stored(merged)


@dataclass
class _Part:
    """What one target has of a parameter, in its own neutral order: all of it, or what the result's block needs."""

    source: Member
    group: Group
    ranges: Ranges | None
    shard: Shard | None
    array: Array | None = None

    @property
    def gathers(self) -> bool:
        """True if other ranks have to send their blocks; the same on every rank."""
        p = self.source.parameter
        own, other = shard_of(p), self.shard
        if own is None or own.is_whole:
            return isinstance(p.handle, AdaptedValue)  # it may be of one that is cut
        if other is None or self.ranges is None or own.ranges is None:
            return True
        # Several meshes may have placements of the same words, but not the same ranks.
        is_alike = own.label == other.label and own.holders is other.holders
        return not (is_alike and self.source.layout is p.layout and p.layout.axes == self.group.axes)

    def read(self) -> None:
        """Read the values, those of other ranks by a collective."""
        p, layout = self.source.parameter, self.source.layout
        ranges = self.ranges
        if ranges is not None and layout.axes is not None and self.group.axes is not None:
            ranges = tuple(ranges[self.group.axes.index(axis)] for axis in layout.axes)
        if ranges is None:
            self.array = layout.to_neutral(p.read())
        elif is_cut(p) and not self.gathers:
            local = local_parameter(p, shard_of(p))  # type: ignore[arg-type]
            self.array = local.layout.to_neutral(local.read())
        elif isinstance(p.handle, Record) and layout.split == layout.stored:
            stored = tuple(ranges[position] for position in layout.inverse)
            block = make_block(p.handle, stored)
            cut = tuple(slice(*own) for own in stored)
            self.array = (p.read()[cut] if block is None else block.read()).transpose(layout.order)
        else:
            self.array = layout.to_neutral(p.read())[tuple(slice(*own) for own in ranges)]

    def member(self) -> Member:
        """Return the same as an array of its own."""
        if self.array is None:
            self.read()
        array, p = self.array, self.source.parameter
        assert array is not None
        layout = plain_layout(array.shape, self.source.layout.axes)
        if self.source.layout.outputs is not None:
            layout = replace(layout, outputs=self.source.layout.outputs)
        return Member(p.replace(storage=ServedStorage(p, lambda: array), handle=None, layout=layout), layout)


def _to_params(results: Sequence[_Result]) -> Params:
    arrays = {result.group.first.name: result.array for result in results}
    firsts = [result.group for result in results]
    axes = {group.first.name: group.axes for group in firsts}
    roles = {group.first.name: group.first.role for group in firsts}
    gates = {group.first.name: group.first.gates for group in firsts}
    return Params._made(arrays, axes, roles, gates, "neutral")


def _write(results: Sequence[_Result], ranks: Ranks) -> None:
    """Write each block into its parameter, all or none."""
    chosen = [result.into for result in results if result.into is not None]
    shards = [shard_of(p) for p in chosen]
    locals_ = [p if shard is None else local_parameter(p, shard) for p, shard in zip(chosen, shards, strict=True)]
    risky = [p for p in locals_ if p.storage.fallible]
    with (
        alone(keys_of(locals_)),
        defer_interrupts(),
        enter_guards(locals_),
        undo_on_error(risky),
        Outcome(ranks if risky else None),
    ):
        for local, result in zip(locals_, results, strict=True):
            local.write(result.array)
    hold_registry.reapply(chosen)
