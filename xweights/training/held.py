"""Rules that stay true while training goes on.

When a rule is applied is the framework's business: the backend attaches a chain to its own update
(``Backend.attach``); where there is nothing to attach to, ``held.apply()`` is called by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from xweights.core import hold_registry
from xweights.core.backend import Backend, HoldAttachment
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.edit.guards import guarded
from xweights.errors import HoldError, Problems, WriteError, XweightsError
from xweights.rules.base import Rule
from xweights.rules.tying import TiedShare
from xweights.training.held_rules import HeldRule, HeldRules, as_stored
from xweights.training.hooks import native_of, training_for


class Hold:
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

    def __init__(self, rule: Rule, chains: Sequence[HeldRules]) -> None:
        self.rule = rule
        self._chains = list(chains)
        self._attachments: list[HoldAttachment] = []
        self.manual = True

    @property
    def parameters(self) -> list[Parameter]:
        """The held parameters."""
        return [chain.parameter for chain in self._chains]

    def apply(self) -> None:
        """Make the rule true now: after the update of a step that has no optimizer to attach to. Traceable."""
        for chain in self._chains:
            if chain.backend is not None and chain.backend.tracing() == "refuse":
                chain.apply_native()
            else:
                chain.apply()

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a training step went by without the rule, HoldError if it isn't true."""
        for attachment in self._attachments:
            attachment.check()
        problems = Problems("a held rule is not true")
        for chain in self._chains:
            if any(link.owner is self for link in chain.links):
                wrong = chain.violated()
                if wrong is not None:
                    problems.add(
                        HoldError,
                        f"{chain.parameter.name!r} doesn't obey {wrong}",
                        fix="call held.apply() after your update",
                    )
        problems.check()

    def written(self) -> None:
        """Know that xweights wrote to a held parameter, not a training step."""

    def release(self) -> None:
        """Take this rule off again; the others stay. Calling it twice does nothing."""
        self._unlink(self._chains)
        attachments, self._attachments, self._chains = self._attachments, [], []
        for attachment in attachments:
            attachment.detach()

    def let_go(self, parameters: Sequence[Parameter]) -> None:
        """Take this rule off some of its parameters."""
        mine = {hold_registry.identity(p) for p in parameters}
        leaving = [chain for chain in self._chains if hold_registry.identity(chain.parameter) in mine]
        self._unlink(leaving)
        self._chains = [chain for chain in self._chains if chain not in leaving]
        for attachment in self._attachments:
            attachment.let_go(leaving)

    def _unlink(self, chains: Sequence[HeldRules]) -> None:
        for chain in chains:
            chain.links = [link for link in chain.links if link.owner is not self]
            if not chain.links:
                hold_registry.leave(chain)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        count = len(self._chains)
        return f"<Hold {self.rule!r} on {count} parameter{'s' * (count != 1)}>"


def refuse_statistics(chosen: Sequence[Parameter]) -> None:
    """Raise for what forward passes change: a rule would be true after a step, and not after the next batch."""
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
    made: Hold,
    target: Any,
    chosen: Sequence[Parameter],
    optimizer: Any,
    *,
    operands: Callable[[Parameter], tuple[Array, ...]] | None = None,
    rule_of: Callable[[Parameter], Rule] | None = None,
    after_step: Callable[[Any], None] | None = None,
) -> Hold:
    """Link a hold to its parameters and attach it, or change nothing.

    ``operands``: instead of the rule's own; they may change with ``after_step``. ``rule_of``: the rule of each
    parameter, if they differ.
    """
    problems = Problems("this can't be held, and nothing was changed")
    made._chains = chains = list[HeldRules]()
    hold_registry.look_again()
    try:
        for p in chosen:
            reason = p.refusal(writing=True)
            if reason is not None:
                problems.add(WriteError, f"{p.name!r} can't be written: {reason}")
                continue
            if backend_for(native_of(p)) is None and not isinstance(p.handle, np.ndarray):
                problems.add(
                    HoldError, f"{p.name!r} is computed from other parameters", fix="remove the parametrization first"
                )
                continue
            rule = made.rule if rule_of is None else rule_of(p)
            try:
                rule.check(p)
                ready = tuple(as_stored(one, p) for one in (operands or rule.operands)(p))
            except XweightsError as wrong:
                problems.add(type(wrong), str(wrong))
                continue
            known = hold_registry.held(p)
            chain = known if isinstance(known, HeldRules) else HeldRules(p)
            _refuse_half_of_a_tie(chain, rule, chosen, problems)
            chain.add(HeldRule(made, rule, ready, live=after_step is not None))
            chains.append(chain)
            wrong_rule = chain.contradiction()
            if wrong_rule is not None:
                others = ", ".join(repr(link.rule) for link in chain.links if repr(link.rule) != wrong_rule)
                problems.add(HoldError, f"{p.name!r}: {wrong_rule} can't stay true together with {others or 'itself'}")
        problems.check()
        _attach(made, target, optimizer, after_step)
        for chain in chains:
            hold_registry.enter(chain, keep=made.manual)
        with guarded(chosen):
            for chain in chains:
                chain.apply()
                for link in chain.links:
                    link.native_operands(chain.parameter)
    except BaseException:
        made.release()
        raise
    return made


def _refuse_half_of_a_tie(chain: HeldRules, rule: Rule, chosen: Sequence[Parameter], problems: Problems) -> None:
    """A parameter that copies another can't have a rule that the other one doesn't have."""
    name, tie = chain.parameter.name, chain.tie
    if isinstance(rule, TiedShare) and chain.links:
        if tie is not None or rule.position:
            others = ", ".join(repr(link.rule) for link in chain.links)
            problems.add(HoldError, f"{name!r} is held already, by {others}", fix="release that, tie, then hold on all")
    elif tie is not None and all(hold_registry.identity(p) != hold_registry.identity(tie.first) for p in chosen):
        problems.add(
            HoldError, f"{name!r} is tied to {tie.first.name!r}", fix="hold it on all that are tied: where=[...]"
        )


def _attach(made: Hold, target: Any, optimizer: Any, after_step: Callable[[Any], None] | None) -> None:
    groups: dict[str, tuple[Backend, list[HeldRules]]] = {}
    for chain in made._chains:
        if chain.backend is not None:
            groups.setdefault(chain.backend.name, (chain.backend, []))[1].append(chain)
    for backend, chains in groups.values():
        attachment = backend.attach(chains, target=target, optimizer=optimizer, after_step=after_step)
        if attachment is not None:
            made._attachments.append(attachment)
            after_step = None  # one framework counts the steps
    if optimizer is not None and not made._attachments:
        raise HoldError("optimizer= was given, and nothing here is trained by an optimizer that can be attached to")
    made.manual = not made._attachments
