"""``xweights plot`` and ``xweights report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from xweights.cli.options import NamePairs, Target, Where, names_of, where_of
from xweights.cli.output import need_folder, working, write_file
from xweights.cli.targets import target_of

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
    from xweights.files.io.atomic import replacing
    from xweights.inspection.drawing import quiet
    from xweights.inspection.plots import plot as drawn
    from xweights.inspection.plots import plot_diff

    if out.suffix not in _SUFFIXES:
        raise ArgumentError(f"a picture ends in {', '.join(_SUFFIXES)}\ngot: {str(out)!r}")
    if second is not None and kind != "histograms":
        raise ArgumentError("--kind is for a picture of one target\nFix: leave it out, or draw the two one by one")
    if second is None and names:
        raise ArgumentError("--names is for two targets\nFix: name another one to compare with")
    need_folder(out)
    with working(3) as step:
        step("opening")
        one = target_of(target)
        other = None if second is None else target_of(second)
        step("drawing")
        if other is None:
            figure = drawn(one, where=where_of(where, None), kind=kind)
        else:
            figure = plot_diff(one, other, where=where_of(where), names=names_of(names))
        step(f"saving {out}")
        image = io.BytesIO()
        with quiet():
            figure.savefig(image, format=out.suffix[1:], dpi=150)
        with replacing(str(out)) as file:
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

    The file needs nothing else, and asks nothing of the network.
    """
    from xweights.errors import ArgumentError
    from xweights.inspection.html_report import page

    if out.suffix not in (".html", ".htm"):
        raise ArgumentError(f"a report ends in .html\ngot: {str(out)!r}")
    need_folder(out)
    with working(6 if second is None else 8) as step:
        step("opening")
        one = target_of(target)
        other = None if second is None else target_of(second)
        titles = (target, second or "")
        written = page(one, other, titles=titles, where=where_of(where), names=names_of(names), step=step)
        step(f"saving {out}")
        write_file(out, written)
    typer.echo(f"saved: {out}")
