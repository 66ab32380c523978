"""What xweights has attached to the training of a model, free of the model: to attach it to a copy or a later run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from xweights.core import attachments
from xweights.core.agreement import Vote
from xweights.core.attachments import Releasable
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import HandoffError, Problems, near
from xweights.optimizers.held_rules import freeze_untrained, held_owners, is_counter, keeps_all, masks_of
from xweights.optimizers.state_shards import Block, cut_parameters, gather_array
from xweights.rules.base import Rule
from xweights.rules.constraints import Keep
from xweights.rules.elementwise import Mask
from xweights.rules.pruning import Prune
from xweights.rules.tying import Tied
from xweights.training.averages import Averages, Decay, resume_average
from xweights.training.freeze import Freeze, freeze
from xweights.training.held import Hold
from xweights.training.hold import hold
from xweights.training.learning_rates import Multipliers, multiply_lr
from xweights.training.prune_hold import PruneHold, resume_pruned
from xweights.training.sparsity_schedule import SparsitySchedule


@dataclass(frozen=True, eq=False)
class HeldRule:
    """A rule that is held: ``entries`` are those that a mask keeps, or that a freeze leaves free, by name.

    ``inference``: the freeze also runs batch normalizations in inference mode.
    """

    names: tuple[str, ...]
    rule: Rule
    frozen: bool = False
    entries: Mapping[str, Array] = field(default_factory=dict)
    schedule: SparsitySchedule | None = None
    step: int = 0
    inference: bool = False

    def __str__(self) -> str:
        return f"frozen: {_count(self.names)}" if self.frozen else f"held: {self.rule!r} on {_count(self.names)}"


@dataclass(frozen=True, eq=False)
class Factors:
    """Factors of learning rates, by name."""

    factors: Mapping[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        return tuple(self.factors)

    def __str__(self) -> str:
        return f"multiplied learning rates: {_count(self.names)}"


@dataclass(frozen=True, eq=False)
class AveragedWeights:
    """Averages of weights, in neutral order, with their counts; ``manual``: they are updated by hand."""

    values: Mapping[str, Array]
    decay: Decay
    every: int
    updates: int
    steps: int
    manual: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters."""
        return tuple(self.values)

    def __str__(self) -> str:
        return f"averages of {_count(self.names)} over {self.updates} updates"


Attached = HeldRule | Factors | AveragedWeights


def describe(own: Sequence[Parameter]) -> tuple[Attached, ...]:
    """Return what is attached to the training of a model, in the order in which it is applied; ``own``: all of it.

    Of a sharded model with whole arrays, gathered after the ranks have compared what they have.
    """
    with Vote(own, "get_training_state", writing=False) as vote:
        blocks = {block.whole.name: block for block in cut_parameters(vote.open(own))}
        found = _describe(own)
        rows = [(str(record), record.names, list(_arrays_of(record))) for record in found]
        vote.agree("; ".join(row[0] for row in rows) or "nothing attached", rows)
    return tuple(_gather(record, blocks) for record in found)


def _arrays_of(record: Attached) -> Mapping[str, Array]:
    return getattr(record, "entries", None) or getattr(record, "values", None) or {}


def _gather(record: Attached, blocks: Mapping[str, Block]) -> Attached:
    """Return a record with whole arrays, from one with those of this rank's blocks."""
    whole = {name: gather_array(value, blocks[name]) for name, value in _arrays_of(record).items()}
    if isinstance(record, HeldRule):
        return replace(record, entries=whole)
    return replace(record, values=whole) if isinstance(record, AveragedWeights) else record


def _describe(own: Sequence[Parameter]) -> tuple[Attached, ...]:
    names = {p.identity(): p.name for p in own}
    found: list[Attached] = [
        _describe_hold(owner, held, masks_of(owner, own)) for owner, held in held_owners(own).items()
    ]
    for handle in attachments.handles_on(own):
        here = {p: names[p.identity()] for p in handle.parameters if p.identity() in names}
        if isinstance(handle, Multipliers):
            found.append(Factors({here[p]: factor for p, factor in handle._pairs if p in here}))
        elif isinstance(handle, Averages) and not handle._released:
            if handle._swapped:
                raise HandoffError("averages are swapped in, in the place of the weights\nFix: do it after the block")
            means = zip(handle.parameters, handle._averages, strict=True)
            values = {here[p]: p.layout.to_neutral(mean).copy() for p, mean in means if p in here}
            counts = (handle.updates, handle._steps)
            found.append(AveragedWeights(values, handle.decay, handle.every, *counts, handle.manual))
    return tuple(found)


def _describe_hold(owner: Hold, names: Sequence[str], operands: Mapping[str, Array]) -> HeldRule:
    held, rule = tuple(names), owner.rule
    masks = {name: operands[name].copy() for name in held if name in operands}
    if isinstance(owner, PruneHold):
        return HeldRule(held, owner.prune, False, masks, owner.schedule, owner.step)
    if isinstance(rule, Mask):
        return HeldRule(held, Mask(None), False, masks)
    if isinstance(rule, Keep):
        inference = isinstance(owner, Freeze) and owner._inference
        entries = {} if keeps_all(rule) else masks
        return HeldRule(held, Keep(), isinstance(owner, Freeze), entries, inference=inference)
    return HeldRule(held, rule)


