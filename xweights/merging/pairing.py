"""Pair the parameters of the targets.

The result has the first target's names. No value is read here: everything that follows from names, shapes, axes and
dtypes is checked before the first value is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xweights.core.layout import LayoutName
from xweights.core.names import renamer, suggest_names
from xweights.core.parameter import Parameter
from xweights.core.selection import Everything, WhereLike, select, to_where
from xweights.edit.load_report import Adapted
from xweights.errors import LayoutError, Problems, SelectionError, XweightsError, near
from xweights.merging.adapting import MergeAdapters
from xweights.merging.alignment import check_fit
from xweights.merging.groups import Group, Member, is_counter
from xweights.merging.inputs import MergeInput
from xweights.merging.ties import layout_as

# Number of names of one kind that an error lists before it counts the rest.
SHOWN = 5


def group_parameters(
    inputs: Sequence[MergeInput],
    count: int,
    where: WhereLike,
    layout: LayoutName | None,
    cast: bool,
    problems: Problems,
    adapt: Any = None,
) -> tuple[list[Group], Mapping[str, Mapping[str, Adapted]]]:
    """Return a group for each selected parameter of the first target; the first ``count`` inputs are targets.

    With them, what was adapted.
    """
    first, others = inputs[0], inputs[1:]
    try:
        chosen = select(first.parameters, where)
    except SelectionError as wrong:
        problems.add(SelectionError, f"{first.label}: {wrong}")
        return [], {}
    adapters = MergeAdapters(adapt, inputs, chosen, problems)
    first.matched = {id(p) for p in chosen}
    groups: list[Group] = []
    into: dict[int, str] = {}
    key_names = next((merge_input.names for merge_input in others if merge_input.names is not None), None)
    for p in chosen:
        group = Group(p, renamer(key_names)(p.name), [Member(p, p.layout)])
        for i, merge_input in enumerate(others, 1):
            try:
                match = merge_input.find(p)
            except SelectionError as wrong:
                problems.add(SelectionError, f"{merge_input.label}: {wrong}")
                continue
            # Then the first target's own values stand for it, which no method changes if all targets have them.
            is_left = adapters.leaves(merge_input, p)
            match = p if is_left else match
            if match is None:
                if not is_counter(p):
                    merge_input.missing.append(p)
                continue
            try:
                own = layout_as(match, p, tied=merge_input.is_tied_to(p, match))
                member = Member(p, p.layout) if is_left else adapters.member(merge_input, p, match, own, layout)
            except XweightsError as wrong:
                problems.add(type(wrong), f"{merge_input.label}: {wrong}")
                continue
            if i < count:
                group.members.append(member)
            elif merge_input.label == "into":
                group.into = match
                _refuse_second(group, into, problems)
            else:
                group.base = member
        groups.append(group)
    for merge_input in others:
        known_names = [parameter.name for parameter in merge_input.parameters]
        _suggest_names(merge_input, problems)
        for p in merge_input.missing[:SHOWN]:
            text = f"{merge_input.label} has no {p.name!r}\n{near(p.name, known_names)}"
            problems.add(SelectionError, text, fix=_suggest_tie(p, merge_input))
        if len(merge_input.missing) > SHOWN:
            problems.add(SelectionError, f"{merge_input.label} hasn't {len(merge_input.missing) - SHOWN} more, either")
    _refuse_unmatched(first, others, where, problems)
    unknown: dict[str, list[str]] = {}
    for group in groups:
        check_fit(group, count, layout, cast, unknown, problems)
    for label, names in unknown.items():
        more = f" and of {len(names) - 1} more" * (len(names) > 1)
        problems.add(
            LayoutError,
            f"{label} doesn't know the axes of {names[0]!r}{more}, and another target does",
            fix='layout="neutral" if they are in neutral order, layout="native" if they are stored as the model that '
            "knows stores its own",
        )
    return groups, adapters.done


def _refuse_second(group: Group, written: dict[int, str], problems: Problems) -> None:
    """Refuse to write two parameters of the result to one tied parameter of ``into``."""
    assert group.into is not None
    name = written.setdefault(id(group.into), group.first.name)
    if name != group.first.name:
        text = f"{name!r} and {group.first.name!r} are two arrays of the result and one tied one of into"
        problems.add(SelectionError, text, fix="merge without into=, or into a model that doesn't tie them")


def _suggest_names(merge_input: MergeInput, problems: Problems) -> None:
    """Add the ``names=`` line where the names that are missing nearly agree with those that are left."""
    left = {p.name: p.shape for p in merge_input.parameters if id(p) not in merge_input.matched and not is_counter(p)}
    suggested = suggest_names({p.name: p.shape for p in merge_input.missing}, left)
    if suggested is not None:
        problems.add_fix(f"names={suggested}, if {merge_input.label} has the same layers under other names")


def _suggest_tie(p: Parameter, merge_input: MergeInput) -> str | None:
    """Return how to say that a parameter is tied in a target that doesn't know its name, if that may be."""
    alike = [q for q in merge_input.parameters if q.layout.stored == p.layout.stored and len(p.shape) > 1]
    if len(alike) != 1 or p.name == alike[0].name:
        return None
    return f"names={{{p.name!r}: {alike[0].name!r}}} if it is tied to that there, as a head is to its embedding"


def _refuse_unmatched(first: MergeInput, others: Sequence[MergeInput], where: WhereLike, problems: Problems) -> None:
    """Refuse parameters of other targets that the first doesn't have: they would be lost, or not written."""
    for merge_input in others:
        if isinstance(to_where(where), Everything):
            expected = [p for p in merge_input.parameters if not p.hidden]
        elif merge_input.names is None:
            picked = to_where(where).picks(merge_input.parameters)
            expected = [p for p in merge_input.parameters if id(p) in picked]
        else:
            continue
        lost = [p for p in expected if id(p) not in merge_input.matched and not is_counter(p)]
        unmatched = [p.name for p in lost]
        tie = _suggest_tie(lost[0], first) if len(lost) == 1 else None
        if unmatched:
            more = f" and {len(unmatched) - SHOWN} more" * (len(unmatched) > SHOWN)
            problems.add(
                SelectionError,
                f"{merge_input.label} has {', '.join(map(repr, unmatched[:SHOWN]))}{more}, and target 0 hasn't",
                fix="narrow where= to what all have, or map names with names="
                if tie is None
                else f"put {merge_input.label} first, with {tie}",
            )
