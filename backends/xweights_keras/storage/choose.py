"""How a ``keras.Variable`` is read and lawfully written, on any Keras backend.

Owns :class:`KerasStorage`, :class:`DelegatingStorage` (TensorFlow and torch: the storage of the native variable inside)
and :class:`Refreshing`; JAX has a file of its own, ``immutable``. A handle is the ``keras.Variable`` itself.

Inside a ``keras.StatelessScope`` a variable has the scope's value, and only ``assign`` may change that: this is how a
bound rule becomes part of a ``jax.jit`` step. The raw value is meant everywhere: ``variable.value`` may be autocast.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import get_stateless_scope

from xweights.core.backend import Storage, backend_for, load
from xweights.core.parameter import Array, is_floating
from xweights.errors import TargetError, TraceError, WriteError

NO_SCOPE = object()


def raw_value(variable: Any) -> Any:
    """Return what the variable holds now, never autocast: the scope's value, or the native variable or array."""
    scope = get_stateless_scope()
    if scope is not None:
        value = scope.get_current_value(variable)
        if value is not None:
            return value
    return variable._value


def dtype_of(variable: Any) -> np.dtype[Any]:
    """Return the dtype that is stored. JAX without its 64-bit mode stores less than the variable declares."""
    value = variable._value
    name = str(variable._dtype if keras.backend.backend() != "jax" or value is None else value.dtype)
    if name not in _dtypes:
        import ml_dtypes

        _dtypes[name] = np.dtype(getattr(ml_dtypes, name, name))
    return _dtypes[name]


_dtypes: dict[str, np.dtype[Any]] = {}


def storage_for(variable: Any, root: Any = None, statistics: frozenset[int] = frozenset()) -> Storage:
    """Return a storage for variables like this one. ``root`` is the model whose ``trainable`` counts."""
    if keras.backend.backend() == "jax":
        from xweights_keras.storage.jax import JaxStorage

        return JaxStorage(root, statistics)
    backend = backend_for(variable._value)
    if backend is None:
        raise TargetError(
            f"no backend is installed for Keras on {keras.backend.backend()!r}\n"
            "expected: tensorflow, jax or torch (KERAS_BACKEND, or ~/.keras/keras.json)"
        )
    return DelegatingStorage(backend.storage(variable._value), root, statistics)


class KerasStorage:
    """What is the same on every Keras backend: scopes and trainable flags.

    ``statistics`` are the ids of variables that were made untrainable (moving statistics): they can't be unfrozen.
    """

    fallible = False

    def __init__(self, root: Any, statistics: frozenset[int]) -> None:
        self._root: Callable[[], Any] = (lambda: None) if root is None else weakref.ref(root)
        self.statistics = statistics

    def identity(self, handle: Any) -> Hashable:
        return id(handle)

    def trainable(self, handle: Any) -> bool:
        root = self._root()
        return bool(handle.trainable) and (root is None or bool(root.trainable))

    def set_trainable(self, handle: Any, flag: bool) -> None:
        if not flag:
            handle.trainable = False
            return
        if id(handle) in self.statistics:
            raise WriteError(
                f"{handle.path!r} is kept by its layer and not trained (it was made with trainable=False)\n"
                "Fix: leave it out with where=, or set variable.trainable = True yourself"
            )
        if not is_floating(dtype_of(handle)):
            raise WriteError(f"{handle.path!r} has the dtype {handle.dtype}, which can't be trained")
        root = self._root()
        if root is not None and not root.trainable:
            # A frozen model trains nothing, whatever its variables say. The setter would thaw every layer below as well
            # (and batch norms would update again), so only the model's own flag changes.
            for other in root.weights:
                if other.trainable:
                    other.trainable = False
            root._trainable = True
        handle.trainable = True


class DelegatingStorage(KerasStorage):
    """TensorFlow and torch: the native variable inside is read and written by its own framework's storage."""

    def __init__(self, inner: Storage, root: Any, statistics: frozenset[int]) -> None:
        super().__init__(root, statistics)
        self.inner = inner
        self.fallible = inner.fallible
        self.replaces = bool(getattr(inner, "replaces", False))

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

    def leaf(self, handle: Any, *, native: bool = False) -> Any:
        scoped = _scoped(handle)
        if scoped is NO_SCOPE:
            return self.inner.leaf(handle._value, native=native)
        # Ops may edit a torch tensor in place, and this one is the caller's.
        return keras.ops.copy(scoped)

    def tracked(self, handle: Any) -> Any:
        scoped = _scoped(handle)
        return self.inner.tracked(handle._value) if scoped is NO_SCOPE else scoped

    def put(self, handle: Any, leaf: Any, value: Any) -> None:
        if get_stateless_scope() is None:
            self.inner.put(handle._value, leaf, value)
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


class Refreshing:
    """Wrap the storage of a layer that computes with a copy of its weights: it takes a new one after each write."""

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

    def write(self, handle: Any, value: Array) -> None:
        self.inner.write(handle, value)
        self._renew()

    def put(self, handle: Any, leaf: Any, value: Any) -> None:
        if in_compiled_step():
            raise TraceError(f"{handle.path!r} can't be written here: {self.refusal(handle, writing=True)}")
        self.inner.put(handle, leaf, value)
        self._renew()

    def restore(self, handle: Any, kept: Any) -> None:
        self.inner.restore(handle, kept)
        self._renew()

    def _renew(self) -> None:
        layer = self._layer()
        if layer is not None:
            self._refresh(layer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # everything that writes nothing


def in_compiled_step() -> bool:
    """Return True where a write doesn't reach the model now: while a step is traced, and in a StatelessScope."""
    return get_stateless_scope() is not None or load(keras.backend.backend()).tracing() != "no"


def _scoped(variable: Any) -> Any:
    """Return the variable's value in the active StatelessScope as a tensor, or NO_SCOPE."""
    scope = get_stateless_scope()
    if scope is None:
        return NO_SCOPE
    value = scope.get_current_value(variable)
    return keras.ops.convert_to_tensor(variable._value) if value is None else value


def missing(variable: Any) -> str:
    """Return why a variable has no value."""
    if getattr(variable, "_initializer", None) is not None:
        return "it isn't initialised yet; call the model once, outside of the scope it was made in"
    return "its value is inside a running training step; in a callback reach the model as self.model"
