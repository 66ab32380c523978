"""Which parameters of the targets belong together.

The first target's names are those of the result. Nothing is read here: what can be told from names, shapes, axes and
dtypes is collected before the first value is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from xweights.core.params import LayoutName
from xweights.core.renaming import renamer
from xweights.core.selection import Everything, WhereLike, select, to_where
from xweights.errors import LayoutError, Problems, SelectionError, near
from xweights.merging.alignment import fit
from xweights.merging.groups import Group, Member, is_counter
from xweights.merging.inputs import MergeInput

# Names of one kind that an error lists before it counts the rest.
SHOWN = 5


def grouped(
    sides: Sequence[MergeInput], count: int, where: WhereLike, layout: LayoutName | None, cast: bool, problems: Problems
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
                if not is_counter(p):
                    side.missing.append(p.name)
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
    for side in others:
        known = [one.name for one in side.everything]
        for name in side.missing[:SHOWN]:
            problems.add(SelectionError, f"{side.called} has no {name!r}\n{near(name, known)}")
        if len(side.missing) > SHOWN:
            problems.add(SelectionError, f"{side.called} hasn't {len(side.missing) - SHOWN} more, either")
    _strangers(others, where, problems)
    unknown: dict[str, list[str]] = {}
    for group in groups:
        fit(group, count, layout, cast, unknown, problems)
    for called, names in unknown.items():
        more = f" and of {len(names) - 1} more" * (len(names) > 1)
        problems.add(
            LayoutError,
            f"{called} doesn't know the axes of {names[0]!r}{more}, and another target does",
            fix='layout="neutral" if they are in neutral order, layout="native" if they are stored as the model that '
            "knows stores its own",
        )
    return groups


def _strangers(others: Sequence[MergeInput], where: WhereLike, problems: Problems) -> None:
    """Refuse what other targets have and the first hasn't: it would be lost, or not written."""
    for side in others:
        if isinstance(to_where(where), Everything):
            meant = [p for p in side.everything if not p.hidden]
        elif side.names is None:
            picked = to_where(where).picks(side.everything)
            meant = [p for p in side.everything if id(p) in picked]
        else:
            continue
        strange = [p.name for p in meant if id(p) not in side.met and not is_counter(p)]
        if strange:
            more = f" and {len(strange) - SHOWN} more" * (len(strange) > SHOWN)
            problems.add(
                SelectionError,
                f"{side.called} has {', '.join(map(repr, strange[:SHOWN]))}{more}, and target 0 hasn't",
                fix="narrow where= to what all have, or map names with names=",
            )
