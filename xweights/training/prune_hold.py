"""Pruning during training: masks that grow by a schedule and are held between its steps.

Masks are always selected on the host, by the same code that prunes in eager calls: equal weights give equal masks at
every step on every backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np

from xweights.core import hold_registry
from xweights.core.agreement import Outcome, Vote, group_of, open_shard, shard_of
from xweights.core.backend import StepState
from xweights.core.dispatch import ops_for
from xweights.core.dtypes import Array
from xweights.core.groups import Group
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.selection import WhereLike, select
from xweights.core.targets import open_target
from xweights.edit.guards import defer_interrupts
from xweights.edit.shards import local_parameter, prepare_blocks
from xweights.errors import ArgumentError, StaleTrainFunctionError, TraceError
from xweights.rules.constraints import Keep
from xweights.rules.elementwise import Mask
from xweights.rules.pruning import Prune, host_masks
from xweights.rules.shards import cut_operand
from xweights.training.held import Hold, Members, begin, refuse_statistics
from xweights.training.held_rules import HeldRules, copy_in_stored_order
from xweights.training.hooks import CountsSteps
from xweights.training.prune_shards import refuse_lost, select_masks
from xweights.training.sparsity_schedule import OneShot, SparsitySchedule


class PruneHold(Hold):
    """Pruned weights that stay pruned, by a schedule.

    Attributes:
        masks: The current masks as Params (True = kept).
        step: Number of optimizer steps counted since the hold began.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"kernel": np.array([1.0, 2.0, 3.0, 4.0])}
        >>> held = xw.prune(w, fraction=0.5, hold=True, schedule=xw.Polynomial(0, 2, power=1))
        >>> for step in range(2):
        ...     held.apply(); print(w["kernel"])
        [0. 2. 3. 4.]
        [0. 0. 3. 4.]
    """

    def __init__(
        self,
        rule: Prune,
        schedule: SparsitySchedule,
        chosen: Sequence[Parameter],
        wholes: Sequence[Parameter] | None = None,
    ) -> None:
        super().__init__(_PrunedMask(rule), [])
        self._wholes = wholes  # the parameters of which ``chosen`` are this rank's blocks; None where all of it is here
        self.prune, self.schedule = rule, schedule
        self.step = 0
        self._taken_back = 0  # steps that the optimizer has made, and that an undo took back
        self._chosen = list(chosen)
        self._untrained: list[bytes] | None = None
        self._masks: dict[str, Array] = {p.name: np.ones(p.shape, np.bool_) for p in chosen}

    @property
    def masks(self) -> Params:
        """The current masks, True = kept."""
        chosen = self._chosen
        return Params(
            {name: mask.copy() for name, mask in self._masks.items()},
            axes={p.name: p.axes for p in chosen},
            roles={p.name: p.role for p in chosen},
            gates={p.name: p.gates for p in chosen},
        )

    def apply(self) -> None:
        """Apply the masks now; where nothing counts the steps, this counts as one."""
        counts = self.manual and self.schedule != OneShot()
        if counts and any(
            held_rules.backend is not None and held_rules.backend.tracing() != "no" for held_rules in self._held
        ):
            raise TraceError(
                "a schedule counts steps and selects on the host, and a compiled step runs this once, as it is traced\n"
                "Fix: call held.apply() after the compiled step, in plain Python"
            )
        super().apply()
        if counts:
            self.advance()

    def advance(self, state: StepState | None = None) -> None:
        """Count one step, and recompute the masks if the schedule says so; for steps that nothing is attached to."""
        self.step += 1
        if state is not None:
            # Elsewhere the step has applied the masks: what is pruned must not be ranked by what its last update made.
            self._keep(state)
        if self.schedule.due(self.step):
            self.select(state)
        if state is not None:
            self._keep(state)
        elif self.schedule.due(self.step):
            super().apply()

    def _keep(self, state: StepState) -> None:
        """Apply the masks to the weights inside a running fit."""
        for held_rules in self._held:
            p = held_rules.parameter
            state.keep(p, p.layout.to_stored(self._masks[p.name]))

    def select(self, state: StepState | None = None) -> None:
        """Select the masks of the current step from the current weights."""
        share = self.schedule.share(self.step)
        if not share:
            return
        for p, mask in zip(self._chosen, self.selected(share, state), strict=True):
            self._masks[p.name] = copy_in_stored_order(mask, p)
        self._replace_masks()

    def _replace_masks(self) -> None:
        """Hold the current masks, also in steps that are compiled already."""
        for held_rules in self._held:
            for held_rule in held_rules.rules:
                if held_rule.owner is self:
                    p = held_rules.parameter
                    ops = None if held_rule.buffers is None else ops_for(p.native(tensor=True))
                    held_rule.replace((self._masks[p.name],), ops)

    def selected(self, share: float, state: StepState | None = None) -> list[Array]:
        """Return the masks for a share of the final amount. Frozen entries count as the largest."""
        rule = self.prune
        if rule.fraction is not None:
            rule = replace(rule, fraction=float(rule.fraction) * share)
        elif rule.count is not None:
            rule = replace(rule, count=round(rule.count * share))
        frozen = [_frozen_entries(p) for p in self._chosen]
        if self._wholes is not None:
            return select_masks(rule, self._wholes, frozen, self.step)
        if state is None and all(entries is None for entries in frozen):
            return host_masks(rule, self._chosen)
        read = (lambda p: p.read()) if state is None else state.read
        weights = [p.layout.to_neutral(read(p)) for p in self._chosen]
        ranked = [
            w if entries is None else np.where(entries, np.asarray(np.inf, w.dtype), w)
            for w, entries in zip(weights, frozen, strict=True)
        ]
        masks = host_masks(rule, _with_values(self._chosen, ranked))
        refuse_lost(self._chosen, weights, frozen, masks)
        return masks

    def _after_step(self) -> Callable[[Any], None] | None:
        return None if self.schedule == OneShot() else self.advance

    def remember(self) -> Callable[[], None]:
        """Return a function that holds the masks of now again, at the step of now."""
        return partial(self._return_to_step, self._members(), dict(self._masks), self.step, self._untrained)

    def _return_to_step(
        self, members: Members, masks: dict[str, Array], step: int, untrained: list[bytes] | None
    ) -> None:
        self._taken_back += self.step - step
        self._masks, self.step, self._untrained = dict(masks), step, untrained
        if self._is_on(members):
            self._replace_masks()
        else:
            self.release()
            self._taken_back = 0  # the new attachment counts from here
            self._begin_again(members)

    def written(self) -> None:
        """Record weight digests until the first counted step, so that `check` detects training that isn't counted."""
        if not self.step and self.schedule != OneShot():
            self._untrained = [_digest(p) for p in self._chosen]

    def check(self) -> None:
        """Raise StaleTrainFunctionError if steps went by uncounted, HoldError if a pruned entry isn't zero."""
        for attachment in self._attachments:
            steps = attachment.steps() if isinstance(attachment, CountsSteps) else None
            if steps is not None and steps - self._taken_back > self.step:
                raise StaleTrainFunctionError(
                    f"the schedule didn't see every training step\n"
                    f"steps of the optimizer: {steps}\nsteps seen:             {self.step}\n"
                    "Fix: call held.advance() after each step of your own loop"
                )
        if not self.step and self._untrained is not None and self._untrained != [_digest(p) for p in self._chosen]:
            raise StaleTrainFunctionError(
                "the weights changed, and the schedule saw no training step\n"
                "Fix: call held.advance() after each step of your own loop (held.apply() where nothing is attached)"
            )
        super().check()


