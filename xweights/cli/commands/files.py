"""The commands that look at whole files and write new ones: parts, checksum, extract, cast, rename."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xweights.cli.options import DryRun, Format, Json, NamePairs, Targets, Where, parse_names, parse_where
from xweights.cli.output import file_progress, progress_bar, show_json, show_table
from xweights.cli.several import all_or_none, name_of, results_in
from xweights.cli.streams import output_path, say_saved, trial_path
from xweights.cli.targets import count_bytes, load_target

if TYPE_CHECKING:
    from xweights.core.parameter import Parameter
    from xweights.files.io.arrays_to_write import ArrayToWrite

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="weight files; FILE#PART: a part of one; - is stdin", show_default=False),
]
OutFile = Annotated[
    Path, typer.Argument(help="the file to write, whose ending sets the format; a folder for several; - is stdout")
]


def parts(targets: Targets, json: Json = False) -> None:
    """List the parts of weight files: models, averages, states of optimizers, random states.

    Any of them can be named behind the file, as in run.ckpt#ema, wherever a file is read.
    """
    found = [{"file": text} | part for text in targets for part in list_parts(load_target(text))]
    if json:
        show_json(found)
        return
    show_parts(found, *(["file"] if len(targets) > 1 else []))


def list_parts(opened: Any) -> list[dict[str, Any]]:
    """Return name, kind, arrays and entries of each part of a file; none of a model."""
    return [
        {"part": part.name, "kind": part.kind, "arrays": len(part.arrays), "entries": part.entries}
        for part in getattr(opened, "parts", [])
    ]


def show_parts(found: Sequence[dict[str, Any]], *before: str) -> None:
    """Print a table of parts."""
    rows = [
        [*map(one.get, before), one["part"] or "(all)", one["kind"], f"{one['arrays']:,}", f"{one['entries']:,}"]
        for one in found
    ]
    show_table([*before, "part", "kind", "arrays", "entries"], rows)


def checksum(targets: Targets, where: Where = None, json: Json = False) -> None:
    """Print 16 digits for the weights of each target: equal for equal weights, in whatever framework or file."""
    from xweights.inspection.checksum import checksum as digest

    sums: dict[str, str] = {}
    with progress_bar(len(targets)) as step:
        for text in targets:
            step(text)
            sums[text] = digest(load_target(text), where=parse_where(where))
    if json:
        show_json(sums)
        return
    for text, digits in sums.items():
        typer.echo(f"{digits}  {text}")


def extract(
    files: Files,
    out: OutFile,
    where: Where = None,
    format: Format = None,
    dry_run: DryRun = False,
) -> None:
    """Write a part of a file, or some of its parameters, to a file of their own: run.ckpt#ema, --where 'encoder/*'."""
    _write(files, out, format, dry_run, lambda chosen: [_keep(p) for p in chosen], parse_where(where))


def cast(
    files: Files,
    out: OutFile,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="as float16, bfloat16, float32, float8_e4m3fn")
    ],
    where: Where = None,
    format: Format = None,
    dry_run: DryRun = False,
) -> None:
    """Write a file with its floating-point weights rounded to another dtype, once each; all others stay.

    A number that the dtype can't hold is refused: nothing becomes infinite without a word.
    """
    from xweights.core.dtypes import is_floating

    wanted = _find_dtype(dtype)
    chosen_where = parse_where(where)

    def change(everything: Sequence[Parameter]) -> list[ArrayToWrite]:
        from xweights.core.selection import select

        picked = {id(p) for p in select(everything, chosen_where) if is_floating(p.dtype)}
        return [_cast(p, wanted) if id(p) in picked else _keep(p) for p in everything]

    _write(files, out, format, dry_run, change)


def rename(
    files: Files,
    out: OutFile,
    names: NamePairs = None,
    format: Format = None,
    dry_run: DryRun = False,
) -> None:
    """Write a file whose arrays have other names: --names 'OLD=NEW', with * for what is carried over."""
    from xweights.errors import ArgumentError

    pairs = parse_names(names)
    if pairs is None:
        raise ArgumentError("nothing is to be renamed\nFix: --names 'model.*=encoder.*'")
    _write(files, out, format, dry_run, lambda chosen: _renamed(chosen, pairs))


