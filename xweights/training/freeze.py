"""``freeze`` and ``unfreeze``: parameters, or single entries of them, that stay fixed while the rest is trained.

A Keep hold fixes the values, exactly under every optimizer; the backend's ``TrainingHooks.freeze`` saves the work that
the framework can then skip (gradients, slots, weight decay).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from xweights.core import hold_registry
from xweights.core.attachments import refer_to_target
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.selection import DEFAULT_EDITED, WhereLike, select
from xweights.core.targets import open_eagerly
from xweights.errors import ArgumentError, HoldError, SelectionError
from xweights.rules.constraints import Keep
from xweights.training.held import Hold, Members, begin
from xweights.training.held_rules import HeldRules
from xweights.training.hold_shards import agree_on_blocks
from xweights.training.hooks import FrozenHandle, TrainingHooks, training_for


class Freeze(Hold):
    """Parameters or entries that stay fixed until :meth:`release` or :func:`unfreeze`; also a context manager.

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
        self._frozen_handles: list[FrozenHandle] = []
        self._inference = False
        self._clears_flags = False

    @property
    def parameters(self) -> list[Parameter]:
        """The frozen parameters."""
        return super().parameters + ([] if self._statistics is None else self._statistics.parameters)

    def apply(self) -> None:
        """Restore the frozen values now, after a step that has no optimizer to attach to. Traceable."""
        super().apply()
        if self._statistics is not None:
            self._statistics.apply()

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a training step went by without the freeze, HoldError if a value changed."""
        super().check()
        if self._statistics is not None:
            self._statistics.check()

    def release(self) -> None:
        """Unfreeze everything, with the flags that were set before. Calling it twice does nothing."""
        super().release()
        if self._statistics is not None:
            self._statistics.release()
        handles, self._frozen_handles = self._frozen_handles, []
        for handle in handles:
            handle.unfreeze(None)

    def let_go(self, parameters: Sequence[Parameter]) -> None:
        """Unfreeze some of the parameters."""
        super().let_go(parameters)
        if self._statistics is not None:
            self._statistics.let_go(parameters)
        for handle in self._frozen_handles:
            handle.unfreeze(parameters)

    def clear_flags(self) -> None:
        """Clear the framework's own flags of the frozen parameters, too, until they are unfrozen."""
        self._clears_flags = True
        self._frozen_handles.append(_ClearedFlags(self.parameters))

    def remember(self) -> Callable[[], None]:
        """Return a function that freezes again what is frozen now, at the values of now."""
        statistics = {} if self._statistics is None else self._statistics._members()
        return partial(self._return_to_both, self._members(), statistics)

    def _return_to_both(self, trained: Members, statistics: Members) -> None:
        if self._is_on(trained) and (self._statistics is None or self._statistics._is_on(statistics)):
            return
        target = self._target()
        self.release()
        if trained:
            self._begin_again(trained)
        if statistics and self._statistics is not None:
            self._statistics._begin_again(statistics)
        _freeze_natively(self, target, [*trained, *statistics])
        if self._clears_flags:
            self.clear_flags()

    def __repr__(self) -> str:
        count = len(self.parameters)
        entries = "" if self.rule.index is None else f"entries {self.rule.index!r} of "  # type: ignore[attr-defined]
        return f"<Freeze of {entries}{count} parameter{'s' * (count != 1)}>"


