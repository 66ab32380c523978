"""Parameters, or single entries of them, that stay as they are while the rest is trained.

What stays is a Keep hold, which is exact under every optimizer; what the framework can spare itself (gradients,
slots, weight decay) is the backend's ``TrainingHooks.freeze``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xweights.core import hold_registry
from xweights.core.parameter import Parameter
from xweights.core.selection import DEFAULT_EDITED, WhereLike, select
from xweights.core.targets import open_target, tracing
from xweights.errors import ArgumentError, HoldError, SelectionError
from xweights.rules.constraints import Keep
from xweights.training.held import Hold, begin
from xweights.training.held_rules import HeldRules
from xweights.training.hooks import FrozenHandle, TrainingHooks, training_for


class Freeze(Hold):
    """Parameters or entries that stay as they are, until :meth:`release` or :func:`unfreeze`; also a context manager.

    Attributes:
        parameters: The frozen parameters.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.ones(2)}
        >>> with xw.freeze(w, entries=(0,)) as frozen:
        ...     w["w"] -= 0.5; frozen.apply()
        >>> w["w"]
        array([1. , 0.5])
    """

    def __init__(self, entries: Any) -> None:
        super().__init__(Keep(entries), [])
        self._statistics: _Statistics | None = None
        self._resting: list[FrozenHandle] = []

    @property
    def parameters(self) -> list[Parameter]:
        """The frozen parameters."""
        return super().parameters + ([] if self._statistics is None else self._statistics.parameters)

    def apply(self) -> None:
        """Put the frozen values back now: after a step that has no optimizer to attach to. Traceable."""
        super().apply()
        if self._statistics is not None:
            self._statistics.apply()

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a training step went by without the freeze, HoldError if a value changed."""
        super().check()
        if self._statistics is not None:
            self._statistics.check()

    def release(self) -> None:
        """Let everything be trained again, with the flags that were there before. Calling it twice does nothing."""
        super().release()
        if self._statistics is not None:
            self._statistics.release()
        resting, self._resting = self._resting, []
        for one in resting:
            one.unfreeze(None)

    def let_go(self, parameters: Sequence[Parameter]) -> None:
        """Let some of the parameters be trained again."""
        super().let_go(parameters)
        if self._statistics is not None:
            self._statistics.let_go(parameters)
        for one in self._resting:
            one.unfreeze(parameters)

    def __repr__(self) -> str:
        count = len(self.parameters)
        entries = "" if self.rule.index is None else f"entries {self.rule.index!r} of "  # type: ignore[attr-defined]
        return f"<Freeze of {entries}{count} parameter{'s' * (count != 1)}>"


class _Statistics(Hold):
    """The part of a freeze that no optimizer touches: moving statistics."""

    def __init__(self, freeze: Freeze) -> None:
        super().__init__(Keep(), [])
        self.freeze = freeze


def freeze(
    target: Any,
    *,
    where: WhereLike | None = None,
    entries: Any = None,
    optimizer: Any = None,
    inference: bool = False,
) -> Freeze:
    """Keep parameters, or single entries of them, bit for bit as they are while the rest is trained.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        where: Default: trainable floating-point parameters. Moving statistics are frozen only if selected: then batch
            normalization goes on to use the statistics of each batch, and stops to collect them.
        entries: Which entries, in neutral order: a tuple, {"in": 0} by axis names, or a bool array. Default: all.
        optimizer: The optimizer that trains them. Default: in torch any optimizer, in Keras the model's own.
        inference: True has the batch normalizations among the selected layers run in inference mode, too.

    Returns:
        A :class:`Freeze`. Its ``manual`` is True where no optimizer can be attached to: call ``frozen.apply()`` then.

    Whole parameters get no update at all: torch's requires_grad becomes False and a stale gradient is dropped; in Keras
    the optimizer leaves them out, of slots, weight decay and gradient norms as well, in models that were fitted
    already, with nothing compiled again and ``trainable`` as it was. Entries are put back after each step; their slots
    go on. Slots are kept in both cases. Exact under every optimizer: the values are put back besides, should anything
    move them, a write by xweights too.
    Raises SelectionError, ShapeError, ArgumentError, HoldError, WriteError; nothing is changed then.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.ones(2)}; frozen = xw.freeze(w); w["w"] += 1.0; frozen.apply(); w["w"]
        array([1., 1.])
    """
    if tracing(target):
        raise ArgumentError("a freeze can't begin inside a compiled step\nFix: freeze before the step is traced")
    chosen = select(open_target(target), DEFAULT_EDITED if where is None else where)
    moved = [p for p in chosen if _is_statistic(p)]
    trained = [p for p in chosen if not any(p is one for one in moved)]
    if moved and entries is not None:
        raise HoldError(
            f"{moved[0].name!r} is changed by the forward pass, not by an optimizer: only all of it can be frozen\n"
            "Fix: leave it out with where=, or leave out entries="
        )
    made = Freeze(entries)
    try:
        begin(made, target, trained, optimizer if trained else None)
        if moved:
            made._statistics = _Statistics(made)
            begin(made._statistics, target, moved, None)
        if entries is None or inference:
            _rest(made, target, chosen, optimizer, whole=entries is None, inference=inference)
    except BaseException:
        made.release()
        raise
    if moved and not trained:
        made.manual = not made._resting
    return made


def unfreeze(target: Any, *, where: WhereLike | None = None) -> None:
    """Let frozen parameters be trained again, in the middle of training too.

    Args:
        target: What holds the weights.
        where: Which parameters; of a freeze over several, the others stay frozen. Default: all that are frozen.

    Undoes every :func:`freeze` of these parameters, of entries as well, and puts the flags back that were there before.
    Values, optimizer slots and other holds stay. Raises SelectionError if nothing selected was frozen by ``freeze``.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.ones(1)}; frozen = xw.freeze(w); xw.unfreeze(w); xw.fill(w, 2.0); w["w"]
        array([2.])
    """
    if tracing(target):
        raise ArgumentError("a freeze can't end inside a compiled step\nFix: unfreeze between steps")
    chosen = select(open_target(target), ... if where is None else where)
    hold_registry.look_again()
    found: dict[int, tuple[Freeze, list[Parameter]]] = {}
    for p in chosen:
        for one in _freezes_of(p):
            found.setdefault(id(one), (one, []))[1].append(p)
    if not found:
        raise SelectionError(
            f"none of the {len(chosen)} selected parameters was frozen by freeze()\n"
            "Fix: what you froze by a flag of the framework, thaw by that flag"
        )
    for one, parameters in found.values():
        one.let_go(parameters)


def _rest(made: Freeze, target: Any, chosen: list[Parameter], optimizer: Any, *, whole: bool, inference: bool) -> None:
    groups: dict[int, tuple[TrainingHooks, list[Parameter]]] = {}
    for p in chosen:
        training = training_for(p)
        if training is not None:
            groups.setdefault(id(training), (training, []))[1].append(p)
    for training, parameters in groups.values():
        resting = training.freeze(
            parameters, target=target, optimizer=optimizer, whole=whole, inference=inference, owner=made
        )
        made._resting.append(resting)


def _is_statistic(p: Parameter) -> bool:
    training = training_for(p)
    return training is not None and training.is_statistic(p)


def _freezes_of(p: Parameter) -> list[Freeze]:
    chain = hold_registry.held(p)
    owners = [link.owner for link in chain.links] if isinstance(chain, HeldRules) else []
    found = [one.freeze if isinstance(one, _Statistics) else one for one in owners]
    return [one for one in found if isinstance(one, Freeze)]