def _write(
    files: Sequence[str], out: Path, format_name: str | None, dry_run: bool, change: Any, where: Any = ...
) -> None:
    """Write what ``change`` makes of the parameters of each file."""
    from xweights.core.selection import select
    from xweights.core.targets import open_target
    from xweights.edit.read import check_readable
    from xweights.files.save import write_arrays

    results = results_in(files, out, format_name)
    with all_or_none(files, dry_run=dry_run):
        for file, result in zip(files, results, strict=True):
            with name_of(file, files):
                opened = load_target(file)
                chosen = select(open_target(opened), where)
                check_readable(chosen)
                arrays = change(chosen)
                with (
                    output_path(result, None if out.is_dir() else format_name) as path,
                    trial_path(path, dry_run) as written,
                    file_progress(written, count_bytes(opened), f"writing {result}"),
                ):
                    write_arrays(arrays, written)
    for result in results:
        say_saved(result, dry_run=dry_run)


def _key(p: Parameter) -> str:
    key: str = getattr(p.handle, "key_in_part", p.name)
    return key


def _keep(p: Parameter) -> ArrayToWrite:
    from xweights.files.io.arrays_to_write import array_to_write

    return array_to_write(p, key=_key(p))


def _cast(p: Parameter, dtype: Any) -> ArrayToWrite:
    from dataclasses import replace

    import ml_dtypes
    import numpy as np

    from xweights.core.casting import cast_exactly
    from xweights.errors import NonfiniteError

    array = _keep(p)
    # They have neither infinity nor NaN: ml_dtypes makes their largest number of everything beyond it.
    saturates = dtype.name.startswith(("float4", "float6"))
    largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call] # ml_dtypes has no types

    def pieces() -> Iterable[Any]:
        for piece in array.pieces():
            rounded = cast_exactly(piece, dtype, what=repr(p.name), cast=True)
            beyond = np.abs(piece) > largest if saturates else ~np.isfinite(rounded)
            lost = int(np.count_nonzero(np.isfinite(piece) & beyond))
            if lost:
                raise NonfiniteError(
                    f"{p.name!r} has {lost:,} numbers that {dtype.name} can't hold\n"
                    f"largest: {largest:.6g}\n"
                    "Fix: --dtype bfloat16, which has the range of float32, or --where '~...' to leave it out"
                )
            yield rounded

    return replace(array, dtype=dtype, pieces=pieces)


def _find_dtype(name: str) -> Any:
    import ml_dtypes
    import numpy as np

    from xweights.core.dtypes import is_floating
    from xweights.errors import ArgumentError, near

    known = ["float16", "bfloat16", "float32", "float64", *(one for one in dir(ml_dtypes) if one.startswith("float"))]
    if name not in known:
        raise ArgumentError(f"--dtype is no floating-point dtype\ngot: {name!r}\n{near(name, known)}")
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    if not is_floating(dtype):
        raise ArgumentError(f"--dtype {name} can't be stored here\nFix: --dtype float16, bfloat16 or float32")
    return dtype


def _renamed(chosen: Sequence[Parameter], pairs: dict[str, str]) -> list[ArrayToWrite]:
    from xweights.core.names import glob_matcher, renamer
    from xweights.errors import ArgumentError, Problems, SelectionError, near
    from xweights.files.io.arrays_to_write import array_to_write

    rename_one = renamer(pairs)
    problems = Problems("these arrays can't be renamed, and nothing was written")
    shown = [name for p in chosen for name in dict.fromkeys((p.name, _key(p)))]
    for glob in pairs:
        if not any(map(glob_matcher(glob), shown)):
            problems.add(SelectionError, f"--names {glob!r} matches no name in the file\n{near(glob, shown)}")
    arrays: list[ArrayToWrite] = []
    taken: dict[str, str] = {}
    for p in chosen:
        name, key = rename_one(p.name), rename_one(_key(p))
        key = name if _key(p) == p.name else key
        first = taken.setdefault(key, p.name)
        if first != p.name:
            problems.add(ArgumentError, f"{first!r} and {p.name!r} would both be {key!r}")
        arrays.append(array_to_write(p.replace(name=name, aliases=(), native_aliases=()), key=key))
    problems.check()
    return arrays
