"""Render tables for a terminal and for a notebook."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def render(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a plain-text table as wide as it needs to be, with numbers aligned right."""
    from io import StringIO

    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    rows = [[printable(cell) for cell in row] for row in rows]
    # A pipe of Windows' code pages can't take the line, and print() would raise.
    line = box.SIMPLE_HEAD if can_show("─") else box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
    table = Table(box=line, show_edge=False, pad_edge=False)
    for position, title in enumerate(head):
        cells = [row[position] for row in rows]
        table.add_column(title, justify="right" if _numeric(cells) and position else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out = StringIO()
    widest = sum(max(cell_len(cell) for cell in (h, *(row[i] for row in rows))) + 4 for i, h in enumerate(head)) + 4
    # Names are shown literally: no markup, no :emoji:, and as text in a notebook too.
    Console(
        file=out, width=max(widest, 40), color_system=None, markup=False, emoji=False, highlight=False,
        force_jupyter=False, force_terminal=False,
    ).print(table)  # fmt: skip
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def render_html(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", notes: Sequence[str] = ()
) -> str:
    """Return an HTML table for a notebook; names and values are escaped."""
    from html import escape

    right = [_numeric([row[i] for row in rows]) and i > 0 for i in range(len(head))]
    sides = [' style="text-align: right"' if to_right else ' style="text-align: left"' for to_right in right]
    lines = [f"<p>{escape(title)}</p>"] if title else []
    if not head:
        return "\n".join(lines)
    lines += ["<table>", "<thead><tr>"]
    lines += [f"<th{side}>{escape(title)}</th>" for title, side in zip(head, sides, strict=True)]
    lines += ["</tr></thead>", "<tbody>"]
    for row in rows:
        cells = "".join(f"<td{side}>{escape(cell)}</td>" for cell, side in zip(row, sides, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    lines += ["</tbody>", "</table>", *(f"<p>{escape(note)}</p>" for note in notes)]
    return "\n".join(lines)


def render_text_html(text: str) -> str:
    """Return a report's lines as HTML for a notebook, escaped."""
    from html import escape

    return "\n".join(f"<p>{escape(printable(line))}</p>" for line in text.splitlines())


class Text(str):
    """A text that a notebook shows as the table that it is."""

    __slots__ = ("html",)
    html: str

    @classmethod
    def of(cls, text: str, html: str) -> Text:
        """Return a text with its HTML."""
        made = cls(text)
        made.html = html
        return made

    def _repr_html_(self) -> str:
        return self.html


def can_show(text: str) -> bool:
    """Return whether standard output can show a text, by its encoding."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def _numeric(cells: Sequence[str]) -> bool:
    return any(cells) and all(cell == "" or cell[0] in "+-.0123456789∞" for cell in cells)


def printable(text: str) -> str:
    r"""Return a text with control characters escaped: a name may come from somebody else's file.

    Example:
        >>> from xweights.core.tables import printable
        >>> print(printable("red \x1b[31m alert"))
        red \x1b[31m alert
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
