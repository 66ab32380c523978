"""Which parameters of the targets belong together.

Owns :func:`grouped`. Imports errors, fitting, groups, parameter, params, renaming, selecting and sides.

The first target's names are those of the result. Nothing is read here: what can be told from names, shapes, axes and
dtypes is collected before the first value is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from xweights.errors import Problems, SelectionError, near
from xweights.merging.fitting import fit
from xweights.merging.groups import Group, Member
from xweights.merging.sides import Side
from xweights.parameter import COUNTERS
from xweights.params import LayoutName
from xweights.renaming import renamer
from xweights.selecting import Everything, WhereLike, select, to_where


def grouped(
    sides: Sequence[Side], count: int, where: WhereLike, layout: LayoutName | None, cast: bool, problems: Problems
) -> list[Group]:
    """Return a group for each selected parameter of the first target; ``count`` of the sides are targets."""
    first, others = sides[0], sides[1:]
    try:
        chosen = select(first.everything, where)
    except SelectionError as wrong:
        problems.add(SelectionError, f"{first.called}: {wrong}")
        return []
    first.met = {id(p) for p in chosen}
    groups = []
    keyed = next((side.names for side in others if side.names is not None), None)
    for p in chosen:
        group = Group(p, renamer(keyed)(p.name), [Member(p, p.layout)])
        for i, side in enumerate(others, 1):
            try:
                found = side.find(p)
            except SelectionError as wrong:
                problems.add(SelectionError, f"{side.called}: {wrong}")
                continue
            if not found:
                if p.role not in COUNTERS:
                    known = [one.name for one in side.everything]
                    problems.add(SelectionError, f"{side.called} has no {p.name!r}\n{near(p.name, known)}")
                continue
            member = Member(found[0], found[0].layout, found[1:])
            if i < count:
                group.members.append(member)
            elif side.called == "into":
                group.into = found[0]
                if found[1:]:
                    text = f"{p.name!r} is one tied parameter of target 0 and {len(found)} of into"
                    problems.add(SelectionError, text, fix="put the other target first")
            else:
                group.base = member
        groups.append(group)
    _strangers(others, where, problems)
    for group in groups:
        fit(group, count, layout, cast, problems)
    return groups


def _strangers(others: Sequence[Side], where: WhereLike, problems: Problems) -> None:
    """Refuse what other targets have and the first hasn't: it would be lost, or not written."""
    for side in others:
        if isinstance(to_where(where), Everything):
            meant = [p for p in side.everything if not p.hidden]
        elif side.names is None:
            meant = [p for p in side.everything if id(p) in _picked(side, where)]
        else:
            continue
        for p in meant:
            if id(p) not in side.met and p.role not in COUNTERS:
                problems.add(
                    SelectionError,
                    f"{side.called} has {p.name!r}, and target 0 hasn't",
                    fix="narrow where= to what all have, or map names with names=",
                )


def _picked(side: Side, where: WhereLike) -> set[int]:
    return to_where(where).picks(side.everything)
