"""Remap an optimizer state from one model to its twin, whatever the layouts.

Slots move as their weights do: slice by slice, through the pairs of layers that the port found. A rule that works on
whole arrays (a norm, rows and columns) is supported only where every array is whole on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import HandoffError, Problems
from xweights.optimizers.biases import JoinedBias, double_lr, find_joined_biases, recurrent_biases
from xweights.optimizers.rules.updates import NON_ELEMENTWISE_RULES
from xweights.optimizers.state import OptimizerGroup, OptimizerState
from xweights.porting.matching.pairs import Pair
from xweights.porting.matching.trace import read_arrays
from xweights.porting.units import ALIASES, FeaturePermutation, LayerUnit, ParamSlice, permute, translate

# (source slice, target slice, role in the target, pair of layers)
SlicePair = tuple[ParamSlice, ParamSlice, str, Pair]


def remap_state(state: OptimizerState, pairs: Sequence[Pair]) -> OptimizerState:
    """Return the state as the twin's optimizer keeps it; raise HandoffError for parameters without a place there."""
    problems = Problems("this optimizer can't be handed over, and nothing was changed")
    slice_pairs = _slice_pairs(pairs)
    trained = set(state.names)
    feeding = find_feeds(pairs)
    biases = find_joined_biases(state, pairs, problems)
    _check_split(state, pairs, trained, problems)
    names: dict[str, str] = {}  # target's name -> the first of the source's names that feed it
    for name, feeds in feeding.items():
        sources = [feed[0].parameter.name for feed in feeds if feed[0].parameter.name in trained]
        if not sources:
            continue
        if len(sources) < len(feeds):
            problems.add(HandoffError, f"{name!r} is made of arrays of which only {', '.join(sources)} are trained")
        if len({id(state.group_of(source)) for source in sources}) > 1:
            problems.add(HandoffError, f"{name!r} is made of arrays of several groups: {', '.join(sources)}")
        names[name] = sources[0]
        _check_whole(state, name, feeds, problems)
    lost = trained - {moved[0].parameter.name for moved in slice_pairs} - {p.name for p in recurrent_biases(pairs)}
    for name in sorted(lost):
        problems.add(HandoffError, f"{name!r} is trained, and has no twin")
    problems.check()
    return _build(state, feeding, names, biases)


def find_feeds(pairs: Sequence[Pair]) -> dict[str, list[SlicePair]]:
    """Return the slices of the source that each parameter of the target is made of, by its name."""
    feeding: dict[str, list[SlicePair]] = {}
    for slice_pair in _slice_pairs(pairs):
        feeding.setdefault(slice_pair[1].parameter.name, []).append(slice_pair)
    return feeding


def remap_mask(masks: Mapping[str, Array], feeds: Sequence[SlicePair]) -> Array:
    """Return a mask on a parameter of the target from those on the source, True where there is none."""
    whole = np.ones(feeds[0][1].parameter.shape, np.bool_)
    for source_slice, target_slice, role, pair in feeds:
        if source_slice.parameter.name in masks:
            value = source_slice.read(masks[source_slice.parameter.name])
            target_slice.write(_move(role, value, target_slice, pair, np.ones), whole)
    return whole


def is_like(feeds: Sequence[SlicePair]) -> bool:
    """Return True if a parameter of the target is one of the source's as it is: its shape, its order, its gates."""
    if len(feeds) != 1:
        return False
    source, target, _, pair = feeds[0]
    same = source.parameter.shape == target.parameter.shape and source.gates == target.gates
    unpermuted = pair.permutation.rows is None and pair.permutation.columns is None
    return same and unpermuted and _is_whole(source) and _is_whole(target)


def _build(
    state: OptimizerState,
    feeding: Mapping[str, list[SlicePair]],
    names: Mapping[str, str],
    biases: Sequence[JoinedBias],
) -> OptimizerState:
    groups = tuple(
        replace(group, names=tuple(name for name, source in names.items() if source in group.names))
        for group in state.groups
    )
    groups = double_lr(groups, {bias.name for bias in biases})
    slots = {name: _slots(state, feeding[name], names[name]) for name in names}
    for bias in biases:
        for slot, value in slots[bias.name].items():
            if value.ndim:
                bias.fill(state.slots, slot, value)
    return replace(
        state,
        groups=groups,
        slots=slots,
        dtypes={name: state.dtypes[source] for name, source in names.items()},
        factored={name: state.factored[source] for name, source in names.items() if source in state.factored},
    )


def _slots(state: OptimizerState, feeds: Sequence[SlicePair], first: str) -> dict[str, Array]:
    slots: dict[str, Array] = {}
    for slot, sample in state.slots.get(first, {}).items():
        if sample.ndim == 0:
            slots[slot] = sample
            continue
        target = feeds[0][1].parameter
        if slot in ("row", "column"):
            _, piece, _, pair = feeds[0]
            slots[slot] = _permute_factor(sample, piece, pair.permutation)
            continue
        whole = np.zeros(target.shape, sample.dtype)
        for source_slice, target_slice, role, pair in feeds:
            value = source_slice.read(state.slots[source_slice.parameter.name][slot])
            target_slice.write(_move(role, value, target_slice, pair, np.zeros), whole)
        slots[slot] = whole
    return slots


