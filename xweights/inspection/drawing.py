"""Parts of plots: figures without pyplot, grids of panels, and a drawing function for each kind of panel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.short_names import common_prefix, shorten_names
from xweights.core.tables import printable
from xweights.errors import BackendMissingError
from xweights.inspection.histograms import Histogram, count_nonfinite, zero_map, zeros_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Both are readable on white and on black.
BLUE, ORANGE = "#3b82c4", "#e07b39"
# What isn't finite: told from both also by who sees no red or no green, and never by colour alone.
PURPLE = "#a64ca6"
# From no zeros to only zeros.
_MAP = ["#14304f", "#2f7fa8", "#8cc7b5", "#fbf3d3"]
NAME_ON_PANEL, NAME_ON_BAR = 34, 40  # characters
# More lines than these can't be told apart; then each spectrum is a row of a picture.
_LINES = 12


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
    """Return the parameters that can be shown, in order, and a note on those left out.

    Those with NaN or infinity are always among them: whoever looks for these mustn't miss them.
    """
    if len(chosen) <= most:
        return list(chosen), ""
    broken = {id(p) for p in chosen if p.size and count_nonfinite(p)}
    kept = {id(p) for p in sorted(chosen, key=lambda p: (id(p) not in broken, -p.size))[:most]}
    which = f"{len(broken):,} with NaN or infinity, and the largest" if broken else f"the {most} largest"
    return [p for p in chosen if id(p) in kept], f" ({which} of {len(chosen)} parameters)"


def draw_histogram(panel: Axes, histogram: Histogram, colour: str, name: str, text: str) -> None:
    """Draw a histogram of values."""
    _title(panel, name, text)
    low, high = float(histogram.edges[0]), float(histogram.edges[-1])
    nothing = "nothing but zeros" if histogram.zeros and not histogram.nonfinite else "no finite values but zeros"
    message = "" if histogram.counts.any() else nothing if histogram.zeros else "no finite values"
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


def mark_nonfinite(panel: Axes, count: int, what: str = "not finite") -> None:
    """Mark a panel whose parameter has NaN or infinities: a striped edge, and their number."""
    if not count:
        return
    from matplotlib.patches import Rectangle

    edge = Rectangle((0, 0), 0.03, 1, transform=panel.transAxes, facecolor="none", edgecolor=PURPLE, hatch="/////")
    panel.add_patch(edge)
    text = f"{count:,} {what}"
    # The text has the colour of all others, which the report turns to that of the page.
    box = {"facecolor": "none", "edgecolor": PURPLE, "boxstyle": "round,pad=0.25", "linewidth": 1.5}
    panel.text(0.97, 0.93, text, transform=panel.transAxes, ha="right", va="top", fontsize=7, weight="bold", bbox=box)


def draw_zeros(panel: Axes, p: Parameter, name: str) -> None:
    """Draw the share of zeros in each field of a matrix."""
    from matplotlib.colors import LinearSegmentedColormap

    shares = zero_map(p)
    colours = LinearSegmentedColormap.from_list("zeros", _MAP)
    panel.imshow(shares, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    shape = " x ".join(map(str, p.shape))
    _title(panel, name, f"{shape}, {format_percent(zeros_in(p) / p.size if p.size else 0.0)} zero")


def draw_shares(panel: Axes, names: Sequence[str], shares: Sequence[float], total: float) -> None:
    """Draw the share of zeros of each parameter as a bar, and that of all together as the first one."""
    draw_bars(panel, ["all together", *names], [100 * total, *(100 * share for share in shares)], BLUE)
    panel.patches[0].set(facecolor="none", edgecolor=BLUE, hatch="////", linewidth=1)
    panel.set_xscale("linear")
    panel.set(xlim=(0, 118), xticks=[0, 25, 50, 75, 100])
    panel.set_xlabel("entries that are zero (%)", fontsize=8)
    for position, share in enumerate([total, *shares]):
        panel.text(100 * share + 1, position, format_percent(share), fontsize=6.5, va="center")


def draw_spectra(figure: Figure, spectra: Sequence[tuple[str, Array]]) -> None:
    """Draw singular values: on the left how they decay, on the right the largest of each, in the same colours."""
    import matplotlib as mpl

    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    shades: Sequence[Any] = [*mpl.colormaps["viridis"](np.linspace(0.15, 0.85, len(spectra)))]
    if len(spectra) > _LINES:
        _draw_decays(figure, left, spectra)
        shades = [BLUE] * len(spectra)
    else:
        for (_, values), shade in zip(spectra, shades, strict=True):
            position = np.linspace(0, 1, len(values)) if len(values) > 1 else np.array([0.0])
            if values[0] > 0:
                scaled = np.where(values > values[0] * 1e-12, values / values[0], np.nan)
                left.plot(position, scaled, color=shade, linewidth=1.4, marker="." if len(values) < 8 else "")
        left.set(yscale="log", xlim=(0, 1))
        left.set_ylabel("singular value / the largest", fontsize=8)
        left.set_xticks(np.linspace(0, 1, 5), ["0", "25", "50", "75", "100"])
    left.set_xlabel("place, from the largest to the smallest (%)", fontsize=8)
    draw_bars(right, [name for name, _ in spectra], [float(values[0]) for _, values in spectra], list(shades))
    right.set_xlabel("largest singular value", fontsize=8)
    right.yaxis.tick_right()
    for panel in (left, right):
        panel.tick_params(labelsize=7, which="both")


def _draw_decays(figure: Figure, panel: Axes, spectra: Sequence[tuple[str, Array]]) -> None:
    """Draw each spectrum as a row, beside its bar: the darker, the smaller beside its largest value."""
    rows = np.full((len(spectra), 100), np.nan)
    for row, (_, values) in zip(rows, spectra, strict=True):
        if values[0] > 0:
            place = np.minimum((np.linspace(0, 1, 100) * len(values)).astype(int), len(values) - 1)
            row[:] = np.log10(np.maximum(values[place] / values[0], 1e-4))
    picture = panel.imshow(
        rows, cmap="cividis", vmin=-4, vmax=0, aspect="auto", interpolation="nearest",
        extent=(0, 1, len(spectra) - 0.5, -0.5),
    )  # fmt: skip
    panel.set_yticks([])
    panel.set_xticks(np.linspace(0, 1, 5), ["0", "25", "50", "75", "100"])
    bar = figure.colorbar(picture, ax=panel, location="left", fraction=0.05, ticks=range(-4, 1))
    bar.ax.set_yticklabels(["1e-4 or less", "1e-3", "1e-2", "0.1", "1"])
    bar.ax.tick_params(labelsize=7)
    bar.set_label("singular value / the largest", fontsize=8)


def draw_bars(panel: Axes, names: Sequence[str], lengths: Sequence[float], colour: Any) -> None:
    """Draw one bar per name, the first on top."""
    positions = np.arange(len(names))
    panel.barh(positions, lengths, color=colour, height=0.7)
    panel.set_yticks(positions, [shorten(name, NAME_ON_BAR) for name in names], fontsize=7)
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


def display_names(names: Sequence[str], most: int) -> tuple[list[str], str]:
    """Return names short enough to be shown, and a line about what all of them begin with, if that is left out."""
    shown = [printable(name) for name in names]
    if max(map(len, shown), default=0) <= most:
        return shown, ""
    prefix = common_prefix(shown)
    return shorten_names([name.removeprefix(prefix) for name in shown], most), (
        f"all names begin with {shorten(prefix, 80)}" if prefix else ""
    )


def shorten(name: str, most: int) -> str:
    """Return a name of at most ``most`` characters, its middle left out where it is longer."""
    name = printable(name)
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[: most - 1 - half]}…{name[-half:]}"


def _title(panel: Axes, name: str, text: str) -> None:
    # Names are shown literally: a $ begins no formula.
    panel.set_title(f"{shorten(name, NAME_ON_PANEL)}\n{text}", fontsize=7, parse_math=False)


@contextmanager
def ignore_missing_glyphs() -> Iterator[None]:
    """Suppress warnings for letters that matplotlib's font lacks: a browser has them."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
