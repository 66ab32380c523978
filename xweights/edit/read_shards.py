"""Read parameters that several ranks hold on one rank, or only what this rank has of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from xweights.core.agreement import Vote, shard_of
from xweights.core.dtypes import Array
from xweights.core.groups import SINGLE, Group
from xweights.core.layout import LayoutName
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.selection import WhereLike, select
from xweights.core.shards import Shard
from xweights.core.targets import open_eagerly
from xweights.edit.shards import local_parameter
from xweights.errors import ArgumentError, LayoutError, TraceError, got_expected

# A rank's number among all, or "local": on every rank what it has.
OnRank = int | Literal["local"]


def params_on(
    target: Any,
    where: WhereLike,
    layout: LayoutName,
    on_rank: OnRank,
    check_readable: Callable[[Sequence[Parameter]], None],
) -> Params:
    """Return the values on one rank, an empty Params on the others; or on every rank its own blocks."""
    if on_rank != "local" and (isinstance(on_rank, bool) or not isinstance(on_rank, int)):
        raise ArgumentError(f'on_rank= is the number of a rank, "local" or "all"\ngot: {on_rank!r}')
    refused = TraceError("values can't be read on the host inside a compiled step\nFix: read before or after the step")
    everything = open_eagerly(target, refused)
    with Vote(everything, "get_params", writing=True) as vote:
        group = vote.group or SINGLE
        vote.agree(f"on_rank={on_rank!r}", on_rank, layout)
        chosen = vote.open(select(everything, where))
        check_readable(chosen)
        if on_rank != "local" and on_rank not in group.ranks:
            expected = f"one of the ranks that hold the model: {', '.join(map(str, group.ranks[:16]))}"
            raise ArgumentError(f"on_rank= is no rank of this model\n{got_expected(on_rank, expected)}")
        if on_rank == "local" and layout == "neutral":
            _need_blocks(chosen)
    if on_rank == "local":
        return _local_params(chosen, layout)
    arrays: dict[str, Array] = {}
    for p in chosen:
        array = _read_on(p, shard_of(p), on_rank, group)
        if array is not None:
            arrays[p.name] = array if layout == "native" else p.layout.to_neutral(array)
    here = group.ranks[group.rank] == on_rank
    return Params.of(chosen if here else [], arrays if here else {}, layout=layout)


def _need_blocks(chosen: list[Parameter]) -> None:
    for p in chosen:
        shard = shard_of(p)
        if shard is not None and shard.ranges is None:
            axes = ", ".join(p.axes or ())
            raise LayoutError(
                f"this rank's part of {p.name!r} ends within one of its axes ({axes}): it is no block of them\n"
                'Fix: layout="native"'
            )


def _local_params(chosen: list[Parameter], layout: LayoutName) -> Params:
    arrays: dict[str, Array] = {}
    locals_: list[Parameter] = []
    for p in chosen:
        shard = shard_of(p)
        local = p if shard is None else local_parameter(p, shard)
        locals_.append(local)
        array = local.read().copy(order="K")
        arrays[p.name] = array if layout == "native" else local.layout.to_neutral(array)
    return Params.of(locals_, arrays, layout=layout)


def _read_on(p: Parameter, shard: Shard | None, on_rank: int, group: Group) -> Array | None:
    """Return the whole array in stored order on one rank; a collective of those whose blocks it needs."""
    here = group.ranks[group.rank] == on_rank
    if shard is None or shard.is_whole:
        return (p if shard is None else local_parameter(p, shard)).read().copy(order="K") if here else None
    holders = list(shard.holders.ranks)
    if on_rank not in holders:
        return None  # another copy has it
    return shard.gather_to(local_parameter(p, shard).read(), holders.index(on_rank))
