"""Edit parameters that several ranks hold, with the bytes of one process.

All ranks check, and vote (`xweights.core.agreement`); then each edits its own block. Entry by entry nothing else is
needed. Norms are summed over the ranks that share the summed axes, for all parameters in one collective; random numbers
are drawn by one rank and scattered; a rule that has to see a whole parameter gets one gathered parameter at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from xweights.core import hold_registry
from xweights.core.agreement import Outcome, Vote, shard_of
from xweights.core.dtypes import Array, is_complex
from xweights.core.groups import Group
from xweights.core.parameter import Parameter, is_shared
from xweights.core.selection import WhereLike, select
from xweights.core.shards import Shard
from xweights.edit.execute import add_refusal, edit_parameter
from xweights.edit.guards import alone, defer_interrupts, enter_guards, keys_of, order_fallible_first, undo_on_error
from xweights.errors import Problems, SelectionError, XweightsError
from xweights.rules.base import Rule, is_foreign
from xweights.rules.elementwise import Add, Fill
from xweights.rules.initializers import Init
from xweights.rules.noise import Noise
from xweights.rules.norms import ClipNorm, norm_axes, squares_of
from xweights.rules.shards import cut_rule, local_layout

Operands = tuple[Array, ...]


def has_shards(parameters: Sequence[Parameter]) -> bool:
    """Return whether other ranks hold some of these parameters, too."""
    return any(map(is_shared, parameters))


def local_parameter(p: Parameter, shard: Shard) -> Parameter:
    """Return this rank's block as a parameter of its own, under the same name."""
    storage, handle = p.storage.local(p.handle)  # type: ignore[attr-defined]
    return p.replace(storage=storage, handle=handle, layout=local_layout(p, shard))


def whole_parameter(p: Parameter) -> Parameter:
    """Return a gathered copy as a parameter of its own; all ranks that hold a part must make this call."""
    shard = shard_of(p)
    if shard is None:
        return p
    storage, handle = p.storage.whole(p.handle, p.read())  # type: ignore[attr-defined]
    return p.replace(storage=storage, handle=handle)


@dataclass
class Block:
    """What one rank does to one parameter.

    ``rule`` and ``operands`` are those for this rank's block, None for a rule that has to see the whole parameter.
    """

    p: Parameter
    shard: Shard | None
    whole_operands: Operands
    rule: Rule | None
    operands: Operands

    @cached_property
    def local(self) -> Parameter:
        """This rank's block as a parameter."""
        return self.p if self.shard is None else local_parameter(self.p, self.shard)


def edit_shards(rule: Rule, everything: Sequence[Parameter], where: WhereLike, call: str) -> None:
    """Select, check everything, agree, then edit: what `edit` does on one rank."""
    with Vote(everything, call, writing=True) as vote:
        vote.agree(repr(rule), rule)
        chosen = vote.open(select(everything, where), copies=not isinstance(rule, (Fill, Init)))
        hold_registry.check(chosen)
        blocks = prepare_blocks(rule, chosen, call)
    edit_blocks(rule, blocks, vote.group)
    hold_registry.reapply(chosen)


def prepare_blocks(rule: Rule, chosen: Sequence[Parameter], call: str) -> list[Block]:
    """Return what this rank will do, or raise everything that is wrong; write nothing.

    Operands are made for one parameter at a time and cut at once: an initializer's are as large as the model.
    """
    problems = Problems(f"{call} can't be done, and nothing was changed")
    if not chosen:
        problems.add(SelectionError, "the target has no parameters at all")
    blocks: list[Block] = []
    operands_of: dict[Any, Operands] = {}
    for position, p in enumerate(chosen):
        if add_refusal(problems, p, writing=True):
            continue
        try:
            rule.check(p)
            blocks.append(_prepare_block(rule, p, position, operands_of))
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
    problems.check()
    return blocks


def _prepare_block(rule: Rule, p: Parameter, position: int, operands_of: dict[Any, Operands]) -> Block:
    shard = shard_of(p)
    if rule.by_dtype:
        if p.dtype not in operands_of:
            operands_of[p.dtype] = rule.operands(p)
        operands = operands_of[p.dtype]
        if rule.elementwise and not is_complex(p.dtype) and not any(value.shape for value in operands):
            return Block(p, shard, operands, rule, operands)  # the same numbers for every block
    if shard is None or shard.is_whole:
        # Copies, since an operand may be a view of another parameter's memory.
        operands = () if rule.random else tuple(value.copy() if value.shape else value for value in rule.operands(p))
        return Block(p, shard, operands, rule, operands)
    if isinstance(rule, Init) and not callable(rule.initializer):
        is_drawer = _drawer_of(position, shard) == shard.holders.rank
        return Block(p, shard, rule.operands(p) if is_drawer else (), Fill(None), ())
    if isinstance(rule, Noise):
        return Block(p, shard, (), Add(None), ())
    operands = () if rule.random else rule.operands(p)
    cut = cut_rule(rule, p, shard, operands)
    if cut is None:
        return Block(p, shard, operands, None, ())
    # Copies, if they are small parts of large arrays.
    kept = tuple(part.copy() if part.base is not None and part.size < part.base.size else part for part in cut[1])
    return Block(p, shard, (), cut[0], kept)


def _drawer_of(position: int, shard: Shard) -> int:
    """Return the rank, among the holders, that draws the numbers of a parameter."""
    return position % shard.holders.size


