"""Let each rank write its own blocks into the one file that the first rank makes, instead of sending them there.

The first rank writes everything but the blocks, and knows where they belong. Where all ranks see its file, they write
into it, and the file replaces the old one once all of them are done; where they don't (a disk of its own), they send it
their blocks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np

from xweights.core.agreement import Outcome, is_cut, shard_of
from xweights.core.dtypes import Array
from xweights.core.groups import Group
from xweights.core.owners import settle_owners
from xweights.core.parameter import Parameter
from xweights.edit.serve import JOIN, WORKER, announce, join_read
from xweights.edit.shards import local_parameter
from xweights.errors import CheckpointError
from xweights.files.io.arrays_to_write import ArrayToWrite, Sink
from xweights.files.io.dtypes import to_native_byteorder
from xweights.files.io.open_file import inaccessible
from xweights.files.io.records import little_endian_bytes
from xweights.files.io.runs import list_runs


class Placing:
    """The blocks of one call of `save`; every rank has one, for the same parameters."""

    def __init__(self, group: Group, chosen: Sequence[Parameter], *, durable: bool) -> None:
        self.group, self.chosen, self.durable = group, chosen, durable
        self.placed: list[tuple[int, int, int]] = []  # position of the parameter, of the file, offset in it
        self.files: list[str] = []

    def take(self, arrays: Sequence[ArrayToWrite]) -> list[ArrayToWrite]:
        """Return the arrays, those noted whose blocks the ranks will write themselves."""
        position_of = {p.identity(): at for at, p in enumerate(self.chosen) if is_cut(p)}
        found = []
        for array in arrays:
            at = None if array.parameter is None else position_of.get(array.parameter.identity())
            found.append(array if at is None else replace(array, place=partial(self._note, at)))
        return found

    def _note(self, position: int, sink: Sink, offset: int) -> None:
        if sink.temporary not in self.files:
            self.files.append(sink.temporary)
        sink.file.flush()
        self.placed.append((position, self.files.index(sink.temporary), offset))

    def complete(self) -> None:
        """Have all blocks written; called on the first rank, before its file replaces the old one."""
        if self.placed:
            announce(self.group, JOIN)
            self.join()

    def join(self) -> None:
        """Take part in writing the blocks, on every rank."""
        self._share_places()
        owns = settle_owners(self.group, [self.chosen[position] for position, _, _ in self.placed], known=False)
        with ExitStack() as stack:
            opened = [_open(file) for file in self.files]
            for descriptor in opened:
                if descriptor is not None:
                    stack.callback(os.close, descriptor)
            all_see = self.group.all_reduce(np.array([None not in opened], np.int64), "min")
            if not int(all_see[0]):
                self._send_blocks(opened)
                return
            with Outcome(self.group):
                for (position, file, offset), is_own in zip(self.placed, owns, strict=True):
                    descriptor = opened[file]
                    assert descriptor is not None
                    if is_own:
                        self._write_block(descriptor, self.files[file], self.chosen[position], offset)
                self._sync(opened)

    def _share_places(self) -> None:
        """Tell the other ranks what the first one knows: where the blocks belong."""
        told = json.dumps([self.placed, self.files]).encode()
        length = int(self.group.all_reduce(np.array([len(told) * (self.group.rank == WORKER)], np.int64), "max")[0])
        is_here = self.group.rank == WORKER
        parts = [np.frombuffer(told, np.uint8)] * self.group.size if is_here else None
        raw = self.group.scatter(parts, np.empty(length, np.uint8), WORKER)
        placed, self.files = json.loads(raw.tobytes())
        self.placed = [(position, file, offset) for position, file, offset in placed]

    def _write_block(self, descriptor: int, path: str, p: Parameter, offset: int) -> None:
        shard = shard_of(p)
        assert shard is not None
        block = _with_native_bytes(local_parameter(p, shard).read())
        _, starts, length = list_runs(p.layout.stored, shard.stored)
        try:
            for run, start in zip(_split(block, length), starts, strict=False):
                _write_at(descriptor, little_endian_bytes(run), offset + start * block.dtype.itemsize)
        except OSError as cause:
            raise inaccessible(path, cause, "write it") from cause

    def _send_blocks(self, opened: Sequence[int | None]) -> None:
        """Gather one parameter after the other on the rank whose file it is."""
        failed: CheckpointError | None = None
        for position, file, offset in self.placed:
            whole = join_read(self.group, self.chosen[position])
            descriptor = opened[file]
            if whole is None or descriptor is None or failed is not None:
                continue  # the others send what they have all the same
            try:
                _write_at(descriptor, little_endian_bytes(_with_native_bytes(whole)), offset)
            except OSError as cause:
                failed = inaccessible(self.files[file], cause, "write it")
        with Outcome(self.group):
            if failed is not None:
                raise failed
            self._sync(opened)

    def _sync(self, opened: Sequence[int | None]) -> None:
        for path, descriptor in zip(self.files, opened, strict=True):
            try:
                if self.durable and descriptor is not None:
                    os.fsync(descriptor)
            except OSError as cause:
                raise inaccessible(path, cause, "write it") from cause


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return None


def _with_native_bytes(array: Array) -> Array:
    dtype = to_native_byteorder(array.dtype)
    return array if array.dtype == dtype else array.astype(dtype)


def _split(block: Array, length: int) -> Iterator[Array]:
    """Yield the runs of a block in C order, each of so many entries."""
    flat = np.ascontiguousarray(block).reshape(-1)
    return (flat[start : start + length] for start in range(0, flat.size, max(length, 1)))


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done : done + (1 << 30)], offset + done)
