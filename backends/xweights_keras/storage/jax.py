"""Storage of Keras variables on JAX, whose arrays never change: a write gives the variable another array."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from xweights.core.dtypes import Array
from xweights.errors import TraceError
from xweights_jax.ops import tracing as tracing  # noqa: PLC0414 - jax_groups takes it from here
from xweights_keras.storage.base import missing, raw_value
from xweights_keras.storage.grouped import JaxGroups

# From this size on, a second copy costs more than the call (measured: device_put takes 0.1 ms longer than jnp.array).
_LARGE = 1 << 20


class JaxStorage(JaxGroups):
    """Storage that reads through views and writes through ``assign``.

    JAX takes over a NumPy array without copying if it is aligned to 64 bytes, so it always gets a private buffer,
    whatever the source.
    """

    replaces = True

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        value = raw_value(handle)
        if value is None:
            return missing(handle)
        if _is_tracer(value):
            return None if get_stateless_scope() is not None else _leaked(handle)
        if value.is_deleted():
            return "its buffer was handed over to a compiled step (donated) and no longer exists"
        if not value.is_fully_addressable:
            return f"it is spread over the devices of {jax.process_count()} processes"
        declared = str(handle._dtype)
        if declared == "float64" and str(value.dtype) != declared:
            fix = "call jax.config.update('jax_enable_x64', True) before the model is made"
            return f"it is declared {declared} and JAX holds {value.dtype}; {fix}"
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
        self._hand_over(handle, _private(value))

    def native_array(self, handle: Any, *, tensor: bool = False) -> Any:
        value = raw_value(handle)
        if tensor or get_stateless_scope() is not None or _is_tracer(value) or not _on_host(value):
            return value
        # A private copy is edited in place and handed over: one pass over fresh memory, and no compilation per shape.
        return _private(np.asarray(value))

    def tracked(self, handle: Any) -> Any:
        value = raw_value(handle)
        # While Keras infers shapes, nothing asks for a gradient.
        if not _is_tracer(value) and tracing() and handle.trainable and not in_symbolic_scope():
            raise TraceError(
                f"the gradient of {handle.path!r} would silently be zero: its own value is used while JAX traces\n"
                "Fix: give the variables the values that are differentiated:\n"
                "    with keras.StatelessScope(state_mapping=[(v, x), ...]):\n"
                "        loss = loss + xweights.penalty(model, ...)"
            )
        return value

    def commit(self, handle: Any, native: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            if value is native:
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
        self._assign(handle, value)

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
            self._assign(handle, value)

    def _hand_over(self, handle: Any, buffer: Array) -> None:
        old = raw_value(handle)
        if not _is_tracer(old) and getattr(old, "committed", True):
            new = jax.device_put(buffer, old.sharding)
        elif buffer.nbytes < _LARGE:
            new = jnp.array(buffer)
        else:
            # An array that is committed to no device stays so: a committed one makes jitted steps compile again.
            new = jax.device_put(buffer)
        handle.assign(new)

    @staticmethod
    def _assign(handle: Any, value: Any) -> None:
        old = raw_value(handle)
        if not _is_tracer(old) and not _is_tracer(value) and len(old.sharding.device_set) > 1:
            # Keras does this for a variable with a layout of its own; the compiler may have chosen another sharding.
            value = jax.device_put(value, old.sharding)
        handle.assign(value)


def _leaked(variable: Any) -> str:
    return "it holds a tracer: a raw jax.jit step assigned to it without a keras.StatelessScope, and its value is lost"


def _is_tracer(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _on_host(value: Any) -> bool:
    return all(device.platform == "cpu" for device in value.sharding.device_set)


def _private(value: Array) -> Array:
    """Return a private copy; a large one is aligned to 64 bytes, so that JAX takes it over without copying."""
    if value.nbytes < _LARGE:
        return np.array(value, order="C")
    memory = np.empty(value.nbytes + 64, np.uint8)
    start = -memory.__array_interface__["data"][0] % 64
    buffer = memory[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    np.copyto(buffer, value, casting="no")
    return buffer
