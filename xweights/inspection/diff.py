"""Compare two targets: `diff` and `equal`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from xweights.core.agreement import group_of, is_cut
from xweights.core.blocks import blocks
from xweights.core.dtypes import COUNTERS, Array, bits_differ, widen
from xweights.core.layout import reorder
from xweights.core.names import Names, renamer
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike
from xweights.edit.counterparts import find_counterparts, is_source
from xweights.edit.read import neutral_view, open_for_reading, select_for_reading
from xweights.errors import ArgumentError, LayoutError
from xweights.inspection.results import Change, Diff


def diff(a: Any, b: Any, *, where: WhereLike = ..., names: Names | None = None) -> Diff:
    """Compare two targets parameter by parameter, bit by bit, across frameworks.

    Args:
        a: A target.
        b: Another; arrays are compared in neutral order, by axis name where both have names.
        where: Which parameters of ``a`` (and of ``b``) count. Default: all.
        names: ``{glob in a: glob in b}`` where names differ.

    Exact: NaN equals the same NaN. Counters such as ``num_batches_tracked`` on one side only are left out.
    Raises TargetError, SelectionError, TraceError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.diff({"w": np.zeros(3)}, {"w": np.array([0.0, 0.0, 2.0])}).changes[0].changed
        1
    """
    changes: list[Change] = []
    only_a: list[str] = []
    only_b: list[str] = []
    same = 0
    for name, p, counterpart in match_parameters(a, b, where, names):
        if p is None or counterpart is None:
            (only_b if p is None else only_a).append(name)
            continue
        change = _change(name, p, counterpart)
        if change is None:
            same += 1
        else:
            changes.append(change)
    return Diff(changes, only_a, only_b, same)


def equal(a: Any, b: Any, *, rtol: float = 0, where: WhereLike = ..., names: Names | None = None) -> bool:
    """Return True if two targets hold the same parameters with the same values.

    Args:
        a: As for :func:`diff`.
        b: As for :func:`diff`.
        rtol: 0: bitwise, dtype included. Else: how large a parameter's largest difference may be, in units of its
            largest value.
        where: As for :func:`diff`.
        names: As for :func:`diff`.

    Exact for rtol=0. Raises TargetError, SelectionError, TraceError, ArgumentError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.equal({"w": np.zeros(3)}, {"w": np.zeros(3)})
        True
    """
    if not 0 <= rtol < math.inf:
        raise ArgumentError(f"rtol= is a number >= 0\ngot: {rtol!r}")
    matched = list(match_parameters(a, b, where, names))
    cut = [q for _, p, counterpart in matched for q in (p, counterpart) if q is not None and is_cut(q)]
    group = group_of(cut)
    verdict = True
    for _, p, counterpart in matched:
        if p is None or counterpart is None:
            verdict = False
        elif verdict or is_cut(p) or is_cut(counterpart):
            change = _change(p.name, p, counterpart)
            verdict = verdict and (change is None or _is_small(change, rtol))
        if not verdict and group is None:
            return False
    # Every rank looks at all shards: what each of them has whole (statistics) may differ from rank to rank.
    return verdict if group is None else bool(group.all_reduce(np.array([verdict], np.int64), "min")[0])


def _is_small(change: Change, rtol: float) -> bool:
    return bool(rtol) and not change.note.startswith(("shape", "axes", "gates")) and change.rel <= rtol


def match_parameters(
    a: Any, b: Any, where: WhereLike, names: Names | None
) -> Iterator[tuple[str, Parameter | None, Parameter | None]]:
    """Yield (name, parameter of a, its counterpart in b) for all of both; None for what only one of them has."""
    if names is None and (is_source(a) or is_source(b)):
        # A file or a state dict has names of a framework's own, prefixes of wrappers, several parts.
        swapped = is_source(a) and not is_source(b)
        found = _match_source(b, a, where) if swapped else _match_source(a, b, where)
        yield from ((name, q, p) if swapped else (name, p, q) for name, p, q in found)
        return
    parameters, others, rename = (
        open_for_reading(a, where),
        open_for_reading(b, where if names is None else ...),
        renamer(names),
    )
    by_name = {name: p for p in others for name in (p.name, *p.aliases)}
    matched: set[int] = set()
    for p in parameters:
        match = next((by_name[rename(n)] for n in (p.name, *p.aliases) if rename(n) in by_name), None)
        if match is not None:
            matched.add(id(match))
        elif p.role in COUNTERS:
            continue
        yield p.name, p, match
    for p in others:
        if id(p) not in matched and p.role not in COUNTERS and (names is None or where is ...):
            yield p.name, None, p


def _match_source(a: Any, b: Any, where: WhereLike) -> Iterator[tuple[str, Parameter | None, Parameter | None]]:
    """Match the parameters of a target with those of a file or a mapping."""
    chosen, everything = select_for_reading(a, where)
    selected = {p.identity() for p in chosen}
    found = find_counterparts(a, b, everything)
    if found is None:
        yield from ((p.name, p, None) for p in chosen)
        if where is ...:
            yield from ((p.name, None, p) for p in open_for_reading(b, ...))
        return
    for p, match in found.pairs:
        if p.identity() in selected or (p.hidden and where is ...):
            yield p.name, p, match
    for p, match in found.further:
        if p.identity() in selected and _change(p.name, p, match) is not None:
            yield p.name, p, match
    yield from ((p.name, p, None) for p in found.only_target if p.identity() in selected)
    if where is ...:
        yield from ((name, None, p) for name, p in found.only_source.items())


# Casting a signalling NaN warns; here it is a value like any other.
@np.errstate(all="ignore")
def _change(name: str, a: Parameter, b: Parameter) -> Change | None:
    x, y = neutral_view(a), neutral_view(b)
    nothing = Change(name, x.size, x.size, math.nan, math.nan)
    if a.gates is not None and b.gates is not None and a.gates != b.gates:
        return replace(nothing, note=f"gates {a.gates} against {b.gates}")
    try:
        if a.axes is not None and b.axes is not None and a.axes != b.axes:
            y = reorder(y, b.axes, a.axes)
    except LayoutError:
        return replace(nothing, note=f"axes {a.axes} against {b.axes}")
    if x.shape != y.shape:
        return replace(nothing, note=f"shape {x.shape} against {y.shape}")
    changed, worst, largest = 0, 0.0, 0.0
    for block in blocks(x.shape):
        part, other = np.ravel(x[block]), np.ravel(y[block])
        if x.dtype == y.dtype and part.tobytes() == other.tobytes():
            largest = max(largest, _largest(part))
            continue
        wide, wide_other = widen(part), widen(other)
        if x.dtype == y.dtype:
            unequal = bits_differ(part, other)
        else:
            unequal = ~((wide == wide_other) | (np.isnan(wide) & np.isnan(wide_other)))
        changed += int(np.count_nonzero(unequal))
        with np.errstate(all="ignore"):
            gap = np.abs(wide - wide_other)[unequal]
        worst = max(worst, float(np.max(np.where(np.isnan(gap), np.inf, gap), initial=0.0)))
        largest = max(largest, _largest(part))
    note = "" if x.dtype == y.dtype else f"dtype {x.dtype.name} against {y.dtype.name}"
    if not changed and not note:
        return None
    return Change(name, x.size, changed, worst, worst / largest if largest else (math.inf if worst else 0.0), note)


def _largest(part: Array) -> float:
    wide = np.abs(widen(part))
    return float(np.max(np.where(np.isfinite(wide), wide, 0.0), initial=0.0))
