"""``plan_port``: pair the units of two models by structure alone.

Names are no evidence, because twins' names mislead. Evidence is that both models are chains, so that the n-th layers
belong together, that a layer is the only one of its kind and shape, or that it was pinned with ``names=``. Everything
else is listed as ambiguous, and so is a dense layer after an image, whose rows may be flattened in either order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xweights.core.names import Names
from xweights.core.selection import WhereLike
from xweights.porting.attributes import compare_activations, describe_unlike_padding
from xweights.porting.matching.pairs import Pair
from xweights.porting.matching.trace import TracedModel
from xweights.porting.reports import PortEntry, PortPlan
from xweights.porting.session import Run
from xweights.porting.units import VECTORS, LayerUnit, can_pair

Allowed = Callable[[LayerUnit, LayerUnit], bool]
# Layers without weights that change the order of channels, or that nobody knows.
_MAY_REARRANGE = ("rearrange", "unknown")
_SPATIAL = frozenset({"conv", "conv_transpose"})


def plan_port(source: Any, target: Any, *, where: WhereLike = ..., names: Names | None = None) -> PortPlan:
    """Plan a port without calling either model.

    Args:
        source: Model whose weights would be read.
        target: Model that they would be written to.
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
    run.check_selection()
    _, plan = plan_pairs(run.source, run.target, run.skipped, run.allowed, remains=run.remains)
    return plan


