"""From one target's arrays into another's, without a copy in between where their memory allows it.

It is checked before anything is written, and read again when it is its turn: into the parameter's own memory if that
can be seen and both lie in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from xweights.core.casting import cast_exactly, check_finite
from xweights.core.dtypes import Array, is_floating, is_half
from xweights.core.parameter import Parameter
from xweights.errors import LayoutError

Fit = Callable[..., Array]


class StreamedValue:
    """One value that lies in another target, and the parameter that it is meant for."""

    def __init__(self, value: Parameter, p: Parameter, layout: str | None, fit: Fit) -> None:
        self.value, self.p = value, p
        if layout is None and value.axes is None and not p.layout.is_identity:
            raise LayoutError(
                f"{value.name!r} doesn't know its axes, and {p.name!r} isn't stored in neutral order\n"
                'Fix: layout="native" for a file of the framework\'s own, layout="neutral" for Keras\' order'
            )
        self.order = "neutral" if value.axes is not None or layout is None else layout
        self._fit = fit
        # Made of nothing, to find out whether shapes and axes fit.
        self._fitted(np.broadcast_to(np.zeros((), p.dtype), value.shape))

    def _fitted(self, neutral: Array) -> Array:
        return self._fit(neutral, self.p, self.order, axes=self.value.axes, gates=self.value.gates)

    def check(self, *, cast: bool, allow_nonfinite: bool) -> None:
        """Raise if the values can't be stored as they are: NaN, infinity, a cast that would change them."""
        value = self.value
        if value.dtype != self.p.dtype:
            array = cast_exactly(self._read(), self.p.dtype, what=repr(self.p.name), cast=cast)
            if not allow_nonfinite:
                check_finite(array, repr(self.p.name))
        elif not allow_nonfinite and is_floating(value.dtype) and not all(map(_is_finite, self._pieces())):
            check_finite(self._read(), repr(self.p.name))

    def _pieces(self) -> Iterable[Array]:
        pieces = getattr(self.value.storage, "pieces", None)
        return [self._read()] if pieces is None else pieces(self.value.handle)

    def _read(self) -> Array:
        return self.value.layout.to_neutral(self.value.read())

    def write(self, cast: bool) -> None:
        """Write it into its parameter; everything has been checked."""
        p, value = self.p, self.value
        read_into = getattr(value.storage, "read_into", None)
        if read_into is not None and self._in_order():
            native = p.native()
            if isinstance(native, np.ndarray) and native.flags.writeable and native.flags.c_contiguous:
                read_into(value.handle, native.reshape(-1))
                p.commit(native, native)
                return
        array = self._fitted(self._read())
        if array.dtype != p.dtype:
            array = cast_exactly(array, p.dtype, what=repr(p.name), cast=cast)
        p.write(array)

    def _in_order(self) -> bool:
        """Return whether the stored entries of both come in the same order, and are of one dtype."""
        mine, theirs = self.p.layout, self.value.layout
        if self.value.dtype != self.p.dtype or mine.stored != theirs.stored:
            return False
        if self.order == "native":
            return True
        return (
            mine.split == theirs.split
            and mine.order == theirs.order
            and (mine.axes == theirs.axes or None in (mine.axes, theirs.axes))
        )

    @property
    def fallible(self) -> bool:
        """True if reading can still fail after the check: what it writes to is then backed up."""
        return bool(getattr(self.value.storage, "may_fail", lambda handle: False)(self.value.handle))


def _is_finite(part: Array) -> bool:
    if is_half(part.dtype) or part.dtype.char not in "fd":
        return bool(np.isfinite(part).all())
    with np.errstate(over="ignore", invalid="ignore"):
        # A finite sum of squares settles it; BLAS takes half of the time of a comparison.
        return bool(np.isfinite(np.dot(part, part)) or np.isfinite(part).all())
