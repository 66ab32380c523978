"""Prune parameters that several ranks hold: the masks of one process, exact counts and ties included.

A threshold is found without gathering anything (`select_shards`). Ties go by (neutral name, neutral flat
index) as everywhere, which is settled the same way. Units, patterns, blocks and scores of one's own are selected on one
gathered parameter at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from xweights.core import hold_registry, selection
from xweights.core.agreement import Outcome, Vote
from xweights.core.dtypes import Array, is_half
from xweights.core.groups import SINGLE, Group
from xweights.core.owners import knows_owners, settle_owners
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.selection import WhereLike
from xweights.core.shards import Shard
from xweights.core.targets import open_target
from xweights.edit.execute import edit_parameter
from xweights.edit.guards import defer_interrupts, enter_guards, undo_on_error
from xweights.edit.shards import Block, prepare_blocks
from xweights.errors import HoldError, NonfiniteError, Problems
from xweights.rules.elementwise import Mask
from xweights.rules.order_statistics import MagnitudeBits, at_least, has_nan
from xweights.rules.pruning import Prune, stream_masks
from xweights.rules.shards import cut_operand
from xweights.training.select_shards import Found, select, select_in_bracket


def prune_shards(rule: Prune, everything: Sequence[Parameter], where: WhereLike) -> Params:
    """Prune, and return the masks of this rank's blocks."""
    with Vote(everything, "prune", writing=True) as vote:
        vote.agree(repr(rule), rule)
        chosen = vote.open(selection.select(everything, where), copies=True)
        hold_registry.check(chosen)
        blocks = prepare_blocks(rule, chosen, "prune")
        views = [_view(block) for block in blocks]
        if _finds_threshold(rule, blocks):
            _refuse_nan(blocks, views)
        vote.flag = vote.group is not None and knows_owners(vote.group, chosen)
    masks = _select(rule, blocks, views, vote)
    fallible = [block.p for block in blocks if block.p.storage.fallible]
    guards = enter_guards([block.local for block in blocks])
    with defer_interrupts(), np.errstate(all="ignore"), guards, undo_on_error(fallible):
        for block, mask in zip(blocks, masks, strict=True):
            edit_parameter(Mask(None), block.local, (mask,), None)
    hold_registry.reapply(chosen)
    return Params(
        {p.name: mask for p, mask in zip(chosen, masks, strict=True)},
        # A part of a head has no neutral axes: its mask is that of the stored block.
        axes={b.p.name: b.p.axes if b.shard is None or b.shard.ranges is not None else None for b in blocks},
        roles={p.name: p.role for p in chosen},
        gates={p.name: p.gates for p in chosen},
    )


def select_masks(rule: Prune, chosen: Sequence[Parameter], frozen: Sequence[Array | None], step: int) -> list[Array]:
    """Return the masks of this rank's blocks, and write nothing; all ranks make this call.

    ``frozen``: for each block which entries count as the largest. Raises HoldError, on all ranks, if one of these
    would be dropped.
    """
    with Vote(chosen, "prune by schedule", writing=True) as vote:
        vote.agree(f"step {step}, {rule!r}", step, rule, [entries is None for entries in frozen])
        vote.open(chosen)
        blocks = prepare_blocks(rule, chosen, "prune by schedule")
        views = [_view(block, entries) for block, entries in zip(blocks, frozen, strict=True)]
        if _finds_threshold(rule, blocks):
            _refuse_nan(blocks, views)
        vote.flag = vote.group is not None and knows_owners(vote.group, chosen)
    masks = _select(rule, blocks, views, vote)
    if any(entries is not None for entries in frozen):
        with Outcome(vote.group):
            values = (block.local.layout.to_neutral(block.local.read()) for block in blocks)
            refuse_lost([block.p for block in blocks], values, frozen, masks)
    return masks


