"""Storage that passes Keras variables on to the storage of the framework below Keras."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import get_stateless_scope

from xweights.core.dtypes import Array
from xweights.core.protocols import Storage
from xweights_keras.parts import Parts
from xweights_keras.storage.base import NO_SCOPE, KerasStorage, _scoped, missing


class DelegatingStorage(KerasStorage):
    """Storage for TensorFlow and torch: their own storage reads and writes the native variable inside."""

    def __init__(self, inner: Storage, root: Any, statistics: frozenset[int], parts: Parts | None = None) -> None:
        super().__init__(root, statistics, parts)
        self.inner = inner
        self.fallible = inner.fallible
        self.replaces = inner.replaces

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
