"""``xweights merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from xweights.cli import option_values
from xweights.cli.options import NamePairs, Where, names_of, where_of
from xweights.cli.output import need_folder, writing
from xweights.cli.targets import size_of, target_of

Method = Literal[
    "average",
    "lerp",
    "slerp",
    "ema",
    "model_stock",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
]


def _numbers(text: str) -> Any:
    return typer.Option(metavar="NUMBERS", help=text, show_default=False)


def merge(
    targets: Annotated[list[str], typer.Argument(help="weight files, or package.module:factory[@weights]")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="the file to write")],
    method: Annotated[Method, typer.Option(metavar="METHOD", help=f"how: {', '.join(get_args(Method))}")] = "average",
    base: Annotated[
        str | None, typer.Option(metavar="TARGET", help="where task vectors begin, for the methods that need it")
    ] = None,
    weights: Annotated[list[str] | None, _numbers("of each target: 1,2; where they differ: 'head/*=0,1'")] = None,
    t: Annotated[list[str] | None, _numbers("of lerp and slerp: 0 is the first target, 1 the second")] = None,
    decay: Annotated[list[str] | None, _numbers("of ema: what is kept of the average at each target")] = None,
    scale: Annotated[list[str] | None, _numbers("what the merged task vector is multiplied by")] = None,
    density: Annotated[list[str] | None, _numbers("which share of a task vector is kept")] = None,
    gamma: Annotated[list[str] | None, _numbers("of breadcrumbs: which share of the largest is dropped")] = None,
    epsilon: Annotated[list[str] | None, _numbers("of della: how far apart the probabilities are")] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="divide by the sum of the weights")
    ] = None,
    rescale: Annotated[
        Literal["density", "l1", "none"] | None, typer.Option(help="what makes up for what was dropped")
    ] = None,
    per: Annotated[str | None, typer.Option(metavar="AXES", help="of della: the axes that number the units")] = None,
    seed: Annotated[int | None, typer.Option(help="of the methods that draw at random", show_default=False)] = None,
    cast: Annotated[bool, typer.Option("--cast", help="also merge different dtypes, into the first one's")] = False,
    where: Where = None,
    names: NamePairs = None,
) -> None:
    """Merge weight files and models, of any framework and mixed, into one file, a block at a time.

    Numbers are one for all, one for each target (1,2), or WHERE=NUMBERS, repeated; the last that matches counts.
    """
    from xweights.merging.merge import merge as joined

    need_folder(out)
    given = {"weights": weights, "t": t, "decay": decay, "scale": scale, "density": density, "gamma": gamma,
             "epsilon": epsilon}  # fmt: skip
    options: dict[str, Any] = {name: option_values.by_where(one, f"--{name}", where_of) for name, one in given.items()}
    options |= {"normalize": normalize, "per": option_values.axes(per), "seed": seed}
    options = {name: one for name, one in options.items() if one is not None}
    if rescale is not None:
        options["rescale"] = None if rescale == "none" else rescale
    opened = [target_of(one) for one in targets]
    start = None if base is None else target_of(base)
    with writing(out, size_of(opened[0]), f"merging into {out}"):
        joined(opened, method, base=start, where=where_of(where), names=names_of(names), out=out, cast=cast, **options)
    typer.echo(f"saved: {out}")
