"""Averages of the weights over training: exponential (EMA) or plain (SWA).

The averages are stored and computed on the host, by the same code for every framework: equal weights give equal
averages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np

from xweights.core import attachments, hold_registry
from xweights.core.agreement import Vote, shard_of
from xweights.core.attachments import Releasable, count_of, refer_to_target
from xweights.core.backend import StepState
from xweights.core.blocks import blocks
from xweights.core.casting import cast_exactly, is_number
from xweights.core.dtypes import Array
from xweights.core.names import Names
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.selection import DEFAULT_EDITED, WhereLike, select
from xweights.core.targets import open_eagerly, tracing
from xweights.edit.execute import add_refusal
from xweights.edit.guards import defer_interrupts, enter_guards
from xweights.edit.read import check_readable
from xweights.edit.write import set_params
from xweights.errors import ArgumentError, DtypeError, HoldError, Problems, TraceError
from xweights.training.hold_shards import choose_blocks
from xweights.training.hooks import ExpectsOptimizer, TrainingChange, training_for

Decay = float | Literal["swa"] | Callable[[int], float]


class Averages(Releasable):
    """Averages of weights, until :meth:`release`; also a context manager.

    Attributes:
        parameters: The averaged parameters.
        updates: How many updates went into the averages.
        manual: True if :meth:`update` has to be called by hand.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([0.0])}; averages = xw.average(w, decay="swa")
        >>> for value in (1.0, 2.0):
        ...     xw.fill(w, value); averages.update()
        >>> with averages.swapped_in():
        ...     w["w"].item()
        1.5
        >>> w["w"]
        array([2.])
    """

    def __init__(self, chosen: Sequence[Parameter], wholes: Sequence[Parameter], decay: Decay, every: int) -> None:
        self.parameters = list(chosen)
        self._wholes = list(wholes)
        self.decay, self.every = decay, every
        self.updates = 0
        self.manual = True
        self._steps = 0
        self._released = False
        self._swapped = False
        self._attachments: list[TrainingChange] = []
        self._averages = [p.read().astype(_accumulator_dtype(p.dtype)) for p in chosen]
        self._target: Callable[[], Any] = lambda: None
        self._optimizer: Any = None

    def update(self) -> None:
        """Count one step, and update the averages if they are due; for loops that nothing is attached to."""
        if not self.manual:
            raise HoldError(
                "these averages follow the optimizer by themselves: an update by hand would count a step twice\n"
                "Fix: leave the call out, or make them with attach=False"
            )
        if any(tracing(p) for p in self.parameters):
            raise TraceError("averages are updated on the host\nFix: call update() after the compiled step, not inside")
        check_readable(self.parameters)
        self._after_step(None)

    def _after_step(self, state: StepState | None) -> None:
        self._steps += 1
        if self._steps % self.every:
            return
        if self._swapped:
            raise HoldError("a training step while the averages are swapped in\nFix: train outside of swapped_in()")
        rate = self._rate()
        for p, mean in zip(self.parameters, self._averages, strict=True):
            fold(mean, p.read() if state is None else state.read(p), rate)
        self.updates += 1

    def _rate(self) -> float:
        if self.updates == 0:
            return 1.0
        if self.decay == "swa":
            return 1.0 / (self.updates + 1)
        return 1.0 - _check_decay(self.decay(self.updates) if callable(self.decay) else float(self.decay))

    @property
    def params(self) -> Params:
        """The averages as Params: float32 for narrower dtypes, else of the parameter's dtype.

        Of a sharded model whole arrays, gathered, so to be asked for on every rank; RankError if another rank makes
        another call, or has averaged another number of steps.
        """
        with Vote(self._wholes, "averages.params", writing=False) as vote:
            vote.agree(f"updates={self.updates}", self.updates)
            vote.open(self._wholes)
        averages = {
            p.name: p.layout.to_neutral(_gather(p, a)) for p, a in zip(self._wholes, self._averages, strict=True)
        }
        return Params.of(self._wholes, averages)

    @contextmanager
    def swapped_in(self) -> Iterator[Averages]:
        """Put the averages in the weights' place for a block, then restore exactly the same bits.

        Each average is rounded once to the parameter's dtype; holds apply to it. A training step inside raises
        HoldError.
        """
        if self._swapped:
            raise HoldError("the averages are swapped in already")
        chosen = self.parameters
        _check_writable(chosen)
        hold_registry.check(chosen)
        backups = [(p, p.backup(), _rules_on(p)) for p in chosen]
        values = [
            cast_exactly(a, p.dtype, what=repr(p.name), cast=True) for p, a in zip(chosen, self._averages, strict=True)
        ]
        self._swapped = True
        try:
            with enter_guards(chosen), defer_interrupts():
                for p, value in zip(chosen, values, strict=True):
                    p.write(value)
            hold_registry.reapply(chosen)
            yield self
        finally:
            with enter_guards(chosen), defer_interrupts():
                for p, backup, _ in backups:
                    p.restore(backup)
            # Rules held before are true of the restored weights; applying them again could change a last bit.
            hold_registry.reapply([p for p, _, rules in backups if _rules_on(p) != rules])
            self._swapped = False

    def copy_to(self, target: Any, *, where: WhereLike = ..., names: Names | None = None) -> None:
        """Write the averages into a target, of any framework, rounded once to its dtypes.

        Args:
            target: The averaged target itself, or a twin of it.
            where: Which of its parameters. Default: all that are averaged.
            names: As for :func:`xweights.set_params`.
        """
        set_params(target, self.params, where=where, strict=False, cast=True, allow_nonfinite=True, names=names)

    def check(self) -> None:
        """Raise StaleTrainFunctionError if training steps went by unseen."""
        super().check()

    def release(self) -> None:
        """Stop following the optimizer; the averages stay as they are. Calling it twice does nothing."""
        super().release()
        self.manual, self._released = True, True

    def remember(self) -> Callable[[], None]:
        """Return a function that brings back the averages of now, and follows the optimizer if that is done now."""
        kept = [mean.copy() for mean in self._averages]
        return partial(self._return_to, kept, self.updates, self._steps, self._released, follows=not self.manual)

    def _return_to(self, kept: Sequence[Array], updates: int, steps: int, released: bool, *, follows: bool) -> None:
        for mean, value in zip(self._averages, kept, strict=True):
            np.copyto(mean, value)
        self.updates, self._steps, self._released = updates, steps, released
        if follows and not self._attachments:
            self._follow()

    def withdraw(self, parameters: Sequence[Parameter]) -> None:
        """Stop following the optimizer."""
        self.release()

    def _attach(self) -> None:
        """Follow the optimizer, if there is one."""
        if not self._follow() and self._optimizer is not None:
            raise HoldError(
                "optimizer= was given, and nothing here is trained by an optimizer that can be attached to\n"
                "Fix: attach=False, and call averages.update() after each step"
            )

    def _follow(self) -> bool:
        """Follow the optimizer; return False where there is nothing to attach to."""
        training = next((hooks for hooks in map(training_for, self.parameters) if hooks is not None), None)
        if training is None:
            return False
        trained = [p for p in self.parameters if training_for(p) is training]
        change = training.follow(trained, self._after_step, target=self._target(), optimizer=self._optimizer)
        if change is None:
            return False
        self._attachments.append(change)
        self.manual = False
        return True

    def __repr__(self) -> str:
        over = f"{self.updates} update{'s' * (self.updates != 1)}"
        return f"<Averages of {count_of(self.parameters)} over {over}>"


def average(
    target: Any,
    *,
    decay: Decay,
    every: int = 1,
    where: WhereLike | None = None,
    optimizer: Any = None,
    attach: bool = True,
) -> Averages:
    """Average the weights during training: exponentially, or plainly with ``decay="swa"``.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        decay: 0 <= decay < 1, as in 0.999; a function of the number of updates so far; or "swa" for the plain mean.
        every: Number of optimizer steps between updates.
        where: Default: trainable floating-point parameters (moving statistics only if selected).
        optimizer: Whose steps count. Default: in torch any that steps the first of them, in Keras the model's own.
        attach: False: nothing is attached, and you call ``averages.update()`` after each step.

    Returns:
        :class:`Averages`, with ``.params``, ``.swapped_in()`` and ``.copy_to(target)``. Its ``manual`` is True where
        there is nothing to attach to (``tf.Module``, arrays, a layer): call ``averages.update()`` there.

    The first update copies the weights; each further one is ``mean += (1 - decay) * (w - mean)``, for the
    plain mean with 1 / (updates + 1); every operation rounded once, in float32 (float64 for float64), on the host.
    Exact: equal weights give equal bits on every backend. In Keras it follows ``fit`` and ``train_on_batch``, after the
    holds, and no loop of your own (``check()`` raises then; use ``attach=False``). A step that only accumulates
    gradients, or that loss scaling skips, doesn't count.
    Raises ArgumentError, SelectionError, DtypeError, WriteError, HoldError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([4.0])}; averages = xw.average(w, decay=0.5); averages.update()
        >>> xw.fill(w, 0.0); averages.update(); averages.params["w"]
        array([2.])
    """
    if not (decay == "swa" or callable(decay)):
        _check_decay(decay)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ArgumentError(f"every= is a whole number >= 1\ngot: {every!r}")
    if optimizer is not None and not attach:
        raise ArgumentError("optimizer= was given with attach=False, which attaches to none")
    everything = open_eagerly(
        target, TraceError("averages can't begin inside a compiled step\nFix: call this before the step")
    )
    averages = None
    try:
        with choose_blocks(
            everything, lambda every: select(every, DEFAULT_EDITED if where is None else where),
            "average", decay, every, attach,
        ) as (chosen, wholes):  # fmt: skip
            _check_averaged(wholes)
            averages = Averages(chosen, wholes, decay, every)
            averages._target, averages._optimizer = refer_to_target(target), optimizer
            if attach:
                averages._attach()
    except BaseException:
        if averages is not None:  # another rank can't
            averages.release()
        raise
    attachments.register(averages)
    return averages


def _check_averaged(chosen: Sequence[Parameter]) -> None:
    problems = Problems("these can't be averaged")
    for p in chosen:
        if not p.floating:
            problems.add(DtypeError, f"{p.name!r} is {p.dtype.name}", fix="narrow where= to floating-point parameters")
    problems.check()
    check_readable(chosen)
    _check_writable(chosen)


def _gather(p: Parameter, mean: Array) -> Array:
    """Return a copy of the average of the whole parameter, of which this rank has a block."""
    shard = shard_of(p)
    return mean.copy() if shard is None or shard.is_whole else shard.gather(mean)


def resume_average(
    target: Any,
    decay: Decay,
    every: int,
    counts: tuple[int, int],
    values: Mapping[str, Array],
    optimizer: Any = None,
    *,
    attach: bool = True,
) -> Averages:
    """Go on with averages of other parameters on those that take their places.

    ``counts``: how many updates went into them, and how many steps were counted; ``values`` by name, in neutral order;
    ``optimizer``: the one that goes on with the training, if it is known.
    """
    averages = average(target, decay=decay, every=every, where=list(values), attach=attach)
    for attachment in averages._attachments:
        if isinstance(attachment, ExpectsOptimizer):
            attachment.expect(optimizer)
    averages.updates, averages._steps = counts
    for p, mean in zip(averages._wholes, averages._averages, strict=True):
        stored, shard = p.layout.to_stored(values[p.name]), shard_of(p)
        np.copyto(mean, stored if shard is None else shard.cut_stored(stored), casting="same_kind")
    return averages


def fold(mean: Array, value: Array, rate: float) -> None:
    """Compute ``mean += rate * (value - mean)``, in place, in the dtype of the mean."""
    if rate == 1.0:
        np.copyto(mean, value, casting="unsafe")
        return
    factor = mean.dtype.type(rate)
    with np.errstate(all="ignore"):
        for block in blocks(mean.shape):
            index: Any = (*block, ...)  # the ellipsis keeps a 0-d array an array; without it NumPy returns a scalar
            old = mean[index]
            part = value[index].astype(mean.dtype)
            part -= old
            part *= factor
            old += part


def _accumulator_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


def _check_decay(decay: Any) -> float:
    if not is_number(decay) or not 0.0 <= decay < 1.0:
        raise ArgumentError(f'decay= is a number, 0 <= decay < 1, a function that gives one, or "swa"\ngot: {decay!r}')
    return float(decay)


def _check_writable(chosen: Sequence[Parameter]) -> None:
    problems = Problems("averages of these could not be swapped in")
    for p in chosen:
        add_refusal(problems, p, writing=True)
    problems.check()


def _rules_on(p: Parameter) -> list[Any]:
    entry = hold_registry.find(p)
    return [] if entry is None else list(entry.rules)
