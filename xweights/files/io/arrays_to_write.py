"""Arrays to be written, independent of the format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.core.parameter import Parameter
from xweights.errors import CheckpointError, ShapeError
from xweights.files.io.dtypes import to_native_byteorder
from xweights.files.io.metadata import ArrayMetadata
from xweights.files.io.records import Record


@dataclass(frozen=True, eq=False)
class ArrayToWrite:
    """One array to be written.

    ``pieces()`` is called once, when it is this array's turn, and yields consecutive parts in C order, one or many, so
    that nothing larger than a part need be in memory. ``aliases`` are further keys of the array (tied weights), for
    the formats that can say so. ``parameter`` is the one whose present values it has, if it is one. ``place(sink, at)``
    notes that others will write the bytes of the array from this offset on.
    """

    key: str
    dtype: np.dtype[Any]
    shape: Shape
    metadata: ArrayMetadata | None
    pieces: Callable[[], Iterable[Array]]
    aliases: tuple[str, ...] = ()
    parameter: Parameter | None = None
    place: Callable[[Sink, int], None] | None = None

    @property
    def nbytes(self) -> int:
        """Number of bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def iter_checked(self) -> Iterator[Array]:
        """Yield the pieces; raise if they differ from the announced dtype or shape, which would damage the file."""
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


@dataclass(frozen=True, eq=False)
class StateValues:
    """What a framework's own file of a model holds besides arrays.

    Attributes:
        values: Trees of dicts, lists and tuples, by key, whose leaves are plain values or Parameters.
        order: The keys of arrays, their aliases and values in the framework's order.
        attributes: What the framework keeps beside all keys, such as versions of modules.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    order: Sequence[str] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Sink(Protocol):
    """The file that a format writes into; it will replace the old one.

    ``temporary`` is its path until then.
    """

    path: str
    temporary: str
    file: BinaryIO

    def write(self, data: Any) -> int:
        """Write all of these bytes."""

    def cannot(self, array: ArrayToWrite | None, reason: str) -> CheckpointError:
        """Return the error to raise for an array that this format can't hold."""


def array_to_write(
    p: Parameter,
    *,
    key: str | None = None,
    pieces: Callable[[], Iterable[Array]] | None = None,
    aliases: tuple[str, ...] = (),
) -> ArrayToWrite:
    """Return a parameter of any target as an array to write, in its stored order and with its metadata.

    ``pieces`` yields other values to write under its name. Default: its present ones. ``aliases``: its further keys; an
    array of a file that keeps its key keeps those that it has there.
    """
    dtype = to_native_byteorder(p.dtype)
    if isinstance(p.handle, Record) and key == p.handle.key_in_part:
        aliases = p.handle.metadata.native_aliases
    return ArrayToWrite(
        p.name if key is None else key,
        dtype,
        p.layout.stored,
        ArrayMetadata.of(p),
        pieces or (lambda: _iter_values(p, dtype)),
        aliases,
        p if pieces is None else None,
    )


def _iter_values(p: Parameter, dtype: np.dtype[Any]) -> Iterator[Array]:
    if isinstance(p.handle, Record):
        yield from p.handle.pieces()
        return
    array = p.read()
    yield array if array.dtype == dtype else array.astype(dtype)
