"""Arguments that several commands share, and what their text means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Target = Annotated[str, typer.Argument(help="a weight file, or package.module:factory[@weights]", show_default=False)]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        metavar="WHERE",
        help="which parameters: a glob on names, role:kernel, layer:0, native:GLOB or trainable:yes; given twice, "
        "either; ~ before it leaves out",
        show_default=False,
    ),
]
NamePairs = Annotated[
    list[str] | None,
    typer.Option(
        "--names", metavar="GLOB=GLOB", help="where names differ, as 0/*=dense/0/*; may be repeated", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="the file to write", show_default=False)]


def where_of(given: Sequence[str] | None, default: Any = ...) -> Any:
    """Return what ``where=`` takes for the texts of ``--where``."""
    wanted = [_part(one) for one in given or () if not one.startswith("~")]
    unwanted = [_part(one[1:]) for one in given or () if one.startswith("~")]
    if not wanted and not unwanted:
        return default
    from xweights.core.selection import to_where

    found = to_where(wanted[0] if wanted else (... if default is None else default))
    for one in wanted[1:]:
        found |= one
    for one in unwanted:
        found &= ~to_where(one)
    return found


def _part(text: str) -> Any:
    from xweights.core.selection import layer, native, role, trainable
    from xweights.errors import ArgumentError

    word, colon, rest = text.partition(":")
    if not colon or word not in ("role", "layer", "native", "trainable"):
        return text
    if word == "role":
        return role(*rest.split(","))
    if word == "native":
        return native(rest)
    if word == "layer":
        return layer(int(rest) if rest.removeprefix("-").isdigit() else rest)
    if rest not in ("yes", "no"):
        raise ArgumentError(f"--where trainable: is yes or no\ngot: {text!r}")
    return trainable() if rest == "yes" else ~trainable()


def names_of(given: Sequence[str] | None) -> dict[str, str] | None:
    """Return what ``names=`` takes for the texts of ``--names``."""
    if not given:
        return None
    from xweights.errors import ArgumentError

    found = {}
    for one in given:
        mine, equals, theirs = one.partition("=")
        if not equals or not mine or not theirs:
            raise ArgumentError(f"--names is GLOB=GLOB, the target's first\ngot: {one!r}")
        found[mine] = theirs
    return found
