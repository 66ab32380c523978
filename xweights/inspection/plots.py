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
    ORANGE,
    draw_bars,
    draw_histogram,
    draw_spectra,
    draw_zeros,
    format_percent,
    make_grid,
    make_panels,
    new_figure,
    select_largest,
)
from xweights.inspection.histograms import Histogram, histogram, pair_changed, singular_values
from xweights.inspection.results import Diff

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["histograms", "sparsity", "spectra"]
KINDS: tuple[str, ...] = get_args(Kind)

# More panels and bars than these can't be read; then the largest parameters are shown, and the figure says so.
PANELS = 24
BARS = 40
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
    shown, note = select_largest(chosen, PANELS)
    figure, panels = make_grid(len(shown), height=1.7 if kind == "histograms" else 2.2)
    for p, panel in zip(shown, panels, strict=True):
        if kind == "histograms":
            counts = histogram(p)
            draw_histogram(panel, counts, BLUE, p.name, _describe_counts(p, counts))
        else:
            draw_zeros(panel, p)
    title = "Values" if kind == "histograms" else "Zeros, dark: none, light: all"
    figure.suptitle(f"{title}{note}", fontsize=10)
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
    names_shown = [c.name for c in bars]
    draw_bars(left, names_shown, [100 * c.changed / c.count for c in bars], BLUE)
    left.set_title("entries that differ", fontsize=9)
    left.set(xlabel="%", xlim=(0, 100), xscale="linear")
    finite = [c.rel if math.isfinite(c.rel) else math.nan for c in bars]
    draw_bars(right, names_shown, finite, ORANGE)
    right.set_title("largest |a - b| / largest |a|", fontsize=9)
    more = f" (the {len(bars)} that differ most of {len(compared)})" if len(compared) > len(bars) else ""
    parts[0].suptitle("; ".join(filter(None, [f"Differences{more}", rest, differences.verdict])), fontsize=10)
    if rows:
        for name, panel in zip(spread, make_panels(parts[1], rows, columns, len(spread)), strict=True):
            gaps = histogram(pairs[name][0], minus=pairs[name][1])
            draw_histogram(panel, gaps, ORANGE, name, "a - b, where they differ")
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
    return f"{p.size:,} entries{zeros}{lost}"


def _plot_spectra(chosen: list[Parameter]) -> Figure:
    shown, note = select_largest([p for p in chosen if len(p.shape) > 1], BARS)
    spectra = [(p.name, singular_values(p)) for p in shown]
    decomposed = [(name, values) for name, values in spectra if values is not None]
    lost = len(shown) - len(decomposed)
    if not decomposed:
        raise SelectionError(
            "none of these parameters has singular values\n"
            f"got:      {', '.join(f'{p.name!r} {p.shape}' for p in chosen[:6])}\n"
            "expected: finite values, and two axes, or more whose names are known\n"
            "Fix: where= to choose others, or Params(..., axes=...) to name the axes"
        )
    figure = new_figure(10.0, max(3.4, 1.0 + 0.2 * len(decomposed)))
    draw_spectra(figure, decomposed)
    left_out = f"; {lost} left out, whose axes aren't known or whose values aren't finite" if lost else ""
    figure.suptitle(f"Singular values{note}{left_out}", fontsize=10)
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
