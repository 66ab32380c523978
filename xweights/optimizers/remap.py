"""The state of an optimizer from one model to its twin, whatever the layouts.

Slots take the way of their weights: piece by piece through the pairs of layers that a port found. A rule that looks
at whole arrays (a norm, rows and columns) can only go where every array is a whole one on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import HandoffError, Problems
from xweights.optimizers.biases import Joined, doubled, joined, recurrent_biases
from xweights.optimizers.rules.updates import NON_ELEMENTWISE_RULES
from xweights.optimizers.state import OptimizerGroup, OptimizerState
from xweights.porting.matching.search import Pair
from xweights.porting.units import FeaturePermutation, LayerUnit, ParamSlice, permute, translate

# (source unit's role, target unit's role, pair)
HeldRule = tuple[ParamSlice, ParamSlice, str, Pair]


def remap_state(state: OptimizerState, pairs: Sequence[Pair]) -> OptimizerState:
    """Return the state as the twin's optimizer has it; raise HandoffError for what has no place there."""
    problems = Problems("this optimizer can't be handed over, and nothing was changed")
    links = _links(pairs)
    trained = set(state.names)
    feeding: dict[str, list[HeldRule]] = {}
    for link in links:
        feeding.setdefault(link[1].parameter.name, []).append(link)
    biases = joined(state, pairs, problems)
    _check_split(state, pairs, trained, problems)
    names: dict[str, str] = {}  # of the target's parameters, and one of the source's
    for name, found in feeding.items():
        sources = [link[0].parameter.name for link in found if link[0].parameter.name in trained]
        if not sources:
            continue
        if len(sources) < len(found):
            problems.add(HandoffError, f"{name!r} is made of arrays of which only {', '.join(sources)} are trained")
        if len({id(state.group_of(one)) for one in sources}) > 1:
            problems.add(HandoffError, f"{name!r} is made of arrays of several groups: {', '.join(sources)}")
        names[name] = sources[0]
        _check_whole(state, name, found, problems)
    lost = trained - {link[0].parameter.name for link in links} - {one.name for one in recurrent_biases(pairs)}
    for name in sorted(lost):
        problems.add(HandoffError, f"{name!r} is trained, and has no twin")
    problems.check()
    return _made(state, feeding, names, biases)


def _made(
    state: OptimizerState, feeding: Mapping[str, list[HeldRule]], names: Mapping[str, str], biases: Sequence[Joined]
) -> OptimizerState:
    groups = tuple(
        replace(group, names=tuple(name for name, one in names.items() if one in group.names)) for group in state.groups
    )
    groups = doubled(groups, {one.name for one in biases})
    slots = {name: _slots(state, feeding[name], names[name]) for name in names}
    for one in biases:
        for slot, value in slots[one.name].items():
            if value.ndim:
                one.fill(state.slots, slot, value)
    return replace(
        state,
        groups=groups,
        slots=slots,
        dtypes={name: state.dtypes[one] for name, one in names.items()},
        factored={name: state.factored[one] for name, one in names.items() if one in state.factored},
    )


def _slots(state: OptimizerState, found: Sequence[HeldRule], first: str) -> dict[str, Array]:
    made: dict[str, Array] = {}
    for slot, sample in state.slots.get(first, {}).items():
        if sample.ndim == 0:
            made[slot] = sample
            continue
        target = found[0][1].parameter
        if slot in ("row", "column"):
            _, piece, _, pair = found[0]
            made[slot] = _turned_part(sample, piece, pair.turn)
            continue
        whole = np.zeros(target.shape, sample.dtype)
        for mine, theirs, role, pair in found:
            value = mine.read(state.slots[mine.parameter.name][slot])
            theirs.write(permute(role, value.reshape(theirs.shape), pair.target.kind, pair.turn), whole)
        made[slot] = whole
    return made


def _turned_part(value: Array, piece: ParamSlice, turn: FeaturePermutation) -> Array:
    if turn.rows is not None and value.shape[0] > 1:
        value = value[turn.rows]
    if turn.columns is not None and value.shape[-1] > 1:
        value = value[..., turn.columns]
    return value


def _links(pairs: Sequence[Pair]) -> list[HeldRule]:
    found: list[HeldRule] = []
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        for role, theirs in pair.target.pieces.items():
            mine = _twin(pair.source, pair.target, role)
            key = (theirs.parameter.name, repr(theirs.index))
            if mine is not None and key not in seen:
                seen.add(key)
                found.append((mine, theirs, role, pair))
    return found


def _twin(source: LayerUnit, target: LayerUnit, role: str) -> ParamSlice | None:
    if role in source.pieces:
        return source.pieces[role]
    if "other" not in (source.kind, target.kind):
        return None
    size = math.prod(target.pieces[role].shape)
    equal = [piece for piece in source.pieces.values() if math.prod(piece.shape) == size]
    return equal[0] if len(equal) == 1 else None


def _check_split(state: OptimizerState, pairs: Sequence[Pair], trained: set[str], problems: Problems) -> None:
    """Refuse what is trained as two arrays, and is one on the other side."""
    for pair in pairs:
        for role, piece in pair.source.pieces.items():
            lost = piece.parameter.name in trained and _twin(pair.target, pair.source, role) is None
            if lost and role != "recurrent_bias":  # see biases
                text = f"{piece.parameter.name!r} is trained, and {pair.target.path!r} has no place for its state"
                problems.add(HandoffError, text)


def _check_whole(state: OptimizerState, name: str, found: Sequence[HeldRule], problems: Problems) -> None:
    group = state.group_of(found[0][0].parameter.name)
    by_norm = state.clip is not None and state.clip.kind == "norm"
    if group.rule not in NON_ELEMENTWISE_RULES and not by_norm:
        return
    why = group.rule if group.rule in NON_ELEMENTWISE_RULES else "clipping by the norm of each array"
    for mine, theirs, _, _ in found:
        whole = _is_whole(mine) and _is_whole(theirs)
        shaped = mine.parameter.shape == theirs.parameter.shape and mine.gates == theirs.gates
        if len(found) > 1 or not whole or (group.rule in ("adafactor", "muon") and not shaped):
            text = f"{name!r} isn't one array on both sides, and {why} looks at whole arrays"
            problems.add(HandoffError, text)
            return


def _is_whole(piece: ParamSlice) -> bool:
    return math.prod(piece.shape) == piece.parameter.size


def carried_weights(values: Mapping[str, Array], pairs: Sequence[Pair]) -> dict[str, Array]:
    """Return weights, given by name, as the twin has them."""
    made: dict[str, Array] = {}
    for pair in pairs:
        arrays = {role: piece.read(values[piece.parameter.name]) for role, piece in pair.source.pieces.items()}
        for role, value in translate(pair.source, arrays, pair.target, pair.turn)[0].items():
            piece = pair.target.pieces[role]
            p = piece.parameter
            piece.write(value, made.setdefault(p.name, np.zeros(p.shape, value.dtype)))
    return made


def renamed(state: OptimizerState, names: Mapping[str, str]) -> OptimizerState:
    """Return the state with other names for its parameters."""

    def of(mapping: Mapping[str, Any]) -> dict[str, Any]:
        return {names[name]: value for name, value in mapping.items() if name in names}

    groups = [replace(group, names=tuple(names[one] for one in group.names if one in names)) for group in state.groups]
    kept: tuple[OptimizerGroup, ...] = tuple(group for group in groups if group.names)
    return replace(
        state, groups=kept, slots=of(state.slots), dtypes=of(state.dtypes), factored=of(state.factored),
    )  # fmt: skip
