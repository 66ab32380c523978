"""Storage that passes Keras variables on to the storage of the framework below Keras."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import get_stateless_scope

from xweights.core.dispatch import edit_each
from xweights.core.dtypes import Array
from xweights.core.protocols import GroupStorage, Storage
from xweights_keras.parts import Parts
from xweights_keras.storage.base import NO_SCOPE, KerasStorage, _scoped, missing


class DelegatingStorage(KerasStorage):
    """Storage for TensorFlow and torch: their own storage reads and writes the native variable inside."""

    def __init__(self, inner: Storage, root: Any, statistics: frozenset[int], parts: Parts | None = None) -> None:
        super().__init__(root, statistics, parts)
        self.inner = inner
        self.fallible = inner.fallible
        self.replaces = inner.replaces
        self.groups = inner if isinstance(inner, GroupStorage) else None

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        if handle._value is None:
            return missing(handle)
        return self.inner.refusal(handle._value, writing=writing)

    def read(self, handle: Any) -> Array:
        scoped = _scoped(handle)
        if scoped is NO_SCOPE:
            return self.inner.read(handle._value)
        return np.asarray(keras.ops.convert_to_numpy(scoped))

    def write(self, handle: Any, value: Array) -> None:
        if get_stateless_scope() is None:
            self.inner.write(handle._value, value)
        else:
            handle.assign(keras.ops.copy(keras.ops.convert_to_tensor(np.array(value), dtype=handle._dtype)))

    def native_array(self, handle: Any, *, tensor: bool = False) -> Any:
        scoped = _scoped(handle)
        if scoped is NO_SCOPE:
            return self.inner.native_array(handle._value, tensor=tensor)
        # Ops may edit a torch tensor in place, and this one belongs to the caller.
        return keras.ops.copy(scoped)

    def tracked(self, handle: Any) -> Any:
        scoped = _scoped(handle)
        return self.inner.tracked(handle._value) if scoped is NO_SCOPE else scoped

    def commit(self, handle: Any, native: Any, value: Any) -> None:
        if get_stateless_scope() is None:
            self.inner.commit(handle._value, native, value)
        else:
            handle.assign(value)

    def guard(self) -> AbstractContextManager[Any]:
        return self.inner.guard()

    def backup(self, handle: Any) -> Any:
        scoped = _scoped(handle)
        return self.inner.backup(handle._value) if scoped is NO_SCOPE else scoped

    def restore(self, handle: Any, kept: Any) -> None:
        if get_stateless_scope() is None:
            self.inner.restore(handle._value, kept)
        else:
            handle.assign(kept)

    def group_key(self, handle: Any) -> Hashable | None:
        if self.groups is None or handle._value is None or get_stateless_scope() is not None:
            return None
        return self.groups.group_key(handle._value)

    def group_state(self, handles: Sequence[Any]) -> list[Hashable]:
        return self._groups.group_state(list(map(_native, handles)))

    def read_group(self, handles: Sequence[Any]) -> list[Array]:
        if get_stateless_scope() is not None:
            return [self.read(handle) for handle in handles]
        return self._groups.read_group(list(map(_native, handles)))

    def write_group(self, handles: Sequence[Any], values: Sequence[Array]) -> None:
        if get_stateless_scope() is None:
            self._groups.write_group(list(map(_native, handles)), values)
            return
        for handle, value in zip(handles, values, strict=True):
            self.write(handle, value)

    def apply_group(
        self,
        edit: Callable[..., Any],
        handles: Sequence[Any],
        operands: Sequence[Any],
        views: Sequence[Array] | None = None,
    ) -> None:
        if get_stateless_scope() is None:
            self._groups.apply_group(edit, list(map(_native, handles)), operands, views)
        else:
            edit_each(self, edit, handles, operands, range(len(handles)), tensor=True)

    @property
    def _groups(self) -> GroupStorage:
        assert self.groups is not None  # no variable is in a group then
        return self.groups


_native: Callable[[Any], Any] = attrgetter("_value")
