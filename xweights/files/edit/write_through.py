"""Write values into a file as into a live target: checked as there, and then all of them at once or none."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.files.edit.replace_arrays import Touched, can_replace_arrays, replace_arrays
from xweights.files.edit.rewrite import can_rewrite_shards, rewrite_shards
from xweights.files.edit.rewrite_folder import can_rewrite_folder, rewrite_folder
from xweights.files.formats.table import find_format
from xweights.files.io.open_file import refused
from xweights.files.io.records import Record
from xweights.files.io.storage import FileStorage
from xweights.files.load import Checkpoint, load

Result = TypeVar("Result")

# Parts that an error names.
_SHOWN = 8


class _PendingStorage(FileStorage):
    """Storage of arrays in a file that keeps what is written in memory, until all of it goes into the file."""

    fallible = False
    replaces = True

    def __init__(self) -> None:
        self.pending: dict[int, Array] = {}

    def refusal(self, handle: Record, *, writing: bool) -> str | None:
        return None

    def read(self, handle: Record) -> Array:
        found = self.pending.get(id(handle))
        return handle.read() if found is None else found.copy()

    def write(self, handle: Record, value: Array) -> None:
        self.pending[id(handle)] = np.array(value)

    def native_array(self, handle: Record, *, tensor: bool = False) -> Any:
        return np.array(self.read(handle))

    def commit(self, handle: Record, native: Any, value: Any) -> None:
        self.write(handle, value)

    def backup(self, handle: Record) -> Any:
        return self.pending.get(id(handle))

    def restore(self, handle: Record, kept: Any) -> None:
        if kept is None:
            self.pending.pop(id(handle), None)
        else:
            self.pending[id(handle)] = kept


class PendingFile:
    """A file as a target that can be written: what is written stays in memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.storage = _PendingStorage()
        self._parameters = [p.replace(storage=self.storage) for p in checkpoint.__xweights_parameters__()]

    def __xweights_parameters__(self) -> list[Parameter]:
        return list(self._parameters)


def write_through(path: str | os.PathLike[str], write: Callable[[Any], Result]) -> Result:
    """Return what ``write`` returns of the file as a target, and then replace the arrays that it wrote.

    Everything else in the file keeps every byte; if ``write`` raises, so does all of it.
    """
    with load(path) as checkpoint:
        fmt = find_format(checkpoint.format)
        if not fmt.editable:
            raise refused(checkpoint.path, f"{fmt.name} files are only read", fix="xweights.convert, to another format")
        _refuse_two_parts(checkpoint)
        target = PendingFile(checkpoint)
        result = write(target)
        parameters = checkpoint.__xweights_parameters__()
        pending = target.storage.pending
        values = {at: pending[id(p.handle)] for at, p in enumerate(parameters) if id(p.handle) in pending}
        steps = Touched(checkpoint, values)
        if can_rewrite_folder(checkpoint):
            rewrite_folder(checkpoint, steps, values.__getitem__, durable=True)
        elif can_replace_arrays(checkpoint, checkpoint.path):
            replace_arrays(
                checkpoint, {at: _return(value) for at, value in values.items()}, checkpoint.path, durable=True
            )
        elif can_rewrite_shards(checkpoint, steps):
            changed = {parameters[at].name: 1 for at in values}
            rewrite_shards(checkpoint, steps, values.__getitem__, changed, durable=True)
        else:
            reason = "its arrays are packed, or its ending isn't that of its format"
            raise refused(checkpoint.path, reason, fix="xweights.convert, to another file")
    return result


def _refuse_two_parts(checkpoint: Checkpoint) -> None:
    """Refuse a file with several parts of weights: ``part=`` of the call is that of the values."""
    weights = [part.name for part in checkpoint.parts if part.kind == "weights"]
    if checkpoint.part is None and len(weights) > 1:
        shown = ", ".join(map(repr, weights[:_SHOWN])) + (", ..." if len(weights) > _SHOWN else "")
        reason = f"it has {len(weights)} parts that hold weights, and nothing says which to write: {shown}"
        raise refused(checkpoint.path, reason, fix=f"xweights.convert(path, a new file, part={weights[0]!r}), and that")


def _return(value: Array) -> Callable[[], Array]:
    return lambda: value
