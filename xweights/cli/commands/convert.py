"""The command ``xweights convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xweights.cli.adapters import parse_adapters
from xweights.cli.options import Adapters, DryRun, Format, Where, parse_where
from xweights.cli.output import file_progress, need_folder
from xweights.cli.streams import output_path, say_saved, trial_path
from xweights.cli.targets import count_bytes, load_target, split_part, weight_file


def convert(
    source: Annotated[str, typer.Argument(help="a weight file (- is stdin), or package.module:factory[@weights]")],
    path: Annotated[Path, typer.Argument(help="the file to write; its ending sets the format; - is stdout")],
    where: Where = None,
    adapt: Adapters = None,
    format: Format = None,
    dry_run: DryRun = False,
) -> None:
    """Write the weights of a file or model to another file; its suffix sets the format."""
    from xweights.files.save import convert as convert_file
    from xweights.files.save import save

    if str(path) != "-":
        need_folder(path)
    adapters = parse_adapters(adapt)
    if adapters is not None:
        weight_file(source)  # refuses models, which have the shapes that they have
    opened = load_target(source)
    with (
        output_path(path, format) as named,
        trial_path(named, dry_run) as written,
        file_progress(written, count_bytes(opened), f"writing {path}"),
    ):
        if adapters is None:
            save(opened, written, where=parse_where(where))
        else:
            file, part = split_part(Path(source))
            convert_file(file, written, where=parse_where(where), part=part, adapt=adapters)
    say_saved(path, dry_run=dry_run)
