"""The commands ``xweights edit`` and ``xweights prune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xweights.cli import option_values
from xweights.cli.options import DryRun, Json, Where, parse_where
from xweights.cli.output import file_progress, show_json, show_table
from xweights.cli.several import all_or_none, name_of, results_beside
from xweights.cli.streams import say_saved, trial_path
from xweights.cli.targets import count_file_bytes, weight_file

if TYPE_CHECKING:
    from xweights.files.edit.edit import EditReport
    from xweights.rules.base import Rule

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...", help="weight files; FILE#PART is a part of a training run's file", show_default=False
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FILE", help="the file to write, or a folder to write all into", show_default=False
    ),
]
Scope = Annotated[
    Literal["each", "global"], typer.Option(help="of each parameter by itself, or of all selected ones together")
]
_EDITS = "edits"
_VALUES = {"Fill": "value", "SetEntries": "value", "Scale": "factor", "Add": "delta"}


def _record_edit(ctx: typer.Context, param: Any, value: list[str] | None) -> list[str] | None:
    """Record an edit as its option is parsed: options are parsed in the order in which they were typed."""
    if value:
        ctx.meta.setdefault(_EDITS, []).append(
            (param.name, option_values.single_value(value, f"--{param.name.replace('_', '-')}"))
        )
    return value or []  # older releases of typer ask for its length


def _edit_option(metavar: str, text: str, name: str = "") -> Any:
    declared = [name] if name else []
    return typer.Option(*declared, metavar=metavar, help=text, callback=_record_edit, show_default=False)


def edit(
    ctx: typer.Context,
    files: Files,
    set_to: Annotated[
        list[str] | None,
        _edit_option("VALUE", "set all entries, or some: [0,:3]=1.5 by position, [in=0,out=:3]=1.5 by axis", "--set"),
    ] = None,
    scale: Annotated[list[str] | None, _edit_option("FACTOR", "multiply by a number")] = None,
    add: Annotated[list[str] | None, _edit_option("NUMBER", "add a number")] = None,
    clip: Annotated[list[str] | None, _edit_option("LOW,HIGH", "bound the values; one may be left out: ,1")] = None,
    max_norm: Annotated[list[str] | None, _edit_option("MAX", "bound the L2 norm of each unit, see --per")] = None,
    noise: Annotated[list[str] | None, _edit_option("STD", "add normal noise, see --seed")] = None,
    prune: Annotated[list[str] | None, _edit_option("FRACTION", "set the smallest to zero, see --scope")] = None,
    per: Annotated[str, typer.Option(metavar="AXES", help="what a unit is, for --max-norm")] = "out",
    seed: Annotated[int | None, typer.Option(help="of --noise", show_default=False)] = None,
    scope: Scope = "each",
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="edits from a .yaml or .json file, before those of the options")
    ] = None,
    allow_nonfinite: Annotated[bool, typer.Option("--allow-nonfinite", help="take NaN and infinity, too")] = False,
    where: Where = None,
    out: Out = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Edit the weights in files, one array in memory at a time; several edits are done in the order given.

    A file itself is replaced, as a whole or not at all, unless --out names another; of several files, none is replaced
    before all are written. Without --where an edit changes
    what it changes in the library: trainable floating-point parameters, and for --prune and --max-norm kernels and
    embeddings.
    """
    from xweights.cli.recipes import edit_recipe
    from xweights.errors import ArgumentError

    edits = ctx.meta.get(_EDITS, [])
    chosen = parse_where(where, None)
    steps = [] if recipe is None else edit_recipe(recipe, chosen)
    if not edits and not steps:
        options = "--set, --scale, --add, --clip, --max-norm, --noise, --prune or --recipe"
        raise ArgumentError(f"nothing is to be done\nFix: {options}")
    steps += [(_make_rule(name, text, per, seed, scope), chosen) for name, text in edits]
    if not allow_nonfinite:
        _refuse_nonfinite([rule for rule, _ in steps])
    _edit(files, steps, out, dry_run, json)


