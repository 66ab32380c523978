"""Stream a file of weights into a target whose plan is kept: the plain case of `set_params` from a file.

Each name in the file is that of one parameter, and each array is stored as its parameter is. Whatever isn't plain is
left to `set_params` itself, which finds out what is meant, or what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xweights.core import hold_registry
from xweights.core.blocks import any_overlap
from xweights.core.dtypes import Array
from xweights.core.layout import Layout, LayoutName
from xweights.core.openers import HasParts
from xweights.core.parameter import Parameter
from xweights.core.plan import Outline, Plan, Selection
from xweights.core.protocols import MemoryStorage
from xweights.core.selection import WhereLike
from xweights.edit.guards import alone, defer_interrupts, enter_guards, keys_of_selection
from xweights.edit.load_report import LoadReport
from xweights.edit.stream import fill_together, find_finite, is_plain, threads_for, visible_memory


def stream_plainly(
    plan: Plan, file: HasParts, where: WhereLike, layout: LayoutName | None, *, allow_nonfinite: bool
) -> LoadReport | None:
    """Read the arrays of a file that fit the selected parameters one to one; return None, with nothing done, else."""
    if plan.outline is None or file.part is not None:
        return None
    parts = file.__xweights_parts__()
    if len(parts) != 1 or parts[0].kind != "weights" or parts[0].name:
        return None
    by_name = _find_by_name(parts[0].arrays, plan.outline)
    if by_name is None:
        return None
    selection = plan.select(where)
    if hold_registry.are_held(selection):
        return None
    values = _fit_all(by_name, selection.choice.likes, layout)
    homes = None if values is None else _find_homes(selection)
    if values is None or homes is None:
        return None
    threads = threads_for(sum(home.nbytes for home in homes))
    if not allow_nonfinite and len(find_finite(values, threads)) < len(values):
        return None
    with alone(keys_of_selection(selection)), defer_interrupts():
        _fill(selection, values, homes, threads)
    named_natively = by_name.native
    taken = {p.name: (p.native_name if named_natively else p.name,) for p in selection.choice.likes}
    return LoadReport(repr(file.path), taken=taken)


class _ByName(NamedTuple):
    """The values of a file by the names of their parameters, neutral ones or the framework's own."""

    values: Mapping[str, Parameter]
    native: bool


def _find_by_name(arrays: Mapping[str, Parameter], outline: Outline) -> _ByName | None:
    """Return the values by name if they are those of all parameters, each under one name; None if not."""
    values = list(arrays.values())
    if "names" not in outline.notes:
        saved = [p for p in outline.likes if not p.hidden]
        plain = not any(p.aliases or p.native_aliases for p in saved)
        outline.notes["names"] = ({p.name for p in saved}, {p.native_name for p in saved}) if plain else None
    if outline.notes["names"] is None or any(value.aliases or value.native_aliases for value in values):
        return None
    neutral, native = outline.notes["names"]
    by_neutral, by_native = {value.name: value for value in values}, {value.native_name: value for value in values}
    if by_neutral.keys() != by_native.keys():
        # Where a file knows neutral names, they go between frameworks.
        return _ByName(by_neutral, native=False) if by_neutral.keys() == neutral else None
    is_state = by_native.keys() == native and outline.saves_by_name()
    return _ByName(by_native, native=True) if is_state else None


def _fit_all(by_name: _ByName, likes: Sequence[Parameter], layout: LayoutName | None) -> list[Parameter] | None:
    """Return the values in the order of the parameters; None if one of them isn't as it should be."""
    names = [p.native_name if by_name.native else p.name for p in likes]
    if not by_name.values.keys() >= set(names):  # a hidden one, which no file has
        return None
    values = [by_name.values[name] for name in names]
    if [value.dtype for value in values] != [p.dtype for p in likes] or not all(map(is_plain, values)):
        return None
    if any(v.gates != p.gates and None not in (v.gates, p.gates) for v, p in zip(values, likes, strict=True)):
        return None
    # Most arrays share their layout with others.
    layouts = {(id(v.layout), id(p.layout)): (v.layout, p.layout) for v, p in zip(values, likes, strict=True)}
    return values if all(_is_stored_alike(theirs, own, layout) for theirs, own in layouts.values()) else None


def _is_stored_alike(theirs: Layout, own: Layout, order: LayoutName | None) -> bool:
    """Return whether an array in the file lies there as its parameter does in memory."""
    if theirs.axes is not None:
        return theirs == own
    # Only ``layout=`` tells the order of such a value.
    return theirs.is_identity and theirs.stored == own.stored and (order == "native" or own.is_identity)


def _find_homes(selection: Selection) -> list[Array] | None:
    """Return the memory of the parameters; None if a file can't be read straight into all of it."""
    choice = selection.choice
    homes: list[Any] = [None] * len(choice.likes)
    for group in choice.groups:
        if not isinstance(group.storage, MemoryStorage):
            return None
        for position, view in zip(
            group.positions, group.storage.read_group(selection.handles(group.positions)), strict=True
        ):
            homes[position] = view
    for position in choice.singles:
        p = selection.parameters[position]
        if not p.storage.fallible and isinstance(p.storage, MemoryStorage) and p.refusal(writing=True) is None:
            homes[position] = visible_memory(p)
    if any(home is None for home in homes):
        return None
    if "apart" not in choice.notes:  # a choice is kept while addresses, shapes and strides are the same
        choice.notes["apart"] = all(home.flags.carray for home in homes) and not any_overlap(homes)
    return homes if choice.notes["apart"] else None


def _fill(selection: Selection, values: Sequence[Parameter], homes: Sequence[Array], threads: int) -> None:
    """Read the values into the memory of the parameters."""
    choice = selection.choice
    singles = [(selection.parameters[position], homes[position]) for position in choice.singles]
    with enter_guards([p for p, _ in singles]):
        try:
            fill_together(values, homes, threads)
        finally:  # what has been written counts, even where the file couldn't be read to its end
            for group in choice.groups:
                views = [homes[position] for position in group.positions]
                group.storage.apply_group(_leave_as_it_is, selection.handles(group.positions), (), views)
            for p, memory in singles:
                p.commit(memory, memory)


def _leave_as_it_is(arrays: Any, ops: Any) -> Any:
    """Return what has been edited in place already."""
    return arrays
