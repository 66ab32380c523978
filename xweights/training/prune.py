"""`prune`: drop the smallest entries, once or on a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, overload

from xweights.core import hold_registry
from xweights.core.params import Params
from xweights.core.plan import Selection
from xweights.core.selection import WhereLike
from xweights.core.targets import open_for_editing
from xweights.edit.apply import bind_line, run
from xweights.edit.execute import execute, prepare
from xweights.edit.grouped import apply_to_groups, edit_groups, in_stored_order
from xweights.errors import ArgumentError, XweightsError
from xweights.rules.base import Per, Scope, where_of
from xweights.rules.elementwise import Mask
from xweights.rules.pruning import Pattern, Prune, Score, host_masks
from xweights.training.prune_hold import PruneHold, hold_pruned, hold_pruned_blocks
from xweights.training.prune_shards import prune_shards
from xweights.training.sparsity_schedule import SparsitySchedule, check_schedule


@overload
def prune(
    target: Any,
    *,
    fraction: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    scope: Scope = "each",
    per: Per | None = None,
    pattern: Pattern | None = None,
    block: Mapping[str, int] | None = None,
    score: Score | None = None,
    where: WhereLike | None = None,
    hold: Literal[False] = False,
    schedule: None = None,
    optimizer: Any = None,
) -> Params: ...
@overload
def prune(
    target: Any,
    *,
    fraction: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    scope: Scope = "each",
    per: Per | None = None,
    pattern: Pattern | None = None,
    block: Mapping[str, int] | None = None,
    score: Score | None = None,
    where: WhereLike | None = None,
    hold: Literal[True],
    schedule: SparsitySchedule | None = None,
    optimizer: Any = None,
) -> PruneHold: ...
@overload
def prune(
    target: Any,
    *,
    fraction: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    scope: Scope = "each",
    per: Per | None = None,
    pattern: Pattern | None = None,
    block: Mapping[str, int] | None = None,
    score: Score | None = None,
    where: WhereLike | None = None,
    hold: bool = False,
    schedule: SparsitySchedule,
    optimizer: Any = None,
) -> PruneHold: ...
@overload
def prune(
    target: Any,
    *,
    fraction: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    scope: Scope = "each",
    per: Per | None = None,
    pattern: Pattern | None = None,
    block: Mapping[str, int] | None = None,
    score: Score | None = None,
    where: WhereLike | None = None,
    hold: bool = False,
    schedule: SparsitySchedule | None = None,
    optimizer: Any = None,
) -> Params | PruneHold: ...
def prune(
    target: Any,
    *,
    fraction: float | None = None,
    count: int | None = None,
    threshold: float | None = None,
    scope: Scope = "each",
    per: Per | None = None,
    pattern: Pattern | None = None,
    block: Mapping[str, int] | None = None,
    score: Score | None = None,
    where: WhereLike | None = None,
    hold: bool = False,
    schedule: SparsitySchedule | None = None,
    optimizer: Any = None,
) -> Params | PruneHold | None:
    """Drop the smallest entries, units or blocks, and return the masks (True = kept).

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        fraction: Share to drop, 0.0 to 1.0 (a float), zeros included: floor(fraction * n + 0.5) of n.
        count: How many to drop instead.
        threshold: Drop magnitudes (or scores) <= threshold instead.
        scope: "each" parameter by itself, or "global": the smallest of all selected.
        per: Drop whole units, one per index of these axes, by their L2 norm.
        pattern: (n, m, axis): keep the n largest of every m along an axis, as in (2, 4, "in").
        block: {axis: size}: drop whole blocks, by their L2 norm.
        score: A function of an array (NumPy, neutral order) or a mapping by name, instead of the magnitude.
        where: Default: kernels and embeddings.
        hold: True keeps pruned entries at zero during training, and returns a Hold with ``.masks``.
        schedule: When and how much is pruned (``Cubic(begin, end)``, ...); implies ``hold``.
        optimizer: As for :func:`xweights.hold`.

    On a sharded model every rank makes the same call, and gets the masks of its own blocks.
    Exact: counts are exact, and ties are broken by (neutral name, neutral flat index), so the masks are the same on
    every backend. Inside a compiled step nothing is returned. Raises ArgumentError, NonfiniteError (NaN is neither
    small nor large), LayoutError, ShapeError, SelectionError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"d/kernel": np.array([0.1, -2.0, 0.3, 4.0])}
        >>> masks = xw.prune(w, fraction=0.5); w["d/kernel"]
        array([ 0., -2.,  0.,  4.])
    """
    rule = Prune(fraction, count, threshold, scope, per, pattern, block, score)
    if schedule is not None:
        check_schedule(schedule)
    if optimizer is not None and not hold and schedule is None:
        raise ArgumentError(
            "optimizer= is for a hold, and nothing is held here\nFix: hold=True or schedule=, or leave optimizer= out"
        )
    where = where_of(rule, where, "prune")
    opened = open_for_editing(target, bind_line=partial(bind_line, rule, where))
    if opened.tracing:
        run(target, rule, where=where, call="prune")
        return None
    if opened.plan.is_shared:
        if not hold and schedule is None:
            return prune_shards(rule, opened.parameters, where)
        return hold_pruned_blocks(target, rule, opened.parameters, where, schedule, optimizer)
    selection = opened.plan.select(where)
    if not hold and schedule is None:
        masks = _prune_groups(rule, selection)
        if masks is not None:
            return masks
    chosen = selection.parameters
    if hold or schedule is not None:
        hold_registry.check(chosen)
        prepare(rule, chosen, "prune")
        return hold_pruned(target, rule, chosen, schedule, optimizer)
    hold_registry.check(chosen)
    prepare(rule, chosen, "prune")
    kept = dict(zip((p.name for p in chosen), host_masks(rule, chosen), strict=True))
    if not edit_groups(Mask(kept), selection, "prune"):
        execute(Mask(kept), chosen, [(kept[p.name],) for p in chosen])
    hold_registry.reapply(chosen)
    return Params.of(chosen, kept)


def _prune_groups(rule: Prune, selection: Selection) -> Params | None:
    """Prune parameters that are all in groups; return None, with nothing done, where each has to be looked at.

    Whatever is wrong with one of them is found by looking at each.
    """
    choice = selection.choice
    if choice.singles or not choice.groups or not rule.by_dtype:
        return None
    if hold_registry.are_held(selection):
        return None
    try:
        for group in choice.groups:
            like = choice.likes[group.positions[0]]
            rule.check(like)
            rule.operands(like)
        likes = choice.likes
        arrays = [p.layout.to_neutral(array) for p, array in zip(likes, selection.read(), strict=True)]
        masks = host_masks(rule, likes, arrays)
    except XweightsError:
        return None
    operands = [in_stored_order(group, likes, [(mask,) for mask in masks]) for group in choice.groups]
    apply_to_groups(Mask({}), selection, operands)
    return Params.of(likes, {p.name: mask for p, mask in zip(likes, masks, strict=True)})
