"""The typer application, with all commands and their help texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from xweights.cli.commands.backends import backends
from xweights.cli.commands.convert import convert
from xweights.cli.commands.diff import diff
from xweights.cli.commands.edit import edit, prune
from xweights.cli.commands.files import cast, checksum, extract, parts, rename
from xweights.cli.commands.merge import merge
from xweights.cli.commands.plot import plot, report
from xweights.cli.commands.port import port, skeleton
from xweights.cli.commands.show import show, stats
from xweights.cli.commands.verify import verify
from xweights.cli.exit_codes import Commands

HELP = """Look at the weights of neural networks, compare, edit and move them, whatever framework they are from.

A TARGET is a weight file, or a model that Python code builds: package.module:factory is imported from here, called,
and takes the weights of a file with package.module:factory@weights.safetensors.
"""

app = typer.Typer(
    name="xweights",
    cls=Commands,
    help=HELP,
    no_args_is_help=True,
    # Both would import rich at every start.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(value: bool) -> None:
    if value:
        from xweights import __version__

        typer.echo(f"xweights {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Take what stands before a command."""


COMMANDS: tuple[tuple[Callable[..., None], str, tuple[str, ...]], ...] = (
    (show, "parameters as a tree: shapes, dtypes, zeros", (
        "xweights show w.safetensors",
        "xweights show w.safetensors --where 'encoder/*' --where role:embeddings --json",
        "xweights show nets:in_torch@w.safetensors --quick",
    )),
    (stats, "norm, mean, extremes, sparsity of each parameter", (
        "xweights stats w.safetensors",
        "xweights stats w.npz --where '*/kernel' --where '~head/*'",
    )),
    (diff, "what differs between two targets, and most", (
        "xweights diff before.safetensors after.npz --top 3",
        "xweights diff nets:in_keras nets:in_torch --names '0/*=dense/0/*'",
        "xweights diff a.npz b.npz --json | jq .top[0]",
    )),
    (edit, "set, scale, clip or prune weights in a file", (
        "xweights edit w.safetensors --clip -1,1 --where 'encoder/*'",
        "xweights edit w.safetensors --set '[in=0,out=:3]=1.0' --where dense/kernel",
        "xweights edit w.safetensors --recipe edits.yaml --dry-run",
        "xweights edit w.safetensors --scale 0.5 --noise 0.01 --seed 0 --out noisy.npz",
    )),
    (prune, "set the smallest weights in a file to zero", (
        "xweights prune w.safetensors --fraction 0.8 --scope global --out sparse.safetensors",
        "xweights prune w.safetensors --pattern 2:4:in --where '*/kernel'",
    )),
    (merge, "merge weight files and models into one file", (
        "xweights merge a.safetensors b.safetensors --weights 3,1 --out merged.safetensors",
        "xweights merge a.npz b.npz --method ties --base start.npz --density 0.2 --out merged.npz",
        "xweights merge --recipe mergekit.yaml --out merged.safetensors",
        "xweights merge a.npz b.npz --method slerp --t 0.5 --t 'head/*=1' --out merged.npz",
    )),
    (convert, "write weights into a file of another format", (
        "xweights convert w.safetensors w.npz",
        "xweights convert nets:in_torch w.safetensors",
    )),
    (cast, "round weights to another dtype", (
        "xweights cast w.safetensors half.safetensors --dtype bfloat16",
        "xweights cast w.npz half.npz --dtype float16 --where 'encoder/*' --dry-run",
    )),
    (rename, "give the arrays of a file other names", (
        "xweights rename w.safetensors renamed.safetensors --names 'model.*=encoder.*'",
    )),
    (extract, "write a part of a file to a file of its own", (
        "xweights extract run.ckpt#ema ema.safetensors",
        "xweights extract w.npz - --format safetensors --where 'encoder/*' | xweights show -",
    )),
    (parts, "the parts of a training run's file", ("xweights parts run.ckpt", "xweights parts *.ckpt --json")),
    (checksum, "16 digits that are equal for equal weights", (
        "xweights checksum w.safetensors w.npz nets:in_torch@w.safetensors",
    )),
    (plot, "pictures of values, zeros, singular values", (
        "xweights plot w.safetensors --out values.png",
        "xweights plot w.safetensors --kind spectra --where '*/kernel' --out spectra.svg",
        "xweights plot before.npz after.npz --out changes.png",
    )),
    (report, "a report as one HTML file", (
        "xweights report w.safetensors --out report.html",
        "xweights report before.npz after.npz --out report.html",
    )),
    (port, "move weights into a twin in another framework", (
        "xweights port nets:in_keras nets:in_torch --sample x.npy --out in_torch.safetensors",
        "xweights port nets:in_torch@trained.pt nets:in_keras --sample x.npy --report report.md",
        "xweights port nets:in_keras nets:in_torch --plan",
    )),
    (verify, "where two models part, layer by layer", (
        "xweights verify nets:in_keras nets:in_torch --sample x.npy",
    )),
    (skeleton, "the source code of a twin", (
        "xweights skeleton nets:in_keras --to torch > twin.py",
        "xweights skeleton model.keras --to torch",
    )),
    (backends, "which backends are installed", ("xweights backends", "xweights backends --json")),
)  # fmt: skip

for _command, _short, _examples in COMMANDS:
    # "\b" keeps the lines of a paragraph as they are.
    app.command(short_help=_short, epilog="\b\nExamples:\n" + "\n".join(f"  {line}" for line in _examples))(_command)


def main() -> Any:
    """Run the command line; the entry point of the script ``xweights``."""
    return app()
