"""An array to be written, whatever the format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.core.parameter import Parameter
from xweights.errors import CheckpointError, ShapeError
from xweights.files.io.dtypes import native
from xweights.files.io.notes import ArrayMetadata
from xweights.files.io.records import Record


@dataclass(frozen=True, eq=False)
class ArrayToWrite:
    """One array to be written.

    ``pieces()`` is called once, when it is this array's turn, and yields consecutive parts of it in C order: whole, or
    in as many parts as there are, so that nothing larger than a part need be in memory.
    """

    key: str
    dtype: np.dtype[Any]
    shape: Shape
    note: ArrayMetadata | None
    pieces: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def checked(self) -> Iterator[Array]:
        """Yield the pieces, and raise if they aren't what was announced: a file would be damaged by it."""
        entries = 0
        for part in self.pieces():
            if part.dtype != self.dtype:
                raise ShapeError(f"a piece of {self.key!r} is {part.dtype.name}, not {self.dtype.name}")
            entries += part.size
            if entries > math.prod(self.shape):
                break
            yield part
        if entries != math.prod(self.shape):
            raise ShapeError(
                f"the pieces of {self.key!r} have {entries:,} entries\nexpected: {math.prod(self.shape):,}"
            )


class Sink(Protocol):
    """Where a format writes: the file that will take the old one's place."""

    path: str
    file: BinaryIO

    def write(self, data: Any) -> int:
        """Write all of these bytes."""

    def cannot(self, item: ArrayToWrite | None, reason: str) -> CheckpointError:
        """Return the error to raise for an array that this format can't hold."""


def item_of(
    p: Parameter, *, key: str | None = None, pieces: Callable[[], Iterable[Array]] | None = None
) -> ArrayToWrite:
    """Return a parameter of any target as an item: in its stored order, with everything known of it as its note.

    ``pieces`` if something else than its present values is to be written under its name.
    """
    dtype = native(p.dtype)
    return ArrayToWrite(
        p.name if key is None else key,
        dtype,
        p.layout.stored,
        ArrayMetadata.of(p),
        pieces or (lambda: _values(p, dtype)),
    )


def _values(p: Parameter, dtype: np.dtype[Any]) -> Iterator[Array]:
    if isinstance(p.handle, Record):
        yield from p.handle.pieces()
        return
    array = p.read()
    yield array if array.dtype == dtype else array.astype(dtype)
