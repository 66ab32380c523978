"""The commands ``xweights port`` and ``xweights skeleton``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from xweights.cli.exit_codes import DIFFERENT
from xweights.cli.options import NamePairs, Where, parse_names, parse_where
from xweights.cli.output import need_folder, progress_bar, show_json, write_file
from xweights.cli.targets import load_model, load_sample

if TYPE_CHECKING:
    from xweights.porting.reports import PortPlan, PortReport

Model = "package.module:factory[@weights], a .keras file, or a .pt2 program"


def port(
    source: Annotated[str, typer.Argument(help=f"the model whose weights are read: {Model}", show_default=False)],
    target: Annotated[str, typer.Argument(help="the model that they are written to: likewise", show_default=False)],
    sample: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="the input that the source is called with: .npy, or .npz for several inputs"),
    ] = None,
    sample_target: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="the target's input, if it isn't the sample with its channels moved"),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="print what would be done, and change nothing")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="where the target's weights are saved")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="where the report is saved: .md or .json")] = None,
    where: Where = None,
    where_source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHERE", help="which parameters of the source may be used, as for --where", show_default=False
        ),
    ] = None,
    names: NamePairs = None,
    attributes: Annotated[
        Literal["check", "fix", "ignore"],
        typer.Option(help="if settings that are no weights differ: refuse, set them on the target, or list them"),
    ] = "check",
    fold: Annotated[
        bool, typer.Option("--fold", help="fold batch norms that only one of the models has; needs --sample")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Move the weights of a model into its twin in another framework, and prove it on a sample.

    The exit status is 0 if the two forwards agree, 2 if the port was refused; then no file is written.
    """
    from xweights.errors import ArgumentError

    if plan and (out is not None or sample is not None or sample_target is not None):
        raise ArgumentError("--plan touches nothing and calls no model\nFix: leave out --out and --sample, or --plan")
    if plan and where_source:
        raise ArgumentError(
            "--plan takes no --where-source\nFix: leave it out, or port with --sample and without --out"
        )
    if report is not None and report.suffix not in (".md", ".json"):
        raise ArgumentError(f"--report ends in .md or .json\ngot: {str(report)!r}")
    need_folder(out, report)
    result: PortPlan | PortReport
    with progress_bar(5 if out is not None else 4) as step:
        step("reading the sample")
        source_input = None if sample is None else load_sample(sample)
        target_input = None if sample_target is None else load_sample(sample_target)
        step(f"building {source}")
        source_model = load_model(source)
        step(f"building {target}")
        target_model = load_model(target)
        if plan:
            from xweights.porting.plan import plan_port

            step("planning")
            result = plan_port(source_model, target_model, where=parse_where(where), names=parse_names(names))
        else:
            from xweights.porting.port import port as move
            from xweights.porting.progress import hide_progress

            step("porting and comparing")
            with hide_progress():
                result = move(
                    source_model, target_model, sample=source_input, sample_target=target_input,
                    where=parse_where(where), where_source=parse_where(where_source), names=parse_names(names),
                    attributes=attributes, fold=fold,
                )  # fmt: skip
            if out is not None:
                from xweights.files.save import save

                step(f"saving {out}")
                save(target_model, out)
    if report is not None:
        write_file(report, {".md": result.to_markdown, ".json": result.to_json}[report.suffix]())
    if json:
        typer.echo(result.to_json())
    else:
        typer.echo(str(result))
        if not plan:
            saved = f"saved: {out}" if out is not None else "nothing was saved: --out FILE saves the target's weights"
            typer.echo(f"\n{saved}")
    if not result.ok:
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
    from xweights.porting.skeleton import skeleton as write_skeleton

    need_folder(out)
    with progress_bar(2) as step:
        step(f"building {model}")
        built = load_model(model)
        step("writing")
        code = write_skeleton(built, to)
    if out is not None:
        write_file(out, code)
    elif json:
        show_json({"framework": to, "code": code})
    else:
        typer.echo(code.rstrip("\n"))
