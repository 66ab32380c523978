"""Which format a path is of, and who reads and writes it.

Owns the table of formats. Imports the formats.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xweights.errors import near
from xweights.files import npz, safetensors
from xweights.files.descriptors import OpenFile, refused
from xweights.files.items import Item, Sink
from xweights.files.limits import Limits
from xweights.files.records import Index

Reader = Callable[[OpenFile, Limits], Index]
Writer = Callable[[Sink, Sequence[Item], dict[str, str]], None]


@dataclass(frozen=True)
class Format:
    """One format: the endings of its files, and how they are read and written (None: only read)."""

    name: str
    endings: tuple[str, ...]
    read: Reader
    write: Writer | None


FORMATS = (
    Format("safetensors", (safetensors.ENDING,), safetensors.read, safetensors.write),
    Format("npz", (npz.ENDING,), npz.read, npz.write),
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


def read(path: str, limits: Limits) -> Index:
    """Return the index of a file of any format."""
    return format_of(path).read(OpenFile(path), limits)
