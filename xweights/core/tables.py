"""Tables for a terminal and for a notebook."""

from __future__ import annotations

from collections.abc import Sequence


def render(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a plain-text table, numbers to the right, as wide as it needs to be."""
    from io import StringIO

    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    rows = [[printable(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, title in enumerate(head):
        cells = [row[position] for row in rows]
        table.add_column(title, justify="right" if _numeric(cells) and position else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out = StringIO()
    widest = sum(max(cell_len(one) for one in (h, *(row[i] for row in rows))) + 4 for i, h in enumerate(head)) + 4
    # Names are shown as they are: no markup, no :emoji:, and as text in a notebook too.
    Console(
        file=out, width=max(widest, 40), color_system=None, markup=False, emoji=False, highlight=False,
        force_jupyter=False, force_terminal=False,
    ).print(table)  # fmt: skip
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def render_html(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", notes: Sequence[str] = ()
) -> str:
    """Return a table for a notebook; whatever names and values contain is shown, never taken for HTML."""
    from html import escape

    right = [_numeric([row[place] for row in rows]) and place > 0 for place in range(len(head))]
    sides = [' style="text-align: right"' if one else ' style="text-align: left"' for one in right]
    lines = [f"<p>{escape(title)}</p>"] if title else []
    if not head:
        return "\n".join(lines)
    lines += ["<table>", "<thead><tr>"]
    lines += [f"<th{side}>{escape(one)}</th>" for one, side in zip(head, sides, strict=True)]
    lines += ["</tr></thead>", "<tbody>"]
    for row in rows:
        cells = "".join(f"<td{side}>{escape(one)}</td>" for one, side in zip(row, sides, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    lines += ["</tbody>", "</table>", *(f"<p>{escape(one)}</p>" for one in notes)]
    return "\n".join(lines)


def _numeric(cells: Sequence[str]) -> bool:
    return any(cells) and all(cell == "" or cell[0] in "+-.0123456789∞" for cell in cells)


def printable(text: str) -> str:
    r"""Return a text without what would steer a terminal: a name may come from a file that somebody else made.

    Example:
        >>> from xweights.core.tables import printable
        >>> print(printable("red \x1b[31m alert"))
        red \x1b[31m alert
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