class _ClearedFlags:
    """Parameters whose flag was set, and is set again when they are unfrozen."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = [p for p in parameters if p.trainable]
        for p in self.parameters:
            p.set_trainable(False)

    def unfreeze(self, parameters: Sequence[Parameter] | None) -> None:
        leaving = None if parameters is None else set(map(hold_registry.identity, parameters))
        for p in list(self.parameters):
            if leaving is None or hold_registry.identity(p) in leaving:
                p.set_trainable(True)
                self.parameters.remove(p)


class _Statistics(Hold):
    """The part of a freeze that no optimizer touches: moving statistics."""

    def __init__(self, freeze: Freeze) -> None:
        super().__init__(Keep(), [])
        self.freeze = freeze

    def remember(self) -> Callable[[], None]:
        """Return a function that does nothing: the freeze brings both of its parts back."""
        return lambda: None

    def withdraw(self, parameters: Sequence[Parameter]) -> None:
        """Unfreeze some of the parameters."""
        self.freeze.withdraw(parameters)


def freeze(
    target: Any,
    *,
    where: WhereLike | None = None,
    entries: Any = None,
    optimizer: Any = None,
    inference: bool = False,
) -> Freeze:
    """Keep parameters, or single entries of them, unchanged bit for bit while the rest is trained.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        where: Default: trainable floating-point parameters. Moving statistics are frozen only if selected: batch
            normalization then still uses the statistics of each batch, and no longer collects them.
        entries: Which entries, in neutral order: a tuple, {"in": 0} by axis names, or a bool array. Default: all.
        optimizer: The optimizer that trains them. Default: in torch any optimizer, in Keras the model's own.
        inference: True runs the batch normalizations among the selected layers in inference mode, too.

    Returns:
        A :class:`Freeze`. Its ``manual`` is True where no optimizer can be attached to: call ``frozen.apply()`` then.

    Whole parameters get no update at all: torch's requires_grad becomes False and a stale gradient is dropped; in Keras
    the optimizer skips them, also in slots, weight decay and gradient norms, and in models that were fitted already,
    with nothing compiled again and ``trainable`` as it was. Entries are restored after each step; their slots are still
    updated. Slots are kept in both cases. Exact under every optimizer: the values are also restored if anything else
    changes them, a write by xweights too.
    Raises SelectionError, ShapeError, ArgumentError, HoldError, WriteError; nothing is changed then.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.ones(2)}; frozen = xw.freeze(w); w["w"] += 1.0; frozen.apply(); w["w"]
        array([1., 1.])
    """
    everything = open_eagerly(
        target, ArgumentError("a freeze can't begin inside a compiled step\nFix: freeze before the step is traced")
    )
    frozen = Freeze(entries)
    selected = DEFAULT_EDITED if where is None else where
    try:
        with agree_on_blocks(everything, selected, frozen.rule, "freeze") as (chosen, members):
            moved = [p for p in chosen if _is_statistic(p)]
            trained = [p for p in chosen if not any(p is statistic for statistic in moved)]
            if moved and entries is not None:
                _refuse_entries_of(moved[0])
            operands = None if members is None else partial(_operands_of, members)
            begin(frozen, target, trained, optimizer if trained else None, operands=operands)
            if moved:
                frozen._statistics = _Statistics(frozen)
                begin(frozen._statistics, target, moved, None, operands=operands)
            frozen._target, frozen._optimizer, frozen._inference = refer_to_target(target), optimizer, inference
            _freeze_natively(frozen, target, chosen)
    except BaseException:
        frozen.release()
        raise
    if moved and not trained:
        frozen.manual = not frozen._frozen_handles
    return frozen


def _refuse_entries_of(statistic: Parameter) -> NoReturn:
    raise HoldError(
        f"{statistic.name!r} is changed by the forward pass, not by an optimizer: only all of it can be frozen\n"
        "Fix: leave it out with where=, or leave out entries="
    )


def _operands_of(members: Members, p: Parameter) -> tuple[Array, ...]:
    return members[p][1]


def unfreeze(target: Any, *, where: WhereLike | None = None) -> None:
    """Let frozen parameters be trained again, also in the middle of training.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        where: Which parameters; the others of the same freeze stay frozen. Default: all that are frozen.

    Undoes every :func:`freeze` of these parameters, of entries as well, and restores the flags that were set before.
    Values, optimizer slots and other holds stay. Raises SelectionError if nothing selected was frozen by ``freeze``.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.ones(1)}; frozen = xw.freeze(w); xw.unfreeze(w); xw.fill(w, 2.0); w["w"]
        array([2.])
    """
    everything = open_eagerly(
        target, ArgumentError("a freeze can't end inside a compiled step\nFix: unfreeze between steps")
    )
    chosen = select(everything, ... if where is None else where)
    hold_registry.refresh()
    freezes: dict[int, tuple[Freeze, list[Parameter]]] = {}
    for p in chosen:
        for frozen in _freezes_of(p):
            freezes.setdefault(id(frozen), (frozen, []))[1].append(p)
    if not freezes:
        raise SelectionError(
            f"none of the {len(chosen)} selected parameters was frozen by freeze()\n"
            "Fix: what you froze by a flag of the framework, thaw by that flag"
        )
    for frozen, parameters in freezes.values():
        frozen.let_go(parameters)


def _freeze_natively(frozen: Freeze, target: Any, chosen: list[Parameter]) -> None:
    whole = frozen.rule.index is None  # type: ignore[attr-defined]
    if not whole and not frozen._inference:
        return
    groups: dict[int, tuple[TrainingHooks, list[Parameter]]] = {}
    for p in chosen:
        training = training_for(p)
        if training is not None:
            groups.setdefault(id(training), (training, []))[1].append(p)
    for training, parameters in groups.values():
        handle = training.freeze(
            parameters, target=target, optimizer=frozen._optimizer, whole=whole, inference=frozen._inference,
            owner=frozen,
        )  # fmt: skip
        frozen._frozen_handles.append(handle)


def _is_statistic(p: Parameter) -> bool:
    training = training_for(p)
    return training is not None and training.is_statistic(p)


def _freezes_of(p: Parameter) -> list[Freeze]:
    held_rules = hold_registry.find(p)
    owners = [held_rule.owner for held_rule in held_rules.rules] if isinstance(held_rules, HeldRules) else []
    freezes = [owner.freeze if isinstance(owner, _Statistics) else owner for owner in owners]
    return [frozen for frozen in freezes if isinstance(frozen, Freeze)]
