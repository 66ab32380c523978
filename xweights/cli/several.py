"""Several files in one command: where the result of each goes, and that all are written or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from xweights.cli.output import need_folder
from xweights.cli.streams import STDIO
from xweights.cli.targets import is_factory, split_part

TOGETHER = "several files go into a folder"


def results_beside(files: Sequence[str], out: Path | None) -> list[Path | None]:
    """Return where the edited files go: None for the file itself."""
    from xweights.errors import ArgumentError

    first: dict[Path, str] = {}
    for text in files:
        path = split_part(Path(text))[0].resolve()
        if first.setdefault(path, text) != text or list(files).count(text) > 1:
            raise ArgumentError(
                f"one file is named twice\ngot: {first[path]} and {text}\nFix: one call after the other"
            )
    if out is None:
        return [None] * len(files)
    if len(files) == 1 and not out.is_dir():
        need_folder(out)
        return [out]
    return list(results_in(files, out, None))


def results_in(files: Sequence[str], out: Path, format_name: str | None) -> list[Path]:
    """Return the file to write for each file: one is written as ``out``, several under their own names in a folder."""
    from xweights.errors import ArgumentError, Problems

    if len(files) == 1 and not out.is_dir():
        if str(out) != STDIO:
            need_folder(out)
        return [out]
    if not out.is_dir():
        fix = f"mkdir -p {out}" if not out.exists() and str(out) != STDIO else "name a folder"
        raise ArgumentError(f"{TOGETHER}\ngot: {str(out)!r}, which is none\nFix: {fix}")
    problems = Problems("these files can't be written, and nothing was")
    results: dict[Path, str] = {}
    for text in files:
        if text.partition("#")[0] == STDIO or is_factory(text):
            problems.add(ArgumentError, f"a model has no name of a file\ngot: {text!r}", fix="a call of its own for it")
            continue
        path = split_part(Path(text))[0]
        name = path.name if format_name is None else f"{path.stem}.{format_name.lstrip('.')}"
        result = out / name
        if result.resolve() == path.resolve():
            problems.add(ArgumentError, f"{text} would be replaced by its own copy", fix="another folder")
        elif results.setdefault(result, text) != text or list(files).count(text) > 1:
            problems.add(ArgumentError, f"{results[result]} and {text} would both be {result}", fix="a call for each")
    problems.check()
    return list(results)


@contextmanager
def all_or_none(files: Sequence[str], *, dry_run: bool) -> Iterator[None]:
    """Write the results of several files, all of them or none; a dry run and a single file need nothing for that."""
    from xweights.files.io.atomic import replace_together

    if len(files) == 1 or dry_run:
        yield
        return
    with replace_together():
        yield


@contextmanager
def name_of(text: str, files: Sequence[str]) -> Iterator[None]:
    """Put the name of a file before what is wrong with it, if there are several."""
    from xweights.errors import XweightsError

    try:
        yield
    except XweightsError as wrong:
        if len(files) == 1 or text in str(wrong).partition("\n")[0]:
            raise
        raise type(wrong)(f"{text}: {wrong}") from None
