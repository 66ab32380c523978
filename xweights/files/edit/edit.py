"""Editing a file: streamed into its own replacement or another file, or a few entries in place.

Everything that can be refused is refused before the first byte is written. Then, whichever way it is done, the file is
wholly the old one or wholly the new one at every moment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike
from xweights.errors import ArgumentError
from xweights.files.edit.in_place import set_entries_in_place
from xweights.files.edit.plan import Edit, Steps
from xweights.files.edit.rewrite import repackable, repacked, rewritable, rewritten
from xweights.files.formats.table import format_of, named
from xweights.files.io.items import ArrayToWrite, item_of
from xweights.files.io.open_file import refused
from xweights.files.load import Checkpoint, load
from xweights.files.save import write_items
from xweights.rules.base import Rule


@dataclass(frozen=True)
class EditReport:
    """What :func:`edit_file` did.

    Attributes:
        path: The file that has the result.
        changed: How many entries of each selected array have other bits than before, by neutral name.
        in_place: True if single entries were changed in the file itself, False if it was written anew.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.npz"); xw.edit_file("w.npz", xw.SetEntries(0, 5.0), where="b").changed
        {'b': 1}
    """

    path: str
    changed: dict[str, int]
    in_place: bool


def edit_file(
    path: str | os.PathLike[str],
    rule: Rule | Callable[[Any], Any] | Sequence[Edit],
    *,
    where: WhereLike | None = None,
    out: str | os.PathLike[str] | None = None,
    max_bytes: int | None = None,
    durable: bool = True,
) -> EditReport:
    """Edit the weights in a file with a rule or a function, one array in memory at a time.

    Arrays that aren't selected keep every byte, and so does everything else in the file. Setting entries
    (:class:`xweights.SetEntries`) changes the file itself, under a journal that finishes the work after a crash;
    everything else streams the file into its replacement.

    Args:
        path: A file that :func:`xweights.load` reads.
        rule: A rule such as ``Clip(-1, 1)`` or ``Prune(fraction=0.9, scope="global")``, a function of a NumPy array in
            neutral order that returns the new one, or a list of these, done one after the other: each a rule or a pair
            (rule, where).
        where: Which parameters. Default: the rule's verb's own default; required for functions and ``SetEntries``.
        out: Where to write the result, in the format of its ending; ``path`` then stays as it is. Default: ``path``.
        max_bytes: As for :func:`xweights.load`.
        durable: True waits until the disk has it.

    Exactness: the rule's, with the numbers that its verb gives on a live target.
    Raises SelectionError, ShapeError, DtypeError, LayoutError, NonfiniteError (what the rule refuses, all of it at
    once), DamagedFileError, RefusedFileError, FileAccessError: whatever it is, the file is as it was.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"d/kernel": np.array([-3.0, 0.5])}, "w.safetensors")
        >>> report = xw.edit_file("w.safetensors", xw.Clip(-1, 1)); xw.load("w.safetensors")["d/kernel"]
        array([-1. ,  0.5])
    """
    source = os.fspath(path)
    destination = source if out is None else os.fspath(out)
    if out is not None:
        format_of(destination)
    with load(source, max_bytes=max_bytes) as opened:
        kind = named(opened.format)
        if out is None and not kind.edited:
            raise refused(source, f"{kind.name} files are only read", fix="out=, in another format")
        parameters = opened.__xweights_parameters__()
        steps = Steps(_edits(rule, where), parameters)
        if out is None:
            counts = set_entries_in_place(source, steps, durable=durable)
            if counts is not None:
                return EditReport(source, counts, in_place=True)
        steps.measure()
        changed: dict[str, int] = {}
        edit = _counting(steps, changed)
        same = out is None or (kind.edited and format_of(destination) is kind)
        if same and rewritable(opened, steps):
            rewritten(opened, steps, edit, destination, durable=durable)
        elif same and repackable(opened):
            repacked(opened, steps, edit, destination, durable=durable)
        else:
            _written(opened, steps, edit, destination, durable=durable)
    return EditReport(destination, changed, in_place=False)


def _edits(rule: Any, where: WhereLike | None) -> list[tuple[Any, WhereLike | None]]:
    if not isinstance(rule, (list, tuple)):
        return [(rule, where)]
    if not rule:
        raise ArgumentError("an empty list of rules does nothing")
    edits: list[tuple[Any, WhereLike | None]] = []
    for one in rule:
        if isinstance(one, tuple):
            if len(one) != 2:
                raise ArgumentError(f"an edit is a rule, or a pair (rule, where)\ngot: {one!r}")
            edits.append(one)
        else:
            edits.append((one, where))
    return edits


def _counting(steps: Steps, changed: dict[str, int]) -> Callable[[int], Array]:
    """Return what edits the array at a position, and counts how many of its entries became other bits."""

    def edit(position: int) -> Array:
        p = steps.parameters[position]
        array = steps.edited(position)
        changed[p.name] = _differing(p, array)
        return array

    return edit


def _differing(p: Parameter, array: Array) -> int:
    flat = array.reshape(-1)  # a copy where it lies in another order
    count = start = 0
    width = f"u{array.dtype.itemsize}"
    for part in p.handle.pieces():
        count += int((part.view(width) != flat[start : start + part.size].view(width)).sum())
        start += part.size
    return count


def _written(
    opened: Checkpoint, steps: Steps, edit: Callable[[int], Array], destination: str, *, durable: bool
) -> None:
    """Write all arrays anew, in any format."""
    items: list[ArrayToWrite] = []
    for position, p in enumerate(steps.parameters):
        item = item_of(p, key=p.handle.key)
        if position in steps.touched:
            item = item_of(p, key=p.handle.key, pieces=_later(edit, position))
        items.append(item)
    texts = opened.metadata if format_of(destination).keeps_metadata else {}
    write_items(items, destination, metadata=texts, durable=durable)


def _later(edit: Callable[[int], Array], position: int) -> Callable[[], Iterable[Array]]:
    return lambda: [edit(position)]
