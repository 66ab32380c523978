"""Plots of weights: histograms, maps of zeros, singular values, and differences.

Figures are made without pyplot: no window opens, and no global list keeps them alive.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

from xweights.core.names import Names
from xweights.core.parameter import Parameter
from xweights.core.selection import DEFAULT_KERNELS, WhereLike, select
from xweights.core.targets import open_target
from xweights.edit.read import check_readable
from xweights.errors import ArgumentError, SelectionError
from xweights.inspection.diff import diff
from xweights.inspection.drawing import (
    BLUE,
    NAME_ON_BAR,
    NAME_ON_PANEL,
    ORANGE,
    display_names,
    draw_bars,
    draw_histogram,
    draw_shares,
    draw_spectra,
    draw_zeros,
    format_percent,
    make_grid,
    make_panels,
    mark_nonfinite,
    new_figure,
    select_largest,
)
from xweights.inspection.histograms import (
    Histogram,
    count_nonfinite,
    histogram,
    pair_changed,
    singular_values,
    zeros_in,
)
from xweights.inspection.results import Diff

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["histograms", "sparsity", "spectra"]
KINDS: tuple[str, ...] = get_args(Kind)

# More panels and bars than these can't be read; then the largest parameters are shown, and the figure says so.
PANELS = 24
BARS = 40
MAPS = 12
SPECTRA = 60
SPREADS = 8


def plot(target: Any, *, where: WhereLike | None = None, kind: Kind = "histograms") -> Figure:
    """Plot the weights of a target.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        where: Which parameters. Default: all for histograms, else roles ending in ``kernel``, and ``embeddings``; all
            where no role says so.
        kind: "histograms" (values of each parameter, zeros counted apart), "sparsity" (where in each kernel the zeros
            are, inputs down and outputs across) or "spectra" (singular values of each kernel flattened to (all inputs,
            out)).

    Returns a matplotlib Figure, to be saved with ``savefig``. Spectra cost one singular value decomposition a kernel,
    in float64: seconds for 2048 x 2048. Raises ArgumentError, SelectionError, TargetError, BackendMissingError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.plot({"dense/kernel": np.eye(3)}, kind="spectra").axes[0].get_ylabel()
        'singular value / the largest'
    """
    if kind not in KINDS:
        raise ArgumentError(f"kind= is one of {', '.join(map(repr, KINDS))}\ngot: {kind!r}")
    chosen = _choose(target, where, kernels=kind != "histograms")
    check_readable(chosen)
    if kind == "spectra":
        return _plot_spectra(chosen)
    if kind == "sparsity":
        return _plot_sparsity(chosen)
    shown, note = select_largest(chosen, PANELS)
    figure, panels = make_grid(len(shown), height=1.7)
    names, prefix = display_names([p.name for p in shown], NAME_ON_PANEL)
    for p, name, panel in zip(shown, names, panels, strict=True):
        counts = histogram(p)
        draw_histogram(panel, counts, BLUE, name, _describe_counts(p, counts))
        mark_nonfinite(panel, counts.nonfinite)
    _title(figure, f"Values{note}", prefix)
    return figure


def _title(figure: Any, text: str, prefix: str) -> None:
    """Give a figure its title, and below what all names on it begin with."""
    figure.suptitle(f"{text}\n{prefix}" if prefix else text, fontsize=10)
    if figure.get_suptitle():
        figure._suptitle.set_parse_math(False)


def _plot_sparsity(chosen: list[Parameter]) -> Figure:
    """Plot the share of zeros of each parameter as a bar, and below where they are in the largest."""
    largest, note = select_largest(chosen, BARS)
    names, prefix = display_names([p.name for p in largest], NAME_ON_BAR)
    zeros = {id(p): zeros_in(p) for p in chosen}
    entries = sum(p.size for p in chosen)
    shown, _ = select_largest(chosen, MAPS)
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    heights = [1.0 + 0.2 * (len(largest) + 1), 2.2 * rows]
    figure = new_figure(max(2.6 * columns, 7.0), sum(heights) + 0.4)
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    above, below = parts
    bars = above.subplots()
    shares = [zeros[id(p)] / p.size if p.size else 0.0 for p in largest]
    draw_shares(bars, names, shares, sum(zeros.values()) / entries if entries else 0.0)
    for position, p in enumerate(largest, 1):
        lost = count_nonfinite(p)
        if lost:
            bars.text(117, position, f"{lost:,} not finite", fontsize=6.5, va="center", ha="right", weight="bold")
    panels = make_panels(below, rows, columns, len(shown))
    of_panels, _ = display_names([p.name for p in shown], NAME_ON_PANEL)
    for p, name, panel in zip(shown, of_panels, panels, strict=True):
        draw_zeros(panel, p, name)
        mark_nonfinite(panel, count_nonfinite(p))
    maps = "Where they are, dark: no zeros, light: all"
    below.suptitle(maps + (f" (the {len(shown)} largest)" if len(shown) < len(chosen) else ""), fontsize=9)
    _title(figure, f"Zeros{note}", prefix)
    return figure


def plot_diff(a: Any, b: Any, *, where: WhereLike = ..., names: Names | None = None) -> Figure:
    """Plot the differences between two targets: how many entries, by how much, and their histograms.

    Args:
        a: A target.
        b: Another; arrays are compared in neutral order, by axis name where both have names.
        where: Which parameters count. Default: all.
        names: ``{glob in a: glob in b}`` where names differ.

    Returns a matplotlib Figure. Raises TargetError, SelectionError, BackendMissingError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.plot_diff({"w": np.zeros(3)}, {"w": np.ones(3)}).axes[0].get_title()
        'entries that differ'
    """
    differences = diff(a, b, where=where, names=names)
    compared = sorted((c for c in differences.changes if not math.isnan(c.max_abs)), key=lambda c: -c.rel)
    rest = _describe_rest(differences)
    if not compared:
        figure = new_figure(6.0, 1.0)
        figure.suptitle(f"{rest}; {differences.verdict}" if rest else differences.verdict, fontsize=10)
        return figure
    bars = compared[:BARS]
    pairs = {name: (p, counterpart) for name, p, counterpart in pair_changed(differences, a, b, names)}
    spread = [c.name for c in bars if c.name in pairs and c.max_abs > 0][:SPREADS]
    columns = min(4, len(spread))
    rows = math.ceil(len(spread) / columns) if spread else 0
    heights = [1.3 + 0.22 * len(bars), *([1.7 * rows] if rows else [])]
    figure = new_figure(10.0, sum(heights))
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    left, right = parts[0].subplots(1, 2, sharey=True)
    names_shown, prefix = display_names([c.name for c in bars], NAME_ON_BAR)
    draw_bars(left, names_shown, [100 * c.changed / c.count for c in bars], BLUE)
    left.set_title("entries that differ", fontsize=9)
    left.set_xscale("linear")
    left.set(xlabel="%", xlim=(0, 100))
    finite = [c.rel if math.isfinite(c.rel) else math.nan for c in bars]
    draw_bars(right, names_shown, finite, ORANGE)
    for position, change in enumerate(bars):
        if not math.isfinite(change.rel):
            right.text(
                0.02, position, "NaN or infinity on one side", transform=right.get_yaxis_transform(), fontsize=6.5,
                va="center", weight="bold",
            )  # fmt: skip
    right.set_title("largest |a - b| / largest |a|", fontsize=9)
    more = f" (the {len(bars)} that differ most of {len(compared)})" if len(compared) > len(bars) else ""
    _title(parts[0], "; ".join(filter(None, [f"Differences{more}", rest, differences.verdict])), prefix)
    if rows:
        of_panels, _ = display_names(spread, NAME_ON_PANEL)
        panels = make_panels(parts[1], rows, columns, len(spread))
        for name, shown, panel in zip(spread, of_panels, panels, strict=True):
            gaps = histogram(pairs[name][0], minus=pairs[name][1])
            far = f"; {gaps.beyond:,} farther out" if gaps.beyond else ""
            draw_histogram(panel, gaps, ORANGE, shown, f"a - b, where they differ{far}")
            mark_nonfinite(panel, gaps.nonfinite)
    return figure


def _choose(target: Any, where: WhereLike | None, *, kernels: bool) -> list[Parameter]:
    everything = open_target(target)
    if where is not None:
        return select(everything, where)
    if kernels:
        try:
            return select(everything, DEFAULT_KERNELS)
        except SelectionError:
            pass  # no name tells a role
    return select(everything, ...)


def _describe_counts(p: Parameter, counts: Histogram) -> str:
    lost = f", {counts.nonfinite:,} not finite" if counts.nonfinite else ""
    zeros = f", {format_percent(counts.zeros / p.size)} zero" if counts.zeros else ""
    far = f", {counts.beyond:,} farther out" if counts.beyond else ""
    return f"{p.size:,} entries{zeros}{lost}{far}"


def _plot_spectra(chosen: list[Parameter]) -> Figure:
    shown, note = select_largest([p for p in chosen if len(p.shape) > 1], SPECTRA)
    names, prefix = display_names([p.name for p in shown], NAME_ON_BAR)
    spectra = [(name, singular_values(p)) for name, p in zip(names, shown, strict=True)]
    decomposed = [(name, values) for name, values in spectra if values is not None]
    broken = [name for (name, values), p in zip(spectra, shown, strict=True) if values is None and count_nonfinite(p)]
    lost = len(shown) - len(decomposed) - len(broken)
    if not decomposed:
        raise SelectionError(
            "none of these parameters has singular values\n"
            f"got:      {', '.join(f'{p.name!r} {p.shape}' for p in chosen[:6])}\n"
            "expected: finite values, and two axes, or more whose names are known\n"
            "Fix: where= to choose others, or Params(..., axes=...) to name the axes"
        )
    figure = new_figure(10.0, max(3.4, 1.2 + 0.2 * len(decomposed)))
    draw_spectra(figure, decomposed)
    left_out = f"; {lost} left out, whose axes aren't known" if lost else ""
    if broken:
        some = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        left_out += f"\n{len(broken)} with NaN or infinity, which have none: {some}"
    _title(figure, f"Singular values{note}{left_out}", prefix)
    return figure


def _describe_rest(differences: Diff) -> str:
    """Describe the parameters that can't be drawn: on one side only, or of another shape."""
    unlike = sum(math.isnan(c.max_abs) for c in differences.changes)
    parts = [
        (len(differences.only_a), "only in a"),
        (len(differences.only_b), "only in b"),
        (unlike, "of another shape or order"),
    ]
    return ", ".join(f"{count} {text}" for count, text in parts if count)