def _move(role: str, value: Array, target: ParamSlice, pair: Pair, fill: Callable[..., Array]) -> Array:
    """Return what belongs to a slice of the source as that of the target has it; ``fill`` makes rows without a twin."""
    if pair.permutation.shift is None:
        return permute(role, value.reshape(target.shape), pair.target.kind, pair.permutation)
    first, start = pair.permutation.shift
    rows = fill(target.shape, value.dtype)
    rows[start : start + value.shape[0] - first] = value[first:]
    return rows


def _permute_factor(value: Array, piece: ParamSlice, permutation: FeaturePermutation) -> Array:
    if permutation.rows is not None and value.shape[0] > 1:
        value = value[permutation.rows]
    if permutation.columns is not None and value.shape[-1] > 1:
        value = value[..., permutation.columns]
    return value


def _slice_pairs(pairs: Sequence[Pair]) -> list[SlicePair]:
    slice_pairs: list[SlicePair] = []
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        for role, target_slice in pair.target.slices.items():
            source_slice = _twin(pair.source, pair.target, role)
            key = (target_slice.parameter.name, target_slice.place)
            if source_slice is not None and key not in seen:
                seen.add(key)
                slice_pairs.append((source_slice, target_slice, role, pair))
    return slice_pairs


def _twin(source: LayerUnit, target: LayerUnit, role: str) -> ParamSlice | None:
    if role in source.slices:
        return source.slices[role]
    if ALIASES.get(role) in source.slices:
        return source.slices[ALIASES[role]]
    if "other" not in (source.kind, target.kind):
        return None
    size = math.prod(target.slices[role].shape)
    equal = [piece for piece in source.slices.values() if math.prod(piece.shape) == size]
    return equal[0] if len(equal) == 1 else None


def _check_split(state: OptimizerState, pairs: Sequence[Pair], trained: set[str], problems: Problems) -> None:
    """Refuse parameters that are trained as two arrays where the other side has one."""
    for pair in pairs:
        for role, piece in pair.source.slices.items():
            lost = piece.parameter.name in trained and _twin(pair.target, pair.source, role) is None
            if lost and role != "recurrent_bias":  # see biases.py
                text = f"{piece.parameter.name!r} is trained, and {pair.target.path!r} has no place for its state"
                problems.add(HandoffError, text)


def _check_whole(state: OptimizerState, name: str, feeds: Sequence[SlicePair], problems: Problems) -> None:
    group = state.group_of(feeds[0][0].parameter.name)
    by_norm = state.clip is not None and state.clip.kind == "norm"
    if group.rule not in NON_ELEMENTWISE_RULES and not by_norm:
        return
    why = group.rule if group.rule in NON_ELEMENTWISE_RULES else "clipping by the norm of each array"
    for source, target, _, _ in feeds:
        whole = _is_whole(source) and _is_whole(target)
        same_shape = source.parameter.shape == target.parameter.shape and source.gates == target.gates
        if len(feeds) > 1 or not whole or (group.rule in ("adafactor", "muon") and not same_shape):
            text = f"{name!r} isn't one array on both sides, and {why} looks at whole arrays"
            problems.add(HandoffError, text)
            return


def _is_whole(piece: ParamSlice) -> bool:
    return math.prod(piece.shape) == piece.parameter.size


def remap_weights(values: Mapping[str, Array], pairs: Sequence[Pair]) -> dict[str, Array]:
    """Return weights, given by name, as the twin has them; rows of tables that have no twin are its own."""
    weights: dict[str, Array] = {}
    for pair in pairs:
        arrays = {role: piece.read(values[piece.parameter.name]) for role, piece in pair.source.slices.items()}
        kept = None if pair.permutation.shift is None else read_arrays(pair.target)
        permutation = pair.permutation
        if pair.absorbed:
            rows = [next(iter(row.slices.values())) for row in pair.absorbed]
            addend = np.sum([row.read(values[row.parameter.name]).reshape(-1) for row in rows], axis=0)
            permutation = replace(permutation, addend=addend)
        for role, value in translate(pair.source, arrays, pair.target, permutation, kept)[0].items():
            piece = pair.target.slices[role]
            p = piece.parameter
            piece.write(value, weights.setdefault(p.name, np.zeros(p.shape, value.dtype)))
    return weights


def rename_parameters(state: OptimizerState, names: Mapping[str, str]) -> OptimizerState:
    """Return the state with other names for its parameters."""

    def rename_keys(mapping: Mapping[str, Any]) -> dict[str, Any]:
        return {names[name]: value for name, value in mapping.items() if name in names}

    groups = [
        replace(group, names=tuple(names[name] for name in group.names if name in names)) for group in state.groups
    ]
    kept: tuple[OptimizerGroup, ...] = tuple(group for group in groups if group.names)
    return replace(
        state, groups=kept, slots=rename_keys(state.slots), dtypes=rename_keys(state.dtypes),
        factored=rename_keys(state.factored),
    )  # fmt: skip