def edit_blocks(rule: Rule, blocks: Sequence[Block], group: Group | None) -> None:
    """Edit every block, after all ranks agreed."""
    chosen = [block.p for block in blocks]
    foreign = is_foreign(rule)
    risky = [p for p in chosen if foreign or p.storage.fallible]
    with ExitStack() as stack:
        stack.enter_context(alone(keys_of(chosen)))
        if not foreign:
            stack.enter_context(defer_interrupts())
            stack.enter_context(np.errstate(all="ignore"))
        squares = _sum_squares(rule, blocks)
        shared = rule.measure_on_host(chosen) if rule.joint and squares is None else None
        stack.enter_context(enter_guards([block.local for block in blocks]))
        stack.enter_context(undo_on_error(risky))
        drawn = _draw(rule, blocks)
        for position in order_fallible_first(chosen):
            block = blocks[position]
            share = shared[position] if isinstance(shared, list) else shared
            norm = None if squares is None else squares[position]
            if norm is not None:
                _edit_norm(rule, block, norm)
            elif position in drawn:
                part = drawn.pop(position)
                assert block.rule is not None
                edit_parameter(block.rule, block.local, (part,), None)
            elif block.rule is not None:
                edit_parameter(block.rule, block.local, block.operands, share)
            else:
                _edit_whole(rule, block, share, group if foreign else None)


def _edit_whole(rule: Rule, block: Block, shared: Any, group: Group | None) -> None:
    """Edit a gathered copy, and keep this rank's part; ``group`` votes on whether a foreign rule worked everywhere."""
    whole = whole_parameter(block.p)
    with Outcome(group):
        edit_parameter(rule, whole, block.whole_operands, shared)
    block.p.write(whole.read())


def _edit_norm(rule: Rule, block: Block, squares: Array) -> None:
    """Scale a block by norms that have been summed over all ranks."""
    local = block.local
    edit_parameter(rule, local, block.whole_operands, squares)


def _sum_squares(rule: Rule, blocks: Sequence[Block]) -> list[Array | None] | None:
    """Return the squares of a norm rule, summed over all ranks; None for a rule that isn't about norms.

    One collective for each mesh dimension that cuts a summed axis, for all parameters together.
    """
    axes = [_summed_axes(rule, block) for block in blocks]
    if all(summed is None for summed in axes):
        return None
    found: list[Array | None] = [None] * len(blocks)
    pending: dict[Group, list[int]] = {}
    for position, block in enumerate(blocks):
        summed = axes[position]
        if summed is None:
            continue
        found[position] = np.asarray(squares_of(rule, block.local), np.float64)
        for group in _groups_over(rule, block, summed):
            pending.setdefault(group, []).append(position)
    for group, positions in pending.items():
        joined = np.concatenate([np.ravel(found[position]) for position in positions])  # type: ignore[arg-type]
        total, start = group.all_reduce(joined), 0
        for position in positions:
            part = found[position]
            assert part is not None
            found[position] = total[start : start + part.size].reshape(part.shape)
            start += part.size
    return rule.join_squares(found, [block.p for block in blocks]) if rule.joint else found  # type: ignore[attr-defined]


def _summed_axes(rule: Rule, block: Block) -> tuple[int, ...] | None:
    summed = norm_axes(rule, block.p)
    is_block = block.shard is None or block.shard.ranges is not None or isinstance(rule, ClipNorm)
    return summed if is_block else None


def _groups_over(rule: Rule, block: Block, axes: Sequence[int]) -> list[Group]:
    """Return the groups of ranks that have other parts of what is summed."""
    if block.shard is None or block.shard.is_whole:
        return []
    if isinstance(rule, ClipNorm):
        return [group for group in block.shard.groups if group.size > 1]
    groups = block.shard.neutral_groups
    return [groups[axis] for axis in axes if groups[axis].size > 1]


def _draw(rule: Rule, blocks: Sequence[Block]) -> Any:
    """Return the parts of random numbers by position, each drawn by one rank and scattered when it is asked for."""
    if not isinstance(rule, (Init, Noise)):
        return {}
    return _Drawn(rule, blocks)


class _Drawn:
    """Random numbers for the blocks of parameters, of which each rank draws some.

    As many parameters as there are ranks are drawn at once, so that the ranks draw at the same time; no more than that
    are in memory.
    """

    def __init__(self, rule: Init | Noise, blocks: Sequence[Block]) -> None:
        self.rule, self.blocks = rule, blocks
        self.wholes: dict[int, Array] = {}

    def __contains__(self, position: int) -> bool:
        block = self.blocks[position]
        return block.shard is not None and not block.shard.is_whole and isinstance(block.rule, (Add, Fill))

    def pop(self, position: int) -> Array:
        """Return this rank's part of the numbers for one parameter, in the order of its local layout."""
        block = self.blocks[position]
        shard = block.shard
        assert shard is not None
        drawer = _drawer_of(position, shard)
        whole: Array | None = None
        if drawer == shard.holders.rank:
            whole = self.wholes.pop(position, None)
            if whole is None:
                whole = self._draw_whole(block)
        elif isinstance(self.rule, Noise):
            self._draw_ahead(position, shard)
        stored = shard.scatter(None if whole is None else block.p.layout.to_stored(whole), block.p.dtype, drawer)
        return local_layout(block.p, shard).to_neutral(stored)  # type: ignore[no-any-return]

    def _draw_whole(self, block: Block) -> Array:
        if isinstance(self.rule, Init):
            (whole,), block.whole_operands = block.whole_operands, ()
            return whole
        return self.rule.delta(block.p)

    def _draw_ahead(self, position: int, shard: Shard) -> None:
        """Draw this rank's own parameter of the next few, while others draw theirs."""
        size = shard.holders.size
        own = next(i for i in range(position, position + size) if i % size == shard.holders.rank)
        if own < len(self.blocks) and own not in self.wholes and own in self:
            self.wholes[own] = self._draw_whole(self.blocks[own])
