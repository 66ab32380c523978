"""Table of the formats: file name endings, readers and writers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xweights.errors import near
from xweights.files.formats import h5, keras_archive, npz, pt, safetensors, sharded, tf_checkpoint
from xweights.files.io.arrays_to_write import ArrayToWrite, Sink, StateValues
from xweights.files.io.journal import open_recovered
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import OpenFile, refused
from xweights.files.io.records import Index

Reader = Callable[[OpenFile, Limits], Index]
Writer = Callable[[Sink, Sequence[ArrayToWrite], dict[str, str]], None]
StateWriter = Callable[[Sink, Sequence[ArrayToWrite], StateValues], None]
FolderWriter = Callable[[str, Sequence[ArrayToWrite], dict[str, str], bool, int], None]


@dataclass(frozen=True)
class Format:
    """One format: the endings of its files, its reader and its writer (None: only read).

    ``write_shards`` replaces ``write`` where a checkpoint consists of several files. ``write_state`` is the writer of a
    format that also holds values that are no arrays.
    """

    name: str
    endings: tuple[str, ...]
    read: Reader
    write: Writer | None = None
    write_shards: FolderWriter | None = None
    write_state: StateWriter | None = None
    keeps_metadata: bool = False
    editable: bool = True


FORMATS = (
    Format("sharded safetensors", (sharded.ENDING,), sharded.read, write_shards=sharded.write, keeps_metadata=True),
    Format("sharded h5", (sharded.H5_ENDING,), sharded.read_h5),
    Format("safetensors", (safetensors.ENDING,), safetensors.read, safetensors.write, keeps_metadata=True),
    Format("npz", (npz.ENDING,), npz.read, npz.write),
    Format("keras", (keras_archive.ENDING,), keras_archive.read),
    Format("h5", h5.ENDINGS, h5.read, h5.write),
    Format("tensorflow", (tf_checkpoint.ENDING,), tf_checkpoint.read, editable=False),
    Format("pt", pt.ENDINGS, pt.read, pt.write, write_state=pt.write_state),
)


def format_of(path: str) -> Format:
    """Return the format that a path's ending names."""
    name = os.path.basename(path).lower()
    for fmt in FORMATS:
        if name.endswith(fmt.endings):
            return fmt
    endings = [ending for fmt in FORMATS for ending in fmt.endings]
    reason = f"its ending names no format of weights\n{near(os.path.splitext(name)[1], endings)}"
    raise refused(path, reason, fix=f"use one of {', '.join(endings)}")


def find_format(name: str) -> Format:
    """Return the format of this name."""
    return next(fmt for fmt in FORMATS if fmt.name == name)


def read(path: str, limits: Limits) -> Index:
    """Return the index of a file of any format."""
    # TensorFlow names its checkpoints without an ending.
    if not any(path.lower().endswith(fmt.endings) for fmt in FORMATS) and os.path.isfile(path + tf_checkpoint.ENDING):
        path += tf_checkpoint.ENDING
    fmt, file = format_of(path), open_recovered(path)
    with file.lock_shared():  # checksums and sizes are read in several places, which are changed one after the other
        return fmt.read(file, limits)