def refuse_lost(
    chosen: Sequence[Parameter], values: Iterable[Array], frozen: Sequence[Array | None], masks: Sequence[Array]
) -> None:
    """Raise HoldError if masks drop what is frozen, and isn't zero."""
    problems = Problems("the schedule wants to prune what is frozen")
    for p, w, entries, mask in zip(chosen, values, frozen, masks, strict=True):
        lost = 0 if entries is None else int((entries & ~mask & (w != 0)).sum())
        if lost:
            problems.add(HoldError, f"{p.name!r}: {lost} frozen entries", fix="unfreeze them, or prune less")
    problems.check()


def _select(rule: Prune, blocks: Sequence[Block], views: Sequence[Array], vote: Vote) -> list[Array]:
    """Return the masks of blocks whose values are ``views``, after the vote."""
    if _finds_threshold(rule, blocks):
        return _masks_by_magnitude(rule, blocks, views, vote.group or SINGLE, known=all(vote.flags))
    return _masks_of_wholes(rule, blocks, views)


def _finds_threshold(rule: Prune, blocks: Sequence[Block]) -> bool:
    """Return whether masks are found without gathering anything."""
    return _is_by_magnitude(rule) and all(b.shard is None or b.shard.ranges is not None for b in blocks)


def _is_by_magnitude(rule: Prune) -> bool:
    return rule.score is None and rule.per is None and rule.block is None and rule.pattern is None


def _refuse_nan(blocks: Sequence[Block], views: Sequence[Array]) -> None:
    problems = Problems("prune can't be done, and nothing was changed")
    for block, view in zip(blocks, views, strict=True):
        if has_nan(view):
            problems.add(
                NonfiniteError,
                f"{block.p.name!r} has NaN, which is neither small nor large",
                fix="mend it, or leave it out with where=",
            )
    problems.check()


def _view(block: Block, frozen: Array | None = None) -> Array:
    """Return this rank's block in neutral order, with at least one axis; frozen entries as the largest."""
    local = block.local
    view = local.layout.to_neutral(local.read())
    if frozen is not None:
        view = np.where(frozen, np.asarray(np.inf, view.dtype), view)
    return view if view.shape else view.reshape(1)


def _masks_of_wholes(rule: Prune, blocks: Sequence[Block], views: Sequence[Array]) -> list[Array]:
    """Return the masks of this rank's blocks, selected on one gathered parameter at a time."""

    def whole(position: int) -> Parameter:
        block = blocks[position]
        local, p, shard = block.local, block.p, block.shard
        own = local.layout.to_stored(views[position].reshape(local.shape))
        value = p.layout.to_neutral(own if shard is None else shard.gather(own))
        params = Params({p.name: value}, axes={p.name: p.axes}, roles={p.name: p.role}, gates={p.name: p.gates})
        return open_target(params)[0]

    mask_of = stream_masks(rule, [block.p for block in blocks], whole)
    masks = []
    for position, block in enumerate(blocks):
        mask = mask_of(position, whole(position))
        is_here = block.shard is None or block.shard.is_whole
        masks.append(mask if is_here else cut_operand(mask, block.p, block.shard).copy())  # type: ignore[arg-type]
    return masks


class _Pool(NamedTuple):
    """Entries that are ranked together: the positions of their parameters, by name, and how many are dropped."""

    positions: Sequence[int]
    drop: int
    total: int


def _masks_by_magnitude(
    rule: Prune, blocks: Sequence[Block], views: Sequence[Array], group: Group, *, known: bool
) -> list[Array]:
    shapes = [block.local.shape for block in blocks]
    if rule.threshold is not None:
        kept = [at_least(view, rule.bound_above(view.dtype), absolute=True) for view in views]
        return [mask.reshape(shape) for mask, shape in zip(kept, shapes, strict=True)]
    order = sorted(range(len(blocks)), key=lambda position: blocks[position].p.name)
    sizes = [block.p.size for block in blocks]
    if rule.scope == "global":
        pools = [_Pool(order, rule.dropped(sum(sizes)), sum(sizes))]
    else:
        pools = [_Pool([position], rule.dropped(sizes[position]), sizes[position]) for position in order]
    masks = [np.ones(view.shape, np.bool_) for view in views]
    open_pools = [pool for pool in pools if 0 < pool.drop < pool.total]
    for pool in pools:
        if 0 < pool.total <= pool.drop:
            for position in pool.positions:
                masks[position][...] = False
    if open_pools:
        owned = settle_owners(group, [block.p for block in blocks], known=known)
        _drop_smallest(open_pools, blocks, views, masks, owned, group)
    return [mask.reshape(shape) for mask, shape in zip(masks, shapes, strict=True)]


