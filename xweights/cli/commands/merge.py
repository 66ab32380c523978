"""The command ``xweights merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from xweights.cli import option_values
from xweights.cli.adapters import parse_adapters
from xweights.cli.options import Adapters, DryRun, NamePairs, Where, parse_names, parse_where
from xweights.cli.output import file_progress, need_folder
from xweights.cli.streams import say_saved, trial_path
from xweights.cli.targets import count_bytes, load_target

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
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="the file to write")],
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="weight files, or package.module:factory[@weights]; none with --recipe", show_default=False
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="what to merge, and how: a .yaml or .json file in mergekit's format"),
    ] = None,
    method: Annotated[Method, typer.Option(metavar="METHOD", help=f"how: {', '.join(get_args(Method))}")] = "average",
    base: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="the target that task vectors start from, for the methods that need it"),
    ] = None,
    weights: Annotated[list[str] | None, _numbers("of each target: 1,2; for some parameters: 'head/*=0,1'")] = None,
    t: Annotated[list[str] | None, _numbers("of lerp and slerp: 0 is the first target, 1 the second")] = None,
    decay: Annotated[list[str] | None, _numbers("of ema: the share of the average kept at each target")] = None,
    scale: Annotated[list[str] | None, _numbers("the factor on the merged task vector")] = None,
    density: Annotated[list[str] | None, _numbers("the share of a task vector that is kept")] = None,
    gamma: Annotated[
        list[str] | None, _numbers("of breadcrumbs: the share of the largest entries that is dropped")
    ] = None,
    epsilon: Annotated[list[str] | None, _numbers("of della: how far apart the probabilities are")] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="divide by the sum of the weights")
    ] = None,
    rescale: Annotated[
        Literal["density", "l1", "none"] | None,
        typer.Option(help="how the entries that are kept make up for the dropped ones"),
    ] = None,
    per: Annotated[str | None, typer.Option(metavar="AXES", help="of della: the axes that number the units")] = None,
    seed: Annotated[int | None, typer.Option(help="of the methods that draw at random", show_default=False)] = None,
    part: Annotated[
        str | None, typer.Option(metavar="NAME", help="the part of training runs' files, as in FILE#NAME")
    ] = None,
    rest: Annotated[
        Literal["keep", "drop"],
        typer.Option(help="what becomes of the rest of the first file (an optimizer, an epoch) in one of its format"),
    ] = "keep",
    cast: Annotated[bool, typer.Option("--cast", help="also merge different dtypes, into that of the first")] = False,
    where: Where = None,
    names: NamePairs = None,
    adapt: Adapters = None,
    dry_run: DryRun = False,
) -> None:
    """Merge weight files and models, of any framework and mixed, into one file, a block at a time.

    Numbers are one for all, one for each target (1,2), or WHERE=NUMBERS, repeated; the last match counts.
    """
    from xweights.cli.recipe_settings import ByFilter, check_dtypes, check_layers
    from xweights.cli.recipes import merge_recipe
    from xweights.edit.read import parameters
    from xweights.errors import ArgumentError
    from xweights.merging.inputs import open_part
    from xweights.merging.merge import merge as merge_targets

    need_folder(out)
    name_pairs = parse_names(names)
    texts = {"weights": weights, "t": t, "decay": decay, "scale": scale, "density": density, "gamma": gamma,
             "epsilon": epsilon}  # fmt: skip
    options: dict[str, Any] = {
        name: option_values.parse_by_where(values, f"--{name}", parse_where) for name, values in texts.items()
    }
    options |= {"normalize": normalize, "per": option_values.parse_axes(per), "seed": seed}
    options = {name: value for name, value in options.items() if value is not None}
    if rescale is not None:
        options["rescale"] = None if rescale == "none" else rescale
    targets = list(targets or [])
    layers: int | None = None
    dtypes: dict[str, Any] = {}
    if recipe is not None:
        read = merge_recipe(recipe)
        given = [one for one in ("targets", "method", "base") if _is_given(ctx, one)]
        # The seed of a draw and the axes of a unit stand in no recipe of mergekit's.
        given += [one for one in options if one not in ("seed", "per")]
        given += [one for one in ("where", "names") if _is_given(ctx, one) and read[one] is not None]
        if given:
            words = ", ".join(given)
            raise ArgumentError(f"a recipe says this itself\ngot: {words} beside --recipe {recipe}\nFix: leave one out")
        options |= read
        targets, method, base = options.pop("targets"), options.pop("method"), options.pop("base", None)
        layers, dtypes = options.pop("layers"), options.pop("dtypes")
        where, pairs = options.pop("where") or where, options.pop("names")
        name_pairs = pairs or name_pairs
    if not targets:
        raise ArgumentError("nothing is to be merged\nFix: xweights merge a.npz b.npz -o c.npz, or --recipe merge.yaml")
    opened = [open_part(load_target(target), part) for target in targets]
    if layers is not None:
        check_layers([parameters(one) for one in opened], layers)
    check_dtypes(parameters(opened[0]), dtypes)
    for name, option in options.items():
        if isinstance(option, ByFilter):
            options[name] = option.bind(parameters(opened[0]))
    start = None if base is None else open_part(load_target(base), part)
    with trial_path(out, dry_run) as written, file_progress(written, count_bytes(opened[0]), f"merging into {out}"):
        report = merge_targets(
            opened,
            method,
            part=part,
            rest=rest,
            base=start,
            where=parse_where(where),
            names=name_pairs,
            out=written,
            cast=cast,
            adapt=parse_adapters(adapt),
            **options,
        )
    say_saved(out, dry_run=dry_run)
    for line in str(report).splitlines()[1:]:
        typer.echo(line)


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE" and bool(ctx.params.get(name))
