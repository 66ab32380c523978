"""The command ``xweights verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xweights.cli.commands.port import Model
from xweights.cli.exit_codes import DIFFERENT
from xweights.cli.options import Json
from xweights.cli.output import progress_bar, show_json
from xweights.cli.targets import load_model, load_sample


def verify(
    source: Annotated[str, typer.Argument(help=f"a model: {Model}", show_default=False)],
    target: Annotated[str, typer.Argument(help="its twin: likewise", show_default=False)],
    sample: Annotated[Path, typer.Option(metavar="FILE", help="the input: .npy, or .npz for several inputs")],
    sample_target: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="the target's input, if it isn't the sample with its channels moved"),
    ] = None,
    json: Json = False,
) -> None:
    """Compare two models layer by layer on a sample, and name the first layer where they part, with its cause.

    Nothing is changed. The exit status is 0 if the outputs agree and 1 if they don't.
    """
    from xweights.porting.verify import verify as compare

    with progress_bar(4) as step:
        step("reading the sample")
        source_input = load_sample(sample)
        target_input = None if sample_target is None else load_sample(sample_target)
        step(f"building {source}")
        source_model = load_model(source)
        step(f"building {target}")
        target_model = load_model(target)
        step("comparing")
        result = compare(source_model, target_model, sample=source_input, sample_target=target_input)
    if json:
        show_json({"ok": result.ok, "max_error": result.max_error, "report": str(result)})
    else:
        typer.echo(str(result))
    if not result.ok:
        raise typer.Exit(DIFFERENT)
