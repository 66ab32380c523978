"""Stream values from one target into another, without an intermediate copy where their memory allows it.

Each value is checked before anything is written, and read again for its write: straight into the parameter's memory if
that is visible and both have the same order. A check in pieces that stay in the cache takes 0.7 of the time of filling
the parameters; a log of what is overwritten, to undo it, would take as long, and the memory of the parameters. Where
reading means unpacking, and may fail at any time, everything is backed up anyway: such a value is read once, and
checked as it is written.

Plain bytes are checked and read by several threads, each an array at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from xweights.core.blocks import any_overlap
from xweights.core.casting import cast_exactly, check_finite
from xweights.core.dtypes import Array, is_complex, is_floating, is_half
from xweights.core.layout import LayoutName
from xweights.core.parameter import Parameter, is_shared
from xweights.core.protocols import StreamingStorage, UnpackingStorage
from xweights.core.threads import count_threads, run_all
from xweights.core.values import fit_value
from xweights.errors import LayoutError

_WORTH_A_THREAD = 4 << 20


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
        storage = self.value.storage
        if self.is_block:
            return self.reads_once
        return isinstance(storage, UnpackingStorage) and storage.unpacks(self.value.handle)

    def check(self, *, cast: bool, allow_nonfinite: bool) -> None:
        """Raise if the values can't be stored unchanged: NaN, infinity, a cast that would change them."""
        value = self.value
        if value.dtype != self.p.dtype:
            self._check_array(self._read(), cast=cast, allow_nonfinite=allow_nonfinite)
        elif not (allow_nonfinite or self._scanned or self._scan()):
            check_finite(self._read(), repr(self.p.name))

    def _scan(self) -> bool:
        """Return whether all entries are finite."""
        return not _may_be_nonfinite(self.value.dtype) or all(map(_is_finite, self._pieces()))

    def _pieces(self) -> Iterable[Array]:
        storage = self.value.storage
        return storage.pieces(self.value.handle) if isinstance(storage, StreamingStorage) else [self._read()]

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
        if isinstance(self.value.storage, StreamingStorage) and alike and not is_shared(self.p):
            native = self.p.native()
            if isinstance(native, np.ndarray) and native.flags.writeable and native.flags.c_contiguous:
                return native
        return None

    def _fill(self, native: Array) -> None:
        storage = self.value.storage
        assert isinstance(storage, StreamingStorage)
        storage.read_into(self.value.handle, native.reshape(-1))

    @property
    def is_plain(self) -> bool:
        """True if several threads may read this and other values."""
        storage = self.value.storage
        return not self.is_block and isinstance(storage, UnpackingStorage) and storage.is_plain(self.value.handle)

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
        storage = self.value.storage
        if self.is_block:
            return self.reads_once
        return isinstance(storage, StreamingStorage) and storage.may_fail(self.value.handle)


def scan_on_threads(sources: Sequence[StreamedValue]) -> None:
    """Look through plain values on several threads; :meth:`StreamedValue.check` doesn't read the finite ones again."""
    plain = [source for source in sources if source.is_plain and source.value.dtype == source.p.dtype]

    def scan(source: StreamedValue) -> None:
        source._scanned = source._scan()

    run_all([partial(scan, source) for source in plain], threads=_count_threads(plain))


def fill_on_threads(sources: Sequence[StreamedValue]) -> list[StreamedValue]:
    """Read plain values into the memory of their parameters on several threads; return the sources that are left."""
    filled: list[tuple[StreamedValue, Array]] = []
    left = []
    for source in sources:
        native = source._visible_memory() if source.is_plain and not source.p.storage.fallible else None
        if native is None:
            left.append(source)
        else:
            filled.append((source, native))
    overlap = any_overlap([native for _, native in filled])
    threads = 1 if overlap else _count_threads([source for source, _ in filled])
    run_all([partial(source._fill, native) for source, native in filled], threads=threads)
    for source, native in filled:
        source.p.commit(native, native)
    return left


def _count_threads(sources: Sequence[StreamedValue]) -> int:
    # A thread takes as long to start as reading some hundred kilobytes.
    size = sum(source.p.size * source.p.dtype.itemsize for source in sources)
    return count_threads() if size > _WORTH_A_THREAD else 1


def _may_be_nonfinite(dtype: np.dtype[Any]) -> bool:
    return is_floating(dtype) or is_complex(dtype)


def _is_finite(part: Array) -> bool:
    if is_half(part.dtype) or part.dtype.char not in "fd":
        return bool(np.isfinite(part).all())
    with np.errstate(all="ignore"):
        # A finite sum of squares rules out others; BLAS takes half the time of a comparison.
        return bool(np.isfinite(np.dot(part, part)) or np.isfinite(part).all())
