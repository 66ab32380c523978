"""What pictures are made of: figures without pyplot, grids of panels, and one drawing function a panel."""

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

# Both can be read on white and on black.
BLUE, ORANGE = "#3b82c4", "#e07b39"
# From no zeros to nothing but zeros.
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


def grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels, at most four in a row."""
    columns = max(1, min(4, count))
    rows = max(1, math.ceil(count / columns))
    figure = new_figure(max(2.6 * columns, 5.2), height * rows + 0.4)
    return figure, panels_of(figure, rows, columns, count)


def panels_of(figure: Any, rows: int, columns: int, count: int) -> list[Axes]:
    """Return the first ``count`` panels of a grid; the others aren't shown."""
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for panel in panels[count:]:
        panel.set_axis_off()
    return panels[:count]


def largest(chosen: Sequence[Parameter], most: int) -> tuple[list[Parameter], str]:
    """Return what can be shown, in order, and the words that say what was left out."""
    if len(chosen) <= most:
        return list(chosen), ""
    kept = {id(p) for p in sorted(chosen, key=lambda p: -p.size)[:most]}
    return [p for p in chosen if id(p) in kept], f" (the {most} largest of {len(chosen)} parameters)"


def draw_histogram(panel: Axes, found: Histogram, colour: str, name: str, text: str) -> None:
    """Draw how often which values occur."""
    _title(panel, name, text)
    low, high = float(found.edges[0]), float(found.edges[-1])
    instead = "" if found.counts.any() else "nothing but zeros" if found.zeros else "no finite values"
    if not math.isfinite(high - low):
        instead = f"from {low:.3g} to {high:.3g}"  # wider than an axis can be
    if instead:
        panel.text(0.5, 0.5, instead, fontsize=7, ha="center", va="center", transform=panel.transAxes)
        panel.set(xticks=[], yticks=[])
        return
    panel.stairs(found.counts, found.edges, fill=True, color=colour)
    panel.set_yticks([])
    panel.locator_params(axis="x", nbins=4)
    panel.tick_params(labelsize=7, which="both")
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def draw_zeros(panel: Axes, p: Parameter) -> None:
    """Draw which share of each field of a matrix is zero."""
    from matplotlib.colors import LinearSegmentedColormap

    shares = zero_map(p)
    colours = LinearSegmentedColormap.from_list("zeros", _MAP)
    panel.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    shape = " x ".join(map(str, p.shape))
    _title(panel, p.name, f"{shape}, {percent(zeros_in(p) / p.size if p.size else 0.0)} zero")


def draw_spectra(figure: Figure, found: Sequence[tuple[str, Array]]) -> None:
    """Draw singular values: on the left how they fall off, on the right the largest of each, in the same colours."""
    import matplotlib as mpl

    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    shades = mpl.colormaps["viridis"](np.linspace(0.15, 0.85, len(found)))
    for (_, values), shade in zip(found, shades, strict=True):
        place = np.linspace(0, 1, len(values)) if len(values) > 1 else np.array([0.0])
        if values[0] > 0:
            scaled = np.where(values > values[0] * 1e-12, values / values[0], np.nan)
            left.plot(place, scaled, color=shade, linewidth=1.4, marker="." if len(values) < 8 else "")
    left.set(yscale="log", xlim=(0, 1))
    left.set_ylabel("singular value / the largest", fontsize=8)
    left.set_xlabel("place, from the largest to the smallest (%)", fontsize=8)
    left.set_xticks(np.linspace(0, 1, 5), ["0", "25", "50", "75", "100"])
    draw_bars(right, [name for name, _ in found], [float(values[0]) for _, values in found], list(shades))
    right.set_xlabel("largest singular value", fontsize=8)
    right.yaxis.tick_right()
    for panel in (left, right):
        panel.tick_params(labelsize=7, which="both")


def draw_bars(panel: Axes, names: Sequence[str], lengths: Sequence[float], colour: Any) -> None:
    """Draw one bar a name, the first on top."""
    places = np.arange(len(names))
    panel.barh(places, lengths, color=colour, height=0.7)
    panel.set_yticks(places, [short(name, 40) for name in names], fontsize=7)
    for label in panel.get_yticklabels():
        label.set_parse_math(False)
    panel.set_ylim(len(names) - 0.5, -0.5)
    known = [one for one in lengths if one > 0]
    if known and max(known) > 30 * min(known):
        panel.set_xscale("log")
    panel.tick_params(labelsize=7, which="both")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def percent(share: float) -> str:
    """Return a share as text; what isn't quite all or nothing doesn't look as if it were."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %").replace(".0 ", " ")


def short(name: str, most: int) -> str:
    """Return a name that fits, with its middle left out."""
    name = printable(name)
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[: most - 1 - half]}…{name[-half:]}"


def _title(panel: Axes, name: str, text: str) -> None:
    # A name is shown as it is: a $ in it begins no formula.
    panel.set_title(f"{short(name, 34)}\n{text}", fontsize=7, parse_math=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Draw without warnings for letters that matplotlib's font lacks: a browser has them."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