def plan_pairs(
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
    chains = _find_chains(source, target) if not skipped else None
    pairs = _pair_chains(chains) if chains is not None else None
    if pairs is None:
        pairs = _pair_by_form(source.units, wanted, allowed, ambiguous, problems)
        orders = source.units, wanted
    else:
        orders = chains if chains is not None else (source.units, wanted)
        order = [traced.porting.chain(traced.model, traced.records) or [] for traced in (source, target)]
        problems += compare_activations(*order)
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
    ambiguous += [
        f"{record.path!r} may change the order of what it is given: pass sample="
        for traced in (source, target)
        for record in traced.records
        if not record.parameters and record.attributes.get("does") in _MAY_REARRANGE
    ]
    without_axes = [
        pair for pair in pairs if "other" in (pair.source.kind, pair.target.kind) and _has_axes(pair.target)
    ]
    pairs = [pair for pair in pairs if pair not in without_axes]
    ambiguous += [
        f"nothing says which axes the arrays of {pair.target.path!r} have: pass sample=" for pair in without_axes
    ]
    paddings = [describe_unlike_padding(pair.source, pair.target) for pair in pairs]
    ambiguous += [text for text in paddings if text is not None]
    ambiguous += _find_flattened(orders[0], pairs, chained=chains is not None and pairs is not None)
    entries = tuple(
        PortEntry(pair.source.path, pair.target.path, pair.target.kind, tuple(pair.target.slices), pair.evidence)
        for pair in pairs
    )
    return pairs, PortPlan(entries, tuple(ambiguous), tuple(problems), remains)


def _find_chains(source: TracedModel, target: TracedModel) -> tuple[list[LayerUnit], list[LayerUnit]] | None:
    chains = []
    for traced in (source, target):
        order = traced.porting.chain(traced.model, traced.records)
        if order is None:
            return None
        units = [unit for record in order for unit in traced.by_record.get(id(record), ())]
        if len(units) != len(traced.units):
            return None
        chains.append(units)
    return chains[0], chains[1]


def _pair_chains(chains: tuple[list[LayerUnit], list[LayerUnit]]) -> list[Pair] | None:
    source_units, target_units = chains
    if len(source_units) != len(target_units) or not all(
        can_pair(source, target) for source, target in zip(source_units, target_units, strict=True)
    ):
        return None
    return [
        Pair(source, target, evidence="the same place in the chain")
        for source, target in zip(source_units, target_units, strict=True)
    ]


def _pair_by_form(
    source: Sequence[LayerUnit],
    target: Sequence[LayerUnit],
    allowed: Allowed,
    ambiguous: list[str],
    problems: list[str],
) -> list[Pair]:
    pairs = []
    for unit in target:
        fitting = [candidate for candidate in source if can_pair(candidate, unit)]
        pinned = [candidate for candidate in fitting if allowed(candidate, unit)]
        rivals = [
            other
            for other in target
            if any(can_pair(source_unit, other) and allowed(source_unit, other) for source_unit in pinned)
        ]
        if not fitting:
            problems.append(f"{unit.path!r} of the target {unit.form} has no twin in the source")
        elif not pinned:
            problems.append(f"names= pins {unit.path!r} to a layer of another kind or shape")
        elif len(pinned) == 1 and (len(rivals) == 1 or len(fitting) > 1):
            evidence = "pinned" if len(fitting) > 1 else "the only one of its kind and shape"
            pairs.append(Pair(pinned[0], unit, evidence=evidence))
        else:
            shown = ", ".join(repr(candidate.path) for candidate in pinned[:6]) + (", ..." if len(pinned) > 6 else "")
            ambiguous.append(f"{unit.path!r} could be any of {shown}: pass sample=, or names= for this pair")
    claimed_twice = {id(pair.source) for pair in pairs if sum(other.source is pair.source for other in pairs) > 1}
    ambiguous += [f"{pair.source.path!r} is claimed twice" for pair in pairs if id(pair.source) in claimed_twice]
    return [pair for pair in pairs if id(pair.source) not in claimed_twice]


def _find_flattened(order: Sequence[LayerUnit], pairs: Sequence[Pair], *, chained: bool) -> list[str]:
    """Return descriptions of the layers around which an image may be flattened, or a vector reshaped to an image."""
    texts = []
    twins = {id(pair.source): pair.target for pair in pairs}
    images = [unit for unit in order if unit.kind in _SPATIAL]
    for position, unit in enumerate(order):
        if id(unit) not in twins or (unit.kind != "dense" and unit.kind not in VECTORS):
            continue
        before = order[:position] if chained else images
        after = order[position + 1 :] if chained else images
        width = _input_width(unit)
        # Channels of the last image before: as many rows are one position, so that no order can be wrong.
        last = next((other for other in reversed(before) if other.kind in _SPATIAL or other.kind == "dense"), None)
        sources = [last] if chained else images
        if any(
            image is not None and image.kind in _SPATIAL and _is_image_of(width, _output_channels(image))
            for image in sources
        ):
            texts.append(f"{unit.path!r} may follow a flattened image, in either order: pass sample=")
        following = next((other for other in after if other.kind in _SPATIAL or other.kind == "dense"), None)
        nexts = [following] if chained else images
        output_width = unit.slices["kernel"].shape[1] if unit.kind == "dense" else width
        if any(
            image is not None and image.kind in _SPATIAL and _is_image_of(output_width, _input_channels(image))
            for image in nexts
        ):
            texts.append(f"{unit.path!r} may be reshaped to an image, in either order: pass sample=")
    return texts


def _has_axes(unit: LayerUnit) -> bool:
    return any(param_slice.parameter.size > 1 for param_slice in unit.slices.values())


def _input_width(unit: LayerUnit) -> int:
    param_slice = unit.slices["kernel"] if unit.kind == "dense" else next(iter(unit.slices.values()))
    return param_slice.shape[0]


def _output_channels(unit: LayerUnit) -> int:
    shape = unit.slices["kernel"].shape
    return shape[-1] if unit.kind == "conv" else shape[-2]


def _input_channels(unit: LayerUnit) -> int:
    shape = unit.slices["kernel"].shape
    return shape[-2] * int(unit.attributes.get("groups", 1)) if unit.kind == "conv" else shape[-1]


def _is_image_of(width: int, channels: int) -> bool:
    return width > channels > 1 and width % channels == 0
