"""``Hold``: a rule that is kept true during training, and how it begins.

The backend attaches the held rules to the framework's own update (``Backend.attach``); where there is nothing to attach
to, ``held.apply()`` is called by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from xweights.core import attachments, hold_registry
from xweights.core.attachments import Releasable, count_of, refer_to_target
from xweights.core.backend import Backend, HoldAttachment
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_of
from xweights.edit.execute import add_edit_refusal
from xweights.errors import HoldError, Problems, WriteError, XweightsError
from xweights.rules.base import Rule
from xweights.rules.constraints import Keep
from xweights.rules.tying import TiedShare
from xweights.training.held_rules import HeldRule, HeldRules, copy_in_stored_order
from xweights.training.hooks import training_for

# The parameters of a hold, with the rule and the operands of each.
Members = Mapping[Parameter, tuple[Rule, tuple[Array, ...]]]


class Hold(Releasable):
    """A rule kept true on some parameters, until :meth:`release`; also a context manager.

    Attributes:
        parameters: The held parameters.
        rule: The rule.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([3.0])}
        >>> with xw.hold(w, xw.Clip(-1, 1), where="w"):
        ...     xw.add(w, 5.0)
        >>> w["w"]
        array([1.])
    """

    def __init__(self, rule: Rule, held: Sequence[HeldRules]) -> None:
        self.rule = rule
        self._held = list(held)
        self._attachments: list[HoldAttachment] = []
        self._target: Callable[[], Any] = lambda: None
        self._optimizer: Any = None
        self.manual = True

    @property
    def parameters(self) -> list[Parameter]:
        """The held parameters."""
        return [held_rules.parameter for held_rules in self._held]

    def apply(self) -> None:
        """Apply the rule now, after the update of a step that has no optimizer to attach to. Traceable."""
        for held_rules in self._held:
            if held_rules.backend is not None and held_rules.backend.tracing() == "refuse":
                held_rules.apply_native()
            else:
                held_rules.apply()

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a training step went by without the rule, HoldError if it isn't true.

        Of a sharded model each rank looks at its own block, and hears nothing of the others.
        """
        super().check()
        problems = Problems("a held rule is not true")
        for held_rules in self._held:
            if any(held_rule.owner is self for held_rule in held_rules.rules):
                p = held_rules.parameter
                reason = p.refusal(writing=False)
                if reason is not None:
                    problems.add(HoldError, f"{p.name!r} can't be read: {reason}")
                    continue
                wrong = held_rules.find_violation()
                if wrong is not None:
                    problems.add(
                        HoldError,
                        f"{p.name!r} doesn't satisfy {wrong}",
                        fix="call held.apply() after your update",
                    )
        problems.check()

    def written(self) -> None:
        """Note that xweights wrote to a held parameter, not a training step."""

    def release(self) -> None:
        """Remove this rule; the others stay. Calling it twice does nothing."""
        self._remove_from(self._held)
        self._held = []
        super().release()

    def let_go(self, parameters: Sequence[Parameter]) -> None:
        """Remove this rule from some of its parameters."""
        released = {hold_registry.identity(p) for p in parameters}
        leaving = [held_rules for held_rules in self._held if hold_registry.identity(held_rules.parameter) in released]
        self._remove_from(leaving)
        self._held = [held_rules for held_rules in self._held if held_rules not in leaving]
        for attachment in self._attachments:
            attachment.let_go(leaving)

    def withdraw(self, parameters: Sequence[Parameter]) -> None:
        """Remove this rule from some of its parameters, and release it if none are left."""
        self.let_go(parameters)
        if not self.parameters:
            self.release()

    def remember(self) -> Callable[[], None]:
        """Return a function that holds the rule again as it is held now, with the operands that it has now."""
        return partial(self._return_to, self._members())

    def _members(self) -> Members:
        return {
            held_rules.parameter: (held_rule.rule, held_rule.operands)
            for held_rules in self._held
            for held_rule in held_rules.rules
            if held_rule.owner is self
        }

    def _return_to(self, members: Members) -> None:
        if not self._is_on(members):
            self.release()
            self._begin_again(members)

    def _is_on(self, members: Members) -> bool:
        return [p.identity() for p in members] == [p.identity() for p in self._members()]

    def _begin_again(self, members: Members) -> None:
        begin(
            self, self._target(), list(members), self._optimizer,
            operands=lambda p: members[p][1], rule_of=lambda p: members[p][0], after_step=self._after_step(),
        )  # fmt: skip

    def _after_step(self) -> Callable[[Any], None] | None:
        """Return what is called after each step."""
        return None

    def _remove_from(self, held: Sequence[HeldRules]) -> None:
        for held_rules in held:
            held_rules.rules = [held_rule for held_rule in held_rules.rules if held_rule.owner is not self]
            if not held_rules.rules:
                hold_registry.unregister(held_rules)

    def __repr__(self) -> str:
        return f"<Hold {self.rule!r} on {count_of(self._held)}>"


