"""Which parameters of the targets belong together, and what doesn't fit.

Owns :class:`Group` and :func:`grouped`. Imports axes, errors, naming, parameter, params, renaming, selecting
and targets.

The first target's names are those of the result. Nothing is read here: what can be told from names, shapes, axes and
dtypes is collected before the first value is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xweights.axes import Layout, reorder
from xweights.errors import (
    ArgumentError,
    DtypeError,
    LayoutError,
    Problems,
    SelectionError,
    ShapeError,
    WriteError,
    XweightsError,
    got_expected,
    near,
)
from xweights.naming import NameIndex, named
from xweights.parameter import COUNTERS, Array, Parameter
from xweights.params import LayoutName
from xweights.renaming import Names, renamer
from xweights.selecting import Everything, WhereLike, select, to_where
from xweights.targets import open_target


@dataclass
class Member:
    """One target's share in a group.

    Attributes:
        parameter: What it has.
        layout: How its stored array becomes neutral: its own, or, for unknown axes, that of one that knows them.
        others: Parameters that have to be equal to it, because the first target has them tied.
    """

    parameter: Parameter
    layout: Layout
    others: list[Parameter] = field(default_factory=list)

    def neutral(self, group: Group) -> Array:
        """Return a look at the values, in the order of the group's axes."""
        return self.turned(self.parameter, group)

    def turned(self, p: Parameter, group: Group) -> Array:
        """Return a look at the values of a parameter that lies as this one does."""
        array = self.layout.to_neutral(p.storage.read(p.handle))
        axes = self.layout.axes
        if axes is None or group.axes is None or axes == group.axes:
            return array
        return reorder(array, axes, group.axes, what=repr(p.name))


@dataclass
class Group:
    """One parameter of the result, and who has it.

    Attributes:
        first: The first target's, which names the result.
        members: One for each target.
        base: The base's, if there is a base.
        into: The parameter of ``into=`` that is written.
        key: What its randomness is keyed by.
        dtype: The dtype of the result.
        axes: The axes of the result.
    """

    first: Parameter
    key: str
    members: list[Member] = field(default_factory=list)
    base: Member | None = None
    into: Parameter | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        found = self.first.dtype if self.into is None else self.into.dtype
        return found.newbyteorder("=") if found.byteorder in "<>" else found

    @property
    def axes(self) -> tuple[str, ...] | None:
        return self.members[0].layout.axes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.members[0].layout.shape

    @property
    def everybody(self) -> list[Member]:
        return self.members if self.base is None else [*self.members, self.base]


@dataclass
class Side:
    """A target, what it is called in errors, and how its names follow from the first target's."""

    called: str
    target: Any
    names: Names | None = None
    everything: list[Parameter] = field(default_factory=list)
    index: NameIndex = field(init=False)
    met: set[int] = field(default_factory=set)

    def open(self, problems: Problems) -> None:
        try:
            self.everything = open_target(self.target)
        except XweightsError as wrong:
            problems.add(type(wrong), f"{self.called}: {wrong}")
        self.index = NameIndex(self.everything)

    def find(self, first: Parameter) -> list[Parameter]:
        """Return what this side has under the names of a parameter of the first target; one, but for ties."""
        rename = renamer(self.names)
        found: dict[int, Parameter] = {}
        for name in (first.name, *first.aliases):
            for p in named(rename(name), self.index):
                found[id(p)] = p
        if not found:
            # A state dict has the framework's own names, and so has many a file.
            own = self.index.neutral.get(first.native_name) or self.index.native.get(first.native_name) or []
            found = {id(p): p for p in own[:1] if len(own) == 1}
        self.met |= found.keys()
        return list(found.values())


def sides_of(targets: Sequence[Any], base: Any, into: Any, names: Any) -> list[Side]:
    """Return the targets as sides, then the base and ``into`` where given; each with its share of ``names``."""
    sides = [Side(f"target {i}", one) for i, one in enumerate(targets)]
    sides += [Side("the base", base)] if base is not None else []
    sides += [Side("into", into)] if into is not None else []
    if isinstance(names, (list, tuple)):
        if len(names) != len(sides) - 1:
            raise ArgumentError(
                "a list of names= has a mapping (or None) for each target but the first, then for the base, then for "
                f"into\n{got_expected(len(names), len(sides) - 1)}"
            )
        for side, one in zip(sides[1:], names, strict=True):
            side.names = one
    elif names is not None and not isinstance(names, Mapping):
        raise ArgumentError(f"names= is a mapping, or a list of these\ngot: {names!r}")
    else:
        for side in sides[1:]:
            side.names = names
    for side in sides:
        renamer(side.names)
    return sides


def settle_names(sides: Sequence[Side], problems: Problems) -> None:
    """Let each side that has the first target's own names go by them, whatever one mapping for all sides says.

    A mapping that would pair it as well, and otherwise, can't be for it and for the others at once: that is refused.
    """
    first = sides[0].everything
    for side in sides[1:]:
        if side.names is None:
            continue
        rename = renamer(side.names)
        plain = [p for p in first if p.name in side.index.neutral]
        if len(plain) < len(first):
            continue
        other = [p for p in first if rename(p.name) in side.index.neutral]
        if all(rename(p.name) == p.name for p in first):
            continue
        if len(other) == len(first):
            problems.add(
                SelectionError,
                f"{side.called} has every name of target 0, and every name that names= makes of them",
                fix="give names= as a list: a mapping, or None, for each target but the first, then base, then into",
            )
        side.names = None


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
        _fit(group, count, layout, cast, problems)
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


