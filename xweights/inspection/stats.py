"""Statistics of each parameter: `stats` and `summary`; in one pass, without full-size copies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xweights.core.blocks import as_stored, blocks
from xweights.core.dtypes import Array, widen
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike, select
from xweights.core.tables import Text, render, render_html
from xweights.core.targets import open_target
from xweights.core.unknown_roles import unknown_roles
from xweights.edit.read import neutral_view, open_for_reading
from xweights.inspection.results import ParameterStats, Stats


def stats(target: Any, *, where: WhereLike = ...) -> Stats:
    """Return count, norm, mean, standard deviation, min, max, zeros and NaN count of each parameter.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        where: Default: all.

    Close (rtol 1e-12): accumulated in float64, one pass, no full-size copy. ``std`` is of the population. Of complex
    numbers, min and max are those of the magnitudes, the mean is complex, std is the distance to it (root of the mean
    square), and zero is what has both parts zero.
    Raises TargetError, SelectionError, TraceError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.stats({"w": np.array([3.0, 0.0, 4.0])})["w"].norm
        5.0
    """
    chosen = open_for_reading(target, where)
    return Stats([_stats_of(p) for p in chosen])


@np.errstate(all="ignore")
def _stats_of(p: Parameter) -> ParameterStats:
    view = as_stored(neutral_view(p))
    zeros = nan = seen = 0
    total: Any = 0.0
    squares = spread = 0.0  # spread: of the squared distances to the mean, merged block by block
    low, high = math.inf, -math.inf
    with np.errstate(all="ignore"):
        for cut in blocks(view.shape):
            wide = widen(np.ravel(view[cut]))
            zeros += int(np.count_nonzero(wide == 0))
            if not np.isfinite(wide.sum()):
                missing = np.isnan(wide)
                nan += int(np.count_nonzero(missing))
                wide = wide[~missing]
            if not wide.size:
                continue
            block_total = wide.sum().item()
            sizes = np.abs(wide) if wide.dtype.kind == "c" else wide
            low, high = min(low, float(sizes.min())), max(high, float(sizes.max()))
            squares += _sum_squares(wide)
            mean_shift = block_total / wide.size - (total / seen if seen else block_total / wide.size)
            spread += abs(mean_shift) * abs(mean_shift) * (seen * wide.size / (seen + wide.size))
            np.subtract(wide, block_total / wide.size, out=wide)
            spread += _sum_squares(wide)
            total += block_total
            seen += wide.size
    undefined = math.nan
    return ParameterStats(
        p.name, p.axes, p.shape, p.dtype.name, p.trainable, view.size,
        norm=math.sqrt(squares),
        mean=_divide(total, seen) if seen else undefined,
        std=math.sqrt(spread / seen) if seen and math.isfinite(spread) else undefined,
        min=low if seen else undefined,
        max=high if seen else undefined,
        zeros=zeros,
        nan=nan,
    )  # fmt: skip


def _divide(total: complex, count: int) -> float | complex:
    if isinstance(total, complex):
        return complex(total.real / count, total.imag / count)
    return total / count


def _sum_squares(wide: Array) -> float:
    # The parts one by one: as complex numbers, infinities would give NaN.
    parts = wide.view(np.float64) if wide.dtype.kind == "c" else wide
    return float(np.dot(parts, parts))


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
    unknown = list(dict.fromkeys(p.role for p in unknown_roles(chosen)))
    if unknown:
        shown = ", ".join(unknown[:8]) + (f", ... ({len(unknown)} in all)" if len(unknown) > 8 else "")
        foot += f"\nunknown roles, left out where kernels are the default: {shown}"
    return Text.of(render(head, rows) + "\n" + foot, render_html(head, rows, notes=foot.splitlines()))
