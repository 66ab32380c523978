"""How a rule reaches the weights: once (:func:`apply`), or again and again from a compiled step (:func:`bind`).

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
from xweights.edit.guards import detached, fallible_first, guarded, undone_on_error, uninterrupted
from xweights.errors import (
    ArgumentError,
    Problems,
    SelectionError,
    WriteError,
    XweightsError,
)
from xweights.rules.base import Function, Rule


def as_rule(rule: Rule | Callable[[Any], Any]) -> Rule:
    """Return a rule as it is, and a function as one."""
    if isinstance(rule, Rule):
        return rule
    if callable(rule) and not isinstance(rule, type):
        return Function(rule)
    raise ArgumentError(f"expected a rule or a function\ngot: {rule!r}\nFix: an instance, such as Clip(-1, 1)")


def prepare(rule: Rule, chosen: Sequence[Parameter], call: str) -> list[tuple[Array, ...]]:
    """Return the operands for each parameter, or raise everything that is wrong; writes nothing."""
    problems = Problems(f"{call} can't be done, and nothing was changed")
    if not chosen:
        problems.add(SelectionError, "the target has no parameters at all")
    prepared: list[tuple[Array, ...]] = []
    known: dict[Any, tuple[Array, ...]] = {}
    by_dtype = rule.by_dtype
    for parameter in chosen:
        reason = parameter.refusal(writing=True)
        if reason is not None:
            problems.add(WriteError, f"{parameter.name!r} can't be written: {reason}")
            continue
        try:
            rule.check(parameter)
            # Random operands are as large as the weights: drawn one parameter at a time, when it is their turn.
            key = parameter.dtype if by_dtype else len(prepared)
            if key not in known:
                known[key] = () if rule.random else rule.operands(parameter)
            prepared.append(known[key])
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
    problems.check()
    return prepared


def execute(rule: Rule, chosen: Sequence[Parameter], prepared: Sequence[tuple[Array, ...]]) -> None:
    """Edit in eager code. Built-in rules can't fail any more; what runs foreign code is backed up."""
    foreign = is_foreign(rule)
    risky = [p for p in chosen if foreign or p.storage.fallible]
    with ExitStack() as stack:
        if not foreign:
            stack.enter_context(uninterrupted())
            # An overflow is a value like any other. Where the user has NumPy raise, it would raise halfway.
            stack.enter_context(np.errstate(all="ignore"))
        shared = rule.measure_on_host(chosen) if rule.joint else None
        prepared = detached(chosen, prepared)
        stack.enter_context(guarded(chosen))
        stack.enter_context(undone_on_error(risky))
        for position in fallible_first(chosen):
            mine = shared[position] if isinstance(shared, list) else shared
            edit_one(rule, chosen[position], prepared[position], mine)


def is_foreign(rule: Rule) -> bool:
    """Return True for code that isn't ours: it may fail halfway, and what it does may not be compiled away."""
    return type(rule).__module__.partition(".")[0] != __name__.partition(".")[0] or isinstance(rule, Function)


def edit_one(rule: Rule, p: Parameter, operands: tuple[Array, ...], shared: Any) -> None:
    """Edit one parameter by the quickest way: in place on the host where its memory can be seen, else by its ops."""
    native = p.native(tensor=isinstance(rule, Function))
    if isinstance(native, np.ndarray) and native.flags.writeable:
        w = p.layout.to_neutral(native)
        if rule.on_host(w, p):
            p.commit(native, native)
            return
    if rule.random:
        operands = rule.operands(p)
    ops = ops_for(native)
    w = to_neutral(ops, native, p.layout)
    if shared is not None and not isinstance(native, np.ndarray):
        shared = ops.constant(shared, native)
    new = rule(w, ops, p, *[ops.constant(one, native) for one in operands], shared=shared)
    p.commit(native, native if new is w else to_stored(ops, new, p.layout))
