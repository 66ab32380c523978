"""``-`` for standard input and output: weights that come through a pipe, or go into one."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STDIO = "-"


def read_stdin() -> Path:
    """Return a temporary file with what comes through standard input; it goes with the process.

    An index of names and places stands at the end of most formats, so a file can't be read as it arrives.
    """
    from xweights.errors import ArgumentError

    if sys.stdin.isatty():
        raise ArgumentError("- is standard input, and nothing is piped into it\nFix: xweights show - < w.safetensors")
    folder = Path(tempfile.mkdtemp(prefix="xweights-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if not path.stat().st_size:
        raise ArgumentError("- is standard input, and it is empty\nFix: xweights show - < w.safetensors")
    return path


@contextmanager
def output_path(out: Path, format_name: str | None) -> Iterator[Path]:
    """Yield the path to write to: ``out`` itself, or for ``-`` a temporary file that then goes to standard output."""
    from xweights.errors import ArgumentError

    if str(out) != STDIO:
        if format_name is not None:
            raise ArgumentError(
                f"--format is for standard output; the ending of a file sets its format\ngot: {str(out)!r}\nFix: -o -"
            )
        yield out
        return
    if format_name is None:
        raise ArgumentError("- is standard output, and no ending sets its format\nFix: --format safetensors, or npz")
    if sys.stdout.isatty():
        raise ArgumentError("weights aren't written to a terminal\nFix: ... --format npz > w.npz")
    with tempfile.TemporaryDirectory(prefix="xweights-") as folder:
        path = Path(folder) / f"stdout.{format_name.lstrip('.')}"
        yield path
        if path.exists():  # not after a dry run
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()


@contextmanager
def trial_path(out: Path, dry_run: bool) -> Iterator[Path]:
    """Yield ``out``, or for a dry run the path of a temporary file of the same format, which nobody keeps."""
    if not dry_run:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="xweights-") as folder:
        name = out.name if out.suffix else f"{out.name}.safetensors"
        yield Path(folder) / name


def say_saved(out: Path, *, dry_run: bool = False) -> None:
    """Say where the result is; not among the bytes of a result that goes to standard output."""
    import typer

    text = f"dry run: nothing was written, and {out} would have been" if dry_run else f"saved: {out}"
    typer.echo(text, err=str(out) == STDIO)
