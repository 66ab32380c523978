"""Parts of plots: figures without pyplot, grids of panels, and a drawing function for each kind of panel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.tables import printable
from xweights.errors import BackendMissingError
from xweights.inspection.histograms import Histogram, zero_map, zeros_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Both are readable on white and on black.
BLUE, ORANGE = "#3b82c4", "#e07b39"
# From no zeros to only zeros.
_MAP = ["#14304f", "#2f7fa8", "#8cc7b5", "#fbf3d3"]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches; raise BackendMissingError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as wrong:
        raise BackendMissingError(
            f"pictures need matplotlib, which can't be imported\ncause: {wrong}\n"
            "Fix: python -m pip install 'xweights-nn[plot]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def make_grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels, at most four in a row."""
    columns = max(1, min(4, count))
    rows = max(1, math.ceil(count / columns))
    figure = new_figure(max(2.6 * columns, 5.2), height * rows + 0.4)
    return figure, make_panels(figure, rows, columns, count)


def make_panels(figure: Any, rows: int, columns: int, count: int) -> list[Axes]:
    """Return the first ``count`` panels of a grid; the others aren't shown."""
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for panel in panels[count:]:
        panel.set_axis_off()
    return panels[:count]


def select_largest(chosen: Sequence[Parameter], most: int) -> tuple[list[Parameter], str]:
    """Return the parameters that can be shown, in order, and a note on those left out."""
    if len(chosen) <= most:
        return list(chosen), ""
    kept = {id(p) for p in sorted(chosen, key=lambda p: -p.size)[:most]}
    return [p for p in chosen if id(p) in kept], f" (the {most} largest of {len(chosen)} parameters)"


def draw_histogram(panel: Axes, histogram: Histogram, colour: str, name: str, text: str) -> None:
    """Draw a histogram of values."""
    _title(panel, name, text)
    low, high = float(histogram.edges[0]), float(histogram.edges[-1])
    message = "" if histogram.counts.any() else "nothing but zeros" if histogram.zeros else "no finite values"
    if not math.isfinite(high - low):
        message = f"from {low:.3g} to {high:.3g}"  # wider than an axis can be
    if message:
        panel.text(0.5, 0.5, message, fontsize=7, ha="center", va="center", transform=panel.transAxes)
        panel.set(xticks=[], yticks=[])
        return
    panel.stairs(histogram.counts, histogram.edges, fill=True, color=colour)
    panel.set_yticks([])
    panel.locator_params(axis="x", nbins=4)
    panel.tick_params(labelsize=7, which="both")
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def draw_zeros(panel: Axes, p: Parameter) -> None:
    """Draw the share of zeros in each field of a matrix."""
    from matplotlib.colors import LinearSegmentedColormap

    shares = zero_map(p)
    colours = LinearSegmentedColormap.from_list("zeros", _MAP)
    panel.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    shape = " x ".join(map(str, p.shape))
    _title(panel, p.name, f"{shape}, {format_percent(zeros_in(p) / p.size if p.size else 0.0)} zero")


def draw_spectra(figure: Figure, spectra: Sequence[tuple[str, Array]]) -> None:
    """Draw singular values: on the left how they decay, on the right the largest of each, in the same colours."""
    import matplotlib as mpl

    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    shades = mpl.colormaps["viridis"](np.linspace(0.15, 0.85, len(spectra)))
    for (_, values), shade in zip(spectra, shades, strict=True):
        position = np.linspace(0, 1, len(values)) if len(values) > 1 else np.array([0.0])
        if values[0] > 0:
            scaled = np.where(values > values[0] * 1e-12, values / values[0], np.nan)
            left.plot(position, scaled, color=shade, linewidth=1.4, marker="." if len(values) < 8 else "")
    left.set(yscale="log", xlim=(0, 1))
    left.set_ylabel("singular value / the largest", fontsize=8)
    left.set_xlabel("place, from the largest to the smallest (%)", fontsize=8)
    left.set_xticks(np.linspace(0, 1, 5), ["0", "25", "50", "75", "100"])
    draw_bars(right, [name for name, _ in spectra], [float(values[0]) for _, values in spectra], list(shades))
    right.set_xlabel("largest singular value", fontsize=8)
    right.yaxis.tick_right()
    for panel in (left, right):
        panel.tick_params(labelsize=7, which="both")


def draw_bars(panel: Axes, names: Sequence[str], lengths: Sequence[float], colour: Any) -> None:
    """Draw one bar per name, the first on top."""
    positions = np.arange(len(names))
    panel.barh(positions, lengths, color=colour, height=0.7)
    panel.set_yticks(positions, [shorten(name, 40) for name in names], fontsize=7)
    for label in panel.get_yticklabels():
        label.set_parse_math(False)
    panel.set_ylim(len(names) - 0.5, -0.5)
    positive = [length for length in lengths if length > 0]
    if positive and max(positive) > 30 * min(positive):
        panel.set_xscale("log")
    panel.tick_params(labelsize=7, which="both")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def format_percent(share: float) -> str:
    """Return a share as text; a share near 0 or 1 is never rounded to 0 % or 100 %."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %").replace(".0 ", " ")


def shorten(name: str, most: int) -> str:
    """Return a name of at most ``most`` characters, its middle left out where it is longer."""
    name = printable(name)
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[: most - 1 - half]}…{name[-half:]}"


def _title(panel: Axes, name: str, text: str) -> None:
    # Names are shown literally: a $ begins no formula.
    panel.set_title(f"{shorten(name, 34)}\n{text}", fontsize=7, parse_math=False)


@contextmanager
def ignore_missing_glyphs() -> Iterator[None]:
    """Suppress warnings for letters that matplotlib's font lacks: a browser has them."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
