"""``verify_handoff``: train both sides on from a hand-off and compare their difference with the rounding floor.

It trains copies, under the rules that are held, so neither side changes. The floor is the difference of one framework
from itself when the rows of each batch come in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.edit.read import get_params, parameters
from xweights.errors import ArgumentError, PortError
from xweights.optimizers.attached import Factors, attach_others, attach_rules, describe
from xweights.optimizers.handoff_shards import verify_on_ranks
from xweights.optimizers.protocol import Optimizing, Training, optimizing_for, to_training
from xweights.optimizers.remap import remap_weights
from xweights.optimizers.reports import HandoffProof, Row, Trained
from xweights.optimizers.state import OptimizerState
from xweights.porting.matching.pairs import Pair
from xweights.porting.matching.samples import target_samples
from xweights.porting.plan import plan_pairs
from xweights.porting.protocol import porting_for
from xweights.porting.session import Run
from xweights.porting.shards import find_sharded
from xweights.rules.noise import generator

Batch = tuple[Any, Any]
# A parameter has no true gradient if its floor is more than this share of how far it moved.
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
        batches: Pairs (inputs, expected) of host arrays, as the source is called with.
        loss: "crossentropy" (of logits and class numbers), "mse", or a pair of functions (source's, target's), each of
            its framework: Keras' are called (expected, outputs), PyTorch's (outputs, expected).
        steps: Number of steps; default: one for each batch. Batches are used again from the first if there are fewer.
        step: As for :func:`handoff`.
        sample_target: As for :func:`port`.
        dtypes: Dtypes to train in; None is the models' own. float64 shows errors in a formula that float32 hides.
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
    source_side, target_side = to_training(source, "source"), to_training(target, "target")
    sharded = find_sharded(source_side.model, target_side.model)
    if sharded:
        call = partial(
            verify_handoff, batches=batches, loss=loss, steps=steps, step=step, sample_target=sample_target,
            dtypes=dtypes, compiled=compiled, limit=limit,
        )  # fmt: skip
        return verify_on_ranks(source_side, target_side, sharded, call, step, steps, batches, tuple(dtypes), limit)
    backends = optimizing_for(source_side.model, "source"), optimizing_for(target_side.model, "target")
    states = (
        backends[0].read(source_side, parameters(source_side.model), step),
        backends[1].read(target_side, parameters(target_side.model), None if step is None else step),
    )
    losses = loss if isinstance(loss, tuple) else (loss, loss)
    comparison = _Comparison(
        (source_side, target_side), backends, states, losses, batches, steps, sample_target, compiled
    )
    results, notes = [], []
    for dtype in dtypes:
        try:
            results.append(comparison.train(dtype))
        except PortError as why:
            if dtype is None:
                raise
            notes.append(f"not trained in {dtype}: {str(why).splitlines()[0]}")
    if not results:
        raise PortError("\n  - ".join(["nothing could be trained, so nothing is proved", *notes]))
    return HandoffProof(steps, tuple(results), limit, tuple(notes))


@dataclass
class _Comparison:
    sides: tuple[Training, Training]
    backends: tuple[Optimizing, Optimizing]
    states: tuple[OptimizerState, OptimizerState]
    losses: tuple[Any, Any]
    batches: Sequence[Batch]
    steps: int
    sample_target: Any
    compiled: bool

    def train(self, dtype: str | None) -> Trained:
        """Train three copies: the source, the target, and the source with permuted rows."""
        with ExitStack() as held:
            return self._train(dtype, held)

    def _train(self, dtype: str | None, held: ExitStack) -> Trained:
        source, target, again = (self.copy(side, dtype, held) for side in (0, 1, 0))
        pairs, to_target = self._pairs(source.model, target.model)
        begin = _values(source.model)
        permuted = [_permute_rows(batch, number) for number, batch in enumerate(self.batches)]
        for_target = [(to_target(inputs), expected) for inputs, expected in self.batches]
        losses = [
            self._run(0, source, self.batches), self._run(1, target, for_target), self._run(0, again, permuted)
        ]  # fmt: skip
        ends = [remap_weights(_values(model), pairs) for model in (source.model, again.model)]
        first = remap_weights(begin, pairs)
        got = _values(target.model)
        rows = []
        for name, value in ends[0].items():
            if value.dtype.kind != "f":
                continue
            floor, moved = _relative_difference(ends[1][name], value), _relative_difference(first[name], value)
            noise = moved > 0 and floor > _NOISE * moved
            rows.append(Row(name, _relative_difference(got[name], value), floor, noise))
        name = dtype or next(p.dtype.name for p in parameters(source.model) if p.floating)
        name = next((narrow for backend in self.backends if (narrow := backend.compute_dtype(name)) != name), name)
        gap, floor = (np.abs(loss - losses[0]) / np.abs(losses[0]) for loss in losses[1:])
        forward = float(gap[0]) if gap.size else 0.0
        return Trained(name, tuple(rows), float(gap.max(initial=0.0)), float(floor.max(initial=0.0)), forward)

    def copy(self, index: int, dtype: str | None, held: ExitStack) -> Training:
        """Return a copy of a side (0: the source), with an optimizer in the same state, under the same rules."""
        backend, side, state = self.backends[index], self.sides[index], self.states[index]
        model = backend.copy(side.model, None if dtype is None else np.dtype(dtype))
        norms = _norms(side.model)
        if norms:
            backend.set_statistics(model, _norms(model), unbiased=backend.collects_unbiased(norms))
        state = state if dtype is None else state.with_dtype(dtype)
        known = parameters(model)
        attached = describe(parameters(side.model))
        for handle in attach_rules(attached, model, known, state.names):
            held.callback(handle.release)
        written = backend.write(Training(model), state, known, backend.plan(state, known, None, "exact"), "exact")
        factors = [record for record in attached if isinstance(record, Factors)]
        for handle in attach_others(factors, model, written.optimizer):
            held.callback(handle.release)
        return Training(
            model, written.optimizer, written.scheduler, ema=written.ema, micro_steps=state.micro_steps,
            micro_done=state.micro_done,
        )  # fmt: skip

    def _pairs(self, source: Any, target: Any) -> tuple[list[Pair], Callable[[Any], Any]]:
        run = Run(source, target, ..., None)
        sample = _cast_to_model(self.batches[0][0], source)
        matching, attempt = run.match(sample, self.sample_target, None, write=False)
        pairs = list(attempt.pairs.values())
        if len(pairs) < len(run.target.units):
            pairs = plan_pairs(run.source, run.target, run.skipped, run.allowed)[0]
        chosen = next(
            i for i, candidate in enumerate(target_samples(run.source, run.target, sample, self.sample_target))
            if _equal(candidate, matching.sample)
        )  # fmt: skip

        def to_target(inputs: Any) -> Any:
            candidates = target_samples(run.source, run.target, inputs, self.sample_target)
            return next(candidate for i, candidate in enumerate(candidates) if i == chosen)

        return pairs, to_target

    def _run(self, index: int, side: Training, batches: Sequence[Batch]) -> Array:
        step = self.backends[index].make_trainer(side, self.losses[index], compiled=self.compiled)
        return np.array([step(*batches[number % len(batches)]) for number in range(self.steps)])


def _values(model: Any) -> Mapping[str, Array]:
    return dict(get_params(model))


def _norms(model: Any) -> list[Any]:
    return [record.layer for record in porting_for(model, "model").records(model) if record.kind == "batch_norm"]


def _relative_difference(a: Array, b: Array) -> float:
    largest = float(np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0)) / (largest or 1.0)


def _permute_rows(batch: Batch, number: int) -> Batch:
    inputs, expected = batch
    order = np.argsort(generator(0, "rows", number).bit_generator.random_raw(len(expected)), kind="stable")
    permuted = tuple(array[order] for array in inputs) if isinstance(inputs, tuple) else inputs[order]
    return permuted, expected[order]


def _cast_to_model(inputs: Any, model: Any) -> Any:
    dtype = next(p.dtype for p in parameters(model) if p.floating)

    def cast(array: Any) -> Any:
        return array.astype(dtype) if array.dtype.kind == "f" else array

    return tuple(cast(array) for array in inputs) if isinstance(inputs, tuple) else cast(inputs)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (a.shape == b.shape and bool(np.array_equal(a, b)))