def _fit(group: Group, count: int, layout: LayoutName | None, cast: bool, problems: Problems) -> None:
    p = group.first
    everybody = [(f"target {i}", member) for i, member in enumerate(group.members)]
    if len(group.members) < count and p.role not in COUNTERS:
        return  # said already
    if group.base is not None:
        everybody.append(("the base", group.base))
    for called, member in everybody:
        for one in (member.parameter, *member.others):
            reason = one.storage.refusal(one.handle, writing=False)
            if reason is not None:
                problems.add(WriteError, f"{called}: {one.name!r} can't be read: {reason}")
    try:
        _settle_layouts(group, everybody, layout)
    except LayoutError as wrong:
        problems.add(LayoutError, str(wrong))
        return
    for called, member in everybody[1:]:
        _fit_one(group, called, member, cast, problems)
    if group.into is not None and group.into.dtype != p.dtype and not cast:
        _unlike(f"{p.name!r} of into", group.into.dtype, p.dtype, problems)
    if group.into is not None and p.gates and group.into.gates and p.gates != group.into.gates:
        _other_gates(p, "into", group.into, problems)


def _fit_one(group: Group, called: str, member: Member, cast: bool, problems: Problems) -> None:
    p, q = group.first, member.parameter
    if p.gates is not None and q.gates is not None and p.gates != q.gates:
        _other_gates(p, called, q, problems)
        return
    axes, shape = member.layout.axes, member.layout.shape
    if axes is not None and group.axes is not None and axes != group.axes:
        try:  # on an array without memory: only the shape is wanted
            shape = reorder(np.broadcast_to(np.int8(0), shape), axes, group.axes, what=f"{called}: {q.name!r}").shape
        except LayoutError as wrong:
            problems.add(LayoutError, str(wrong))
            return
    if shape != group.shape:
        named_axes = "" if group.axes is None else f" ({', '.join(group.axes)})"
        problems.add(ShapeError, f"{p.name!r}{named_axes} of {called}\n{got_expected(shape, group.shape)}")
    if p.floating != q.floating or (q.dtype.newbyteorder("=") != p.dtype.newbyteorder("=") and not cast):
        _unlike(f"{p.name!r} of {called}", q.dtype, p.dtype, problems)


def _unlike(what: str, got: np.dtype[Any], expected: np.dtype[Any], problems: Problems) -> None:
    fix = "cast=True rounds the result once to the dtype of into=, or else of target 0"
    problems.add(DtypeError, f"{what} has another dtype\n{got_expected(got.name, expected.name)}", fix=fix)


def _other_gates(p: Parameter, called: str, q: Parameter, problems: Problems) -> None:
    problems.add(
        LayoutError,
        f"{p.name!r} of {called} packs its gates in another order\n"
        f"{got_expected(', '.join(q.gates or ()), ', '.join(p.gates or ()))}",
        fix="port one model into a twin of the other framework first: port knows the recipes of both layers",
    )


def _settle_layouts(group: Group, everybody: Sequence[tuple[str, Member]], layout: LayoutName | None) -> None:
    """Settle how arrays of unknown axes lie, beside those that know theirs."""
    knowing = [member.layout for _, member in everybody if member.layout.axes is not None]
    if group.into is not None and group.into.axes is not None:
        knowing.append(group.into.layout)
    if not knowing:
        return
    into = group.into
    if into is not None and into.axes is None and len(into.shape) > 1 and layout != "neutral":
        known_axes = ", ".join(knowing[0].axes or ())
        raise LayoutError(
            f"{group.first.name!r} of into doesn't know its axes, and a target does: ({known_axes})\n"
            'Fix: layout="neutral" if it is in that order'
        )
    for called, member in everybody:
        if member.layout.axes is not None:
            continue
        have = member.layout
        settled = len(have.shape) < 2 or layout == "neutral"
        if settled:
            known = next((one for one in knowing if one.shape == have.shape), None)
            if known is not None:
                member.layout = Layout(have.stored, have.split, have.order, known.axes, known.outputs)
            continue
        if layout is None:
            raise LayoutError(
                f"{group.first.name!r} of {called} doesn't know its axes, and another target does: "
                f"({', '.join(knowing[0].axes or ())})\n"
                'Fix: layout="neutral" if it is in that order, layout="native" if it is stored as the model that '
                "knows stores its own"
            )
        if any(one.stored != knowing[0].stored or one.order != knowing[0].order for one in knowing):
            raise LayoutError(
                f'{group.first.name!r} of {called} can\'t be in "native" order: those that know their axes store them '
                "in different orders\nFix: load it into its own model first, and merge that"
            )
        if have.stored != knowing[0].stored:
            raise LayoutError(
                f"{group.first.name!r} of {called} (native order)\n{got_expected(have.stored, knowing[0].stored)}"
            )
        member.layout = knowing[0]
