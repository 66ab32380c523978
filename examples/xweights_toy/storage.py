"""Storage of the toy framework's arrays; a handle is a slot: a layer and a position."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from xweights.backend import BaseStorage
from xweights.errors import WriteError

Array = np.ndarray[Any, Any]


class Slot:
    """Position of one array in a layer."""

    def __init__(self, layer: Any, position: int) -> None:
        self.layer, self.position = layer, position

    @property
    def array(self) -> Array:
        return self.layer.arrays[self.position]


class SlotStorage(BaseStorage):
    """Storage of NumPy arrays in slots."""

    def identity(self, handle: Slot) -> Hashable:
        return (id(handle.layer), handle.position)

    def refusal(self, handle: Slot, *, writing: bool) -> str | None:
        return "the array is read-only" if writing and not handle.array.flags.writeable else None

    def read(self, handle: Slot) -> Array:
        return handle.array

    def write(self, handle: Slot, value: Array) -> None:
        np.copyto(handle.array, value, casting="no")

    def native_array(self, handle: Slot, *, tensor: bool = False) -> Array:
        return handle.array

    def tracked(self, handle: Slot) -> Array:
        return handle.array

    def commit(self, handle: Slot, native: Array, value: Array) -> None:
        if value is not native:
            np.copyto(handle.array, value, casting="no")

    def guard(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backup(self, handle: Slot) -> Array:
        return handle.array.copy()

    def restore(self, handle: Slot, kept: Array) -> None:
        np.copyto(handle.array, kept)

    def trainable(self, handle: Slot) -> bool:
        return not handle.layer.frozen

    def set_trainable(self, handle: Slot, flag: bool) -> None:
        if flag == handle.layer.frozen and len(handle.layer.arrays) > 1:
            raise WriteError("a layer of this framework is frozen as a whole\nFix: set layer.frozen")
        handle.layer.frozen = not flag