def _drop_smallest(
    pools: Sequence[_Pool],
    blocks: Sequence[Block],
    views: Sequence[Array],
    masks: list[Array],
    owned: Sequence[bool],
    group: Group,
) -> None:
    """Set the masks to False where an entry is among the smallest of its pool."""
    wides = [np.result_type(*(_comparison_dtype(views[i].dtype) for i in pool.positions)) for pool in pools]
    found = _find_edges(pools, wides, views, owned, group)
    tied: list[tuple[int, int]] = []  # (parameter, how many of its ties are dropped), if not all and not none
    counts = np.zeros(len(blocks), np.int64)
    limits = []
    for pool, wide, edge in zip(pools, wides, found, strict=True):
        limit = np.asarray(edge.bits, f"u{wide.itemsize}").view(wide)
        limits.append(limit)
        for position in pool.positions:
            masks[position] = at_least(views[position], limit, absolute=True, strictly=True)
    partial = [at for at, pool in enumerate(pools) if pool.drop - found[at].below < found[at].equal]
    if not partial:
        return
    # Some of the ties stay: those at the end of the order.
    ties = {
        position: at_least(views[position], limits[at], absolute=True) & ~masks[position]
        for at in partial
        for position in pools[at].positions
    }
    for position, mask in ties.items():
        counts[position] = int(np.count_nonzero(mask)) if owned[position] else 0
    counts = group.all_reduce(counts)
    for at in partial:
        left = pools[at].drop - found[at].below
        for position in pools[at].positions:
            share = min(left, int(counts[position]))
            left -= share
            if share == 0:
                masks[position] |= ties[position]
            elif share < counts[position]:
                tied.append((position, share))
    places = [_flat_places(ties[position], blocks[position]) for position, _ in tied]
    if tied:
        own = [[[place]] if owned[position] else [] for (position, _), place in zip(tied, places, strict=True)]
        most = max(blocks[position].p.size for position, _ in tied)
        last = select(own, [share for _, share in tied], max(most.bit_length(), 1), group)
        for (position, _), place, end in zip(tied, places, last, strict=True):
            masks[position][ties[position]] = place > end.bits


def _find_edges(
    pools: Sequence[_Pool],
    wides: Sequence[np.dtype[np.generic]],
    views: Sequence[Array],
    owned: Sequence[bool],
    group: Group,
) -> list[Found]:
    """Return the largest magnitude that each pool drops, as bits, with the counts of those below and equal."""
    own = [[views[i] for i in pool.positions if owned[i]] for pool in pools]
    if len(pools) == 1 and all(_comparison_dtype(views[i].dtype) == wides[0] for i in pools[0].positions):
        found = select_in_bracket(own[0], pools[0].total, pools[0].drop, wides[0], group)
        if found is not None:
            return [found]
    values = [[MagnitudeBits(view, wide) for view in of_pool] for of_pool, wide in zip(own, wides, strict=True)]
    bits = max(wide.itemsize * 8 - 1 for wide in wides)
    return select(values, [pool.drop for pool in pools], bits, group)


def _comparison_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    return np.dtype(np.float32) if is_half(dtype) else dtype.newbyteorder("=")


def _flat_places(mask: Array, block: Block) -> Array:
    """Return the neutral flat indices, in the whole parameter, of the entries that a mask of the block selects."""
    shape = block.p.shape or (1,)
    coordinates = np.nonzero(mask)
    starts = _starts(block.shard, len(shape))
    moved = tuple(axis + start for axis, start in zip(coordinates, starts, strict=True))
    return np.ravel_multi_index(moved, shape).astype(np.uint64)


def _starts(shard: Shard | None, axes: int) -> Sequence[int]:
    if shard is None or shard.is_whole:
        return [0] * axes
    assert shard.ranges is not None
    return [first for first, _ in shard.ranges]
