"""Stream values from one target into another, without an intermediate copy where their memory allows it.

Each value is checked before anything is written, and read again for its write: straight into the parameter's memory if
that is visible and both have the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from xweights.core.agreement import is_shared
from xweights.core.casting import cast_exactly, check_finite
from xweights.core.dtypes import Array, is_complex, is_floating, is_half
from xweights.core.layout import LayoutName
from xweights.core.parameter import Parameter
from xweights.core.protocols import StreamingStorage
from xweights.core.values import fit_value
from xweights.errors import LayoutError


class StreamedValue:
    """One value in another target, and the parameter that it is written to."""

    def __init__(self, value: Parameter, p: Parameter, layout: LayoutName | None) -> None:
        self.value, self.p = value, p
        if layout is None and value.axes is None and not p.layout.is_identity:
            raise LayoutError(
                f"{value.name!r} has no axis names, and {p.name!r} isn't stored in neutral order\n"
                'Fix: layout="native" for a file of the framework\'s own, layout="neutral" for Keras\' order'
            )
        self.order: LayoutName = "neutral" if value.axes is not None or layout is None else layout
        # A broadcast zero, to check shapes and axes without reading.
        self._fit_to_parameter(np.broadcast_to(np.zeros((), p.dtype), value.shape))

    def _fit_to_parameter(self, neutral: Array) -> Array:
        return fit_value(neutral, self.p, self.order, axes=self.value.axes, gates=self.value.gates)

    def check(self, *, cast: bool, allow_nonfinite: bool) -> None:
        """Raise if the values can't be stored unchanged: NaN, infinity, a cast that would change them."""
        value = self.value
        if value.dtype != self.p.dtype:
            array = cast_exactly(self._read(), self.p.dtype, what=repr(self.p.name), cast=cast)
            if not allow_nonfinite:
                check_finite(array, repr(self.p.name))
        elif not allow_nonfinite and _may_be_nonfinite(value.dtype) and not all(map(_is_finite, self._pieces())):
            check_finite(self._read(), repr(self.p.name))

    def _pieces(self) -> Iterable[Array]:
        storage = self.value.storage
        return storage.pieces(self.value.handle) if isinstance(storage, StreamingStorage) else [self._read()]

    def _read(self) -> Array:
        return self.value.layout.to_neutral(self.value.read())

    def write(self, cast: bool) -> None:
        """Write the value into its parameter; everything has been checked."""
        p, value = self.p, self.value
        if isinstance(value.storage, StreamingStorage) and self._has_same_order() and not is_shared(p):
            native = p.native()
            if isinstance(native, np.ndarray) and native.flags.writeable and native.flags.c_contiguous:
                value.storage.read_into(value.handle, native.reshape(-1))
                p.commit(native, native)
                return
        array = self._fit_to_parameter(self._read())
        if array.dtype != p.dtype:
            array = cast_exactly(array, p.dtype, what=repr(p.name), cast=cast)
        p.write(array)

    def _has_same_order(self) -> bool:
        """Return whether both are stored in the same order and dtype."""
        target_layout, source_layout = self.p.layout, self.value.layout
        if self.value.dtype != self.p.dtype or target_layout.stored != source_layout.stored:
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
        return isinstance(storage, StreamingStorage) and storage.may_fail(self.value.handle)


def _may_be_nonfinite(dtype: np.dtype[Any]) -> bool:
    return is_floating(dtype) or is_complex(dtype)


def _is_finite(part: Array) -> bool:
    if is_half(part.dtype) or part.dtype.char not in "fd":
        return bool(np.isfinite(part).all())
    with np.errstate(over="ignore", invalid="ignore"):
        # A finite sum of squares rules out others; BLAS takes half the time of a comparison.
        return bool(np.isfinite(np.dot(part, part)) or np.isfinite(part).all())