def _refuse_nonfinite(rules: Sequence[Rule]) -> None:
    """Raise for NaN and infinity in edits whose verbs refuse them; all other rules do it themselves."""
    from xweights.core.values import refuse_nonfinite
    from xweights.errors import NonfiniteError, Problems

    problems = Problems("the weights would not be finite, and nothing was changed")
    for number, rule in enumerate(rules, 1):
        name = _VALUES.get(type(rule).__name__, "")
        try:
            refuse_nonfinite(getattr(rule, name, None), f"edit {number}: {name}", allow=False)
        except NonfiniteError as wrong:
            fact, _, _ = str(wrong).partition("\nFix: ")
            problems.add(NonfiniteError, fact, fix="--allow-nonfinite, if that is meant")
    problems.check()


def _edit(files: Sequence[str], steps: Any, out: Path | None, dry_run: bool, json: bool) -> None:
    """Edit files with (rule, where) pairs, or copies of them that nobody keeps."""
    from xweights.files.edit.edit import edit_file

    opened = [weight_file(file) for file in files]
    results = results_beside(files, out)
    reports: dict[str, EditReport] = {}
    with all_or_none(files, dry_run=dry_run):
        for file, (path, part), result in zip(files, opened, results, strict=True):
            with (
                name_of(file, files),
                trial_path(result or path, dry_run) as written,
                file_progress(written, count_file_bytes(path), f"editing {file}"),
            ):
                reports[file] = edit_file(path, steps, out=written if dry_run else result, part=part)
    shown = {file: str(result or path) for file, (path, _), result in zip(files, opened, results, strict=True)}
    if json:
        found = {file: _describe(report, shown[file], dry_run) for file, report in reports.items()}
        show_json(next(iter(found.values())) if len(files) == 1 else found)
        return
    for position, (file, report) in enumerate(reports.items()):
        if len(files) > 1:
            typer.echo(f"{'' if not position else chr(10)}{file}:")
        show_table(["name", "entries changed"], [[name, f"{count:,}"] for name, count in report.changed.items()])
    if len(files) > 1:
        typer.echo("")
    for written_path in shown.values():
        say_saved(Path(written_path), dry_run=dry_run)


def _describe(report: EditReport, path: str, dry_run: bool) -> dict[str, Any]:
    in_place = report.in_place and not dry_run
    shown = {"path": path, "in_place": in_place, "changed": report.changed}
    return shown | ({"dry_run": True} if dry_run else {})


def _make_rule(name: str, text: str, per: str, seed: int | None, scope: Any) -> Any:
    from xweights import api
    from xweights.errors import ArgumentError

    option = f"--{name.replace('_', '-')}"
    if name == "set_to":
        entries = option_values.parse_entries(text, "--set")
        return api.SetEntries(*entries) if isinstance(entries, tuple) else api.Fill(entries)
    if name == "clip":
        return api.Clip(*option_values.parse_bounds(text, option))
    number = option_values.parse_number(text, option)
    if name == "max_norm":
        return api.MaxNorm(number, per=option_values.parse_axes(per) or "out")
    if name == "noise":
        if seed is None:
            raise ArgumentError("--noise is drawn from a seed\nFix: --seed 0, so that the same is drawn again")
        return api.Noise(number, seed=seed)
    if name == "prune":
        return api.Prune(fraction=number, scope=scope)
    return {"scale": api.Scale, "add": api.Add}[name](number)


def prune(
    files: Files,
    fraction: Annotated[float | None, typer.Option(help="the share of entries to drop, 0 to 1")] = None,
    count: Annotated[int | None, typer.Option(help="how many entries to drop")] = None,
    threshold: Annotated[float | None, typer.Option(help="drop what is not larger than this")] = None,
    pattern: Annotated[str | None, typer.Option(metavar="N:M:AXIS", help="keep N of M along an axis: 2:4:in")] = None,
    per: Annotated[str | None, typer.Option(metavar="AXES", help="drop whole units, one per index of: out")] = None,
    scope: Scope = "each",
    where: Where = None,
    out: Out = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Set the smallest weights in files to zero: kernels and embeddings, unless --where says otherwise.

    A file itself is replaced, as a whole or not at all, unless --out names another; of several files, none is replaced
    before all are written.
    """
    from xweights.rules.pruning import Prune

    parsed = None if pattern is None else option_values.parse_pattern(pattern, "--pattern")
    rule = Prune(
        fraction=fraction,
        count=count,
        threshold=threshold,
        pattern=parsed,
        per=option_values.parse_axes(per),
        scope=scope,
    )
    _edit(files, [(rule, parse_where(where, None))], out, dry_run, json)
