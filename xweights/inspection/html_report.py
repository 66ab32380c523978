"""A report as one self-contained HTML file: sortable tables and figures, for light and dark themes.

Names are shown as text, and the content security policy forbids every request.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from html import escape
from typing import TYPE_CHECKING, Any

from xweights.core.selection import WhereLike
from xweights.edit.read import parameters
from xweights.errors import SelectionError
from xweights.inspection.diff import diff
from xweights.inspection.histograms import top_entries, zeros_in
from xweights.inspection.html_parts import POLICY, SCRIPT, STYLE, Cell, inline_svg, table
from xweights.inspection.plots import plot, plot_diff
from xweights.inspection.stats import stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xweights.core.names import Names
    from xweights.core.parameter import Parameter

TOP = 20
# A singular value decomposition of a larger matrix takes minutes.
WIDEST = 2048


def page(
    a: Any,
    b: Any = None,
    *,
    titles: tuple[str, str] = ("a", "b"),
    where: WhereLike = ...,
    names: Names | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> str:
    """Return the report on a target, or on two and their differences, as HTML; call ``step`` with each step's name."""
    title = titles[0] if b is None else f"{titles[0]} against {titles[1]}"
    parts = []
    if b is not None:
        step("comparing")
        parts.append(_differences(a, b, where, names))
    for mark, side, name in zip("ab", (a,) if b is None else (a, b), titles, strict=False):
        step(f"measuring {name}")
        parts.append(_numbers(side, name, where))
        step(f"drawing {name}")
        parts += _pictures(side, name, where, mark)
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{POLICY}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _numbers(target: Any, title: str, where: WhereLike) -> str:
    target_stats = stats(target, where=where)
    # The numbers first: on a phone there is room for the name and two or three columns.
    head = [
        "name",
        "entries",
        "norm",
        "mean",
        "std",
        "min",
        "max",
        "zero",
        "NaN",
        "axes",
        "shape",
        "dtype",
        "trainable",
    ]
    rows: list[list[Cell]] = []
    bad = {row.name for row in target_stats.rows if row.nan or math.isinf(row.min) or math.isinf(row.max)}
    in_order = sorted(target_stats.rows, key=lambda row: row.name not in bad)
    for row in in_order:
        axes = "?" if row.axes is None else ", ".join(row.axes)
        shape = ", ".join(map(str, row.shape))
        numbers = [_cell(x, 4) for x in (row.norm, row.mean, row.std, row.min, row.max)]
        rows.append(
            [
                Cell(row.name),
                Cell(f"{row.count:,}", row.count),
                *numbers,
                Cell(f"{row.sparsity:.1%}", row.sparsity),
                Cell(f"{row.nan:,}", row.nan),
                *(Cell(text) for text in (axes, shape, row.dtype)),
                Cell("yes" if row.trainable else "no"),
            ]
        )
    entries = sum(row.count for row in target_stats.rows)
    zeros = sum(row.zeros for row in target_stats.rows)
    lost = sum(row.nan for row in target_stats.rows)
    share = f"{zeros / entries:.1%}" if entries else "0 %"
    facts = f"{len(rows)} parameters, {entries:,} entries, {share} of them zero" + (f", {lost:,} NaN" if lost else "")
    if bad:
        facts += f"; {len(bad)} parameters with NaN or infinity stand first"
    marked = [row.name in bad for row in in_order]
    return f"<h2>Numbers of {escape(title)}</h2>\n<p>{facts}.</p>\n{table(head, rows, bad=marked)}"


def _cell(number: complex, digits: int) -> Cell:
    """Return a number as a cell; complex ones are sorted by their magnitude."""
    return Cell(f"{number:.{digits}g}", abs(number) if isinstance(number, complex) else number)


def _differences(a: Any, b: Any, where: WhereLike, names: Names | None) -> str:
    differences = diff(a, b, where=where, names=names)
    if not differences:
        return f"<h2>Differences</h2>\n<p>{escape(differences.verdict)}.</p>"
    # NaN on one side first; math.nan is another shape, which says so in its note.
    changes = sorted(differences.changes, key=lambda c: not math.isinf(c.max_abs))
    rows = [
        [
            *(Cell(c.name), Cell(f"{c.changed:,}", c.changed), Cell(f"{c.count:,}", c.count)),
            *(Cell(f"{c.max_abs:.4g}", c.max_abs), Cell(f"{c.rel:.4g}", c.rel), Cell(c.note)),
        ]
        for c in changes
    ]
    for side, only in (("a", differences.only_a), ("b", differences.only_b)):
        rows += [[Cell(name), *(Cell("", math.nan) for _ in range(4)), Cell(f"only in {side}")] for name in only]
    head = ["name", "entries that differ", "of", "largest |a - b|", "/ largest |a|", "note"]
    parts = [
        f"<h2>Differences</h2>\n<p>{len(rows)} parameters differ; {escape(differences.verdict)}.</p>",
        table(head, rows, bad=[math.isinf(c.max_abs) for c in changes]),
    ]
    top = top_entries(differences, a, b, TOP, names=names)
    if top:
        parts.append("<h3>Entries that differ most</h3>")
        cells = [[Cell(e.name), Cell(str(list(e.index))), *(_cell(x, 6) for x in (e.a, e.b, e.gap))] for e in top]
        parts.append(table(["name", "entry", "a", "b", "|a - b|"], cells))
    parts.append(_picture("", "differing", plot_diff(a, b, where=where, names=names)))
    return "\n".join(parts)


def _pictures(target: Any, title: str, where: WhereLike, mark: str) -> list[str]:
    figures = [_picture(f"Values of {title}", f"{mark}-values", plot(target, where=where))]
    chosen = parameters(target, where=where)
    matrices = [p for p in chosen if len(p.shape) > 1 and p.size]
    if where is ...:
        matrices = [p for p in matrices if p.role.endswith("kernel") or p.role == "embeddings"] or matrices
    if any(map(zeros_in, matrices)):
        figure = plot(target, where=[p.name for p in matrices], kind="sparsity")
        figures.append(_picture(f"Zeros of {title}", f"{mark}-zeros", figure))
    decomposable = [p for p in matrices if p.floating and (p.axes is not None or len(p.shape) == 2)]
    small = [p.name for p in decomposable if _smaller_side(p) <= WIDEST]
    if small:
        # Without a kernel of finite values there is nothing to draw.
        with suppress(SelectionError):
            figure = plot(target, where=small, kind="spectra")
            figures.append(_picture(f"Singular values of {title}", f"{mark}-spectra", figure))
    if len(small) < len(decomposable):
        wide = len(decomposable) - len(small)
        figures.append(f"<p>{wide} kernels wider than {WIDEST:,} weren't decomposed into singular values.</p>")
    return figures


def _smaller_side(p: Parameter) -> int:
    if p.axes is None:
        return min(p.shape)
    out = math.prod(length for axis, length in zip(p.axes, p.shape, strict=True) if axis in p.outputs)
    return min(out, p.size // out)


def _picture(title: str, name: str, figure: Figure) -> str:
    head = f"<h2>{escape(title)}</h2>\n" if title else ""
    return f"{head}<figure>{inline_svg(figure, name)}</figure>"
