"""``xweights diff``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from xweights.cli.exit_codes import DIFFERENT
from xweights.cli.options import Json, NamePairs, Target, Where, names_of, where_of
from xweights.cli.output import show_json, show_table, working
from xweights.cli.targets import target_of


def diff(
    a: Target,
    b: Target,
    where: Where = None,
    names: NamePairs = None,
    top: Annotated[int, typer.Option(min=0, metavar="N", help="how many of the entries that differ most")] = 10,
    json: Json = False,
) -> None:
    """Show what differs between two targets, bit by bit: how many entries, by how much, and which ones most.

    Arrays meet in neutral order, across frameworks. The exit status is 0 if nothing differs, 1 if something does, and
    2 if they couldn't be compared.
    """
    from xweights.inspection.diff import diff as compared
    from xweights.inspection.histograms import top_entries

    with working(4) as step:
        step(f"opening {a}")
        one = target_of(a)
        step(f"opening {b}")
        other = target_of(b)
        step("comparing")
        found = compared(one, other, where=where_of(where), names=names_of(names))
        step("looking for the largest differences")
        most = top_entries(found, one, other, top, names=names_of(names)) if top else []
    if json:
        show_json(found.as_dict() | {"top": [asdict(entry) for entry in most]})
    else:
        if found:
            show_table(*found.table())
        typer.echo(found.verdict)
        if most:
            typer.echo("\nentries that differ most")
            rows = [[e.name, str(list(e.index)), f"{e.a:.6g}", f"{e.b:.6g}", f"{e.gap:.3g}"] for e in most]
            show_table(["name", "entry", "a", "b", "|a-b|"], rows)
    if found:
        raise typer.Exit(DIFFERENT)
