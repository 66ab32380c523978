"""The pickle of a folder's metadata, as torch.distributed.checkpoint reads it: which chunk is where.

Written by hand, so that no class of PyTorch is needed. Names are memoized: with 500 ranks there are as many chunks of
each array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from xweights.core.layout import Shape
from xweights.files.formats.pt import pickle_integer, pickle_text

_METADATA = "torch.distributed.checkpoint.metadata"
_FILES = "torch.distributed.checkpoint.filesystem"
# The key of ours beside those of arrays, in the note of the planner.
NOTE = "xweights"


@dataclass(frozen=True)
class StoredChunk:
    """A block of an array: the index of its first entry, its shape, and the place of its bytes."""

    start: Shape
    shape: Shape
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class StoredArray:
    """An array of the folder under one of its keys."""

    key: str
    dtype: str
    shape: Shape
    chunks: Sequence[StoredChunk]


@dataclass(frozen=True)
class Contents:
    """What a folder's metadata says.

    Attributes:
        arrays: The arrays, in their order.
        values: The place of each value that is no array, by its key.
        paths: Where each key was in the nested dicts that were saved.
        note: Our own note on the arrays, in JSON.
    """

    arrays: Sequence[StoredArray]
    values: Mapping[str, StoredChunk] = field(default_factory=dict)
    paths: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    note: str = "{}"

    @property
    def files(self) -> set[str]:
        """The data files that it names."""
        return {chunk.file for array in self.arrays for chunk in array.chunks} | {
            chunk.file for chunk in self.values.values()
        }


def pickle_metadata(contents: Contents) -> bytes:
    """Return the bytes of ``.metadata``."""
    return _Pickler().pickle(contents)


Write = Callable[[], None]


class _Pickler:
    """Writes one pickle of protocol 2, in order, and remembers names and classes."""

    def __init__(self) -> None:
        # One buffer: a list of its pieces would take thirty times as much memory.
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[tuple[str, str], int] = {}

    def pickle(self, contents: Contents) -> bytes:
        def describe() -> None:
            for array in contents.arrays:
                self.text(array.key)
                self.describe(array)
            for key in contents.values:
                self.text(key)
                self.name(_METADATA, "BytesStorageMetadata")
                self.out += b")\x81"

        def note_paths() -> None:
            for key in (*(array.key for array in contents.arrays), *contents.values):
                self.text(key)
                self.path(contents.paths.get(key, (key,)))
            self.out += pickle_text(NOTE) + pickle_text(contents.note)

        def place() -> None:
            for array in contents.arrays:
                for at, chunk in enumerate(array.chunks):
                    self.place(array.key, at, chunk)
            for key, chunk in contents.values.items():
                self.place(key, None, chunk)

        self.new(
            _METADATA,
            "Metadata",
            state_dict_metadata=partial(self.many, b"}(", describe, b"u"),
            planner_data=partial(self.many, b"}(", note_paths, b"u"),
            storage_data=partial(self.many, b"}(", place, b"u"),
            storage_meta=partial(self.out.extend, b"N"),
        )
        return bytes(self.out + b".")

    def describe(self, array: StoredArray) -> None:
        """Write an array's dtype, shape and chunks."""

        def properties() -> None:
            self.name(_METADATA, "TensorProperties")
            self.out += b")\x81("
            self.name("torch", array.dtype)
            self.name("torch.serialization", "_get_layout")
            self.text("torch.strided")
            self.out += b"\x85R\x89"
            self.name(_METADATA, "_MEM_FORMAT_ENCODING")
            self.out += pickle_integer(0) + b"\x85R\x89tb"

        def chunks() -> None:
            for chunk in array.chunks:
                offsets, sizes = partial(self.size, chunk.start), partial(self.size, chunk.shape)
                self.new(_METADATA, "ChunkStorageMetadata", offsets=offsets, sizes=sizes)

        self.new(
            _METADATA,
            "TensorStorageMetadata",
            properties=properties,
            size=partial(self.size, array.shape),
            chunks=partial(self.many, b"](", chunks, b"e"),
        )

    def place(self, key: str, at: int | None, chunk: StoredChunk) -> None:
        """Write a chunk's name, and its place; ``at`` is its number, None for a value that is no array."""
        name: dict[str, Write] = {"fqn": partial(self.text, key)}
        if at is not None:
            name |= {"index": partial(self.integer, at), "offset": partial(self.size, chunk.start)}
        self.new(_METADATA, "MetadataIndex", **name)
        self.new(
            _FILES,
            "_StorageInfo",
            relative_path=partial(self.text, chunk.file),
            offset=partial(self.integer, chunk.offset),
            length=partial(self.integer, chunk.length),
        )

    def new(self, module: str, kind: str, **fields: Write) -> None:
        """Write an object of a class with these fields."""
        self.name(module, kind)
        self.out += b")\x81}("
        for name, write in fields.items():
            self.text(name)
            write()
        self.out += b"ub"

    def path(self, words: Sequence[str | int]) -> None:
        self.out += b"("
        for word in words:
            self.text(word) if isinstance(word, str) else self.integer(word)
        self.out += b"t"

    def many(self, begin: bytes, write: Write, end: bytes) -> None:
        self.out += begin
        write()
        self.out += end

    def integer(self, number: int) -> None:
        self.out += pickle_integer(number)

    def size(self, shape: Shape) -> None:
        self.name("torch", "Size")
        self.out += b"".join([b"(", *map(pickle_integer, shape), b"t\x85R"])

    def name(self, module: str, name: str) -> None:
        self.remember((module, name), f"c{module}\n{name}\n".encode())

    def text(self, text: str) -> None:
        self.remember(("", text), pickle_text(text))

    def remember(self, key: tuple[str, str], pickled: bytes) -> None:
        """Write a pickle the first time, and what fetches it from the memo later."""
        at = self.memo.get(key)
        if at is None:
            at = self.memo[key] = len(self.memo)
            self.out += pickled + b"r" + at.to_bytes(4, "little")
        else:
            self.out += b"h" + bytes([at]) if at < 256 else b"j" + at.to_bytes(4, "little")
