"""Which format a path is of, and who reads and writes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xweights.errors import near
from xweights.files.formats import h5, keras_archive, npz, pt, safetensors, sharded, tf_checkpoint
from xweights.files.io.items import ArrayToWrite, Sink
from xweights.files.io.journal import opened
from xweights.files.io.limits import Limits
from xweights.files.io.open_file import OpenFile, refused
from xweights.files.io.records import Index

Reader = Callable[[OpenFile, Limits], Index]
Writer = Callable[[Sink, Sequence[ArrayToWrite], dict[str, str]], None]
FolderWriter = Callable[[str, Sequence[ArrayToWrite], dict[str, str], bool, int], None]


@dataclass(frozen=True)
class Format:
    """One format: the endings of its files, and how they are read and written (None: only read).

    ``write_shards`` instead of ``write`` where a checkpoint is several files.
    """

    name: str
    endings: tuple[str, ...]
    read: Reader
    write: Writer | None = None
    write_shards: FolderWriter | None = None
    keeps_metadata: bool = False
    edited: bool = True


FORMATS = (
    Format("sharded safetensors", (sharded.ENDING,), sharded.read, write_shards=sharded.write, keeps_metadata=True),
    Format("sharded h5", (sharded.H5_ENDING,), sharded.read_h5),
    Format("safetensors", (safetensors.ENDING,), safetensors.read, safetensors.write, keeps_metadata=True),
    Format("npz", (npz.ENDING,), npz.read, npz.write),
    Format("keras", (keras_archive.ENDING,), keras_archive.read),
    Format("h5", h5.ENDINGS, h5.read, h5.write),
    Format("tensorflow", (tf_checkpoint.ENDING,), tf_checkpoint.read, edited=False),
    Format("pt", pt.ENDINGS, pt.read, pt.write),
)


def format_of(path: str) -> Format:
    """Return the format that a path's ending names."""
    name = os.path.basename(path).lower()
    for one in FORMATS:
        if name.endswith(one.endings):
            return one
    endings = [ending for one in FORMATS for ending in one.endings]
    reason = f"its ending names no format of weights\n{near(os.path.splitext(name)[1], endings)}"
    raise refused(path, reason, fix=f"use one of {', '.join(endings)}")


def named(name: str) -> Format:
    """Return the format of this name."""
    return next(one for one in FORMATS if one.name == name)


def read(path: str, limits: Limits) -> Index:
    """Return the index of a file of any format."""
    # TensorFlow names its checkpoints without an ending.
    if not any(path.lower().endswith(one.endings) for one in FORMATS) and os.path.isfile(path + tf_checkpoint.ENDING):
        path += tf_checkpoint.ENDING
    kind, file = format_of(path), opened(path)
    with file.steady():  # sums and sizes are looked at in several places, which change one after the other
        return kind.read(file, limits)