def hold_pruned(
    target: Any, rule: Prune, chosen: Sequence[Parameter], schedule: SparsitySchedule | None, optimizer: Any
) -> PruneHold:
    """Hold the entries that a rule prunes at zero, and return the hold."""
    _check_growing(rule, schedule)
    refuse_statistics(chosen)
    held = PruneHold(rule, schedule or OneShot(), chosen)
    for p in chosen:
        rule.operands(p)
    hold_registry.refresh()
    held.selected(1.0)  # raises what the last step would
    if held.schedule.due(0):
        held.select()
    return _begin(held, target, optimizer)


def hold_pruned_blocks(
    target: Any,
    rule: Prune,
    everything: Sequence[Parameter],
    where: WhereLike,
    schedule: SparsitySchedule | None,
    optimizer: Any,
) -> PruneHold:
    """Hold at zero, on this rank's blocks, the entries that a rule prunes; every rank makes this call, or none holds.

    A step in which the masks grow makes the collectives of `prune`, any other one none.
    """
    with Vote(everything, "prune", writing=True) as vote:
        vote.agree(f"{rule!r}, schedule={schedule!r}", rule, schedule)
        wholes = vote.open(select(everything, where), copies=True)
        hold_registry.check(wholes)
        blocks = [block.local for block in prepare_blocks(rule, wholes, "prune")]
        _check_growing(rule, schedule)
        refuse_statistics(blocks)
    held = PruneHold(rule, schedule or OneShot(), blocks, wholes)
    hold_registry.refresh()
    held.selected(1.0)  # raises what the last step would
    if held.schedule.due(0):
        held.select()
    return _begin_agreed(held, target, optimizer, vote.group)


