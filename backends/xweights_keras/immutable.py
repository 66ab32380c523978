"""How a ``keras.Variable`` on JAX is read and lawfully written: an array never changes, the variable gets another one.

Owns :class:`JaxStorage`. Imports JAX, Keras and what the storages have in common.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from xweights.errors import TraceError
from xweights.parameter import Array
from xweights_jax.ops import tracing
from xweights_keras.storage import KerasStorage, missing, raw_value


class JaxStorage(KerasStorage):
    """Reads through views, writes through ``assign``.

    JAX takes over a NumPy array without copying if it is aligned to 64 bytes. So what is handed over is always a buffer
    of our own, aligned on purpose: one copy, whatever the source.
    """

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        value = raw_value(handle)
        if value is None:
            return missing(handle)
        if _is_tracer(value):
            return None if get_stateless_scope() is not None else _leaked(handle)
        if value.is_deleted():
            return "its buffer was handed over to a compiled step (donated) and no longer exists"
        if len(value.sharding.device_set) > 1:
            return f"it is spread over {len(value.sharding.device_set)} devices, which isn't supported yet"
        declared = str(handle._dtype)
        if declared == "float64" and str(value.dtype) != declared:
            mend = "call jax.config.update('jax_enable_x64', True) before the model is made"
            return f"it is declared {declared} and JAX holds {value.dtype}; {mend}"
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
        # A private copy is edited in place and handed over: one pass over fresh memory, nothing compiled for a shape.
        buffer = _aligned(value.shape, np.dtype(value.dtype))
        np.copyto(buffer, np.asarray(value), casting="no")
        return buffer

    def tracked(self, handle: Any) -> Any:
        value = raw_value(handle)
        # While Keras finds out about shapes nobody asks for a gradient.
        if not _is_tracer(value) and tracing() and handle.trainable and not in_symbolic_scope():
            raise TraceError(
                f"the gradient of {handle.path!r} would silently be zero: its own value is used while JAX traces\n"
                "Fix: give the variables the values that are differentiated:\n"
                "    with keras.StatelessScope(state_mapping=[(v, x), ...]):\n"
                "        loss = loss + xweights.penalty(model, ...)"
            )
        return value

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
        old = raw_value(handle)
        # An array that was put nowhere in particular stays so: committed ones make jitted steps compile again.
        target = None if _is_tracer(old) or not getattr(old, "committed", True) else old.sharding
        handle.assign(jax.device_put(buffer, target))


def _leaked(variable: Any) -> str:
    return "it holds a tracer: a raw jax.jit step assigned to it without a keras.StatelessScope, and its value is lost"


def _is_tracer(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _on_host(value: Any) -> bool:
    return all(device.platform == "cpu" for device in value.sharding.device_set)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return a fresh array aligned to 64 bytes, which JAX takes over without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
