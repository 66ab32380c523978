"""The command ``xweights convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xweights.cli.options import Where, parse_where
from xweights.cli.output import file_progress, need_folder
from xweights.cli.targets import count_bytes, load_target


def convert(
    source: Annotated[str, typer.Argument(help="a weight file, or package.module:factory[@weights]")],
    path: Annotated[Path, typer.Argument(help="the file to write; its suffix sets the format")],
    where: Where = None,
) -> None:
    """Write the weights of a file or model to another file; its suffix sets the format."""
    from xweights.files.save import save

    need_folder(path)
    opened = load_target(source)
    with file_progress(path, count_bytes(opened), f"writing {path}"):
        save(opened, path, where=parse_where(where))
    typer.echo(f"saved: {path}")
