"""Take along in a hand-off what is attached to training: holds, freezes, pruning, learning-rate factors, averages.

A rule is written in neutral words, so the same object holds on both sides; masks and kept entries move as weights do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xweights.core import attachments, hold_registry
from xweights.core.attachments import Releasable
from xweights.core.dtypes import COUNTERS, Array
from xweights.core.parameter import Parameter
from xweights.errors import XweightsError
from xweights.optimizers.protocol import Part
from xweights.optimizers.remap import SlicePair, find_feeds, is_like, remap_mask, remap_weights
from xweights.porting.matching.pairs import Pair
from xweights.rules.base import is_foreign
from xweights.rules.constraints import Keep
from xweights.rules.constraints import Pattern as HeldPattern
from xweights.rules.elementwise import Mask
from xweights.rules.tying import Tied
from xweights.training.averages import Averages, resume_average
from xweights.training.freeze import Freeze, freeze
from xweights.training.held import Hold
from xweights.training.held_rules import HeldRules
from xweights.training.hold import hold
from xweights.training.learning_rates import Multipliers, multiply_lr
from xweights.training.prune_hold import PruneHold, resume_pruned
from xweights.training.sparsity_schedule import OneShot


@dataclass
class Carried:
    """What became of the rules: a part of the report for each, and the handles of those that are held now."""

    parts: list[Part] = field(default_factory=list)
    handles: list[Releasable] = field(default_factory=list)


class _StaysError(Exception):
    """A rule can't be held on the target, for the reason in the message."""


def carry_rules(
    source: Sequence[Parameter], target: Any, own: Sequence[Parameter], pairs: Sequence[Pair], *, held: bool = True
) -> Carried:
    """Hold on the target what is held on the source, and report each rule; with ``held=False`` only report."""
    feeding = find_feeds(pairs)
    carried = Carried()
    for owner, names in held_owners(source).items():
        entries = "" if keeps_all(owner.rule) else "entries of "
        frozen = f"{entries}{_list(names)} frozen"
        text = frozen if isinstance(owner, Freeze) else f"{owner.rule!r} on {_list(names)}"
        try:
            handles = _carry(owner, masks_of(owner, source), names, target, own, feeding if held else {})
        except (XweightsError, _StaysError) as wrong:
            first = str(wrong).partition("\n")[0]
            why = f"{text}: held on the source, and not on the target: {first}"
            carried.parts.append(Part("held rule", "impossible", why))
            continue
        where = "held on the target too" if handles else "held on the target already"
        carried.parts.append(Part("held rule", "exact (hook)", f"{text}: {where}"))
        carried.handles += handles
    return carried


def held_owners(source: Sequence[Parameter]) -> dict[Hold, list[str]]:
    """Return the holds on the source, in the order in which they run, with the names of their parameters."""
    hold_registry.refresh()
    owners: dict[Hold, list[str]] = {}
    for p in source:
        entry = hold_registry.find(p)
        for held_rule in entry.rules if isinstance(entry, HeldRules) else ():
            owner: Any = held_rule.owner
            owners.setdefault(getattr(owner, "freeze", owner), []).append(p.name)
    return owners


def _carry(
    owner: Hold,
    former: Mapping[str, Array],
    names: Sequence[str],
    target: Any,
    own: Sequence[Parameter],
    feeding: dict[str, list[SlicePair]],
) -> list[Hold]:
    """Hold a rule, with its former masks, on the target; nothing if it is held there already."""
    feeds = _feeds_of(names, feeding)
    whole = all(source.parameter.name in names for pieces in feeds.values() for source, *_ in pieces)
    twins = [p for p in own if p.name in feeds]
    if all(_holds(p, owner) for p in twins):
        return []
    where = list(feeds)
    rule: Any = owner.rule
    if isinstance(rule, Mask):
        masks = {name: remap_mask(former, pieces) for name, pieces in feeds.items()}
        if isinstance(owner, PruneHold) and owner.schedule != OneShot():
            if not all(map(is_like, feeds.values())):
                raise _StaysError("arrays that aren't whole on both sides would be ranked in another way")
            return [resume_pruned(target, owner.prune, owner.schedule, owner.step, twins, masks)]
        return [hold(target, Mask(masks), where=where)]
    if isinstance(rule, Keep):
        if rule.index is None and whole:
            if not isinstance(owner, Freeze):
                return [hold(target, rule, where=where)]
            return [freeze_untrained(target, where, inference=owner._inference)]
        free = {name: remap_mask(former, pieces) for name, pieces in feeds.items()}
        inference = isinstance(owner, Freeze) and owner._inference
        return [freeze(target, where=name, entries=~entries, inference=inference) for name, entries in free.items()]
    if is_foreign(rule):
        raise _StaysError("it is a function of one framework's tensors")
    if not whole:
        raise _StaysError("some of its arrays are parts of larger ones there")
    alike = all(map(is_like, feeds.values()))
    by_order = isinstance(rule, (HeldPattern, Tied)) or any(operand.size > 1 for operand in _operands(owner))
    if not alike and (by_order or not rule.exact):
        raise _StaysError("its arrays have another order or shape there")
    return [hold(target, rule, where=where)]


def freeze_untrained(target: Any, names: Sequence[str], *, inference: bool = False) -> Freeze:
    """Freeze parameters for which the optimizer is to have no slots."""
    frozen = freeze(target, where=list(names), inference=inference)
    # xw.freeze leaves the flag of a Keras variable as it is, and an optimizer of the target is built by the flags.
    frozen.clear_flags()
    return frozen


