"""Parts of the HTML report: style, script, sortable tables, and figures that follow the theme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from xweights.core.short_names import common_prefix
from xweights.core.tables import printable
from xweights.inspection.drawing import ignore_missing_glyphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
)

STYLE = """
:root { color-scheme: light dark; --text: #1c2733; --soft: #5b6875; --line: #d5dbe1; --back: #ffffff; --row: #f4f6f8;
        --mark: #1f66a8; --bad: #8a2f8a; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ec; --soft: #9aa7b4; --line: #37424d; --back: #14191f; --row: #1c232b; --mark: #7db8ee;
          --bad: #e39be3; }
}
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1, h2 { overflow-wrap: anywhere; } h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p { color: var(--soft); }
.wide { overflow: auto; max-height: 34rem; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; white-space: nowrap; }
th { position: sticky; top: 0; background: var(--back); box-shadow: inset 0 -1px var(--line); padding: 0; }
th button { all: unset; cursor: pointer; padding: .4rem .7rem; color: var(--soft); font-weight: 600; }
th button:hover, th button:focus-visible { color: var(--mark); text-decoration: underline; }
th[aria-sort] button { color: var(--mark); }
th[aria-sort=ascending] button::after { content: " \\25B4"; }
th[aria-sort=descending] button::after { content: " \\25BE"; }
.number { text-align: right; }
p.begin { display: none; }
th:first-child, td:first-child { position: sticky; left: 0; z-index: 1; background: var(--back); }
th:first-child { z-index: 2; } tbody tr:nth-child(even) td:first-child { background: var(--row); }
tr.bad td { color: var(--bad); font-weight: 600; } tr.bad td:first-child { box-shadow: inset 4px 0 var(--bad); }
tbody tr:nth-child(even) { background: var(--row); }
input { font: inherit; font-size: 13px; padding: .3rem .6rem; margin: 0 0 .6rem; width: 20rem; max-width: 100%;
        box-sizing: border-box; color: inherit; background: var(--row); border: 1px solid var(--line);
        border-radius: 6px; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; color: var(--text); }
figure svg text { fill: currentColor; font-family: system-ui, sans-serif; }
@media (max-width: 640px) {
  main { padding: 1rem .5rem 3rem; } th, td { padding: .3rem .45rem; } th button { padding: .4rem .45rem; }
  td:first-child { min-width: 34vw; white-space: normal; overflow-wrap: anywhere; }
  .prefix { display: none; } p.begin { display: block; overflow-wrap: anywhere; }
  figure { overflow-x: auto; } figure svg { max-width: none; }
}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
    const number = head.classList.contains("number");
    const before = (x, y) => number ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
    const known = value => !number || !Number.isNaN(Number(value));
    const rows = [...body.rows].map(row => [key(row), row]);
    rows.sort(([x], [y]) => known(y) - known(x) || (known(x) ? (before(x, y) || 0) * (down ? -1 : 1) : 0));
    body.append(...rows.map(([, row]) => row));
  }));
  const search = table.closest("section").querySelector("input");
  search?.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
}
"""


@dataclass(frozen=True)
class Cell:
    """A text, and the number to sort it by, if it is one."""

    text: str
    value: float | None = None


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], *, bad: Sequence[bool] = ()) -> str:
    """Return a table that can be sorted by a click on a column's title, and searched by name.

    ``bad`` says which rows are marked.
    """
    marks = [' class="bad"' if position < len(bad) and bad[position] else "" for position in range(len(rows))]
    numbers = [bool(rows) and all(row[i].value is not None for row in rows) for i in range(len(head))]
    kinds = [' class="number"' if numeric else "" for numeric in numbers]
    titles = "".join(
        f'<th scope="col"{kind}><button type="button">{escape(title)}</button></th>'
        for title, kind in zip(head, kinds, strict=True)
    )
    # On a phone, what all names begin with stands once, above the table.
    prefix = common_prefix([printable(row[0].text) for row in rows]) if head[0] == "name" else ""
    lines = [
        "".join(
            _cell(cell, kind, prefix if place == 0 else "")
            for place, (cell, kind) in enumerate(zip(row, kinds, strict=True))
        ).join((f"<tr{mark}>", "</tr>"))
        for row, mark in zip(rows, marks, strict=True)
    ]
    search = '<input type="search" placeholder="search names" aria-label="search names">' if len(rows) > 8 else ""
    begin = f'<p class="begin">All names begin with {escape(prefix)}</p>' if prefix else ""
    body = "\n".join(lines)
    return (
        f'<section>{begin}{search}<div class="wide"><table><thead><tr>{titles}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div></section>"
    )


def _cell(cell: Cell, kind: str, prefix: str = "") -> str:
    value = ""
    if cell.value is not None:
        # JavaScript's names of infinity; NaN is sorted last.
        names = {math.inf: "Infinity", -math.inf: "-Infinity"}
        value = f' data-value="{names.get(cell.value, repr(cell.value) if cell.value == cell.value else "NaN")}"'
    text = printable(cell.text)
    begin = f'<span class="prefix">{escape(prefix)}</span>' if prefix else ""
    return f"<td{kind}{value}>{begin}{escape(text.removeprefix(prefix))}</td>"


def inline_svg(figure: Figure, name: str) -> str:
    """Return a figure as inline SVG: text stays text, and black becomes the colour of the page's text."""
    import matplotlib as mpl

    out = io.StringIO()
    # The same report has the same bytes: no date, and identifiers that aren't random.
    with ignore_missing_glyphs(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Identifiers must be unique in the page: only those referred to are kept, prefixed with the figure's name.
    referenced = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referenced else "", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    return svg.replace("#000000", "currentColor")
