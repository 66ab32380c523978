"""Masks as bits: an eighth of the memory of bools."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from xweights.core.blocks import as_stored, stored_order
from xweights.core.dtypes import Array


class PackedMask:
    """A bool array as bits, in the memory order of the array. It can't be changed.

    Example:
        >>> import numpy as np
        >>> from xweights.core.packed_masks import PackedMask
        >>> PackedMask(np.array([True, False, True])).unpack()
        array([ True, False,  True])
    """

    dtype = np.dtype(np.bool_)

    def __init__(self, mask: Array) -> None:
        self.shape, self.size, self.ndim = mask.shape, mask.size, mask.ndim
        self._order = stored_order(mask)
        self._bits = np.packbits(as_stored(mask).reshape(-1))

    @property
    def nbytes(self) -> int:
        """Number of bytes that the bits take."""
        return self._bits.nbytes

    def unpack(self) -> Array:
        """Return the array, a new one at each call; read-only, since a change of it would be lost."""
        flat = np.unpackbits(self._bits, count=self.size).view(np.bool_)
        array: Array = flat.reshape([self.shape[axis] for axis in self._order]).transpose(np.argsort(self._order))
        array.flags.writeable = False
        return array

    def copy(self, order: Literal["K", "A", "C", "F"] = "K") -> Array:
        """Return the array, which may be changed."""
        return self.unpack().copy(order=order)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a packed mask can only be unpacked into new memory")
        array = self.unpack()
        return array if dtype is None else array.astype(dtype)