def _holds(p: Parameter, owner: Hold) -> bool:
    """Return True if an equal rule is held on the parameter; arrays in it can't be compared, so it isn't then."""
    entry = hold_registry.find(p)
    rules = entry.rules if isinstance(entry, HeldRules) else ()
    if any(operand.size > 1 for operand in _operands(owner)) and not keeps_all(owner.rule):
        return False
    return any(type(held.rule) is type(owner.rule) and repr(held.rule) == repr(owner.rule) for held in rules)


def keeps_all(rule: Any) -> bool:
    """Return True for a rule that keeps whole arrays as they are."""
    return isinstance(rule, Keep) and rule.index is None


def _operands(owner: Hold) -> list[Array]:
    return [operand for operands in _rules_of(owner).values() for operand in operands]


def masks_of(owner: Hold, own: Sequence[Parameter]) -> dict[str, Array]:
    """Return the first operand by the name in ``own``: of a mask what is kept, of Keep what is free.

    The hold has names of its own, if it began on a layer of the model.
    """
    names = {p.identity(): p.name for p in own}
    found = {names.get(p.identity()): operands for p, operands in _rules_of(owner).items()}
    return {name: operands[0] for name, operands in found.items() if name is not None and operands}


def _rules_of(owner: Hold) -> dict[Parameter, tuple[Array, ...]]:
    return {
        held_rules.parameter: held_rule.operands
        for held_rules in owner._held
        for held_rule in held_rules.rules
        if held_rule.owner is owner
    }


def carry_factors_and_averages(
    source: Sequence[Parameter], target: Any, optimizer: Any, pairs: Sequence[Pair], *, held: bool = True
) -> Carried:
    """Multiply and average on the target what is multiplied and averaged on the source; with ``held=False`` report."""
    mine = {p.identity(): p.name for p in source}
    feeding = find_feeds(pairs) if held else {}
    carried = Carried()
    for handle in attachments.handles_on(source):
        names = {p: mine[p.identity()] for p in handle.parameters if p.identity() in mine}
        kind = _KINDS.get(type(handle))
        if kind is None or (isinstance(handle, Averages) and handle._released):
            continue
        text = f"{handle!r} on {_list(list(names.values()))}"
        try:
            if isinstance(handle, Multipliers):
                carried.handles.append(_carry_factors(handle, names, target, optimizer, feeding))
            else:
                carried.handles.append(_carry_averages(handle, names, source, target, optimizer, feeding, pairs))
        except (XweightsError, _StaysError) as wrong:
            first = str(wrong).partition("\n")[0]
            carried.parts.append(Part(kind, "impossible", f"{text}: not on the target: {first}"))
        else:
            carried.parts.append(Part(kind, "exact (hook)", f"{text}: on the target too, from where they stand"))
    return carried


_KINDS: dict[type, str] = {Multipliers: "learning-rate factors", Averages: "averages"}


def _carry_factors(
    handle: Multipliers,
    names: Mapping[Parameter, str],
    target: Any,
    optimizer: Any,
    feeding: Mapping[str, list[SlicePair]],
) -> Multipliers:
    own = {names[p]: factor for p, factor in handle._pairs if p in names}
    feeds = _feeds_of(own, feeding)
    factors = {}
    for name, pieces in feeds.items():
        found = {own.get(piece.parameter.name, 1.0) for piece, *_ in pieces}
        if len(found) > 1:
            raise _StaysError(f"{name!r} is made of arrays with different factors")
        factors[name] = found.pop()
    return multiply_lr(target, factors, optimizer=optimizer)


def _carry_averages(
    handle: Averages,
    names: Mapping[Parameter, str],
    source: Sequence[Parameter],
    target: Any,
    optimizer: Any,
    feeding: Mapping[str, list[SlicePair]],
    pairs: Sequence[Pair],
) -> Averages:
    if handle._swapped:
        raise _StaysError("they are swapped in, in the place of the weights")
    averaged = {
        names[p]: p.layout.to_neutral(mean)
        for p, mean in zip(handle.parameters, handle._averages, strict=True)
        if p in names
    }
    feeds = _feeds_of(averaged, feeding)
    for name, pieces in feeds.items():
        if not {piece.parameter.name for piece, *_ in pieces} <= set(averaged):
            raise _StaysError(f"{name!r} is made of arrays that aren't all averaged")
    values = {p.name: p.layout.to_neutral(p.read()) for p in source} | averaged
    moved = remap_weights(values, pairs)
    return resume_average(
        target, handle.decay, handle.every, (handle.updates, handle._steps), {name: moved[name] for name in feeds},
        optimizer if not handle.manual else None, attach=not handle.manual,
    )  # fmt: skip


def _feeds_of(names: Collection[str], feeding: Mapping[str, list[SlicePair]]) -> dict[str, list[SlicePair]]:
    """Return what is made of these parameters; raise for one that nothing is made of, unless it is a counter."""
    feeds = {name: fed for name, fed in feeding.items() if any(piece.parameter.name in names for piece, *_ in fed)}
    fed = {piece.parameter.name for pieces in feeds.values() for piece, *_ in pieces}
    unfed = sorted(name for name in set(names) - fed if not is_counter(name))
    if unfed:
        raise _StaysError(f"{_list(unfed)} has no counterpart there")
    return feeds


def is_counter(name: str) -> bool:
    """Return True for a counter beside the weights, of which other frameworks have no counterpart."""
    return name.rpartition("/")[2] in COUNTERS


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:4]))
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