def _check_growing(rule: Prune, schedule: SparsitySchedule | None) -> None:
    if schedule is not None and rule.fraction is None and rule.count is None and not isinstance(schedule, OneShot):
        raise ArgumentError("a schedule that grows needs fraction= or count=, of which it takes a share")


def _begin(held: PruneHold, target: Any, optimizer: Any) -> PruneHold:
    operands, chosen = (lambda p: (held._masks[p.name],)), held._chosen
    begin(held, target, chosen, optimizer, operands=operands, after_step=held._after_step())
    held.written()
    return held


def _begin_agreed(held: PruneHold, target: Any, optimizer: Any, group: Group | None) -> PruneHold:
    """Begin on all ranks, or on none."""
    kept = [(block, block.backup()) for block in held._chosen]
    try:
        with Outcome(group):
            _begin(held, target, optimizer)
    except BaseException:
        held.release()
        with defer_interrupts():
            for block, backup in kept:
                block.restore(backup)
        raise
    return held


def resume_pruned(
    target: Any,
    rule: Prune,
    schedule: SparsitySchedule,
    step: int,
    chosen: Sequence[Parameter],
    masks: Mapping[str, Array],
) -> PruneHold:
    """Go on with the schedule of another hold where it stood, on the parameters that take the place of its own."""
    group = group_of(chosen)
    wholes = [open_shard(p) for p in chosen]
    shards = [shard_of(p) for p in wholes]
    blocks = [p if s is None else local_parameter(p, s) for p, s in zip(wholes, shards, strict=True)]
    held = PruneHold(rule, schedule, blocks, None if group is None else wholes)
    held.step = step
    for p, shard, block in zip(wholes, shards, blocks, strict=True):
        mask = masks[p.name] if shard is None or shard.is_whole else cut_operand(masks[p.name], p, shard)
        held._masks[p.name] = copy_in_stored_order(mask, block)
    return _begin_agreed(held, target, None, group)


def _digest(p: Parameter) -> bytes:
    return blake2b(p.read().tobytes(), digest_size=16).digest()


def _frozen_entries(p: Parameter) -> Array | None:
    """Return a mask of the entries that Keep holds fix, or None."""
    held_rules = hold_registry.find(p)
    rules = held_rules.rules if isinstance(held_rules, HeldRules) else []
    kept = [~held_rule.operands[0] for held_rule in rules if isinstance(held_rule.rule, Keep)]
    return np.logical_or.reduce(kept) if kept else None


def _with_values(chosen: Sequence[Parameter], weights: Sequence[Array]) -> list[Parameter]:
    """Return the same parameters with other arrays as their values."""
    params = Params(
        {p.name: w for p, w in zip(chosen, weights, strict=True)},
        axes={p.name: p.axes for p in chosen},
        roles={p.name: p.role for p in chosen},
        gates={p.name: p.gates for p in chosen},
    )
    return open_target(params)


class _PrunedMask(Mask):
    """The mask of a held prune; its repr is that of the ``Prune`` rule."""

    def __init__(self, prune: Prune) -> None:
        super().__init__(None)
        object.__setattr__(self, "prune", prune)

    def __repr__(self) -> str:
        return repr(self.prune)  # type: ignore[attr-defined]
