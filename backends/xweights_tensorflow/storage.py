"""Storage of ``tf.Variable`` objects: the only code that reads and writes their memory.

A tensor and a variable share memory until one of them is written: TensorFlow counts references and copies on write, so
reading is free, and keeping the tensor that was read is a backup. Three things would break that, and are never done:

* writing through a NumPy view: every tensor that shares the memory would change, ``tf.constant(3.0)`` among them;
* a slice assign or scatter: it makes all later reads of the variable copy;
* passing a 64-byte aligned array of the caller to a raw op: TensorFlow takes over its memory instead of copying it.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import raw_ops

from xweights.core.blocks import copy_into
from xweights.core.dtypes import Array
from xweights.errors import TraceError, WriteError
from xweights_tensorflow.graphs import mark_settled
from xweights_tensorflow.grouped import VariableGroups

ALIGNMENT = 64
"""TensorFlow takes over host memory that is aligned to this many bytes, and copies any other."""

SMALL = 1 << 17
"""Number of bytes below which an op costs more than a second copy."""


def is_aligned(array: Array) -> bool:
    """Return whether a raw op would share the memory of a host array."""
    return bool(array.__array_interface__["data"][0] % ALIGNMENT == 0)


def copy_to_tensor(value: Array) -> Any:
    """Return a host array as an eager tensor that shares no memory with it, in one copy."""
    if value.nbytes < SMALL and value.dtype.isbuiltin == 1 and tf.executing_eagerly():
        return tf.constant(value)  # always a copy: 0.1 ms against 0.18 for the op below, for a mask of 10,000 entries
    safe = _shareable(value)
    return raw_ops.Identity(input=safe) if isinstance(safe, np.ndarray) else safe


def _shareable(value: Array) -> Any:
    """Return an array or tensor that a raw op copies, or whose memory it may take over."""
    if value.flags.c_contiguous:
        if not is_aligned(value):
            return value
        if value.dtype.isbuiltin == 1 or value.dtype.name == "bfloat16":
            return raw_ops.DeepCopy(x=value)  # half the time of our own copy into new memory
    return _aligned_copy(value)


def host_view(tensor: Any) -> Array:
    """Return the read-only NumPy view of an eager tensor."""
    # TensorFlow's view of a bfloat16 or float8 tensor is writable, and a 0-d one of these is no array: it raises.
    # (Asking the tensor for its shape first would take as long as the rest of a read.)
    try:
        array = np.asarray(tensor)
    except ValueError:
        array = np.asarray(tensor.numpy())
    array.flags.writeable = False
    return array


def _aligned_copy(value: Array) -> Array:
    # Aligned, so that TensorFlow takes it over and an array with other strides is copied once, not twice.
    memory = np.empty(value.nbytes + ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % ALIGNMENT
    copy = memory[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    copy_into(copy, value)
    return copy


class VariableStorage(VariableGroups):
    """Storage of variables: eagerly by raw ops, in a graph so that the order of effects is kept."""

    replaces = True
    """A write replaces the buffer, so that existing views of the old one don't change."""

    def __init__(self) -> None:
        self.edits = 0
        # Each variable is checked once for being initialized; it can't be a key itself, since it has no hash.
        self._initialized: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def identity(self, handle: Any) -> Hashable:
        return id(handle)

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        if self._initialized.get(id(handle)) is handle:
            return None
        if hasattr(handle, "layout"):
            return "it is a DTensor of TensorFlow, which isn't supported; edit the model before it is distributed"
        if not hasattr(handle, "handle"):
            return "it is a reference variable of TensorFlow 1; make it with tf.Variable in eager code"
        if not tf.executing_eagerly():
            return None  # whether a graph's variable has a value is known only when the graph runs
        if not handle.is_initialized():
            return "it has no value yet: it was created in a tf.function or graph whose initialization has not run"
        self._initialized[id(handle)] = handle
        return None

    def read(self, handle: Any) -> Array:
        if not tf.executing_eagerly():
            raise TraceError(
                f"the values of {handle.name!r} aren't known while a tf.function is traced\n"
                "Fix: call this in plain Python, outside of the compiled step"
            )
        return host_view(raw_ops.ReadVariableOp(resource=handle.handle, dtype=handle.dtype))

    def write(self, handle: Any, value: Array) -> None:
        if not tf.executing_eagerly():
            handle.assign(_copy_outside(value), read_value=False)
            return
        raw_ops.AssignVariableOp(resource=handle.handle, value=_shareable(value))

    def native_array(self, handle: Any, *, tensor: bool = False) -> Any:
        if tensor or not tf.executing_eagerly():
            return mark_settled(handle.read_value())  # so that gradient tapes and graphs see the use
        return raw_ops.ReadVariableOp(resource=handle.handle, dtype=handle.dtype)

    def tracked(self, handle: Any) -> Any:
        return handle.read_value()

    def commit(self, handle: Any, native: Any, value: Any) -> None:
        self.edits += 1
        if value is native:
            return
        if tf.executing_eagerly():
            raw_ops.AssignVariableOp(resource=handle.handle, value=value)
        else:
            handle.assign(value, read_value=False)

    def guard(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backup(self, handle: Any) -> Any:
        return self.native_array(handle)

    def restore(self, handle: Any, kept: Any) -> None:
        if tf.executing_eagerly():
            raw_ops.AssignVariableOp(resource=handle.handle, value=kept)
        else:
            handle.assign(kept, read_value=False)

    def trainable(self, handle: Any) -> bool:
        return bool(handle.trainable)

    def set_trainable(self, handle: Any, flag: bool) -> None:
        if bool(flag) != self.trainable(handle):
            raise WriteError(
                f"TensorFlow fixes whether {handle.name!r} is trainable when the variable is made\n"
                "Fix: make it with tf.Variable(..., trainable=...), or leave it out of the list of variables that "
                "your training step passes to the optimizer"
            )


def _copy_outside(value: Array) -> Any:
    with tf.init_scope():
        return copy_to_tensor(value)


VARIABLES = VariableStorage()
