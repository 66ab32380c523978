"""Arguments that several commands share, and their parsers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from xweights.cli.completion import complete_where

Target = Annotated[
    str,
    typer.Argument(
        help="a weight file (FILE#PART: a part of it; - is stdin), or package.module:factory[@weights]",
        show_default=False,
    ),
]
Targets = Annotated[
    list[str],
    typer.Argument(
        help="weight files, folders (FILE#PART: a part of it; - is stdin), or package.module:factory[@weights]",
        show_default=False,
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        metavar="WHERE",
        autocompletion=complete_where,
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
DryRun = Annotated[bool, typer.Option("--dry-run", help="do it all in a temporary file, say the result, keep nothing")]
Format = Annotated[
    str | None, typer.Option("--format", metavar="ENDING", help="of standard output: safetensors, npz, pt, ...")
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapt",
        metavar="GLOB=HOW",
        help="bring arrays to another shape: 'stem/kernel=sum(in)', mean, repeat, take, pad, resample, rows, leave",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="the file to write", show_default=False)]


def parse_where(texts: Sequence[str] | None, default: Any = ...) -> Any:
    """Parse the values of ``--where`` into a value for ``where=``."""
    included = [_parse_part(text) for text in texts or () if not text.startswith("~")]
    excluded = [_parse_part(text[1:]) for text in texts or () if text.startswith("~")]
    if not included and not excluded:
        return default
    from xweights.core.selection import to_where

    where = to_where(included[0] if included else (... if default is None else default))
    for part in included[1:]:
        where |= part
    for part in excluded:
        where &= ~to_where(part)
    return where


def _parse_part(text: str) -> Any:
    from xweights.core.selection import layer, native, role, trainable
    from xweights.errors import ArgumentError

    kind, colon, rest = text.partition(":")
    if not colon or kind not in ("role", "layer", "native", "trainable"):
        return text
    if kind == "role":
        return role(*rest.split(","))
    if kind == "native":
        return native(rest)
    if kind == "layer":
        return layer(int(rest) if re.fullmatch(r"-?\d{1,18}", rest) else rest)
    if rest not in ("yes", "no"):
        raise ArgumentError(f"--where trainable: is yes or no\ngot: {text!r}")
    return trainable() if rest == "yes" else ~trainable()


def parse_names(texts: Sequence[str] | None) -> dict[str, str] | None:
    """Parse the values of ``--names`` into a value for ``names=``."""
    if not texts:
        return None
    from xweights.errors import ArgumentError

    names = {}
    for text in texts:
        target_glob, equals, twin_glob = text.partition("=")
        if not equals or not target_glob or not twin_glob:
            raise ArgumentError(f"--names is GLOB=GLOB, the target's first\ngot: {text!r}")
        names[target_glob] = twin_glob
    return names
