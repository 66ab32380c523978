"""Apply a rule to the selected parameters now."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from xweights.core import hold_registry
from xweights.core.selection import WhereLike
from xweights.core.targets import open_for_editing
from xweights.edit.execute import as_rule, execute, prepare
from xweights.edit.grouped import edit_groups
from xweights.errors import UseBindError
from xweights.rules.base import Rule, where_of


def apply(target: Any, rule: Rule | Callable[[Any], Any], *, where: WhereLike) -> None:
    """Apply a rule, or a function of the native tensor, to the selected parameters in place.

    A function gets each tensor of the target's framework in neutral axis order, with no gradient recorded, and returns
    the new one. If it raises, or returns another shape or dtype, everything is as it was before.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        rule: A rule such as ``Clip(-1, 1)``, or a function.
        where: Which parameters; required.

    Raises:
        SelectionError: ``where`` selects nothing.
        WriteError: a selected parameter can't be written.
        XweightsError: whatever the rule refuses; all of it at once.

    Exactness: the rule's.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.Clip(-1, 1), where="w"); w["w"]
        array([-1. ,  0.5])
    """
    edit(target, as_rule(rule), where, "apply")


def run(target: Any, rule: Rule, *, where: WhereLike | None, call: str) -> None:
    """Edit where the caller says, or by the rule's default: the body of every editing verb."""
    edit(target, rule, where_of(rule, where, call), call)


def edit(target: Any, rule: Rule, where: WhereLike, call: str) -> None:
    """Select, check everything, then edit."""
    line = partial(bind_line, rule, where)
    opened = open_for_editing(target, bind_line=line)
    if opened.plan.is_shared:
        from xweights.edit.shards import edit_shards

        edit_shards(rule, opened.parameters, where, call)
        return
    selection = opened.plan.select(where)
    is_free = not opened.tracing and not hold_registry.are_held(selection)
    if is_free and edit_groups(rule, selection, call):
        return
    chosen = selection.parameters
    hold_registry.check(chosen)
    if opened.tracing:
        if rule.random:
            raise UseBindError(
                f"{call} draws on the host, so a compiled step would repeat the numbers of its tracing for ever\n"
                f"Fix: outside of the step:\n    {line()}\n"
                "    ... before each step: bound.draw(step)    ... in the step: bound()"
            )
        from xweights.edit.bind import Bound

        Bound(rule, chosen, prepare(rule, chosen, call))()
    elif not edit_groups(rule, selection, call):
        execute(rule, chosen, prepare(rule, chosen, call))
    hold_registry.reapply(chosen)


def bind_line(rule: Rule, where: WhereLike) -> str:
    """Return the source of the `bind` call that corresponds to a verb."""
    return f"bound = xweights.bind(model, {rule!r}, where={'...' if where is ... else repr(where)})"
