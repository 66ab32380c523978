"""Whether the members of a group fit together: axes, shapes, dtypes, gates.

No value is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xweights.core.layout import Layout, reorder
from xweights.core.parameter import Parameter
from xweights.core.params import LayoutName
from xweights.errors import DtypeError, LayoutError, Problems, ShapeError, WriteError, got_expected
from xweights.merging.groups import Group, Member, is_counter


def fit(
    group: Group, count: int, layout: LayoutName | None, cast: bool, unknown: dict[str, list[str]], problems: Problems
) -> None:
    """Note everything that doesn't fit, and settle how arrays of unknown axes lie; ``unknown``: where that can't be."""
    p = group.first
    everybody = [(f"target {i}", member) for i, member in enumerate(group.members)]
    if len(group.members) < count and not is_counter(p):
        return  # said already
    if group.base is not None:
        everybody.append(("the base", group.base))
    for called, member in everybody:
        for one in (member.parameter, *member.others):
            reason = one.refusal(writing=False)
            if reason is not None:
                problems.add(WriteError, f"{called}: {one.name!r} can't be read: {reason}")
    try:
        if not _settle_layouts(group, everybody, layout, unknown):
            return
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


def _settle_layouts(
    group: Group, everybody: Sequence[tuple[str, Member]], layout: LayoutName | None, unknown: dict[str, list[str]]
) -> bool:
    """Settle how arrays of unknown axes lie, beside those that know theirs; return False where nothing says it."""
    knowing = [member.layout for _, member in everybody if member.layout.axes is not None]
    if group.into is not None and group.into.axes is not None:
        knowing.append(group.into.layout)
    if not knowing:
        return True
    name, settled = group.first.name, True
    for called, member in everybody:
        have = member.layout
        if have.axes is not None:
            continue
        if len(have.shape) < 2 or layout == "neutral":
            known = next((one for one in knowing if one.shape == have.shape), None)
            if known is not None:
                member.layout = Layout(have.stored, have.split, have.order, known.axes, known.outputs)
        elif layout is None:
            unknown.setdefault(called, []).append(name)
            settled = False
        elif any(one.stored != knowing[0].stored or one.order != knowing[0].order for one in knowing):
            raise LayoutError(
                f'{name!r} of {called} can\'t be in "native" order: those that know their axes store them in different '
                "orders\nFix: load it into its own model first, and merge that"
            )
        elif have.stored != knowing[0].stored:
            raise LayoutError(f"{name!r} of {called} (native order)\n{got_expected(have.stored, knowing[0].stored)}")
        else:
            member.layout = knowing[0]
    into = group.into
    if into is not None and into.axes is None and len(into.shape) > 1 and layout != "neutral":
        unknown.setdefault("into", []).append(name)
        settled = False
    return settled
