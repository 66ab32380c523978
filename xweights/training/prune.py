"""Pruning while training goes on: masks that grow by a schedule, and hold between its steps.

Masks are always selected on the host, by the very code that prunes in eager calls: equal weights give equal masks at
every step on every backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np

from xweights.core import hold_registry
from xweights.core.backend import StepState
from xweights.core.dispatch import ops_for
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.selection import DEFAULT_KERNELS, WhereLike, select
from xweights.core.targets import open_target, tracing
from xweights.edit.apply import bind_line, run
from xweights.edit.execute import execute, prepare
from xweights.errors import ArgumentError, HoldError, Problems, StaleTrainFunctionError, TraceError
from xweights.rules.constraints import Keep
from xweights.rules.elementwise import Mask
from xweights.rules.norms import Per, Scope
from xweights.rules.pruning import Pattern, Prune, Score, host_masks
from xweights.training.held import Hold, begin, refuse_statistics
from xweights.training.held_rules import HeldRules, as_stored
from xweights.training.sparsity_schedule import OneShot, SparsitySchedule


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
        target: What holds the weights.
        fraction: How much to drop, 0.0 to 1.0 (a float), zeros included: floor(fraction * n + 0.5) of n.
        count: How many to drop instead.
        threshold: Drop what is <= threshold instead.
        scope: "each" parameter by itself, or "global": the smallest of all selected.
        per: Drop whole units, one per index of these axes, by their L2 norm.
        pattern: (n, m, axis): keep the n largest of every m along an axis, as in (2, 4, "in").
        block: {axis: size}: drop whole blocks, by their L2 norm.
        score: A function of an array (NumPy, neutral order) or a mapping by name, instead of the magnitude.
        where: Default: kernels and embeddings.
        hold: True keeps what is pruned at zero while training goes on, and returns a Hold with ``.masks``.
        schedule: When and how much of it is pruned (``Cubic(begin, end)``, ...); implies ``hold``.
        optimizer: As for :func:`xweights.hold`.

    Exact: counts are exact, and ties fall in the order of (neutral name, neutral flat index), so the masks are the same
    on every backend. Inside a compiled step nothing is returned. Raises ArgumentError, NonfiniteError (NaN is neither
    small nor large), LayoutError, ShapeError, SelectionError, WriteError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"d/kernel": np.array([0.1, -2.0, 0.3, 4.0])}
        >>> masks = xw.prune(w, fraction=0.5); w["d/kernel"]
        array([ 0., -2.,  0.,  4.])
    """
    rule = Prune(fraction, count, threshold, scope, per, pattern, block, score)
    if tracing(target):
        run(target, rule, where=where, call="prune", default=DEFAULT_KERNELS)
        return None
    where = DEFAULT_KERNELS if where is None else where
    chosen = select(open_target(target, bind_line=bind_line(rule, where)), where)
    if hold or schedule is not None:
        hold_registry.check(chosen)
        prepare(rule, chosen, "prune")
        return hold_pruned(target, rule, chosen, schedule, optimizer)
    hold_registry.check(chosen)
    prepare(rule, chosen, "prune")
    masks = dict(zip((p.name for p in chosen), host_masks(rule, chosen), strict=True))
    execute(Mask(masks), chosen, [(masks[p.name],) for p in chosen])
    hold_registry.reapply(chosen)
    return Params._made(
        masks,
        {p.name: p.axes for p in chosen},
        {p.name: p.role for p in chosen},
        {p.name: p.gates for p in chosen},
        "neutral",
    )


