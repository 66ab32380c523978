"""Check that the members of a group fit together: axes, shapes, dtypes, gates.

No value is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xweights.core.layout import Layout, LayoutName, reorder
from xweights.core.parameter import Parameter
from xweights.core.readings import words_of
from xweights.edit.adapt.base import Wanted
from xweights.edit.adapt.suggest import suggest
from xweights.errors import DtypeError, LayoutError, Problems, ShapeError, WriteError, got_expected
from xweights.files.io.records import Record
from xweights.merging.groups import Group, Member, is_counter


def check_fit(
    group: Group, count: int, layout: LayoutName | None, cast: bool, unknown: dict[str, list[str]], problems: Problems
) -> None:
    """Note everything that doesn't fit, and settle the layout of arrays of unknown axes, or add them to ``unknown``."""
    p = group.first
    members = [(f"target {i}", member) for i, member in enumerate(group.members)]
    if len(group.members) < count and not is_counter(p):
        return  # noted already
    if group.base is not None:
        members.append(("the base", group.base))
    for label, member in members:
        reason = member.parameter.refusal(writing=False)
        if reason is not None:
            problems.add(WriteError, f"{label}: {member.parameter.name!r} can't be read: {reason}")
    try:
        if not _settle_layouts(group, members, layout, unknown):
            return
    except LayoutError as wrong:
        problems.add(LayoutError, str(wrong))
        return
    for label, member in members[1:]:
        _check_member(group, label, member, cast, problems)
    if group.into is not None and group.into.dtype != p.dtype and not cast:
        _refuse_dtype(f"{p.name!r} of into", group.into.dtype, p.dtype, problems)
    if group.into is not None and p.gates and group.into.gates and p.gates != group.into.gates:
        _refuse_gates(p, "into", group.into, problems)


def _check_member(group: Group, label: str, member: Member, cast: bool, problems: Problems) -> None:
    p, q = group.first, member.parameter
    if p.gates is not None and q.gates is not None and p.gates != q.gates:
        _refuse_gates(p, label, q, problems)
        return
    axes, shape = member.layout.axes, member.layout.shape
    if axes is not None and group.axes is not None and axes != group.axes:
        try:  # on an array without memory: only the shape is needed
            shape = reorder(np.broadcast_to(np.int8(0), shape), axes, group.axes, what=f"{label}: {q.name!r}").shape
        except LayoutError as wrong:
            problems.add(LayoutError, str(wrong))
            return
    if shape != group.shape:
        named_axes = "" if group.axes is None else f" ({', '.join(group.axes)})"
        text = f"{p.name!r}{named_axes} of {label}\n{got_expected(shape, group.shape)}"
        problems.add(ShapeError, text, fix=_suggest_adapter(group, shape))
    if p.floating != q.floating or (q.dtype.newbyteorder("=") != p.dtype.newbyteorder("=") and not cast):
        _refuse_dtype(f"{p.name!r} of {label}", q.dtype, p.dtype, problems)


def _suggest_adapter(group: Group, shape: tuple[int, ...]) -> str | None:
    """Return the adapter that a parameter of another shape needs, where one clearly fits."""
    p, axes = group.first, group.axes
    if len(shape) != len(group.shape):
        return None
    differing = [axis for axis, (old, new) in enumerate(zip(shape, group.shape, strict=True)) if old != new]
    if axes is not None and [axes[axis] for axis in differing] == ["vocab"]:
        return f'adapt={{{p.name!r}: xweights.adapt.Rows(old=its tokens, new=tokens of target 0, init="keep")}}'
    found = suggest(shape, Wanted(p.name, axes, group.shape, p.dtype, p.role))
    return None if found is None else f"adapt={{{p.name!r}: xweights.adapt.{found!r}}}"


def _refuse_dtype(what: str, got: np.dtype[Any], expected: np.dtype[Any], problems: Problems) -> None:
    fix = "cast=True rounds the result once to the dtype of into=, or else of target 0"
    problems.add(DtypeError, f"{what} has another dtype\n{got_expected(got.name, expected.name)}", fix=fix)


def _refuse_gates(p: Parameter, label: str, q: Parameter, problems: Problems) -> None:
    problems.add(
        LayoutError,
        f"{p.name!r} of {label} packs its gates in another order\n"
        f"{got_expected(', '.join(q.gates or ()), ', '.join(p.gates or ()))}",
        fix="port one model into a twin of the other framework first: port knows the recipes of both layers",
    )


def _settle_layouts(
    group: Group, members: Sequence[tuple[str, Member]], layout: LayoutName | None, unknown: dict[str, list[str]]
) -> bool:
    """Settle the layout of arrays of unknown axes by members with known axes; return False if that isn't possible."""
    known_layouts = [member.layout for _, member in members if member.layout.axes is not None]
    if group.into is not None and group.into.axes is not None:
        known_layouts.append(group.into.layout)
    if not known_layouts:
        return True
    name, settled = group.first.name, True
    knowing = [member.parameter for _, member in members if member.layout.axes is not None]
    knowing += [group.into] if group.into is not None and group.into.axes is not None else []
    asked = layout
    for label, member in members:
        own = member.layout
        if own.axes is not None:
            continue
        layout = "native" if asked is None and has_native_name(member.parameter, knowing) else asked
        if len(own.shape) < 2 or layout == "neutral":
            same_shape = next((known for known in known_layouts if known.shape == own.shape), None)
            if same_shape is not None:
                member.layout = Layout(own.stored, own.split, own.order, same_shape.axes, same_shape.outputs)
        elif layout is None:
            unknown.setdefault(label, []).append(name)
            settled = False
        elif any(
            other.stored != known_layouts[0].stored or other.order != known_layouts[0].order for other in known_layouts
        ):
            raise LayoutError(
                f'{name!r} of {label} can\'t be in "native" order: those that know their axes store them in different '
                "orders\nFix: load it into its own model first, and merge that"
            )
        elif own.stored != known_layouts[0].stored:
            raise LayoutError(
                f"{name!r} of {label} (native order)\n{got_expected(own.stored, known_layouts[0].stored)}"
            )
        else:
            member.layout = known_layouts[0]
    into = group.into
    if into is not None and into.axes is None and len(into.shape) > 1 and asked != "neutral":
        unknown.setdefault("into", []).append(name)
        settled = False
    return settled


def has_native_name(p: Parameter, knowing: Sequence[Parameter]) -> bool:
    """Return whether an array of a file has a framework's own name for it: then it is stored as there.

    Any other mapping may have been made by hand.
    """
    if not isinstance(p.handle, Record):
        return False
    words = words_of(p.native_name)
    return any(
        q.native_name != q.name and words[-len(own) :] == own
        for q in knowing
        if (own := words_of(q.native_name)) and len(own) <= len(words)
    )
