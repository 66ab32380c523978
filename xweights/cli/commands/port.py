"""``xweights port`` and ``xweights skeleton``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from xweights.cli.exit_codes import DIFFERENT
from xweights.cli.options import NamePairs, Where, names_of, where_of
from xweights.cli.output import need_folder, show_json, working, write_file
from xweights.cli.targets import model_of, sample_of

if TYPE_CHECKING:
    from xweights.porting.reports import PortPlan, PortReport

Model = "package.module:factory[@weights], a .keras file, or a .pt2 program"


def port(
    source: Annotated[str, typer.Argument(help=f"the model whose weights are read: {Model}", show_default=False)],
    target: Annotated[str, typer.Argument(help="the model that they go into: likewise", show_default=False)],
    sample: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="what the source is called with: .npy, or .npz for several inputs"),
    ] = None,
    sample_target: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="what the target is called with, if it isn't the sample, channels moved"),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="print what would be done, and touch nothing")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="where the target's weights are saved")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="where the report is saved: .md or .json")] = None,
    where: Where = None,
    names: NamePairs = None,
    attributes: Annotated[
        Literal["check", "fix", "ignore"],
        typer.Option(help="where settings that are no weights differ: refuse, set them on the target, or list them"),
    ] = "check",
    json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Move the weights of a model into its twin in another framework, and prove it on a sample.

    The exit status is 0 if the two forwards agree, 2 if the port was refused; then no file is written.
    """
    from xweights.errors import ArgumentError

    if plan and (out is not None or sample is not None or sample_target is not None):
        raise ArgumentError("--plan touches nothing and calls no model\nFix: leave out --out and --sample, or --plan")
    if report is not None and report.suffix not in (".md", ".json"):
        raise ArgumentError(f"--report ends in .md or .json\ngot: {str(report)!r}")
    need_folder(out, report)
    made: PortPlan | PortReport
    with working(5 if out is not None else 4) as step:
        step("reading the sample")
        given = None if sample is None else sample_of(sample)
        given_target = None if sample_target is None else sample_of(sample_target)
        step(f"building {source}")
        one = model_of(source)
        step(f"building {target}")
        other = model_of(target)
        if plan:
            from xweights.porting.plan import plan_port

            step("planning")
            made = plan_port(one, other, where=where_of(where), names=names_of(names))
        else:
            from xweights.porting.port import port as move

            step("porting and comparing")
            made = move(
                one, other, sample=given, sample_target=given_target, where=where_of(where), names=names_of(names),
                attributes=attributes,
            )  # fmt: skip
            if out is not None:
                from xweights.files.save import save

                step(f"saving {out}")
                save(other, out)
    if report is not None:
        write_file(report, {".md": made.to_markdown, ".json": made.to_json}[report.suffix]())
    if json:
        typer.echo(made.to_json())
    else:
        typer.echo(str(made))
        if not plan:
            kept = f"saved: {out}" if out is not None else "nothing was saved: --out FILE saves the target's weights"
            typer.echo(f"\n{kept}")
    if not made.ok:
        raise typer.Exit(DIFFERENT)


def skeleton(
    model: Annotated[str, typer.Argument(help=Model, show_default=False)],
    to: Annotated[str, typer.Option("--to", help="the framework that the code is for: torch or keras")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="where the code is saved, if not printed")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False,
) -> None:
    """Print the source code of a twin of a model in another framework, ready to edit and to port into."""
    from xweights.porting.skeleton import skeleton as written

    need_folder(out)
    with working(2) as step:
        step(f"building {model}")
        built = model_of(model)
        step("writing")
        code = written(built, to)
    if out is not None:
        write_file(out, code)
    elif json:
        show_json({"framework": to, "code": code})
    else:
        typer.echo(code.rstrip("\n"))
