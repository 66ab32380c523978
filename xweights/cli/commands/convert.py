"""The command ``xweights convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xweights.cli.adapters import parse_adapters
from xweights.cli.options import Adapters, DryRun, Format, Where, parse_where
from xweights.cli.output import file_progress
from xweights.cli.several import all_or_none, name_of, results_in
from xweights.cli.streams import output_path, say_saved, trial_path
from xweights.cli.targets import count_bytes, load_target, split_part, weight_file


def convert(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="weight files (- is stdin), or package.module:factory[@weights]"),
    ],
    path: Annotated[
        Path, typer.Argument(help="the file to write, whose ending sets the format; a folder for several; - is stdout")
    ],
    where: Where = None,
    adapt: Adapters = None,
    format: Format = None,
    dry_run: DryRun = False,
) -> None:
    """Write the weights of files or of a model to others; the ending sets the format, in a folder --format."""
    from xweights.files.save import convert as convert_file
    from xweights.files.save import save

    results = results_in(sources, path, format)
    adapters = parse_adapters(adapt)
    for source in sources if adapters is not None else ():
        weight_file(source)  # refuses models, which have the shapes that they have
    with all_or_none(sources, dry_run=dry_run):
        for source, result in zip(sources, results, strict=True):
            with name_of(source, sources):
                opened = load_target(source)
                with (
                    output_path(result, None if path.is_dir() else format) as named,
                    trial_path(named, dry_run) as written,
                    file_progress(written, count_bytes(opened), f"writing {result}"),
                ):
                    if adapters is None:
                        save(opened, written, where=parse_where(where))
                    else:
                        file, part = split_part(Path(source))
                        convert_file(file, written, where=parse_where(where), part=part, adapt=adapters)
    for result in results:
        say_saved(result, dry_run=dry_run)
