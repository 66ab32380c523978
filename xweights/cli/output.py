"""Output of commands: tables on a terminal, plain text in a pipe, JSON for programs, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Step = Callable[[str], None]


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None) -> None:
    """Print a table: as wide as needed in a pipe, no wider than the terminal on one.

    Columns that don't fit are left out from the right and named; the first one, the name, is folded.
    """
    from xweights.core.tables import printable, render

    if width is None and not sys.stdout.isatty():
        print(render(head, rows))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = [[printable(cell) for cell in row] for row in rows]
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    widths = [max(len(title), *(len(row[i]) for row in rows)) if rows else len(title) for i, title in enumerate(head)]
    kept = len(head)
    while kept > 2 and min(widths[0], _NAME) + sum(widths[1:kept]) + 2 * (kept - 1) > console.width:
        kept -= 1
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for position, title in enumerate(head[:kept]):
        cells = [row[position] for row in rows if row[position]]
        numeric = bool(cells) and all(cell[0] in "+-.0123456789∞" for cell in cells)
        if position == 0:
            table.add_column(title, overflow="fold", style="cyan")
        else:
            table.add_column(title, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        table.add_row(*row[:kept])
    console.print(table)
    if kept < len(head):
        console.print(f"(no room for: {', '.join(head[kept:])}; a wider terminal, a pipe or --json has them)")


_NAME = 24  # a name gets at least this many characters before a column is left out


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(to_json_value(value), indent=2, ensure_ascii=False, allow_nan=False))


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
    """Show a progress bar on stderr during slow work; in a pipe, nothing.

    The function that it yields shows the name of the next step and advances the bar.
    """
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=steps)
        begun = False

        def step(text: str) -> None:
            nonlocal begun
            bar.update(task, description=text, advance=1 if begun else 0)
            begun = True

        yield step


@contextmanager
def file_progress(path: Path, total: int, text: str) -> Iterator[None]:
    """Show on stderr how many of about ``total`` bytes of a file are written; in a pipe, nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

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