def attach_rules(
    attached: Sequence[Attached], target: Any, own: Sequence[Parameter], trained: Sequence[str] | None
) -> list[Releasable]:
    """Hold on a model the rules among these; ``trained``: what its optimizer has slots for, if that is known."""
    known = {p.name: p for p in own}
    handles: list[Releasable] = []
    for record in attached:
        if not isinstance(record, HeldRule):
            continue
        where, rule = list(record.names), record.rule
        if isinstance(rule, Prune):
            twins = [known[name] for name in where]
            schedule: Any = record.schedule
            handles.append(resume_pruned(target, rule, schedule, record.step, twins, record.entries))
        elif isinstance(rule, Mask):
            handles.append(hold(target, Mask(dict(record.entries)), where=where))
        elif isinstance(rule, Keep) and record.entries:
            for name, free in record.entries.items():
                kept = ~free
                handles.append(
                    freeze(target, where=name, entries=kept, inference=record.inference)
                    if record.frozen
                    else hold(target, Keep(kept), where=name)
                )
        elif record.frozen and (trained is None or set(trained) & set(where)):
            handles.append(freeze(target, where=where, inference=record.inference))
        elif record.frozen:
            handles.append(freeze_untrained(target, where, inference=record.inference))
        else:
            handles.append(hold(target, rule, where=where))
    return handles


def attach_others(attached: Sequence[Attached], target: Any, optimizer: Any) -> list[Releasable]:
    """Multiply learning rates and average as these say."""
    handles: list[Releasable] = []
    for record in attached:
        if isinstance(record, Factors):
            handles.append(multiply_lr(target, dict(record.factors), optimizer=optimizer))
        elif isinstance(record, AveragedWeights):
            of_optimizer = None if record.manual else optimizer
            handles.append(
                resume_average(
                    target,
                    record.decay,
                    record.every,
                    (record.updates, record.steps),
                    record.values,
                    of_optimizer,
                    attach=not record.manual,
                )
            )
    return handles


def check_fit(attached: Sequence[Attached], own: Sequence[Parameter], problems: Problems) -> None:
    """Collect what can't be attached to a model because it has no such parameter, or one of another shape."""
    known = {p.name: p for p in own}
    for record in attached:
        arrays = record.entries if isinstance(record, HeldRule) else getattr(record, "values", {})
        for name in record.names:
            if name not in known:
                problems.add(
                    HandoffError, f"the model has no {name!r} ({record})\n{near(name, known)}", fix="names= for twins"
                )
            elif name in arrays and arrays[name].shape != known[name].shape:
                problems.add(
                    HandoffError,
                    f"{name!r} has another shape ({record})\ngot:      {arrays[name].shape}\n"
                    f"expected: {known[name].shape}",
                )


def without_counters(attached: Sequence[Attached], own: Sequence[Parameter]) -> tuple[Attached, ...]:
    """Return the same without frozen counters (``num_batches_tracked``) that a model of another framework lacks."""
    known = {p.name for p in own}

    def fit(record: Attached) -> Attached:
        if not isinstance(record, HeldRule):
            return record
        return replace(record, names=tuple(name for name in record.names if name in known or not is_counter(name)))

    return tuple(map(fit, attached))


def rename(attached: Sequence[Attached], names: Mapping[str, str]) -> tuple[Attached, ...]:
    """Return the same with other names for the parameters."""

    def new(name: str) -> str:
        return names.get(name, name)

    def renamed(mapping: Mapping[str, Any]) -> dict[str, Any]:
        return {new(name): value for name, value in mapping.items()}

    changed: list[Attached] = []
    for record in attached:
        if isinstance(record, HeldRule):
            rule = _rename_rule(record.rule, record.names, names)
            own = tuple(map(new, record.names))
            changed.append(replace(record, names=own, rule=rule, entries=renamed(record.entries)))
        elif isinstance(record, Factors):
            changed.append(Factors(renamed(record.factors)))
        else:
            changed.append(replace(record, values=renamed(record.values)))
    return tuple(changed)


def _rename_rule(rule: Rule, own: Sequence[str], names: Mapping[str, str]) -> Rule:
    if isinstance(rule, Tied):
        return Tied(tuple(names.get(name, name) for name in rule.transposed))
    values: dict[str, Any] = {f.name: getattr(rule, f.name) for f in fields(rule)} if is_dataclass(rule) else {}
    by_name = {key: value for key, value in values.items() if isinstance(value, Mapping) and set(value) <= set(own)}
    if not by_name:
        return rule
    changes = {key: {names.get(n, n): v for n, v in value.items()} for key, value in by_name.items()}
    return replace(rule, **changes)  # type: ignore[type-var] # every rule is a dataclass


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} parameter{'s' * (len(names) != 1)}"
