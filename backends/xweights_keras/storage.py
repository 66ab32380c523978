"""How a ``keras.Variable`` is read and lawfully written, on any Keras backend.

Owns :class:`KerasStorage` (TensorFlow, torch: delegates to the storage of the native variable inside), :class:`JaxStorage`
(immutable arrays, written through ``assign``) and :class:`Refreshing`. A handle is the ``keras.Variable`` itself.

Inside a ``keras.StatelessScope`` a variable has the scope's value, and only ``assign`` may change that: this is how a bound
rule becomes part of a ``jax.jit`` step. Everywhere the raw value is used: ``variable.value`` may be cast (autocast).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.stateless_scope import get_stateless_scope

from xweights.backend import Storage, backend_for, load
from xweights.errors import TargetError, TraceError, WriteError
from xweights.parameter import Array, is_floating

NO_SCOPE = object()


def raw_value(variable: Any) -> Any:
    """Return what the variable holds now, never autocast: the scope's value, or the native variable or array."""
    scope = get_stateless_scope()
    if scope is not None:
        value = scope.get_current_value(variable)
        if value is not None:
            return value
    return variable._value


def is_allocated(variable: Any) -> bool:
    """Return False for a variable whose value doesn't exist yet, or was handed over to a training step."""
    return raw_value(variable) is not None


def dtype_of(variable: Any) -> np.dtype[Any]:
    """Return the dtype that is stored. JAX without its 64-bit mode stores less than the variable declares."""
    value = variable._value
    name = str(variable._dtype if keras.backend.backend() != "jax" or value is None else value.dtype)
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def storage_for(variable: Any, root: Any = None, statistics: frozenset[int] = frozenset()) -> KerasStorage:
    """Return a storage for variables like this one. ``root`` is the model whose ``trainable`` counts."""
    if keras.backend.backend() == "jax":
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

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        if handle._value is None:
            return _missing(handle)
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


class JaxStorage(KerasStorage):
    """JAX: an array is never changed, the variable gets another one.

    JAX takes over a NumPy array without copying if it is aligned to 64 bytes. So what is handed over is always a buffer
    of our own, aligned on purpose: one copy, whatever the source.
    """

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        value = raw_value(handle)
        if value is None:
            return _missing(handle)
        if _is_tracer(value):
            return None if get_stateless_scope() is not None else _leaked(handle)
        if value.is_deleted():
            return "its buffer was handed over to a compiled step (donated) and no longer exists"
        if len(value.sharding.device_set) > 1:
            return f"it is spread over {len(value.sharding.device_set)} devices; sharded parameters aren't supported yet"
        declared = str(handle._dtype)
        if declared == "float64" and str(value.dtype) != declared:
            return f"it is declared {declared} and JAX holds {value.dtype}; call jax.config.update('jax_enable_x64', True) first"
        return None

    def read(self, handle: Any) -> Array:
        value = raw_value(handle)
        if _is_tracer(value):
            raise TraceError(
                f"{handle.path!r} has no numbers while JAX traces: it can't be read inside jax.jit\n"
                "Fix: read it before or after the step; edits inside the step need bind"
            )
        return np.asarray(value)

    def write(self, handle: Any, value: Array) -> None:
        buffer = _aligned(value.shape, value.dtype)
        np.copyto(buffer, value, casting="no")
        self._hand_over(handle, buffer)

    def leaf(self, handle: Any, *, native: bool = False) -> Any:
        value = raw_value(handle)
        if native or get_stateless_scope() is not None or _is_tracer(value) or not _on_host(value):
            return value
        # A private copy is edited in place and handed over: one pass over fresh memory, and no compiling for each shape.
        buffer = _aligned(value.shape, np.dtype(value.dtype))
        np.copyto(buffer, np.asarray(value), casting="no")
        return buffer

    def put(self, handle: Any, leaf: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            if value is leaf:
                self._hand_over(handle, value)
            else:
                self.write(handle, value)
            return
        if value is raw_value(handle):
            return
        if _is_tracer(value) and get_stateless_scope() is None:
            raise TraceError(
                f"inside jax.jit a write to {handle.path!r} would leave a tracer in the model\n"
                "Fix: run the step in a keras.StatelessScope and take the new values from it:\n"
                "    with keras.StatelessScope(state_mapping=[(v, x), ...]) as scope:\n"
                "        bound()\n"
                "    new = [scope.get_current_value(v) for v in model.weights]"
            )
        handle.assign(value)

    def guard(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backup(self, handle: Any) -> Any:
        value = raw_value(handle)
        # The view keeps the buffer from being reused by a step that donates it; on a device it is a copy.
        return value, None if _is_tracer(value) else np.asarray(value)

    def restore(self, handle: Any, kept: Any) -> None:
        value, host = kept
        if host is not None and value.is_deleted():
            self.write(handle, host)
        else:
            handle.assign(value)

    def _hand_over(self, handle: Any, buffer: Array) -> None:
        import jax

        old = raw_value(handle)
        # An array that was put nowhere in particular stays so: committed ones make jitted steps compile again.
        target = None if _is_tracer(old) or not getattr(old, "committed", True) else old.sharding
        handle.assign(jax.device_put(buffer, target))


class Refreshing:
    """Wrap the storage of a layer that computes with a copy of its weights, and have it take a new one after each write."""

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


def _missing(variable: Any) -> str:
    if getattr(variable, "_initializer", None) is not None:
        return "it isn't initialised yet; call the model once, outside of the scope it was made in"
    return "its value is inside a running training step; in a callback reach the model as self.model"


def _leaked(variable: Any) -> str:
    return "it holds a tracer: a raw jax.jit step assigned to it without a keras.StatelessScope, and its value is lost"


def _is_tracer(value: Any) -> bool:
    import jax

    return isinstance(value, jax.core.Tracer)


def _on_host(value: Any) -> bool:
    return all(device.platform == "cpu" for device in value.sharding.device_set)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a fresh array aligned to 64 bytes, which JAX takes over without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
