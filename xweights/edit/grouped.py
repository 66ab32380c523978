"""Edit many parameters in one call of their storage, where rule and selection allow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.plan import Group, Selection, group_key
from xweights.core.protocols import GroupStorage, Ops
from xweights.edit.execute import execute, prepare
from xweights.edit.guards import alone, copy_aliased, defer_interrupts, keys_of, keys_of_selection
from xweights.errors import Problems, WriteError, XweightsError, got_expected
from xweights.rules.base import Rule, is_foreign


def edit_groups(rule: Rule, selection: Selection, call: str) -> bool:
    """Edit the selected parameters; return False, with nothing done, if they have to be edited one after the other.

    So has an edit in which anything is wrong: only a check of one parameter after the other finds all of it.
    """
    if not rule.elementwise or rule.random or rule.joint or is_foreign(rule):
        return False
    choice = selection.choice
    if not choice.groups:
        return False
    singles = [selection.parameters[position] for position in choice.singles]
    if singles and not rule.by_dtype:
        return False
    try:
        operands = _find_operands(rule, selection)
        prepared = prepare(rule, singles, call) if singles else []
    except XweightsError:
        return False
    if operands is None:
        return False
    apply_to_groups(rule, selection, operands, lambda: execute(rule, singles, prepared) if singles else None)
    return True


def apply_to_groups(
    rule: Rule,
    selection: Selection,
    operands: Sequence[Sequence[Any]],
    before: Callable[[], None] = lambda: None,
) -> None:
    """Edit the groups of a selection with operands that are checked: for each group numbers, or lists of arrays.

    ``before`` edits what is in no group. It may fail, and undoes itself then; the groups can't.
    """
    choice = selection.choice
    with alone(keys_of_selection(selection)), defer_interrupts(), np.errstate(all="ignore"):
        before()
        for group, values in zip(choice.groups, operands, strict=True):
            edit = edit_of(rule, choice.likes[group.positions[0]])
            group.storage.apply_group(edit, selection.handles(group.positions), values)


def edit_of(rule: Rule, like: Parameter) -> Callable[..., Any]:
    """Return an elementwise rule as a function of arrays, ops and operands."""

    def edit(ws: Any, ops: Ops, *operands: Any) -> Any:
        return rule(ws, ops, like, *operands)

    return edit


def _find_operands(rule: Rule, selection: Selection) -> list[Sequence[Any]] | None:
    """Return the operands of each group: numbers for all, or lists of arrays in stored order; None for other shapes."""
    choice = selection.choice
    if rule.by_dtype:
        first = [choice.likes[group.positions[0]] for group in choice.groups]
        for like in first:
            rule.check(like)
        return [rule.operands(like) for like in first]
    named = rule.operand_by_name
    if named is not None:
        from xweights.edit.one_to_one import fit_operands

        arrays = fit_operands(*named, selection)
        if arrays is not None:
            return [[[arrays[position] for position in group.positions]] for group in choice.groups]
    parameters: Sequence[Parameter] = selection.parameters if rule.reads_weights else choice.likes
    each: list[tuple[Array, ...]] = []
    for p in parameters:
        rule.check(p)
        each.append(rule.operands(p))
    for p, values in zip(parameters, each, strict=True):
        if any(value.shape and value.shape != p.layout.shape for value in values):
            return None
    if any(value.dtype != np.bool_ for value in each[0]):
        each = copy_aliased(selection.parameters, each)
    return [in_stored_order(group, parameters, each) for group in choice.groups]


def in_stored_order(
    group: Group, parameters: Sequence[Parameter], operands: Sequence[tuple[Array, ...]]
) -> list[list[Array]]:
    """Return a list for each operand of the parameters in a group, of its arrays in stored order."""
    layouts = [parameters[position].layout for position in group.positions]
    each = zip(*[operands[position] for position in group.positions], strict=True)
    return [
        [
            value if layout.is_identity or not value.shape else layout.to_stored(value)
            for layout, value in zip(layouts, values, strict=True)
        ]
        for values in each
    ]


def keep_views(storage: GroupStorage, handles: Sequence[Any]) -> list[Array] | None:
    """Return views of arrays that are edited again and again, None where an edit gives them other memory."""
    return None if storage.replaces else storage.read_group(handles)


class BoundGroups:
    """The parameters of a bound rule, in groups, with everything looked up: what eager code runs.

    Each call makes sure that the arrays are still what they were when the rule was bound.
    """

    def __init__(
        self, rule: Rule, chosen: Sequence[Parameter], groups: Sequence[Group], operands: Sequence[Any]
    ) -> None:
        self._chosen = chosen
        self._groups = groups
        self._edits = [edit_of(rule, chosen[group.positions[0]]) for group in groups]
        self._operands = operands
        self._handles = [[chosen[position].handle for position in group.positions] for group in groups]
        self._remember()

    def _remember(self) -> None:
        self._states = self._read_states()
        self._views = [keep_views(group.storage, own) for group, own in zip(self._groups, self._handles, strict=True)]
        self._keys = keys_of(self._chosen)

    def _read_states(self) -> list[list[Any]]:
        return [group.storage.group_state(handles) for group, handles in zip(self._groups, self._handles, strict=True)]

    def __call__(self) -> None:
        """Edit the parameters now; raise WriteError, with nothing done, if one was replaced or has become another."""
        states = self._read_states()
        if states != self._states:
            self._check(states)
            self._remember()
        with alone(self._keys), defer_interrupts(), np.errstate(all="ignore"):
            for group, edit, handles, values, views in zip(
                self._groups, self._edits, self._handles, self._operands, self._views, strict=True
            ):
                group.storage.apply_group(edit, handles, values, views)

    def _check(self, states: list[list[Any]]) -> None:
        problems = Problems("what was bound can't be done any more, and nothing was changed")
        for group, state in zip(self._groups, states, strict=True):
            for position, now in zip(group.positions, state, strict=True):
                p = self._chosen[position]
                if now is None:
                    problems.add(WriteError, f"{p.name!r} was replaced since it was bound", fix="bind again")
                    continue
                reason = p.refusal(writing=True)
                if reason is not None:
                    problems.add(WriteError, f"{p.name!r} can't be written: {reason}")
                    continue
                array = p.read()
                if group_key(p) is None or array.dtype != p.dtype or array.shape != p.layout.stored:
                    was, got = (p.dtype.name, p.layout.stored), (array.dtype.name, array.shape)
                    text = f"{p.name!r} isn't what it was when it was bound\n{got_expected(got, was)}"
                    problems.add(WriteError, text, fix="bind again")
        problems.check()


def bind_groups(rule: Rule, chosen: Sequence[Parameter], prepared: Sequence[tuple[Array, ...]]) -> BoundGroups | None:
    """Return a bound rule's parameters in groups; None if some of them have to be edited one after the other."""
    if not rule.elementwise or rule.random or rule.joint or is_foreign(rule):
        return None
    choice = Selection(list(chosen)).choice
    if choice.singles:
        return None
    for p, values in zip(chosen, prepared, strict=True):
        if any(value.shape and value.shape != p.layout.shape for value in values):
            return None
    if rule.by_dtype:
        return BoundGroups(rule, chosen, choice.groups, [prepared[group.positions[0]] for group in choice.groups])
    # Copies, since the caller's arrays may change later; in stored order, so that nothing is transposed at each call.
    operands = [
        [[np.array(value, order="C") for value in values] for values in in_stored_order(group, chosen, prepared)]
        for group in choice.groups
    ]
    return BoundGroups(rule, chosen, choice.groups, operands)
