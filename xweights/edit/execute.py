"""Prepare a rule for parameters, and apply it to them in eager code.

Everything that can be refused is checked for every parameter before the first write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from xweights.core.dispatch import ops_for, to_neutral, to_stored
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.edit.drawing import edit_with_draws, operands_ahead
from xweights.edit.guards import (
    alone,
    copy_aliased,
    defer_interrupts,
    enter_guards,
    keys_of,
    order_fallible_first,
    undo_on_error,
)
from xweights.errors import ArgumentError, Problems, SelectionError, WriteError, XweightsError
from xweights.rules.base import Function, Rule, is_foreign


def as_rule(rule: Rule | Callable[[Any], Any]) -> Rule:
    """Return a rule unchanged, and a function as a rule."""
    if isinstance(rule, Rule):
        return rule
    if callable(rule) and not isinstance(rule, type):
        return Function(rule)
    raise ArgumentError(f"expected a rule or a function\ngot: {rule!r}\nFix: an instance, such as Clip(-1, 1)")


def prepare(rule: Rule, chosen: Sequence[Parameter], call: str) -> list[tuple[Array, ...]]:
    """Return the operands for each parameter, or raise everything that is wrong; write nothing."""
    problems = Problems(f"{call} can't be done, and nothing was changed")
    if not chosen:
        problems.add(SelectionError, "the target has no parameters at all")
    prepared: list[tuple[Array, ...]] = []
    operands_of: dict[Any, tuple[Array, ...]] = {}
    by_dtype = rule.by_dtype
    ahead = operands_ahead(rule, chosen) if rule.takes_long else {}
    for parameter in chosen:
        if add_refusal(problems, parameter, writing=True):
            continue
        try:
            rule.check(parameter)
            # Random operands are as large as the weights: they are drawn later, one parameter at a time.
            key = parameter.dtype if by_dtype else len(prepared)
            if key not in operands_of:
                made = ahead.get(id(parameter))
                operands_of[key] = made if made is not None else () if rule.random else rule.operands(parameter)
            prepared.append(operands_of[key])
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
    problems.check()
    return prepared


def add_refusal(problems: Problems, parameter: Parameter, *, writing: bool) -> bool:
    """Add why a parameter can't be written (or read), or its layer wouldn't obey; return whether there is a reason."""
    reason = parameter.refusal(writing=writing)
    if reason is not None:
        problems.add(WriteError, f"{parameter.name!r} can't be {'written' if writing else 'read'}: {reason}")
        return True
    reason = parameter.edit_refusal()
    if reason is not None:
        add_edit_refusal(problems, parameter, reason)
        return True
    return False


def add_edit_refusal(problems: Problems, parameter: Parameter, reason: str) -> None:
    """Add the reason why a layer wouldn't obey an edit, and what to do instead."""
    text, _, fix = reason.partition("\nFix: ")
    problems.add(WriteError, f"{parameter.name!r} isn't what its layer computes with: {text}", fix=fix or None)


def execute(rule: Rule, chosen: Sequence[Parameter], prepared: Sequence[tuple[Array, ...]]) -> None:
    """Edit in eager code; built-in rules can't fail any more, and foreign code runs with a backup."""
    foreign = is_foreign(rule)
    risky = [p for p in chosen if foreign or p.storage.fallible]
    with ExitStack() as stack:
        stack.enter_context(alone(keys_of(chosen)))
        if not foreign:
            stack.enter_context(defer_interrupts())
            # An overflow is a value like any other; if the user made NumPy raise, it would raise halfway.
            stack.enter_context(np.errstate(all="ignore"))
        shared = rule.measure_on_host(chosen) if rule.joint else None
        prepared = copy_aliased(chosen, prepared)
        stack.enter_context(enter_guards(chosen))
        stack.enter_context(undo_on_error(risky))
        positions = order_fallible_first(chosen)
        if rule.random and not foreign:
            edit_with_draws(rule, chosen, positions, edit_parameter)
            return
        for position in positions:
            own_share = shared[position] if isinstance(shared, list) else shared
            edit_parameter(rule, chosen[position], prepared[position], own_share)


def edit_parameter(rule: Rule, p: Parameter, operands: tuple[Array, ...], shared: Any) -> None:
    """Edit one parameter the fastest way: in place on the host where its memory is visible, else by its ops."""
    native = p.native(tensor=isinstance(rule, Function))
    if isinstance(native, np.ndarray) and native.flags.writeable:
        w = p.layout.to_neutral(native)
        if rule.on_host(w, p):
            p.commit(native, native)
            return
    if rule.random and not operands:
        operands = rule.operands(p)
    ops = ops_for(native)
    w = to_neutral(ops, native, p.layout)
    if shared is not None and not isinstance(native, np.ndarray):
        shared = ops.constant(shared, native)
    new = rule(w, ops, p, *[ops.constant(value, native) for value in operands], shared=shared)
    p.commit(native, native if new is w else to_stored(ops, new, p.layout))
