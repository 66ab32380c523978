"""Stream values from one target into another, without an intermediate copy where their memory allows it.

Each value is checked before anything is written, and read again for its write: straight into the parameter's memory if
that is visible and both have the same order. A check in pieces that stay in the cache takes 0.7 to 0.9 of the time of
filling the parameters. A log of what is overwritten, to undo it, would spare that pass and take the memory of the
parameters: filling, check and log together take 2.1 of filling where that memory is new, and 1.4 where it is not.
Mapping the file for its check would take 0.45, and end the process where a disk fails or somebody shortens the file.
Where reading means unpacking, and may fail at any time, everything is backed up anyway: such a value is read once, and
checked as it is written.

Plain bytes are checked and read by several threads, each some of the arrays; those side by side in a file together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xweights.core.blocks import all_finite, any_overlap, finite_check
from xweights.core.casting import cast_exactly, check_finite
from xweights.core.dtypes import Array
from xweights.core.layout import LayoutName
from xweights.core.parameter import Parameter, is_shared
from xweights.core.protocols import MemoryStorage, PlainBytesStorage, Storage, StreamingStorage, UnpackingStorage
from xweights.core.threads import count_threads, run_all
from xweights.core.values import fit_value
from xweights.errors import CheckpointError, LayoutError

_WORTH_A_THREAD = 4 << 20
# Parts for each thread, so that one that is slower leaves some to the others.
_PARTS = 4


class _Abilities(NamedTuple):
    """Which of the optional protocols the storages of a type have."""

    streams: bool
    unpacks: bool
    has_plain_bytes: bool
    has_memory: bool


_abilities: dict[type[Any], _Abilities] = {}


def _abilities_of(storage: Storage) -> _Abilities:
    kind = type(storage)
    if kind not in _abilities:  # asking a protocol takes as long as reading a small array
        protocols = (StreamingStorage, UnpackingStorage, PlainBytesStorage, MemoryStorage)
        _abilities[kind] = _Abilities(*(issubclass(kind, protocol) for protocol in protocols))
    return _abilities[kind]


class StreamedValue:
    """One value in another target, and the parameter that it is written to.

    ``is_block``: both are one rank's part. ``reads_once``: it is checked as it is written, and not before.
    """

    def __init__(
        self,
        value: Parameter,
        p: Parameter,
        layout: LayoutName | None,
        *,
        is_block: bool = False,
        reads_once: bool = False,
    ) -> None:
        self.value, self.p = value, p
        self.is_block, self.reads_once = is_block, reads_once
        if layout is None and value.axes is None and not p.layout.is_identity:
            raise LayoutError(
                f"{value.name!r} has no axis names, and {p.name!r} isn't stored in neutral order\n"
                'Fix: layout="native" for a file of the framework\'s own, layout="neutral" for Keras\' order'
            )
        self.order: LayoutName = "neutral" if value.axes is not None or layout is None else layout
        self._scanned = False
        # A broadcast zero, to check shapes and axes without reading.
        self._fit_to_parameter(np.broadcast_to(np.zeros((), p.dtype), value.shape))

    def _fit_to_parameter(self, neutral: Array) -> Array:
        return fit_value(neutral, self.p, self.order, axes=self.value.axes, gates=self.value.gates)

    @property
    def is_checked_late(self) -> bool:
        """True if the value is checked as it is written: reading it means unpacking it, which also may fail then."""
        storage: Any = self.value.storage
        if self.is_block:
            return self.reads_once
        return bool(_abilities_of(storage).unpacks and storage.unpacks(self.value.handle))

    def check(self, *, cast: bool, allow_nonfinite: bool) -> None:
        """Raise if the values can't be stored unchanged: NaN, infinity, a cast that would change them."""
        value = self.value
        if value.dtype != self.p.dtype:
            self._check_array(self._read(), cast=cast, allow_nonfinite=allow_nonfinite)
        elif not (allow_nonfinite or self._scanned or self._scan()):
            check_finite(self._read(), repr(self.p.name))

    def _scan(self) -> bool:
        """Return whether all entries are finite."""
        return finite_check(self.value.dtype) is None or all(map(all_finite, self._pieces()))

    def _pieces(self) -> Iterable[Array]:
        storage: Any = self.value.storage
        streams = _abilities_of(storage).streams
        return storage.pieces(self.value.handle) if streams else [self.value.read().reshape(-1)]

    def _read(self) -> Array:
        return self.value.layout.to_neutral(self.value.read())

    def _check_array(self, array: Array, *, cast: bool, allow_nonfinite: bool) -> Array:
        """Return all entries in the dtype of the parameter; raise as :meth:`check`."""
        if array.dtype != self.p.dtype:
            array = cast_exactly(array, self.p.dtype, what=repr(self.p.name), cast=cast)
        if not allow_nonfinite:
            check_finite(array, repr(self.p.name))
        return array

    def write(self, *, cast: bool, allow_nonfinite: bool) -> None:
        """Write the value into its parameter; what is wrong with it is raised here only if it is checked late."""
        p = self.p
        native = None if self.is_checked_late and not self.is_block else self._visible_memory()
        if native is not None:
            self._fill(native)
            if self.is_checked_late:
                self._check_array(native, cast=cast, allow_nonfinite=allow_nonfinite)
            p.commit(native, native)
            return
        if self.is_checked_late:
            p.write(self._fit_to_parameter(self._check_array(self._read(), cast=cast, allow_nonfinite=allow_nonfinite)))
            return
        array = self._fit_to_parameter(self._read())
        if array.dtype != p.dtype:
            array = cast_exactly(array, p.dtype, what=repr(p.name), cast=cast)
        p.write(array)

    def _visible_memory(self) -> Array | None:
        """Return the parameter's own memory, if the value can be read straight into it."""
        alike = self.value.dtype == self.p.dtype and self.is_stored_alike
        if alike and _abilities_of(self.value.storage).streams and not is_shared(self.p):
            return visible_memory(self.p)
        return None

    def _fill(self, native: Array) -> None:
        storage: Any = self.value.storage
        storage.read_into(self.value.handle, native.reshape(-1))

    @property
    def is_plain(self) -> bool:
        """True if several threads may read this and other values."""
        return not self.is_block and is_plain(self.value)

    @property
    def is_stored_alike(self) -> bool:
        """True if both are stored in the same order."""
        target_layout, source_layout = self.p.layout, self.value.layout
        if target_layout.stored != source_layout.stored:
            return False
        if self.order == "native":
            return True
        return (
            target_layout.split == source_layout.split
            and target_layout.order == source_layout.order
            and (target_layout.axes == source_layout.axes or None in (target_layout.axes, source_layout.axes))
        )

    @property
    def fallible(self) -> bool:
        """True if reading can still fail after the check: the parameters are then backed up."""
        storage: Any = self.value.storage
        if self.is_block:
            return self.reads_once
        return bool(_abilities_of(storage).streams and storage.may_fail(self.value.handle))


