"""Looking closer: numbers per parameter, and what differs between two targets.

Owns :func:`stats`, :func:`summary`, :func:`diff`, :func:`equal` and :func:`backends`. Imports arrays, axes, backend,
errors, parameter, reading, renaming, results, selecting, tables and targets. One pass, no full-size copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from xweights.core.backend import doors, load
from xweights.core.layout import reorder
from xweights.core.numpy_backend import as_stored, blocks
from xweights.core.parameter import COUNTERS, Array, Parameter
from xweights.core.renaming import Names, renamer
from xweights.core.selection import WhereLike, select
from xweights.core.tables import render
from xweights.core.targets import open_target, tracing
from xweights.edit.read import check_readable, neutral_view
from xweights.errors import ArgumentError, BackendBrokenError, LayoutError, TraceError
from xweights.inspection.results import Change, Diff, ParameterStats, Stats


def stats(target: Any, *, where: WhereLike = ...) -> Stats:
    """Return count, norm, mean, standard deviation, min, max, zeros and NaN count of each parameter.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        where: Default: all.

    Close (rtol 1e-12): accumulated in float64, one pass, no full-size copy. ``std`` is of the population.
    Raises TargetError, SelectionError, TraceError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.stats({"w": np.array([3.0, 0.0, 4.0])})["w"].norm
        5.0
    """
    chosen = _opened(target, where)
    return Stats([_stats_of(p) for p in chosen])


@np.errstate(all="ignore")
def _stats_of(p: Parameter) -> ParameterStats:
    view = as_stored(neutral_view(p))
    zeros = nan = seen = 0
    total = squares = spread = 0.0  # spread: of the squared distances to the mean, merged block by block
    low, high = math.inf, -math.inf
    with np.errstate(all="ignore"):
        for cut in blocks(view.shape):
            wide = np.ravel(view[cut]).astype(np.float64)
            zeros += int(np.count_nonzero(wide == 0))
            if not math.isfinite(float(wide.sum())):
                missing = np.isnan(wide)
                nan += int(np.count_nonzero(missing))
                wide = wide[~missing]
            if not wide.size:
                continue
            here = float(wide.sum())
            low, high = min(low, float(wide.min())), max(high, float(wide.max()))
            squares += float(np.dot(wide, wide))
            apart = here / wide.size - (total / seen if seen else here / wide.size)
            spread += apart * apart * (seen * wide.size / (seen + wide.size))
            np.subtract(wide, here / wide.size, out=wide)
            spread += float(np.dot(wide, wide))
            total += here
            seen += wide.size
    nothing = math.nan
    return ParameterStats(
        p.name, p.axes, p.shape, p.dtype.name, p.trainable, view.size,
        norm=math.sqrt(squares),
        mean=total / seen if seen else nothing,
        std=math.sqrt(spread / seen) if seen and math.isfinite(spread) else nothing,
        min=low if seen else nothing,
        max=high if seen else nothing,
        zeros=zeros,
        nan=nan,
    )  # fmt: skip


def summary(target: Any, *, where: WhereLike = ...) -> str:
    """Return a table of the parameters: name, axes and shape, dtype, entries, trainable.

    Args:
        target: As for :func:`stats`.
        where: Default: all.

    Raises TargetError, SelectionError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> "dense/kernel" in xw.summary({"dense/kernel": np.ones((3, 2))})
        True
    """
    chosen = select(open_target(target), where)
    rows = []
    for p in chosen:
        axes = "?" if p.axes is None else ", ".join(p.axes)
        rows.append(
            [
                p.name,
                axes,
                ", ".join(map(str, p.shape)),
                p.dtype.name,
                f"{p.size:,}",
                "yes" if p.trainable else "no",
                ", ".join(p.aliases),
            ]
        )
    entries = sum(p.size for p in chosen)
    trained = sum(p.size for p in chosen if p.trainable)
    megabytes = sum(p.size * p.dtype.itemsize for p in chosen) / 1e6
    head = ["name", "axes", "shape", "dtype", "entries", "trainable", "also"]
    if not any(p.aliases for p in chosen):
        head, rows = head[:-1], [row[:-1] for row in rows]
    foot = f"{len(chosen)} parameters, {entries:,} entries ({trained:,} trainable), {megabytes:,.1f} MB"
    return render(head, rows) + "\n" + foot


def diff(a: Any, b: Any, *, where: WhereLike = ..., names: Names | None = None) -> Diff:
    """Compare two targets parameter by parameter, bit by bit, across frameworks.

    Args:
        a: A target.
        b: Another; arrays meet in neutral order, by axis name where both know theirs.
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
    for name, mine, theirs in _met(a, b, where, names):
        if mine is None or theirs is None:
            (only_b if mine is None else only_a).append(name)
            continue
        change = _change(name, mine, theirs)
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
    for name, mine, theirs in _met(a, b, where, names):
        if mine is None or theirs is None:
            return False
        change = _change(name, mine, theirs)
        if change is None:
            continue
        if not rtol or change.note.startswith(("shape", "axes", "gates")) or not change.rel <= rtol:
            return False
    return True


