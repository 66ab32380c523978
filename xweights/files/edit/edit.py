"""Edit a file: in place for a few entries, else streamed into its replacement or another file.

Everything that can be refused is refused before the first byte is written. After that, the file is at every moment
either completely the old one or completely the new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import Array, bits_differ
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike
from xweights.core.tables import render_html
from xweights.errors import ArgumentError
from xweights.files.edit.archive import can_repack_archive, repack_archive
from xweights.files.edit.in_place import set_entries_in_place
from xweights.files.edit.plan import Edit, Steps
from xweights.files.edit.rewrite import (
    can_repack,
    can_rewrite,
    can_rewrite_shards,
    repack,
    rewrite,
    rewrite_shards,
)
from xweights.files.edit.rewrite_folder import can_rewrite_folder, rewrite_folder
from xweights.files.formats.table import SEVERAL, find_format, format_of
from xweights.files.io.arrays_to_write import ArrayToWrite, array_to_write
from xweights.files.io.atomic import are_replaced_together
from xweights.files.io.open_file import refused
from xweights.files.load import Checkpoint, load
from xweights.files.save import write_arrays
from xweights.rules.base import Rule


@dataclass(frozen=True)
class EditReport:
    """Result of :func:`edit_file`.

    Attributes:
        path: The file with the result.
        changed: Number of entries of each selected array whose bits have changed, by neutral name.
        in_place: True if single entries were changed in the file itself, False if it was rewritten.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"b": np.ones(2)}, "w.npz"); xw.edit_file("w.npz", xw.SetEntries(0, 5.0), where="b").changed
        {'b': 1}
    """

    path: str
    changed: dict[str, int]
    in_place: bool

    def _repr_html_(self) -> str:
        rows = [[name, f"{count:,}"] for name, count in self.changed.items()]
        return render_html(["name", "entries changed"], rows, notes=[f"saved: {self.path}"])


def edit_file(
    path: str | os.PathLike[str],
    rule: Rule | Callable[[Any], Any] | Sequence[Edit],
    *,
    where: WhereLike | None = None,
    out: str | os.PathLike[str] | None = None,
    part: str | None = None,
    max_bytes: int | None = None,
    durable: bool = True,
) -> EditReport:
    """Edit the weights in a file with a rule or a function, one array in memory at a time.

    Arrays that aren't selected keep every byte, and so does everything else in the file. Setting entries
    (:class:`xweights.SetEntries`) changes the file itself, with a journal that completes the change after a crash;
    every other edit streams the file into its replacement. Of a sharded checkpoint, the shards that hold something that
    changes are replaced under their own names, all of them or none; the others and the index aren't touched.

    Args:
        path: A file that :func:`xweights.load` reads.
        rule: A rule such as ``Clip(-1, 1)`` or ``Prune(fraction=0.9, scope="global")``, a function of a NumPy array in
            neutral order that returns the new one, or a list of these, applied one after the other: each a rule or a
            pair (rule, where).
        where: Which parameters. Default: that of the rule's verb; required for functions and ``SetEntries``.
        out: Path to write the result to, in the format of its ending; ``path`` is then unchanged. Default: ``path``.
        part: Which part of a training run's file is edited, as for :func:`xweights.load`; all others keep every byte.
        max_bytes: As for :func:`xweights.load`.
        durable: True waits until the data is on disk.

    Exactness: that of the rule, with the same numbers as its verb gives on a live target.
    Raises SelectionError, ShapeError, DtypeError, LayoutError, NonfiniteError (everything that the rule refuses, at
    once), DamagedFileError, RefusedFileError, FileAccessError; in every case the file is unchanged.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.save({"d/kernel": np.array([-3.0, 0.5])}, "w.safetensors")
        >>> report = xw.edit_file("w.safetensors", xw.Clip(-1, 1)); xw.load("w.safetensors")["d/kernel"]
        array([-1. ,  0.5])
    """
    if out is not None:
        format_of(os.fspath(out))
    with load(path, part=part, max_bytes=max_bytes) as checkpoint:
        # Of a folder, the file in it.
        source = checkpoint.path
        destination = source if out is None else os.fspath(out)
        fmt = find_format(checkpoint.format)
        if out is None and not fmt.editable:
            kind = "shards without an index" if fmt.name == SEVERAL else f"{fmt.name} files"
            raise refused(source, f"{kind} are only read", fix="out=, in another format")
        parameters = checkpoint.__xweights_parameters__()
        steps = Steps(_list_edits(rule, where), parameters)
        if out is None and not are_replaced_together():
            counts = set_entries_in_place(source, steps, checkpoint.records, durable=durable)
            if counts is not None:
                return EditReport(source, counts, in_place=True)
        steps.measure()
        changed: dict[str, int] = {}
        edit = _count_while_editing(steps, changed)
        same_format = out is None or (fmt.editable and format_of(destination) is fmt)
        if same_format and can_rewrite(checkpoint, steps):
            rewrite(checkpoint, steps, edit, destination, durable=durable)
        elif same_format and can_repack(checkpoint):
            repack(checkpoint, steps, edit, destination, durable=durable)
        elif same_format and can_repack_archive(checkpoint):
            repack_archive(checkpoint, steps, edit, destination, durable=durable)
        elif out is None and can_rewrite_folder(checkpoint):
            rewrite_folder(checkpoint, steps, edit, durable=durable)
        elif out is None and can_rewrite_shards(checkpoint, steps):
            rewrite_shards(checkpoint, steps, edit, changed, durable=durable)
        else:
            if out is None and format_of(destination) is not fmt:
                reason = f"its arrays are packed, and its ending doesn't name {fmt.name}, which it is"
                raise refused(source, reason, fix="out=, or rename it")
            _write_all(checkpoint, steps, edit, destination, durable=durable)
    return EditReport(destination, changed, in_place=False)


def _list_edits(rule: Any, where: WhereLike | None) -> list[tuple[Any, WhereLike | None]]:
    if not isinstance(rule, (list, tuple)):
        return [(rule, where)]
    if not rule:
        raise ArgumentError("an empty list of rules does nothing")
    edits: list[tuple[Any, WhereLike | None]] = []
    for edit in rule:
        if isinstance(edit, tuple):
            if len(edit) != 2:
                raise ArgumentError(f"an edit is a rule, or a pair (rule, where)\ngot: {edit!r}")
            edits.append(edit)
        else:
            edits.append((edit, where))
    return edits


def _count_while_editing(steps: Steps, changed: dict[str, int]) -> Callable[[int], Array]:
    """Return a function that edits the array at a position and counts the entries whose bits have changed."""

    def edit(position: int) -> Array:
        p = steps.parameters[position]
        array = steps.apply(position)
        changed[p.name] = _count_changed(p, array)
        return array

    return edit


def _count_changed(p: Parameter, array: Array) -> int:
    flat = array.reshape(-1)  # a copy if it is in another order
    count = start = 0
    for part in p.handle.pieces():
        count += int(np.count_nonzero(bits_differ(part, flat[start : start + part.size])))
        start += part.size
    return count


def _write_all(
    checkpoint: Checkpoint, steps: Steps, edit: Callable[[int], Array], destination: str, *, durable: bool
) -> None:
    """Write all arrays to a new file, in any format."""
    arrays: list[ArrayToWrite] = []
    for position, p in enumerate(steps.parameters):
        array = array_to_write(p, key=p.handle.key_in_part)
        if position in steps.touched:
            array = array_to_write(p, key=p.handle.key_in_part, pieces=_defer(edit, position))
        arrays.append(array)
    texts = checkpoint.metadata if format_of(destination).keeps_metadata else {}
    write_arrays(arrays, destination, metadata=texts, durable=durable)


def _defer(edit: Callable[[int], Array], position: int) -> Callable[[], Iterable[Array]]:
    return lambda: [edit(position)]
