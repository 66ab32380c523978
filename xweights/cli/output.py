"""Output of commands: tables on a terminal, plain text in a pipe, JSON for programs, progress on stderr."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


class Step(Protocol):
    """Shows the name of the next step, and how large it is beside the others."""

    def __call__(self, text: str, size: int = 1) -> None: ...


def prepare_streams() -> None:
    """Let no text fail that a stream can't encode, as in a pipe of one of Windows' code pages: it is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None, keep: Sequence[str] = ()
) -> None:
    """Print a table: as wide as needed in a pipe, no wider than the terminal on one.

    Names, the first column, are shortened where too much is common to them. Other columns that don't fit are left out
    from the right and listed, those whose titles are in ``keep`` at last.
    """
    from xweights.core.tables import can_show, printable, render

    if width is None and not sys.stdout.isatty():
        print(render(head, rows))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = [[printable(cell) for cell in row] for row in rows]
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    widths = [max(len(title), *(len(row[i]) for row in rows)) if rows else len(title) for i, title in enumerate(head)]
    shown = list(range(len(head)))
    while len(shown) > 2 and min(widths[0], _NAME) + sum(widths[i] + 2 for i in shown[1:]) > console.width:
        shown.remove(next((i for i in reversed(shown[1:]) if head[i] not in keep), shown[-1]))
    room = max(console.width - sum(widths[i] + 2 for i in shown[1:]) - 1, 8)
    names, note = fit_names([row[0] for row in rows], room, "…" if can_show("…") else "...")
    if note:
        console.print(note)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for position in shown:
        cells = [row[position] for row in rows if row[position]]
        numeric = bool(cells) and all(cell[0] in "+-.0123456789∞" for cell in cells)
        if position == 0:
            table.add_column(head[0], overflow="fold", style="cyan")
        else:
            table.add_column(head[position], justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row, name in zip(rows, names, strict=True):
        table.add_row(name, *(row[i] for i in shown[1:]))
    console.print(table)
    if len(shown) < len(head):
        left_out = ", ".join(title for i, title in enumerate(head) if i not in shown)
        console.print(f"(no room for: {left_out}; a wider terminal, a pipe or --json has them)")


def fit_names(names: Sequence[str], room: int, dots: str) -> tuple[list[str], str]:
    """Return names that fit, and a line about what they all begin with, if that is left out."""
    from xweights.core.short_names import common_prefix, shorten_names

    if max(map(len, names), default=0) <= room:
        return list(names), ""
    prefix = common_prefix(names)
    bare = [name.removeprefix(prefix) for name in names]
    # The lines of a tree are indented: they are cut at the end of the indent, so that they stay a tree.
    short = (
        shorten_names(bare, room, dots)
        if not any(name.startswith(" ") for name in names)
        else [name if len(name) <= room else _shorten_branch(name, room, dots) for name in names]
    )
    return short, f"all names begin with {prefix}" if prefix else ""


def _shorten_branch(name: str, room: int, dots: str) -> str:
    from xweights.core.short_names import shorten_names

    text = name.lstrip()
    indent = min(len(name) - len(text), max(room - 8, 0))
    return " " * indent + shorten_names([text], room - indent, dots)[0]


_NAME = 24  # a name gets at least this many characters before a column is left out


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    from xweights.core.tables import can_show

    text = json.dumps(to_json_value(value), indent=2, ensure_ascii=False, allow_nan=False)
    print(text if can_show(text) else json.dumps(to_json_value(value), indent=2, allow_nan=False))


def to_json_value(value: Any) -> Any:
    """Return a value as JSON types. JSON has no infinity and no NaN: they become strings."""
    if isinstance(value, dict):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_value(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


@contextmanager
def progress_bar(steps: int) -> Iterator[Step]:
    """Show a progress bar on stderr during slow work, with the time left; in a pipe, nothing.

    The function that it yields shows the name of the next step and advances the bar. ``steps`` is the number of them,
    or the sum of their sizes.
    """
    if not sys.stderr.isatty():
        yield lambda text, size=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from xweights.core.short_names import shorten_names

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    left = (TextColumn("left:"), TimeRemainingColumn()) if steps > _TIMED else ()
    with Progress(*columns, *left, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=steps)
        pending = 0

        def step(text: str, size: int = 1) -> None:
            nonlocal pending
            bar.update(task, description=shorten_names([text], 40)[0], advance=pending)
            pending = size

        yield step


_TIMED = 8  # fewer steps than this are unlike, and say nothing about the time left


@contextmanager
def file_progress(path: Path, total: int, text: str) -> Iterator[None]:
    """Show on stderr how many of about ``total`` bytes of a file are written; in a pipe, nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console, RenderableType
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from xweights.files.io.atomic import count_written_bytes

    class WritingProgress(Progress):
        # Called ten times a second, from a thread: the writing code needn't report anything.
        def get_renderables(self) -> Iterable[RenderableType]:
            for task in self.task_ids:
                # After the new file has replaced the old one its size can't be seen any more.
                done = max(count_written_bytes(str(path)), int(self.tasks[task].completed))
                self.update(task, completed=min(done, total))
            return super().get_renderables()

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with WritingProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(text, total=max(total, 1))
        yield


def write_file(path: Path, content: str) -> None:
    """Write a text file, as a whole or not at all."""
    from xweights.files.io.atomic import replace_file

    with replace_file(str(path)) as file:
        file.write(content.encode("utf-8", "backslashreplace"))


def need_folder(*paths: Path | None) -> None:
    """Raise for a file that could not be written, before doing work that would be lost."""
    from xweights.errors import ArgumentError, Problems

    problems = Problems("this can't be written")
    for path in paths:
        if path is not None and path.is_dir():
            problems.add(ArgumentError, f"{str(path)!r} is a folder", fix="name a file in it")
        elif path is not None and not path.parent.is_dir():
            problems.add(ArgumentError, f"there is no folder {str(path.parent)!r}", fix=f"mkdir -p {path.parent}")
    problems.check()
