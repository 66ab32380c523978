"""Storage that refreshes the tensors that Keras derives from a variable."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from xweights.core.dtypes import Array
from xweights.errors import TraceError
from xweights_keras.storage.base import in_compiled_step


class Refreshing:
    """Wrapper around the storage of a layer that computes with a copy of its weights: each write renews the copy."""

    def __init__(self, inner: Any, layer: Any, refresh: Callable[[Any], None]) -> None:
        self.inner = inner
        self.fallible: bool = inner.fallible
        self._layer = weakref.ref(layer)
        self._refresh = refresh

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        if writing and in_compiled_step():
            return "its layer keeps a copy that a compiled step can't renew; write it outside of the step"
        reason: str | None = self.inner.refusal(handle, writing=writing)
        return reason

    def group_key(self, handle: Any) -> None:
        return None  # one by one: the copy is renewed after each

    def write(self, handle: Any, value: Array) -> None:
        self.inner.write(handle, value)
        self._refresh_layer()

    def commit(self, handle: Any, native: Any, value: Any) -> None:
        if in_compiled_step():
            raise TraceError(f"{handle.path!r} can't be written here: {self.refusal(handle, writing=True)}")
        self.inner.commit(handle, native, value)
        self._refresh_layer()

    def restore(self, handle: Any, kept: Any) -> None:
        self.inner.restore(handle, kept)
        self._refresh_layer()

    def _refresh_layer(self) -> None:
        layer = self._layer()
        if layer is not None:
            self._refresh(layer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # all methods that write nothing
