"""Tables for a terminal. Owns :func:`render`. Imports rich inside the function only."""

from __future__ import annotations

from collections.abc import Sequence


def render(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a plain-text table, numbers to the right, as wide as it needs to be."""
    from io import StringIO

    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, title in enumerate(head):
        cells = [row[position] for row in rows]
        numeric = bool(cells) and all(cell == "" or cell[0] in "+-.0123456789∞" for cell in cells) and any(cells)
        table.add_column(title, justify="right" if numeric and position else "left", no_wrap=True)
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
