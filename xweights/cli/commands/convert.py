"""``xweights convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xweights.cli.options import Where, where_of
from xweights.cli.output import need_folder, writing
from xweights.cli.targets import size_of, target_of


def convert(
    source: Annotated[str, typer.Argument(help="a weight file, or package.module:factory[@weights]")],
    path: Annotated[Path, typer.Argument(help="the file to write; its ending says the format")],
    where: Where = None,
) -> None:
    """Write the weights of a file, or of a model, into a file of the format that its ending says."""
    from xweights.files.save import save

    need_folder(path)
    opened = target_of(source)
    with writing(path, size_of(opened), f"writing {path}"):
        save(opened, path, where=where_of(where))
    typer.echo(f"saved: {path}")
