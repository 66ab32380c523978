"""The commands ``xweights plot`` and ``xweights report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from xweights.cli.options import NamePairs, Target, Where, parse_names, parse_where
from xweights.cli.output import need_folder, progress_bar, write_file
from xweights.cli.targets import load_target

Second = Annotated[str | None, typer.Argument(help="another one, to compare with", show_default=False)]
_SUFFIXES = (".png", ".svg", ".pdf")


def plot(
    target: Target,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="the picture: .png, .svg or .pdf")],
    second: Second = None,
    kind: Annotated[
        Literal["histograms", "sparsity", "spectra"],
        typer.Option(help="values, where the zeros are, or singular values; of one target only"),
    ] = "histograms",
    where: Where = None,
    names: NamePairs = None,
) -> None:
    """Draw the values, the zeros or the singular values of a target, or what differs between two."""
    import io

    from xweights.errors import ArgumentError
    from xweights.files.io.atomic import replace_file
    from xweights.inspection.drawing import ignore_missing_glyphs
    from xweights.inspection.plots import plot as draw
    from xweights.inspection.plots import plot_diff

    if out.suffix not in _SUFFIXES:
        raise ArgumentError(f"a picture ends in {', '.join(_SUFFIXES)}\ngot: {str(out)!r}")
    if second is not None and kind != "histograms":
        raise ArgumentError("--kind is for a picture of one target\nFix: leave it out, or draw the two one by one")
    if second is None and names:
        raise ArgumentError("--names is for two targets\nFix: name another one to compare with")
    need_folder(out)
    with progress_bar(3) as step:
        step("opening")
        loaded = load_target(target)
        other = None if second is None else load_target(second)
        step("drawing")
        if other is None:
            figure = draw(loaded, where=parse_where(where, None), kind=kind)
        else:
            figure = plot_diff(loaded, other, where=parse_where(where), names=parse_names(names))
        step(f"saving {out}")
        image = io.BytesIO()
        with ignore_missing_glyphs():
            figure.savefig(image, format=out.suffix[1:], dpi=150)
        with replace_file(str(out)) as file:
            file.write(image.getvalue())
    typer.echo(f"saved: {out}")


def report(
    target: Target,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="the page: .html")],
    second: Second = None,
    where: Where = None,
    names: NamePairs = None,
) -> None:
    """Write a report on a target, or on how two differ, as one HTML file: tables to sort and search, and pictures.

    The file needs no other files and no network.
    """
    from xweights.errors import ArgumentError
    from xweights.inspection.html_report import page

    if out.suffix not in (".html", ".htm"):
        raise ArgumentError(f"a report ends in .html\ngot: {str(out)!r}")
    need_folder(out)
    with progress_bar(6 if second is None else 8) as step:
        step("opening")
        loaded = load_target(target)
        other = None if second is None else load_target(second)
        titles = (target, second or "")
        html = page(loaded, other, titles=titles, where=parse_where(where), names=parse_names(names), step=step)
        step(f"saving {out}")
        write_file(out, html)
    typer.echo(f"saved: {out}")
