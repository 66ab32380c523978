"""``verify_handoff``: both sides trained on from the hand-off, against the rounding floor.

It trains copies, so neither side changes. The floor is what one framework differs from itself when the rows of each
batch come in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.edit.read import get_params, parameters
from xweights.errors import ArgumentError, PortError
from xweights.optimizers.protocol import Optimizing, Training, optimizing_for, side_of
from xweights.optimizers.remap import carried_weights
from xweights.optimizers.reports import HandoffProof, Row, Trained
from xweights.optimizers.state import OptimizerState
from xweights.porting.matching.samples import target_samples
from xweights.porting.matching.search import Pair
from xweights.porting.plan import planned
from xweights.porting.protocol import porting_for
from xweights.porting.session import Run
from xweights.rules.noise import generator

Batch = tuple[Any, Any]
# A parameter whose floor is this share of how far it moved has no true gradient.
_NOISE = 0.02


def verify_handoff(
    source: Any,
    target: Any,
    *,
    batches: Sequence[Batch],
    loss: Any = "crossentropy",
    steps: int | None = None,
    step: int | None = None,
    sample_target: Any = None,
    dtypes: Sequence[str | None] = (None, "float64"),
    compiled: bool = False,
    limit: float = 10.0,
) -> HandoffProof:
    """Train copies of both sides on from a hand-off, and compare their difference with the rounding floor.

    Args:
        source: ``(model, optimizer)`` or :class:`Training`, as it was handed over.
        target: The other side: ``report.training``.
        batches: Pairs (inputs, wanted) of host arrays, as the source is called with.
        loss: "crossentropy" (of logits and class numbers), "mse", or a pair of functions (source's, target's), each of
            its framework: Keras' are called (wanted, outputs), PyTorch's (outputs, wanted).
        steps: How many; default: one for each batch. Batches are used again from the first if there are fewer.
        step: As for :func:`handoff`.
        sample_target: As for :func:`port`.
        dtypes: Which to train in; None is the models' own. In float64 an error in a formula shows that float32 hides.
        compiled: Compile the steps (Keras: with XLA; PyTorch: the module, by AOTAutograd).
        limit: How many times the floor a difference may be.

    The proof's ``ok`` says whether all differences are on the floor, and in float64 below 1e-12 (unless the
    forwards differ before any update, because a framework keeps a constant in float32). Parameters without a true
    gradient (a bias before a batch normalization) move by noise alone and are set apart.
    Raises HandoffError, PortError, ArgumentError.

    Example:
        >>> import torch
        >>> import numpy as np, xweights as xw
        >>> a, b = (torch.nn.Linear(2, 3) for _ in range(2))
        >>> side = (a, torch.optim.Adam(a.parameters()))
        >>> report = xw.handoff(side, (b, None))
        >>> data = [(np.ones((4, 2), "float32"), np.array([0, 1, 2, 0]))]
        >>> xw.verify_handoff(side, report.training, batches=data, steps=3).ok
        True
    """
    if not batches:
        raise ArgumentError("batches= is empty")
    steps = len(batches) if steps is None else steps
    mine, theirs = side_of(source, "source"), side_of(target, "target")
    backends = optimizing_for(mine.model, "source"), optimizing_for(theirs.model, "target")
    states = (
        backends[0].read(mine, parameters(mine.model), step),
        backends[1].read(theirs, parameters(theirs.model), None if step is None else step),
    )
    losses = loss if isinstance(loss, tuple) else (loss, loss)
    work = _Proof((mine, theirs), backends, states, losses, batches, steps, sample_target, compiled)
    made, notes = [], []
    for dtype in dtypes:
        try:
            made.append(work.trained(dtype))
        except PortError as why:
            if dtype is None:
                raise
            notes.append(f"not trained in {dtype}: {str(why).splitlines()[0]}")
    if not made:
        raise PortError("\n  - ".join(["nothing could be trained, so nothing is proved", *notes]))
    return HandoffProof(steps, tuple(made), limit, tuple(notes))


@dataclass
class _Proof:
    sides: tuple[Training, Training]
    backends: tuple[Optimizing, Optimizing]
    states: tuple[OptimizerState, OptimizerState]
    losses: tuple[Any, Any]
    batches: Sequence[Batch]
    steps: int
    sample_target: Any
    compiled: bool

    def trained(self, dtype: str | None) -> Trained:
        """Train three copies: the source, the target, and the source with permuted rows."""
        one, other, again = (self.copy(place, dtype) for place in (0, 1, 0))
        pairs, turn = self._pairs(one.model, other.model)
        begin = _values(one.model)
        permuted = [_permuted(batch, place) for place, batch in enumerate(self.batches)]
        turned = [(turn(inputs), wanted) for inputs, wanted in self.batches]
        losses = [
            self._run(0, one, self.batches), self._run(1, other, turned), self._run(0, again, permuted)
        ]  # fmt: skip
        ends = [carried_weights(_values(model), pairs) for model in (one.model, again.model)]
        first = carried_weights(begin, pairs)
        got = _values(other.model)
        rows = []
        for name, value in ends[0].items():
            if value.dtype.kind != "f":
                continue
            floor, moved = _apart(ends[1][name], value), _apart(first[name], value)
            noise = moved > 0 and floor > _NOISE * moved
            rows.append(Row(name, _apart(got[name], value), floor, noise))
        name = dtype or next(p.dtype.name for p in parameters(one.model) if p.floating)
        name = next((narrow for one in self.backends if (narrow := one.computed(name)) != name), name)
        apart, floor = (np.abs(one - losses[0]) / np.abs(losses[0]) for one in losses[1:])
        forward = float(apart[0]) if apart.size else 0.0
        return Trained(name, tuple(rows), float(apart.max(initial=0.0)), float(floor.max(initial=0.0)), forward)

    def copy(self, place: int, dtype: str | None) -> Training:
        """Return a copy of a side, with an optimizer in the same state."""
        backend, side, state = self.backends[place], self.sides[place], self.states[place]
        model = backend.copy(side.model, None if dtype is None else np.dtype(dtype))
        norms = _norms(side.model)
        if norms:
            backend.statistics(model, _norms(model), unbiased=backend.unbiased(norms))
        state = state if dtype is None else state.with_dtype(dtype)
        known = parameters(model)
        made = backend.write(Training(model), state, known, backend.plan(state, known, None, "exact"), "exact")
        return Training(
            model, made.optimizer, made.scheduler, ema=made.ema, micro_steps=state.micro_steps,
            micro_done=state.micro_done,
        )  # fmt: skip

    def _pairs(self, source: Any, target: Any) -> tuple[list[Pair], Callable[[Any], Any]]:
        run = Run(source, target, ..., None)
        sample = _as_model(self.batches[0][0], source)
        matching, attempt = run.matching(sample, self.sample_target, None, write=False)
        pairs = list(attempt.pairs.values())
        if len(pairs) < len(run.target.units):
            pairs = planned(run.source, run.target, run.skipped, run.allowed)[0]
        place = next(
            i for i, one in enumerate(target_samples(run.source, run.target, sample, self.sample_target))
            if _equal(one, matching.sample)
        )  # fmt: skip

        def turn(inputs: Any) -> Any:
            made = target_samples(run.source, run.target, inputs, self.sample_target)
            return next(one for i, one in enumerate(made) if i == place)

        return pairs, turn

    def _run(self, place: int, side: Training, batches: Sequence[Batch]) -> Array:
        step = self.backends[place].trainer(side, self.losses[place], compiled=self.compiled)
        return np.array([step(*batches[number % len(batches)]) for number in range(self.steps)])


def _values(model: Any) -> Mapping[str, Array]:
    return dict(get_params(model))


def _norms(model: Any) -> list[Any]:
    return [record.layer for record in porting_for(model, "model").records(model) if record.kind == "batch_norm"]


def _apart(one: Array, other: Array) -> float:
    largest = float(np.abs(other).max(initial=0.0))
    return float(np.abs(one - other).max(initial=0.0)) / (largest or 1.0)


def _permuted(batch: Batch, place: int) -> Batch:
    inputs, wanted = batch
    order = np.argsort(generator(0, "rows", place).bit_generator.random_raw(len(wanted)), kind="stable")
    moved = tuple(one[order] for one in inputs) if isinstance(inputs, tuple) else inputs[order]
    return moved, wanted[order]


def _as_model(inputs: Any, model: Any) -> Any:
    dtype = next(p.dtype for p in parameters(model) if p.floating)

    def cast(one: Any) -> Any:
        return one.astype(dtype) if one.dtype.kind == "f" else one

    return tuple(cast(one) for one in inputs) if isinstance(inputs, tuple) else cast(inputs)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return one is other or (one.shape == other.shape and bool(np.array_equal(one, other)))