def refuse_statistics(chosen: Sequence[Parameter]) -> None:
    """Raise for parameters that forward passes change: a rule would be true after a step, not after the next batch."""
    problems = Problems("these can't be held, and nothing was changed")
    for p in chosen:
        training = training_for(p)
        if training is not None and training.is_statistic(p):
            problems.add(
                HoldError,
                f"{p.name!r} is changed by the forward pass, and no optimizer steps it",
                fix="freeze() can stop it; else leave it out with where=",
            )
    problems.check()


def begin(
    hold: Hold,
    target: Any,
    chosen: Sequence[Parameter],
    optimizer: Any,
    *,
    operands: Callable[[Parameter], tuple[Array, ...]] | None = None,
    rule_of: Callable[[Parameter], Rule] | None = None,
    after_step: Callable[[Any], None] | None = None,
    writable: frozenset[Parameter] = frozenset(),
) -> Hold:
    """Register a hold on its parameters and attach it, or change nothing.

    ``operands`` replaces the rule's own; they may change with ``after_step``. ``rule_of`` returns the rule of each
    parameter, if they differ. ``writable``: of these a plan knows that they can be written, and that layers obey.
    """
    problems = Problems("this can't be held, and nothing was changed")
    hold._held = held = list[HeldRules]()
    hold._target, hold._optimizer = refer_to_target(target), optimizer
    hold_registry.refresh()
    try:
        for p in chosen:
            rule = hold.rule if rule_of is None else rule_of(p)
            if p not in writable and _add_refusal(problems, p, rule):
                continue
            try:
                rule.check(p)
                stored = tuple(copy_in_stored_order(operand, p) for operand in (operands or rule.operands)(p))
            except XweightsError as wrong:
                problems.add(type(wrong), str(wrong))
                continue
            known = hold_registry.find(p)
            held_rules = known if isinstance(known, HeldRules) else HeldRules(p)
            _refuse_half_of_a_tie(held_rules, rule, chosen, problems)
            held_rules.add(HeldRule(hold, rule, stored, live=after_step is not None))
            held.append(held_rules)
            wrong_rule = held_rules.find_contradiction()
            if wrong_rule is not None:
                others = ", ".join(
                    repr(held_rule.rule) for held_rule in held_rules.rules if repr(held_rule.rule) != wrong_rule
                )
                problems.add(HoldError, f"{p.name!r}: {wrong_rule} can't stay true together with {others or 'itself'}")
        problems.check()
        _attach(hold, target, optimizer, after_step)
        for held_rules in held:
            hold_registry.register(held_rules, keep=hold.manual)
        for held_rules in held:
            held_rules.apply()
            held_rules.prepare_native()
    except BaseException:
        hold.release()
        raise
    attachments.register(hold)
    return hold


def _add_refusal(problems: Problems, p: Parameter, rule: Rule) -> bool:
    """Add why a rule can't be held on a parameter, whatever its values; return whether there is a reason."""
    reason = p.refusal(writing=True)
    if reason is not None:
        problems.add(WriteError, f"{p.name!r} can't be written: {reason}")
        return True
    if backend_of(p) is None and not isinstance(p.handle, np.ndarray):
        problems.add(HoldError, f"{p.name!r} is computed from other parameters", fix="remove the parametrization first")
        return True
    # A part that stays as it is needs nothing from its layer: to freeze all but the factors is usual.
    unmet = None if isinstance(rule, Keep) and rule.index is None else p.edit_refusal()
    if unmet is not None:
        add_edit_refusal(problems, p, unmet)
    return unmet is not None


def _refuse_half_of_a_tie(held_rules: HeldRules, rule: Rule, chosen: Sequence[Parameter], problems: Problems) -> None:
    """Refuse a rule on a parameter that copies another one without the rule."""
    name, tie = held_rules.parameter.name, held_rules.tie
    if isinstance(rule, TiedShare) and held_rules.rules:
        if tie is not None or rule.position:
            others = ", ".join(repr(held_rule.rule) for held_rule in held_rules.rules)
            problems.add(HoldError, f"{name!r} is held already, by {others}", fix="release that, tie, then hold on all")
    elif tie is not None and all(hold_registry.identity(p) != hold_registry.identity(tie.first) for p in chosen):
        problems.add(
            HoldError, f"{name!r} is tied to {tie.first.name!r}", fix="hold it on all that are tied: where=[...]"
        )


def _attach(hold: Hold, target: Any, optimizer: Any, after_step: Callable[[Any], None] | None) -> None:
    groups: dict[str, tuple[Backend, list[HeldRules]]] = {}
    for held_rules in hold._held:
        if held_rules.backend is not None:
            groups.setdefault(held_rules.backend.name, (held_rules.backend, []))[1].append(held_rules)
    for backend, held in groups.values():
        attachment = backend.attach(held, target=target, optimizer=optimizer, after_step=after_step)
        if attachment is not None:
            hold._attachments.append(attachment)
            after_step = None  # one framework counts the steps
    if optimizer is not None and not hold._attachments:
        raise HoldError(
            "optimizer= was given, and nothing here is trained by an optimizer that can be attached to\n"
            "Fix: leave optimizer= out, and call held.apply() after each step"
        )
    hold.manual = not hold._attachments
