"""The command line put together: which commands there are, and how an error of the user's ends.

Owns :data:`app` and :func:`main`. Imports typer and the commands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from xweights.command.answering import Commands
from xweights.command.comparing import diff
from xweights.command.converting import convert
from xweights.command.listing import backends
from xweights.command.measuring import show, stats
from xweights.command.picturing import plot, report
from xweights.command.porting import port, skeleton

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

COMMANDS: tuple[tuple[Callable[..., None], tuple[str, ...]], ...] = (
    (show, (
        "xweights show w.safetensors",
        "xweights show w.safetensors --where 'encoder/*' --where role:embeddings --json",
        "xweights show nets:in_torch@w.safetensors --quick",
    )),
    (stats, ("xweights stats w.safetensors", "xweights stats w.npz --where '*/kernel' --where '~head/*'")),
    (diff, (
        "xweights diff before.safetensors after.npz --top 3",
        "xweights diff nets:in_keras nets:in_torch --names '0/*=dense/0/*'",
        "xweights diff a.npz b.npz --json | jq .top[0]",
    )),
    (convert, ("xweights convert w.safetensors w.npz", "xweights convert nets:in_torch w.safetensors")),
    (plot, (
        "xweights plot w.safetensors --out values.png",
        "xweights plot w.safetensors --kind spectra --where '*/kernel' --out spectra.svg",
        "xweights plot before.npz after.npz --out changes.png",
    )),
    (report, (
        "xweights report w.safetensors --out report.html",
        "xweights report before.npz after.npz --out report.html",
    )),
    (port, (
        "xweights port nets:in_keras nets:in_torch --sample x.npy --out in_torch.safetensors",
        "xweights port nets:in_torch@trained.pt nets:in_keras --sample x.npy --report report.md",
        "xweights port nets:in_keras nets:in_torch --plan",
    )),
    (skeleton, (
        "xweights skeleton nets:in_keras --to torch > twin.py",
        "xweights skeleton model.keras --to torch",
    )),
    (backends, ("xweights backends", "xweights backends --json")),
)  # fmt: skip

for _command, _examples in COMMANDS:
    # "\b" keeps the lines of a paragraph as they are.
    app.command(epilog="\b\nExamples:\n" + "\n".join(f"  {one}" for one in _examples))(_command)


def main() -> Any:
    """Run the command line; the entry point of the script ``xweights``."""
    return app()
