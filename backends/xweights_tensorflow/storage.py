"""How a ``tf.Variable`` is read and lawfully written; the one place that touches its memory.

A tensor and a variable share memory until one of them is written: TensorFlow counts references and copies on write, so
reading is free, and holding what was read is a backup. Three things would break that, and are never done here:

* writing through a NumPy view: every tensor that shares the memory would change, ``tf.constant(3.0)`` among them;
* a slice assign or scatter: it makes all later reads of the variable copy;
* handing a 64-byte aligned array of the caller to a raw op: TensorFlow takes its memory over instead of copying it.
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
from xweights_tensorflow.graphs import moved

ALIGNMENT = 64
"""TensorFlow takes over host memory that is aligned to so many bytes, and copies other."""

SMALL = 1 << 17
"""Bytes below which the price of an op is more than that of a second copy."""


def is_aligned(array: Array) -> bool:
    """Return whether a raw op would share the memory of a host array."""
    return bool(array.__array_interface__["data"][0] % ALIGNMENT == 0)


def copied(value: Array) -> Any:
    """Return a host array as an eager tensor that shares no memory with it, in one copy."""
    if value.nbytes < SMALL and value.dtype.isbuiltin == 1 and tf.executing_eagerly():
        return tf.constant(value)  # always a copy: 0.1 ms against 0.18 for the op below, for a mask of 10,000 entries
    safe = _safe(value)
    return raw_ops.Identity(input=safe) if isinstance(safe, np.ndarray) else safe


def _safe(value: Array) -> Any:
    """Return what a raw op may be given: it will copy this, or take over memory that is nobody else's."""
    if value.flags.c_contiguous:
        if not is_aligned(value):
            return value
        if value.dtype.isbuiltin == 1 or value.dtype.name == "bfloat16":
            return raw_ops.DeepCopy(x=value)  # half the time of a copy that we make into fresh memory
    return _own(value)


def host(tensor: Any) -> Array:
    """Return the read-only NumPy view of an eager tensor."""
    # TensorFlow's view of a bfloat16 or float8 tensor is writable, and a 0-d one of these is no array: it raises.
    # (To ask the tensor for its shape first would take as long as the rest of a read.)
    try:
        array = np.asarray(tensor)
    except ValueError:
        array = np.asarray(tensor.numpy())
    array.flags.writeable = False
    return array


def _own(value: Array) -> Array:
    # Aligned, so that TensorFlow takes it over and an array with other strides is copied once and not twice.
    room = np.empty(value.nbytes + ALIGNMENT, np.uint8)
    start = -room.__array_interface__["data"][0] % ALIGNMENT
    mine = room[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    copy_into(mine, value)
    return mine


class VariableStorage:
    """Reads and writes variables, eagerly with raw ops, and in a graph so that the order of effects is kept."""

    fallible = False
    replaces = True
    """A write puts another buffer in the place of the old one, so whoever holds a view of that one still sees it."""

    def __init__(self) -> None:
        self.edits = 0
        # Being initialised is asked of each variable once; a variable can't be a key, it has no hash.
        self._initialised: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    def identity(self, handle: Any) -> Hashable:
        return id(handle)

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        if self._initialised.get(id(handle)) is handle:
            return None
        if isinstance(handle, tf.distribute.DistributedValues) or hasattr(handle, "layout"):
            return (
                "it is distributed over several devices, which is not supported yet; edit the model before it is "
                "distributed, or outside of the strategy's scope"
            )
        if not hasattr(handle, "handle"):
            return "it is a reference variable of TensorFlow 1; make it with tf.Variable in eager code"
        if not tf.executing_eagerly():
            return None  # whether a graph's variable has a value is known when the graph runs
        if not handle.is_initialized():
            return "it has no value yet: it was created in a tf.function or graph whose initialisation has not run"
        self._initialised[id(handle)] = handle
        return None

    def read(self, handle: Any) -> Array:
        if not tf.executing_eagerly():
            raise TraceError(
                f"the values of {handle.name!r} aren't known while a tf.function is traced\n"
                "Fix: call this in plain Python, outside of the compiled step"
            )
        return host(raw_ops.ReadVariableOp(resource=handle.handle, dtype=handle.dtype))

    def write(self, handle: Any, value: Array) -> None:
        if not tf.executing_eagerly():
            handle.assign(_lifted_copy(value), read_value=False)
            return
        raw_ops.AssignVariableOp(resource=handle.handle, value=_safe(value))

    def native_array(self, handle: Any, *, tensor: bool = False) -> Any:
        if tensor or not tf.executing_eagerly():
            return moved(handle.read_value())  # which tells gradient tapes and graphs that the variable is used
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


def _lifted_copy(value: Array) -> Any:
    with tf.init_scope():
        return copied(value)


VARIABLES = VariableStorage()
