"""The pickle of a folder's metadata, as torch.distributed.checkpoint reads it: which chunk is where.

Written by hand, so that no class of PyTorch is needed. Names are memoized: with 500 ranks there are as many chunks of
each array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def pickle_metadata(arrays: Sequence[StoredArray], note: str) -> bytes:
    """Return the contents of ``.metadata``; ``note`` is ours, in JSON."""
    return _Pickler().pickle(arrays, note)


Write = Callable[[], None]


class _Pickler:
    """Writes one pickle of protocol 2, in order, and remembers names and classes."""

    def __init__(self) -> None:
        self.out: list[bytes] = [b"\x80\x02"]
        self.memo: dict[tuple[str, str], int] = {}

    def pickle(self, arrays: Sequence[StoredArray], note: str) -> bytes:
        def describe() -> None:
            for array in arrays:
                self.text(array.key)
                self.describe(array)

        def note_paths() -> None:
            for array in arrays:
                self.text(array.key)
                self.text(array.key)
                self.out.append(b"\x85")
            self.out += [pickle_text(NOTE), pickle_text(note)]

        def place() -> None:
            for array in arrays:
                for at, chunk in enumerate(array.chunks):
                    self.place(array, at, chunk)

        self.new(
            _METADATA,
            "Metadata",
            state_dict_metadata=partial(self.many, b"}(", describe, b"u"),
            planner_data=partial(self.many, b"}(", note_paths, b"u"),
            storage_data=partial(self.many, b"}(", place, b"u"),
            storage_meta=lambda: self.out.append(b"N"),
        )
        return b"".join([*self.out, b"."])

    def describe(self, array: StoredArray) -> None:
        """Write an array's dtype, shape and chunks."""

        def properties() -> None:
            self.name(_METADATA, "TensorProperties")
            self.out.append(b")\x81(")
            self.name("torch", array.dtype)
            self.name("torch.serialization", "_get_layout")
            self.text("torch.strided")
            self.out.append(b"\x85R\x89")
            self.name(_METADATA, "_MEM_FORMAT_ENCODING")
            self.out += [pickle_integer(0), b"\x85R\x89tb"]

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

    def place(self, array: StoredArray, at: int, chunk: StoredChunk) -> None:
        """Write a chunk's name, and its place."""
        self.new(
            _METADATA,
            "MetadataIndex",
            fqn=partial(self.text, array.key),
            index=partial(self.integer, at),
            offset=partial(self.size, chunk.start),
        )
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
        self.out.append(b")\x81}(")
        for field, write in fields.items():
            self.text(field)
            write()
        self.out.append(b"ub")

    def many(self, begin: bytes, write: Write, end: bytes) -> None:
        self.out.append(begin)
        write()
        self.out.append(end)

    def integer(self, number: int) -> None:
        self.out.append(pickle_integer(number))

    def size(self, shape: Shape) -> None:
        self.name("torch", "Size")
        self.out += [b"(", *map(pickle_integer, shape), b"t\x85R"]

    def name(self, module: str, name: str) -> None:
        self.remember((module, name), f"c{module}\n{name}\n".encode())

    def text(self, text: str) -> None:
        self.remember(("", text), pickle_text(text))

    def remember(self, key: tuple[str, str], pickled: bytes) -> None:
        """Write a pickle the first time, and what fetches it from the memo later."""
        at = self.memo.get(key)
        if at is None:
            at = self.memo[key] = len(self.memo)
            self.out += [pickled, b"r", at.to_bytes(4, "little")]
        else:
            self.out.append(b"h" + bytes([at]) if at < 256 else b"j" + at.to_bytes(4, "little"))
