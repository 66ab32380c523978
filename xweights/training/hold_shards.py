"""Holds on parameters that several ranks hold: each rank holds the rule on its own block, with no collective in a step.

That needs a rule that looks at single entries, or at units (``per=``) of which no rank has only a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from xweights.core.agreement import Vote, shard_of
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike, select
from xweights.core.shards import Shard
from xweights.edit.guards import defer_interrupts
from xweights.edit.shards import has_shards, local_parameter
from xweights.errors import HoldError, Problems, SelectionError, WriteError, XweightsError
from xweights.rules.base import Rule
from xweights.rules.constraints import Keep
from xweights.rules.entries import resolve_index
from xweights.rules.norms import norm_axes
from xweights.rules.shards import cut_operand, cut_rule
from xweights.training.held import Members


@contextmanager
def agree_on_blocks(
    everything: Sequence[Parameter], where: WhereLike, rule: Rule, call: str
) -> Iterator[tuple[list[Parameter], Members | None]]:
    """Yield the selected parameters as this rank's blocks, and the rule of each; what happens inside is voted on.

    If one rank refuses, what was written inside is undone on all. Without other ranks: the parameters, and None.
    """
    if not has_shards(everything):
        yield select(everything, where), None
        return
    kept: list[tuple[Parameter, Any]] = []
    try:
        with Vote(everything, call, writing=True) as vote:
            vote.agree(repr(rule), rule)
            members = _cut_all(rule, vote.open(select(everything, where), copies=True))
            kept += [(block, block.backup()) for block in members]
            yield list(members), members
    except BaseException:
        with defer_interrupts():
            for block, backup in kept:
                block.restore(backup)
        raise


@contextmanager
def choose_blocks(
    everything: Sequence[Parameter], choose: Callable[[list[Parameter]], list[Parameter]], call: str, *arguments: Any
) -> Iterator[tuple[list[Parameter], list[Parameter]]]:
    """Yield this rank's blocks of what ``choose`` picks, and the parameters themselves; what is inside is voted on.

    Without other ranks both are the same parameters.
    """
    with Vote(everything, call, writing=True) as vote:
        vote.agree(call, *arguments)
        chosen = vote.open(choose(vote.open_all(everything)), copies=True)
        shards = [shard_of(p) if p.refusal(writing=True) is None else None for p in chosen]
        yield [p if s is None else local_parameter(p, s) for p, s in zip(chosen, shards, strict=True)], chosen


def _cut_all(rule: Rule, chosen: Sequence[Parameter]) -> dict[Parameter, tuple[Rule, tuple[Array, ...]]]:
    problems = Problems("this can't be held, and nothing was changed")
    members: dict[Parameter, tuple[Rule, tuple[Array, ...]]] = {}
    for p in chosen:
        try:
            block, cut = _cut(rule, p)
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
        else:
            members[block] = cut
    problems.check()
    return members


def _cut(rule: Rule, p: Parameter) -> tuple[Parameter, tuple[Rule, tuple[Array, ...]]]:
    """Return this rank's block, with the rule and its operands there; raise what is wrong."""
    reason = p.refusal(writing=True)
    if reason is not None:
        raise WriteError(f"{p.name!r} can't be written: {reason}")
    rule.check(p)
    shard = shard_of(p)
    if shard is None:
        return p, (rule, rule.operands(p))
    block = local_parameter(p, shard)
    if shard.is_whole:  # a world of one rank, or replicas
        return block, (rule, rule.operands(p))
    if isinstance(rule, Keep):
        return block, (rule, _keep_operands(rule, p, block, shard))
    operands = rule.operands(p)
    axes = norm_axes(rule, p)
    if axes is not None and shard.ranges is not None and all(shard.neutral_groups[axis].size == 1 for axis in axes):
        return block, (rule, operands)
    cut = cut_rule(rule, p, shard, operands)
    if cut is None:
        raise HoldError(
            f"{p.name!r}: {rule!r} looks at more than this rank has of it: {shard.label}\n"
            "Fix: shard another axis than those it sums over, or apply it by hand after each step on every rank"
        )
    return block, cut


def _keep_operands(rule: Keep, p: Parameter, block: Parameter, shard: Shard) -> tuple[Array, Array]:
    """Return which entries of a block are free, and the values of now; read from the block alone."""
    if rule.index is None:
        free = np.zeros(block.shape, np.bool_)
    else:
        whole = np.ones(p.shape, np.bool_)
        whole[resolve_index(rule.index, p)] = False
        if whole.all():
            raise SelectionError(f"Keep selects no entry of {p.name!r} {p.shape}")
        free = cut_operand(whole, p, shard).copy()
    return free, block.layout.to_neutral(block.read()).copy()
