"""``xweights convert``. Owns the command :func:`convert`. Imports typer, arguments, opening and output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xweights.command.arguments import Where, where_of
from xweights.command.opening import target_of
from xweights.command.output import need_folder, working


def convert(
    source: Annotated[str, typer.Argument(help="a weight file, or package.module:factory[@weights]")],
    path: Annotated[Path, typer.Argument(help="the file to write; its ending says the format")],
    where: Where = None,
) -> None:
    """Write the weights of a file, or of a model, into a file of the format that its ending says."""
    from xweights.files.saving import save

    need_folder(path)
    with working(2) as step:
        step(f"opening {source}")
        opened = target_of(source)
        step(f"saving {path}")
        save(opened, path, where=where_of(where))
    typer.echo(f"saved: {path}")