def _opened(target: Any, where: WhereLike) -> list[Parameter]:
    if tracing(target):
        raise TraceError("values can't be read on the host inside a compiled step\nFix: look before or after the step")
    chosen = select(open_target(target), where)
    check_readable(chosen)
    return chosen


def _met(
    a: Any, b: Any, where: WhereLike, names: Names | None
) -> Iterator[tuple[str, Parameter | None, Parameter | None]]:
    mine, theirs, rename = _opened(a, where), _opened(b, where if names is None else ...), renamer(names)
    by_name = {name: p for p in theirs for name in (p.name, *p.aliases)}
    met: set[int] = set()
    for p in mine:
        twin = next((by_name[rename(n)] for n in (p.name, *p.aliases) if rename(n) in by_name), None)
        if twin is not None:
            met.add(id(twin))
        elif p.role in COUNTERS:
            continue
        yield p.name, p, twin
    for p in theirs:
        if id(p) not in met and p.role not in COUNTERS and (names is None or where is ...):
            yield p.name, None, p


# A signalling NaN sets off a warning when it is cast, and is a value like any other here.
@np.errstate(all="ignore")
def _change(name: str, a: Parameter, b: Parameter) -> Change | None:
    x, y = neutral_view(a), neutral_view(b)
    nothing = Change(name, x.size, x.size, math.nan, math.nan)
    if a.gates is not None and b.gates is not None and a.gates != b.gates:
        return _noted(nothing, f"gates {a.gates} against {b.gates}")
    try:
        if a.axes is not None and b.axes is not None and a.axes != b.axes:
            y = reorder(y, b.axes, a.axes)
    except LayoutError:
        return _noted(nothing, f"axes {a.axes} against {b.axes}")
    if x.shape != y.shape:
        return _noted(nothing, f"shape {x.shape} against {y.shape}")
    changed, worst, largest = 0, 0.0, 0.0
    for block in blocks(x.shape):
        part, other = np.ravel(x[block]), np.ravel(y[block])
        if x.dtype == y.dtype and _bits(part) == _bits(other):
            largest = max(largest, _largest(part))
            continue
        wide, wide_other = part.astype(np.float64), other.astype(np.float64)
        if x.dtype == y.dtype:
            width = np.dtype(f"u{x.dtype.itemsize}")
            unequal = part.view(width) != other.view(width)
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


def _noted(change: Change, note: str) -> Change:
    return Change(change.name, change.count, change.changed, change.max_abs, change.rel, note)


def _bits(part: Array) -> bytes:
    return part.tobytes()


def _largest(part: Array) -> float:
    wide = np.abs(part.astype(np.float64))
    return float(np.max(np.where(np.isfinite(wide), wide, 0.0), initial=0.0))


def backends() -> dict[str, str]:
    """Return the installed backends and whether each loads: ``{"torch": "ready", "keras": "broken: ..."}``.

    Loading imports the framework. Raises nothing.

    Example:
        >>> import xweights as xw
        >>> isinstance(xw.backends(), dict)
        True
    """
    found = {}
    for door in sorted(doors()):
        try:
            load(door)
            found[door] = "ready"
        except BackendBrokenError as broken:
            found[door] = "broken: " + str(broken).splitlines()[1].removeprefix("cause: ")
    return found