def is_plain(value: Parameter) -> bool:
    """Return whether a value is plain bytes, which several threads may read, and many values together."""
    storage: Any = value.storage
    return bool(_abilities_of(storage).has_plain_bytes and storage.is_plain(value.handle))


def visible_memory(p: Parameter) -> Array | None:
    """Return a parameter's own memory, if its stored order can be written there from the first byte to the last."""
    storage: Any = p.storage
    memory = storage.memory(p.handle) if _abilities_of(storage).has_memory else p.native()
    if isinstance(memory, np.ndarray) and memory.flags.writeable and memory.flags.c_contiguous:
        return memory
    return None


def threads_for(nbytes: int) -> int:
    """Return how many threads to read so many bytes on."""
    # A thread takes as long to start as reading some hundred kilobytes.
    return count_threads() if nbytes > _WORTH_A_THREAD else 1


def find_finite(values: Sequence[Parameter], threads: int) -> set[int]:
    """Return the positions of plain values that are finite; of what is read together, that is all or none.

    Each thread looks at a piece of a mebibyte at a time, in its processor's cache.
    """
    finite: set[int] = set()

    def scan(storage: PlainBytesStorage, part: list[int]) -> None:
        if all(map(all_finite, storage.pieces_together([values[position].handle for position in part]))):
            finite.update(part)

    numbers = []
    for position, value in enumerate(values):
        if finite_check(value.dtype) is None:
            finite.add(position)
        else:
            numbers.append(position)
    run_all([partial(scan, storage, part) for storage, part in _parts(values, numbers, threads)], threads=threads)
    return finite


def fill_together(values: Sequence[Parameter], memories: Sequence[Array], threads: int) -> None:
    """Read plain values into memory of their size; nothing is committed. Memory that overlaps is for one thread.

    A file that could be read for its check, and can't be any more, leaves a part written: the error says so.
    """

    def fill(storage: PlainBytesStorage, part: list[int]) -> None:
        storage.read_together([values[at].handle for at in part], [memories[at] for at in part])

    parts = _parts(values, range(len(values)), threads)
    try:
        run_all([partial(fill, storage, part) for storage, part in parts], threads=threads)
    except CheckpointError as error:
        error.args = (f"{error}\nIt was whole when it was checked: a part of the parameters has its values already",)
        raise


def _parts(
    values: Sequence[Parameter], positions: Sequence[int], threads: int
) -> Iterator[tuple[PlainBytesStorage, list[int]]]:
    """Yield the positions in parts for the threads, each of one storage."""
    by_storage: dict[int, list[int]] = {}
    for position in positions:
        by_storage.setdefault(id(values[position].storage), []).append(position)
    for members in by_storage.values():
        storage: Any = values[members[0]].storage
        handles = [values[position].handle for position in members]
        for part in storage.split(handles, threads * _PARTS) if threads > 1 else [range(len(members))]:
            yield storage, [members[at] for at in part]


def scan_on_threads(sources: Sequence[StreamedValue]) -> None:
    """Look through plain values on several threads; :meth:`StreamedValue.check` doesn't read the finite ones again."""
    plain = [source for source in sources if source.is_plain and source.value.dtype == source.p.dtype]
    values = [source.value for source in plain]
    for position in find_finite(values, threads_for(sum(value.size * value.dtype.itemsize for value in values))):
        plain[position]._scanned = True


def fill_on_threads(sources: Sequence[StreamedValue]) -> list[StreamedValue]:
    """Read plain values into the memory of their parameters on several threads; return the sources that are left."""
    filled: list[tuple[StreamedValue, Array]] = []
    left = []
    for source in sources:
        memory = source._visible_memory() if source.is_plain and not source.p.storage.fallible else None
        if memory is None:
            left.append(source)
        else:
            filled.append((source, memory))
    memories = [memory for _, memory in filled]
    threads = 1 if any_overlap(memories) else threads_for(sum(memory.nbytes for memory in memories))
    try:
        fill_together([source.value for source, _ in filled], memories, threads)
    finally:  # what has been written counts, even where the file couldn't be read to its end
        for source, memory in filled:
            source.p.commit(memory, memory)
    return left