class PruneHold(Hold):
    """Pruned weights that stay pruned, by a schedule; ``masks`` are today's.

    Attributes:
        masks: The masks as Params (True = kept).
        step: How many optimizer steps were seen since the hold began.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"kernel": np.array([1.0, 2.0, 3.0, 4.0])}
        >>> held = xw.prune(w, fraction=0.5, hold=True, schedule=xw.Polynomial(0, 2, power=1))
        >>> for step in range(2):
        ...     held.apply(); print(w["kernel"])
        [0. 2. 3. 4.]
        [0. 0. 3. 4.]
    """

    def __init__(self, rule: Prune, schedule: SparsitySchedule, chosen: Sequence[Parameter]) -> None:
        super().__init__(_Pruned(rule), [])
        self.prune, self.schedule = rule, schedule
        self.step = 0
        self._chosen = list(chosen)
        self._untrained: list[bytes] | None = None
        self._masks: dict[str, Array] = {p.name: np.ones(p.shape, np.bool_) for p in chosen}

    @property
    def masks(self) -> Params:
        """The masks as of now, True = kept."""
        chosen = self._chosen
        return Params(
            {name: mask.copy() for name, mask in self._masks.items()},
            axes={p.name: p.axes for p in chosen},
            roles={p.name: p.role for p in chosen},
            gates={p.name: p.gates for p in chosen},
        )

    def apply(self) -> None:
        """Make the masks true now; where nothing counts the steps, this counts as one."""
        counts = self.manual and self.schedule != OneShot()
        if counts and any(chain.backend is not None and chain.backend.tracing() != "no" for chain in self._chains):
            raise TraceError(
                "a schedule counts steps and selects on the host, and a compiled step runs this once, as it is traced\n"
                "Fix: call held.apply() after the compiled step, in plain Python"
            )
        super().apply()
        if counts:
            self.advance()

    def advance(self, state: StepState | None = None) -> None:
        """Count one step, and make the masks anew if the schedule says so: for steps that nothing is attached to."""
        self.step += 1
        if self.schedule.due(self.step):
            self.select(state)
        if state is not None:
            for chain in self._chains:
                p = chain.parameter
                state.keep(p, p.layout.to_stored(self._masks[p.name]))
        elif self.schedule.due(self.step):
            super().apply()

    def select(self, state: StepState | None = None) -> None:
        """Select the masks of the present step from the weights as they are."""
        share = self.schedule.share(self.step)
        if not share:
            return
        for p, mask in zip(self._chosen, self.selected(share, state), strict=True):
            self._masks[p.name] = as_stored(mask, p)
        for chain in self._chains:
            for link in chain.links:
                if link.owner is self:
                    p = chain.parameter
                    ops = None if link.buffers is None else ops_for(p.native(tensor=True))
                    link.replace((self._masks[p.name],), ops)

    def selected(self, share: float, state: StepState | None = None) -> list[Array]:
        """Return the masks for a share of what is pruned in the end. Entries that are frozen count as the largest."""
        rule = self.prune
        if rule.fraction is not None:
            rule = replace(rule, fraction=float(rule.fraction) * share)
        elif rule.count is not None:
            rule = replace(rule, count=round(rule.count * share))
        frozen = [_frozen(p) for p in self._chosen]
        if state is None and all(one is None for one in frozen):
            return host_masks(rule, self._chosen)
        read = (lambda p: p.read()) if state is None else state.read
        weights = [p.layout.to_neutral(read(p)) for p in self._chosen]
        ranked = [
            w if one is None else np.where(one, np.asarray(np.inf, w.dtype), w)
            for w, one in zip(weights, frozen, strict=True)
        ]
        masks = host_masks(rule, _targets(self._chosen, ranked))
        problems = Problems("the schedule wants to prune what is frozen")
        for p, w, one, mask in zip(self._chosen, weights, frozen, masks, strict=True):
            lost = 0 if one is None else int((one & ~mask & (w != 0)).sum())
            if lost:
                problems.add(HoldError, f"{p.name!r}: {lost} frozen entries", fix="unfreeze them, or prune less")
        problems.check()
        return masks

    def written(self) -> None:
        """Remember the weights as long as no step was counted, to find out that something trains them unseen."""
        if not self.step and self.schedule != OneShot():
            self._untrained = [_digest(p) for p in self._chosen]

    def check(self) -> None:
        """Raise StaleTrainFunctionError if steps went by uncounted, HoldError if a pruned entry isn't zero."""
        for attachment in self._attachments:
            seen = getattr(attachment, "steps", lambda: None)()
            if seen is not None and seen > self.step:
                raise StaleTrainFunctionError(
                    f"the schedule didn't see every training step\n"
                    f"steps of the optimizer: {seen}\nsteps seen:             {self.step}\n"
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
    """Begin to hold what a rule prunes."""
    if schedule is not None and rule.fraction is None and rule.count is None and not isinstance(schedule, OneShot):
        raise ArgumentError("a schedule that grows needs fraction= or count=, of which it takes a share")
    refuse_statistics(chosen)
    made = PruneHold(rule, schedule or OneShot(), chosen)
    for p in chosen:
        rule.operands(p)
    hold_registry.look_again()
    made.selected(1.0)  # raises what the last step would
    if made.schedule.due(0):
        made.select()
    begin(
        made,
        target,
        chosen,
        optimizer,
        operands=lambda p: (made._masks[p.name],),
        after_step=None if made.schedule == OneShot() else made.advance,
    )
    made.written()
    return made


def _digest(p: Parameter) -> bytes:
    return blake2b(p.read().tobytes(), digest_size=16).digest()


def _frozen(p: Parameter) -> Array | None:
    """Return which entries other holds keep as they are, or None."""
    chain = hold_registry.held(p)
    links = chain.links if isinstance(chain, HeldRules) else []
    kept = [~link.operands[0] for link in links if isinstance(link.rule, Keep)]
    return np.logical_or.reduce(kept) if kept else None


def _targets(chosen: Sequence[Parameter], weights: Sequence[Array]) -> list[Parameter]:
    """Return the same parameters over other arrays."""
    params = Params(
        {p.name: w for p, w in zip(chosen, weights, strict=True)},
        axes={p.name: p.axes for p in chosen},
        roles={p.name: p.role for p in chosen},
        gates={p.name: p.gates for p in chosen},
    )
    return open_target(params)


class _Pruned(Mask):
    """The mask of a prune that is held, which shows itself as what it was made by."""

    def __init__(self, prune: Prune) -> None:
        super().__init__(None)
        object.__setattr__(self, "prune", prune)

    def __repr__(self) -> str:
        return repr(self.prune)  # type: ignore[attr-defined]
