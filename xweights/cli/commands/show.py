"""The commands ``xweights show`` and ``xweights stats``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xweights.cli.commands.files import list_parts, show_parts
from xweights.cli.options import Json, Targets, Where, parse_where
from xweights.cli.output import progress_bar, show_json, show_table
from xweights.cli.targets import load_target

if TYPE_CHECKING:
    from xweights.core.parameter import Parameter

QUICK = "read no values: no sparsity, but a file of any size is shown at once"


def show(
    targets: Targets,
    where: Where = None,
    quick: Annotated[bool, typer.Option("--quick", help=QUICK)] = False,
    json: Json = False,
) -> None:
    """Show the parameters of each target as a tree: axes and shape, dtype, entries, and the share of zeros."""
    found = {}
    for position, target in enumerate(targets):
        if len(targets) > 1 and not json:
            typer.echo(f"{'' if not position else chr(10)}{target}:")
        found[target] = _show(target, where, quick, json)
    if json:
        show_json(next(iter(found.values())) if len(targets) == 1 else found)


def _show(target: str, where: list[str] | None, quick: bool, json: bool) -> list[Any]:
    from xweights.edit.read import check_readable, parameters
    from xweights.inspection.histograms import zeros_in

    opened = load_target(target)
    parts = list_parts(opened)
    if len(parts) > 1:
        weights = sum(part["kind"] == "weights" for part in parts)
        unclear = opened.part is None and weights != 1
        if unclear and json:
            return parts
        if not json:
            show_parts(parts)
        if unclear:
            typer.echo(f"{len(parts)} parts, {weights} of them with weights\nFix: {target}#{parts[0]['part']}")
            return []
        if not json:
            typer.echo("")
    chosen = parameters(opened, where=parse_where(where))
    zeros: list[int | None] = [None] * len(chosen)
    if not quick:
        check_readable(chosen)
        with progress_bar(sum(p.size for p in chosen)) as step:
            for position, p in enumerate(chosen):
                step(p.name, p.size)
                zeros[position] = zeros_in(p)
    if json:
        return [_describe(p, count) for p, count in zip(chosen, zeros, strict=True)]
    head = ["name", "axes", "shape", "dtype", "entries", *([] if quick else ["zero"])]
    show_table(head, list(_tree_rows(chosen, zeros)))
    entries = sum(p.size for p in chosen)
    size = sum(p.size * p.dtype.itemsize for p in chosen)
    known = [count for count in zeros if count is not None]
    share = f", {sum(known) / entries:.1%} zero" if known and entries else ""
    typer.echo(f"{len(chosen)} parameters, {entries:,} entries, {_format_bytes(size)}{share}")
    return []


def _format_bytes(size: int) -> str:
    amount, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:,.1f} {unit}" if unit != "bytes" else f"{size} bytes"


def _describe(p: Parameter, zeros: int | None) -> dict[str, Any]:
    return {
        "name": p.name,
        "native_name": p.native_name,
        "role": p.role,
        "axes": p.axes,
        "shape": p.shape,
        "dtype": p.dtype.name,
        "entries": p.size,
        "trainable": p.trainable,
        "gates": p.gates,
        "aliases": p.aliases,
        "zeros": zeros,
    }


def _tree_rows(chosen: list[Parameter], zeros: list[int | None]) -> list[list[str]]:
    """Return a row for each parameter, below rows for the folders of its name that the row above doesn't have."""
    width = 0 if all(count is None for count in zeros) else 1
    rows = []
    above: list[str] = []
    for p, count in zip(chosen, zeros, strict=True):
        # Names of a framework's own are dotted.
        mark = "/" if "/" in p.name else "."
        *folders, last = p.name.split(mark)
        shared = 0
        while shared < min(len(folders), len(above)) and folders[shared] == above[shared]:
            shared += 1
        empty = [""] * (4 + width)
        rows += [["  " * depth + folders[depth] + mark, *empty] for depth in range(shared, len(folders))]
        above = folders
        share = [] if not width else ["" if count is None else f"{count / p.size:.1%}" if p.size else "-"]
        axes = "?" if p.axes is None else ", ".join(p.axes)
        shape = " x ".join(map(str, p.shape)) or "number"
        rows.append(["  " * len(folders) + last, axes, shape, p.dtype.name, f"{p.size:,}", *share])
    return rows


def stats(targets: Targets, where: Where = None, json: Json = False) -> None:
    """Show count, norm, mean, standard deviation, extremes, share of zeros and NaN count of each parameter."""
    from xweights.edit.read import parameters
    from xweights.inspection.results import Stats
    from xweights.inspection.stats import stats as compute_stats

    found = {}
    for position, target in enumerate(targets):
        chosen = parameters(load_target(target), where=parse_where(where))
        rows = []
        with progress_bar(sum(p.size for p in chosen)) as step:
            for p in chosen:
                step(p.name, p.size)
                rows += compute_stats(p).rows
        found[target] = [asdict(row) | {"sparsity": row.sparsity} for row in rows]
        if not json:
            if len(targets) > 1:
                typer.echo(f"{'' if not position else chr(10)}{target}:")
            show_table(*Stats(rows).table(), keep=("NaN", "sparsity"))
    if json:
        show_json(next(iter(found.values())) if len(targets) == 1 else found)
