"""Write a file again with other values of some arrays, and everything else in it as it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from xweights.core.dtypes import Array
from xweights.files.edit.archive import can_repack_archive, repack_archive
from xweights.files.edit.plan import Steps
from xweights.files.edit.rewrite import can_repack, can_rewrite, repack, rewrite
from xweights.files.formats.table import find_format, format_of
from xweights.files.load import Checkpoint


def can_replace_arrays(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> bool:
    """Return whether a copy of a file with other values in its arrays can be written to ``path``: the same format."""
    fmt = find_format(checkpoint.format)
    if not fmt.editable or format_of(os.fspath(path)) is not fmt:
        return False
    whole = Touched(checkpoint, range(len(checkpoint)))
    return can_rewrite(checkpoint, whole) or can_repack(checkpoint) or can_repack_archive(checkpoint)


def replace_arrays(
    checkpoint: Checkpoint,
    values: Mapping[int, Callable[[], Array]],
    path: str | os.PathLike[str],
    *,
    durable: bool,
) -> None:
    """Write a copy of a file with other values in some arrays.

    Args:
        checkpoint: The file; ``can_replace_arrays`` has said that it can be done.
        values: For the position of a parameter, the function that returns its values in stored order, called once.
        path: Where the copy goes; it may be the file itself.
        durable: True waits until the data is on disk.
    """
    steps = Touched(checkpoint, values)
    write = repack_archive
    if can_rewrite(checkpoint, steps):
        write = rewrite
    elif can_repack(checkpoint):
        write = repack
    write(checkpoint, steps, lambda position: values[position](), os.fspath(path), durable=durable)


class Touched(Steps):
    """The arrays that get other values, as writers of edited files are told of them."""

    def __init__(self, checkpoint: Checkpoint, positions: Mapping[int, object] | range) -> None:
        super().__init__((), checkpoint.__xweights_parameters__())
        self.touched = set(positions)
