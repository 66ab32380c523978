"""The state of an optimizer whose parameters several ranks hold: each rank reads and writes the slots of its blocks.

A slot is cut as its parameter is. So a backend reads and writes a model of this rank's blocks as it does any model;
here the blocks of slots become whole arrays, and whole arrays blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from xweights.core.agreement import Vote, shard_of
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.shards import Shard
from xweights.edit.shards import local_parameter
from xweights.errors import HandoffError, Problems, WriteError
from xweights.optimizers.state import OptimizerState


class Block(NamedTuple):
    """A parameter, and this rank's block of it as a parameter of its own; ``shard`` is None if all of it is here."""

    whole: Parameter
    local: Parameter
    shard: Shard | None


def cut_parameters(opened: Sequence[Parameter]) -> list[Block]:
    """Return this rank's block of each parameter; raise WriteError with those that can't be read."""
    problems = Problems("the state of this optimizer can't be reached, and nothing was changed")
    blocks = []
    for p in opened:
        reason = p.refusal(writing=False)
        if reason is not None:
            problems.add(WriteError, f"{p.name!r}: {reason}")
            continue
        shard = shard_of(p)
        local = p if shard is None else local_parameter(p, shard)
        blocks.append(Block(p, local, None if shard is None or shard.is_whole else shard))
    problems.check()
    return blocks


def read_agreed(
    own: Sequence[Parameter], read: Callable[[Sequence[Parameter]], OptimizerState], call: str
) -> OptimizerState:
    """Return what ``read`` returns of this rank's blocks, with whole slots; each is gathered once, after the vote."""
    with Vote(own, call, writing=False) as vote:
        blocks = cut_parameters(vote.open(own))
        state = read([block.local for block in blocks])
        _refuse_factored(state, blocks)
        vote.agree(describe_state(state), state.groups, state.updates, state.micro_done, _list_slots(state))
    return gather_state(state, blocks)


def gather_state(state: OptimizerState, blocks: Sequence[Block]) -> OptimizerState:
    """Return a state with whole slots, from one with those of this rank's blocks; all ranks must make this call."""
    if not any(block.shard for block in blocks):
        return state
    by_name = {block.whole.name: block for block in blocks}
    slots = {
        name: {slot: gather_array(value, by_name[name]) for slot, value in own.items()}
        for name, own in state.slots.items()
    }
    return replace(state, slots=slots)


def cut_state(state: OptimizerState, blocks: Sequence[Block]) -> OptimizerState:
    """Return a state with the slots of this rank's blocks, from one with whole slots."""
    _refuse_factored(state, blocks)
    if not any(block.shard for block in blocks):
        return state
    by_name = {block.whole.name: block for block in blocks}
    slots = {
        name: {slot: _cut(value, by_name[name]) for slot, value in own.items()} for name, own in state.slots.items()
    }
    return replace(state, slots=slots)


def describe_state(state: OptimizerState) -> str:
    """Return a line on a state for ranks that have different ones."""
    return f"{state.rule} after {state.updates} updates, of {len(state.names)} parameters"


def _list_slots(state: OptimizerState) -> list[tuple[str, str, str, int]]:
    return [
        (name, slot, value.dtype.name, value.ndim) for name, own in state.slots.items() for slot, value in own.items()
    ]


def gather_array(value: Array, block: Block) -> Array:
    """Return the whole of an array in neutral order, of which ``value`` is this rank's block."""
    if block.shard is None or value.ndim == 0:
        return value
    whole = block.shard.gather(block.local.layout.to_stored(value))
    return np.ascontiguousarray(block.whole.layout.to_neutral(whole))


def _cut(value: Array, block: Block) -> Array:
    if block.shard is None or value.ndim == 0:
        return value
    part = block.shard.cut_stored(block.whole.layout.to_stored(value))
    return np.array(block.local.layout.to_neutral(part), order="C")


def _refuse_factored(state: OptimizerState, blocks: Sequence[Block]) -> None:
    """Refuse averages of rows and columns of an array of which this rank has a part: PyTorch can't step them."""
    cut = {block.whole.name for block in blocks if block.shard}
    names = [name for name in state.names if name in cut and {"row", "column"} & set(state.slots.get(name, ()))]
    if names:
        shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
        raise HandoffError(
            f"adafactor keeps averages of rows and columns, and of these each rank has a part: {shown}\n"
            "Fix: another rule, or hand it over before the model is sharded"
        )
