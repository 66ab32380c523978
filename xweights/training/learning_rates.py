"""``multiply_lr``: learning rates per parameter, as a factor on each update.

The step itself is scaled: a scaled gradient would change nothing under Adam and similar rules, which divide by its
size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xweights.core import attachments
from xweights.core.attachments import Releasable, count_of, refer_to_target
from xweights.core.casting import as_number, is_number
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.selection import DEFAULT_EDITED, select
from xweights.core.targets import open_eagerly
from xweights.errors import ArgumentError, HoldError, Problems, SelectionError, WriteError, XweightsError
from xweights.training.hold_shards import choose_blocks
from xweights.training.hooks import TrainingChange, TrainingHooks, training_for


class Multipliers(Releasable):
    """The factors that :func:`multiply_lr` set, until :meth:`release`; also a context manager.

    Attributes:
        factors: The factor of each parameter, by name.

    Example:
        >>> import torch, xweights as xw
        >>> model = torch.nn.Linear(1, 1); sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> with xw.multiply_lr(model, {"*": 0.1}, optimizer=sgd) as slower:
        ...     slower
        <Multipliers of 2 parameters>
    """

    def __init__(self, factors: Mapping[str, float], changes: list[TrainingChange]) -> None:
        self.factors = dict(factors)
        self._pairs: list[tuple[Parameter, float]] = []
        self._attachments = changes
        self._target: Callable[[], Any] = lambda: None
        self._optimizer: Any = None

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters whose learning rates are multiplied; none after the release."""
        return [p for p, _ in self._pairs] if self._attachments else []

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a training step went by without the factors."""
        super().check()

    def release(self) -> None:
        """Stop scaling updates. Calling it twice does nothing."""
        super().release()

    def remember(self) -> Callable[[], None]:
        """Return a function that multiplies the same learning rates again."""
        return self._attach

    def withdraw(self, parameters: Sequence[Parameter]) -> None:
        """Stop scaling updates, of all parameters."""
        self.release()

    def _attach(self) -> None:
        if self._attachments:
            return
        groups: dict[int, tuple[TrainingHooks, list[tuple[Parameter, float]]]] = {}
        for p, factor in self._pairs:
            training = training_for(p)
            if training is not None:
                groups.setdefault(id(training), (training, []))[1].append((p, factor))
        try:
            for training, pairs in groups.values():
                change = training.multiply(pairs, target=self._target(), optimizer=self._optimizer, owner=self)
                self._attachments.append(change)
        except BaseException:
            self.release()
            raise
        attachments.register(self)

    def __repr__(self) -> str:
        return f"<Multipliers of {count_of(self.factors)}>"


def multiply_lr(target: Any, factors: Mapping[Any, float], *, optimizer: Any = None) -> Multipliers:
    """Multiply the learning rate of single parameters, under any optimizer.

    Args:
        target: Model, layer, module or variable of a framework that trains it, or a list of these.
        factors: ``{where: factor}``, such as ``{"*": 0.1, "head/*": 1.0}``; of several that match, the last one counts.
            Each applies to the trainable floating-point parameters it selects. 0 leaves a parameter as it is, bit for
            bit; 1 leaves its update alone.
        optimizer: The optimizer that trains them. Required in torch; default in Keras: the model's own.

    Returns:
        A :class:`Multipliers`, with ``.release()``.

    After each step, before any hold, ``new = old + factor * (stepped - old)``, in the parameter's dtype and rounded
    after each of the three operations: the same arithmetic on every backend, and as close to a learning rate ``factor``
    times as large as these roundings. Decoupled weight decay is part of the step and is scaled with it, as a learning
    rate would; the state of the optimizer (momentum, second moments) is not, nor are the averages that Keras writes
    with ``use_ema``. These parameters are copied at each step.
    Raises ArgumentError, SelectionError, WriteError, HoldError (not trained by this optimizer, multiplied already).

    Example:
        >>> import torch, xweights as xw
        >>> model = torch.nn.Linear(1, 1); sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> xw.multiply_lr(model, {"kernel": 0.5}, optimizer=sgd).factors
        {'kernel': 0.5}
    """
    if not isinstance(factors, Mapping) or not factors:
        raise ArgumentError(f"factors= is a mapping {{where: factor}}\ngot: {factors!r}")
    everything = open_eagerly(
        target, ArgumentError("learning rates can't change inside a compiled step\nFix: call this before the step")
    )
    pairs: list[tuple[Parameter, float]] = []

    def choose(opened: list[Parameter]) -> list[Parameter]:
        pairs.extend(_select_factors(opened, factors))
        return [p for p, _ in pairs]

    multipliers: Multipliers | None = None
    try:
        with choose_blocks(everything, choose, "multiply_lr", list(factors.values())) as (blocks, chosen):
            _check_trained(chosen)
            rates = [factor for _, factor in pairs]
            multipliers = Multipliers({p.name: factor for p, factor in pairs}, [])
            multipliers._pairs = list(zip(blocks, rates, strict=True))
            multipliers._target, multipliers._optimizer = refer_to_target(target), optimizer
            multipliers._attach()
    except BaseException:
        if multipliers is not None:  # another rank can't
            multipliers.release()
        raise
    return multipliers


def _check_trained(chosen: Sequence[Parameter]) -> None:
    problems = Problems("these learning rates can't be multiplied, and nothing was changed")
    for p in chosen:
        training = training_for(p)
        reason = p.refusal(writing=True)
        if training is None:
            problems.add(
                HoldError,
                f"{p.name!r} has no optimizer that could be attached to",
                fix="scale the update in your own step",
            )
        elif reason is not None:
            problems.add(WriteError, f"{p.name!r} can't be written: {reason}")
    problems.check()


def _select_factors(everything: list[Parameter], factors: Mapping[Any, float]) -> list[tuple[Parameter, float]]:
    problems = Problems("these learning rates can't be multiplied, and nothing was changed")
    by_id: dict[int, float] = {}
    for where, factor in factors.items():
        if not is_number(factor) or not math.isfinite(factor) or factor < 0:
            problems.add(ArgumentError, f"a factor is a finite number >= 0\ngot: {factor!r} for {where!r}")
            continue
        try:
            picked = [p for p in select(everything, where) if DEFAULT_EDITED.picks([p])]
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
            continue
        if not picked:
            problems.add(SelectionError, f"{where!r} selects nothing that is trained")
        by_id |= {id(p): float(factor) for p in picked}
    problems.check()
    return [(p, by_id[id(p)]) for p in everything if id(p) in by_id]


def blend_step(ops: Ops, stepped: Any, old: Any, factor: float, dtype: np.dtype[Any]) -> Any:
    """Return old + factor * (stepped - old), each operation rounded once; may reuse the memory of ``stepped``."""
    if factor == 0.0:
        return old
    minus = ops.constant(as_number(-1.0, dtype), stepped)
    scale = ops.constant(as_number(-factor, dtype), stepped)
    # Multiplying by -1 is exact, and the two signs cancel: this is the formula in terms of the existing ops.
    shortfall = ops.fence(ops.add(ops.fence(ops.multiply(stepped, minus)), old))
    return ops.fence(ops.add(ops.fence(ops.multiply(shortfall, scale)), old))
