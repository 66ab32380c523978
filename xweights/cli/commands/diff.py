"""The command ``xweights diff``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from xweights.cli.exit_codes import DIFFERENT
from xweights.cli.options import Json, NamePairs, Target, Where, parse_names, parse_where
from xweights.cli.output import progress_bar, show_json, show_table
from xweights.cli.targets import load_target


def diff(
    a: Target,
    b: Target,
    where: Where = None,
    names: NamePairs = None,
    top: Annotated[int, typer.Option(min=0, metavar="N", help="how many of the entries that differ most")] = 10,
    json: Json = False,
) -> None:
    """Show what differs between two targets, bit by bit: how many entries, by how much, and which ones most.

    Arrays are compared in neutral order, across frameworks. The exit status is 0 if nothing differs, 1 if something
    does, and 2 if they couldn't be compared.
    """
    from xweights.inspection.diff import diff as compute_diff
    from xweights.inspection.histograms import top_entries

    with progress_bar(4) as step:
        step(f"opening {a}")
        first = load_target(a)
        step(f"opening {b}")
        second = load_target(b)
        step("comparing")
        result = compute_diff(first, second, where=parse_where(where), names=parse_names(names))
        step("looking for the largest differences")
        most = top_entries(result, first, second, top, names=parse_names(names)) if top else []
    if json:
        show_json(result.as_dict() | {"top": [asdict(entry) for entry in most]})
    else:
        if result:
            show_table(*result.table())
        typer.echo(result.verdict)
        if most:
            typer.echo("\nentries that differ most")
            rows = [[e.name, str(list(e.index)), f"{e.a:.6g}", f"{e.b:.6g}", f"{e.gap:.3g}"] for e in most]
            show_table(["name", "entry", "a", "b", "|a-b|"], rows)
    if result:
        raise typer.Exit(DIFFERENT)
