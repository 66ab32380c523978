"""``plan_port``: which unit belongs to which, by structure alone.

Names are no evidence, because twins lie about them. What is: that both models are chains, so that the n-th layer is the
n-th layer; that a layer is the only one of its kind and shape; that it was pinned with ``names=``. Everything else is
listed as ambiguous, and so is a dense layer behind an image, whose rows may be flattened in either order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xweights.core.renaming import Names
from xweights.core.selection import WhereLike
from xweights.porting.attributes import unlike_activations, unlike_padding
from xweights.porting.matching.search import Pair
from xweights.porting.matching.trace import TracedModel
from xweights.porting.reports import PortEntry, PortPlan
from xweights.porting.session import Run
from xweights.porting.units import VECTORS, LayerUnit, fit

Allowed = Callable[[LayerUnit, LayerUnit], bool]
_SPATIAL = frozenset({"conv", "conv_transpose"})


def plan_port(source: Any, target: Any, *, where: WhereLike = ..., names: Names | None = None) -> PortPlan:
    """Say what a port would do, without calling either model.

    Args:
        source: Model whose weights would be read.
        target: Model that they would go into.
        where: Which parameters of the target. Default: all.
        names: ``{"0/*": "dense/0/*"}`` where a pair is known (target glob: source glob).

    Raises TargetError, NotBuiltError, SelectionError, and PortError for layers without a counterpart.

    Example:
        >>> import keras
        >>> import torch
        >>> import xweights as xw
        >>> source = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
        >>> print(xw.plan_port(source, torch.nn.Sequential(torch.nn.Linear(3, 2))))
        source   target   kind    arrays         why
        ────────────────────────────────────────────────────────────────────
        head          0   dense   kernel, bias   the same place in the chain
    """
    run = Run(source, target, where, names)
    _, plan = planned(run.source, run.target, run.skipped, run.allowed, remains=run.remains)
    return plan


def planned(
    source: TracedModel,
    target: TracedModel,
    skipped: frozenset[int],
    allowed: Allowed,
    *,
    remains: tuple[str, ...] = (),
) -> tuple[list[Pair], PortPlan]:
    """Return the pairs that the structure forces, and the plan."""
    ambiguous: list[str] = []
    problems: list[str] = []
    wanted = [unit for unit in target.units if id(unit) not in skipped]
    chains = _chains(source, target) if not skipped else None
    pairs = _along(chains) if chains is not None else None
    if pairs is None:
        pairs = _forced(source.units, wanted, allowed, ambiguous, problems)
        orders = source.units, wanted
    else:
        orders = chains if chains is not None else (source.units, wanted)
        order = [side.porting.chain(side.model, side.records) or [] for side in (source, target)]
        problems += unlike_activations(*order)
        wrong = [pair for pair in pairs if not allowed(pair.source, pair.target)]
        problems += [f"names= pins {pair.target.path!r} to another layer than its place in the chain" for pair in wrong]
    if not skipped:
        taken = {id(pair.source) for pair in pairs}
        open_forms = {unit.form for unit in wanted if id(unit) not in {id(pair.target) for pair in pairs}}
        problems += [
            f"{unit.path!r} of the source {unit.form} has no twin in the target"
            for unit in source.units
            if id(unit) not in taken and unit.form not in open_forms
        ]
    own = [pair for pair in pairs if "other" in (pair.source.kind, pair.target.kind) and _has_axes(pair.target)]
    pairs = [pair for pair in pairs if pair not in own]
    ambiguous += [f"nothing says which axes the arrays of {pair.target.path!r} have: pass sample=" for pair in own]
    paddings = [unlike_padding(pair.source, pair.target) for pair in pairs]
    ambiguous += [text for text in paddings if text is not None]
    ambiguous += _flattened(orders[0], pairs, chained=chains is not None and pairs is not None)
    entries = tuple(
        PortEntry(pair.source.path, pair.target.path, pair.target.kind, tuple(pair.target.pieces), pair.evidence)
        for pair in pairs
    )
    return pairs, PortPlan(entries, tuple(ambiguous), tuple(problems), remains)


def _chains(source: TracedModel, target: TracedModel) -> tuple[list[LayerUnit], list[LayerUnit]] | None:
    found = []
    for side in (source, target):
        order = side.porting.chain(side.model, side.records)
        if order is None:
            return None
        units = [unit for record in order for unit in side.by_record.get(id(record), ())]
        if len(units) != len(side.units):
            return None
        found.append(units)
    return found[0], found[1]


def _along(chains: tuple[list[LayerUnit], list[LayerUnit]]) -> list[Pair] | None:
    mine, theirs = chains
    if len(mine) != len(theirs) or not all(fit(one, other) for one, other in zip(mine, theirs, strict=True)):
        return None
    return [Pair(one, other, evidence="the same place in the chain") for one, other in zip(mine, theirs, strict=True)]


def _forced(
    source: Sequence[LayerUnit],
    target: Sequence[LayerUnit],
    allowed: Allowed,
    ambiguous: list[str],
    problems: list[str],
) -> list[Pair]:
    pairs = []
    for unit in target:
        fitting = [one for one in source if fit(one, unit)]
        pinned = [one for one in fitting if allowed(one, unit)]
        rivals = [one for one in target if any(fit(mine, one) and allowed(mine, one) for mine in pinned)]
        if not fitting:
            problems.append(f"{unit.path!r} of the target {unit.form} has no twin in the source")
        elif not pinned:
            problems.append(f"names= pins {unit.path!r} to a layer of another kind or shape")
        elif len(pinned) == 1 and (len(rivals) == 1 or len(fitting) > 1):
            evidence = "pinned" if len(fitting) > 1 else "the only one of its kind and shape"
            pairs.append(Pair(pinned[0], unit, evidence=evidence))
        else:
            shown = ", ".join(repr(one.path) for one in pinned[:6]) + (", ..." if len(pinned) > 6 else "")
            ambiguous.append(f"{unit.path!r} could be any of {shown}: pass sample=, or names= for this pair")
    twice = {id(pair.source) for pair in pairs if sum(one.source is pair.source for one in pairs) > 1}
    ambiguous += [f"{pair.source.path!r} is claimed twice" for pair in pairs if id(pair.source) in twice]
    return [pair for pair in pairs if id(pair.source) not in twice]


def _flattened(order: Sequence[LayerUnit], pairs: Sequence[Pair], *, chained: bool) -> list[str]:
    """Return where an image may have been flattened, or made of a vector."""
    found = []
    twins = {id(pair.source): pair.target for pair in pairs}
    images = [unit for unit in order if unit.kind in _SPATIAL]
    for place, unit in enumerate(order):
        if id(unit) not in twins or (unit.kind != "dense" and unit.kind not in VECTORS):
            continue
        before = order[:place] if chained else images
        after = order[place + 1 :] if chained else images
        width = _width(unit)
        # Channels of the last image before: as many rows are one position, and no order can be wrong.
        last = next((one for one in reversed(before) if one.kind in _SPATIAL or one.kind == "dense"), None)
        sources = [last] if chained else images
        if any(one is not None and one.kind in _SPATIAL and _is_image_of(width, _out(one)) for one in sources):
            found.append(f"{unit.path!r} may follow a flattened image, in either order: pass sample=")
        following = next((one for one in after if one.kind in _SPATIAL or one.kind == "dense"), None)
        nexts = [following] if chained else images
        made = unit.pieces["kernel"].shape[1] if unit.kind == "dense" else width
        if any(one is not None and one.kind in _SPATIAL and _is_image_of(made, _in(one)) for one in nexts):
            found.append(f"{unit.path!r} may be reshaped to an image, in either order: pass sample=")
    return found


def _has_axes(unit: LayerUnit) -> bool:
    return any(piece.parameter.size > 1 for piece in unit.pieces.values())


def _width(unit: LayerUnit) -> int:
    piece = unit.pieces["kernel"] if unit.kind == "dense" else next(iter(unit.pieces.values()))
    return piece.shape[0]


def _out(unit: LayerUnit) -> int:
    shape = unit.pieces["kernel"].shape
    return shape[-1] if unit.kind == "conv" else shape[-2]


def _in(unit: LayerUnit) -> int:
    shape = unit.pieces["kernel"].shape
    return shape[-2] * int(unit.attributes.get("groups", 1)) if unit.kind == "conv" else shape[-1]


def _is_image_of(width: int, channels: int) -> bool:
    return width > channels > 1 and width % channels == 0
