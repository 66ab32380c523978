"""Many variables read, written and edited in one call of TensorFlow.

An op costs more than the work on a small array, so one op reads all of them, and one graph edits all of them: a loop
over a vector of resource handles, traced once for each rule and dtype, whatever the variables and their shapes are.
Tracing takes as long as editing a thousand small arrays one by one, so the first are edited that way, and large ones
always are. Inside of a graph all go one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf
from tensorflow import raw_ops

from xweights.core.dispatch import edit_each, ops_for
from xweights.core.dtypes import Array
from xweights.core.expressions import Expression, record, replay
from xweights.core.protocols import BaseStorage, Ops, Storage

try:
    from tensorflow.python.eager.context import context
    from tensorflow.python.eager.execute import execute
except ImportError:  # not public: without them variables are read one by one
    execute = None

# Arrays of this many bytes and more are edited one by one: an op costs little beside them.
LARGE = 1 << 18
# How many arrays are edited one by one, by one rule, until a loop has saved what its tracing costs. One with an operand
# of its own counts three times.
ENOUGH = 1_500
# How many variables one turn of a loop edits. Against a graph of all 1,000, which takes 3 s to trace, the loop takes
# 1.05 times as long that way, and 1.15 with one in each turn; it is traced in 0.13 s instead of 0.08.
_TOGETHER = 25
# Operands are copied into memory of this size, where each begins at an address that TensorFlow shares a slice from.
_PIECE = 1 << 23
_ALIGNMENT = 64

_counts: dict[Hashable, int] = {}
_compiled: dict[Hashable, Any] = {}


class VariableGroups(BaseStorage):
    """The methods of :class:`~xweights.core.protocols.GroupStorage` for variables; a base of their storage."""

    edits: int

    def group_key(self, handle: Any) -> Hashable | None:
        dtype, device = handle.dtype, getattr(handle, "device", None)
        if dtype not in _DTYPES or isinstance(handle, tf.distribute.DistributedValues):
            return None
        if not handle.shape.is_fully_defined() or not isinstance(device, str) or not device.endswith("CPU:0"):
            return None
        return device

    def group_state(self, handles: Sequence[Any]) -> list[Hashable]:
        return [0] * len(handles)  # shape, dtype and device are fixed when a variable is made

    def read_group(self, handles: Sequence[Any]) -> list[Array]:
        if execute is None or not tf.executing_eagerly():
            return [_whole(self).read(handle) for handle in handles]
        count = len(handles)
        attributes = ("N", count, "dtypes", [handle.dtype.as_datatype_enum for handle in handles])
        resources = [handle.handle for handle in handles]
        tensors = execute(b"_ReadVariablesOp", count, inputs=resources, attrs=attributes, ctx=context())
        return list(map(np.asarray, tensors))

    def write_group(self, handles: Sequence[Any], values: Sequence[Array]) -> None:
        for handle, value in zip(handles, values, strict=True):
            _whole(self).write(handle, value)

    def apply_group(
        self,
        edit: Callable[..., Any],
        handles: Sequence[Any],
        operands: Sequence[Any],
        views: Sequence[Array] | None = None,
    ) -> None:
        left: Sequence[int] = range(len(handles))
        if tf.executing_eagerly():
            left = _edit_in_loops(edit, handles, operands)
            self.edits += len(handles) - len(left)
        edit_each(_whole(self), edit, handles, operands, left)


def _whole(storage: VariableGroups) -> Storage:
    """Return a storage as what it is: a class that has these methods and all others."""
    return cast("Storage", storage)


def _edit_in_loops(edit: Callable[..., Any], handles: Sequence[Any], operands: Sequence[Any]) -> Sequence[int]:
    """Edit the small variables of one dtype, if there are enough of them; return the positions of all others."""
    dtype = handles[0].dtype
    most = LARGE // dtype.size
    shapes = [tuple(handle.shape) for handle in handles]
    sizes = list(map(math.prod, shapes))
    arrays = [operand for operand in operands if isinstance(operand, list)]
    small = [
        position
        for position, (shape, size) in enumerate(zip(shapes, sizes, strict=True))
        if size < most and all(values[position].shape == shape for values in arrays)
    ]
    if len(small) < 2 or tf.config.functions_run_eagerly():
        return range(len(handles))
    kinds = tuple("arrays" if isinstance(operand, list) else bool(operand) for operand in operands)
    expression = record(edit, len(operands))
    key = (expression, kinds, dtype)
    _counts[key] = _counts.get(key, 0) + len(small) * (3 if arrays else 1)
    if _counts[key] < ENOUGH:
        return range(len(handles))
    loop = _compiled.get(key)
    if loop is None:
        loop = _compiled[key] = _make_loop(expression, kinds, dtype)
    # Outside of gradient tapes, which would build the gradient of a loop over resources.
    with tf.init_scope():
        for piece in _cut(small, sizes, arrays):
            resources = raw_ops.Pack(values=[handles[position].handle for position in piece], axis=0)
            loop(resources, *[_flatten(operand, piece, sizes) for operand in operands])
    done = set(small)
    return [position for position in range(len(handles)) if position not in done]


def _make_loop(expression: Expression, kinds: tuple[Any, ...], dtype: Any) -> Any:
    """Return a compiled function that edits all variables of a vector of resource handles."""

    def edit_all(resources: Any, *operands: Any) -> None:
        count = tf.shape(resources)[0]
        many = count // _TOGETHER * _TOGETHER

        def edit_some(at: Any, number: int) -> Any:
            for offset, resource in enumerate(tf.unstack(resources[at : at + number], num=number)):
                w = raw_ops.ReadVariableOp(resource=resource, dtype=dtype)
                pairs = list(zip(operands, kinds, strict=True))
                own = [_slice(operand, at + offset, w) if kind == "arrays" else operand for operand, kind in pairs]
                ops = _LoopOps(ops_for(w), [operand for operand, kind in pairs if kind is True])
                raw_ops.AssignVariableOp(resource=resource, value=replay(expression, w, ops, own))
            return at + number

        for end, number in ((many, _TOGETHER), (count, 1)):
            start = tf.constant(0) if number > 1 else many
            tf.while_loop(
                lambda at, end=end: at < end,
                lambda at, number=number: edit_some(at, number),
                [start],
                parallel_iterations=1,
            )

    return tf.function(edit_all, autograph=False)


class _LoopOps:
    """The ops of a graph in which a variable's shape isn't known, and numbers are known to be zero or not."""

    def __init__(self, ops: Ops, nonzero: Sequence[Any]) -> None:
        self._ops = ops
        self._nonzero = set(map(id, nonzero))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def clip(self, x: Any, low: Any | None, high: Any | None) -> Any:
        bounds = [bound for bound in (low, high) if bound is not None]
        if x.dtype.size < 4 or not all(id(bound) in self._nonzero for bound in bounds):
            return self._ops.clip(x, low, high)
        x = x if low is None else raw_ops.Maximum(x=x, y=low)
        return x if high is None else raw_ops.Minimum(x=x, y=high)

    def fill(self, x: Any, value: Any) -> Any:
        # A copy, since the memory of all values shouldn't live as long as one variable.
        return raw_ops.Fill(dims=tf.shape(x), value=value) if value.shape.rank == 0 else raw_ops.DeepCopy(x=value)


def _cut(positions: Sequence[int], sizes: Sequence[int], arrays: Sequence[Sequence[Array]]) -> list[list[int]]:
    """Return the positions in pieces whose operands fit the memory."""
    if not arrays:
        return [list(positions)]
    pieces: list[list[int]] = []
    room = 0
    for position in positions:
        need = sum(_room(sizes[position], values[position].dtype) for values in arrays)
        if need > room:
            pieces.append([])
            room = max(need, _PIECE)
        pieces[-1].append(position)
        room -= need
    return pieces


def _room(size: int, dtype: np.dtype[Any]) -> int:
    return -(-size * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def _flatten(operand: Any, piece: Sequence[int], sizes: Sequence[int]) -> Any:
    """Return an operand as a tensor: a number, or arrays one behind the other with the place of each."""
    if not isinstance(operand, list):
        return tf.constant(operand)
    dtype = operand[piece[0]].dtype
    rooms = [_room(sizes[position], dtype) for position in piece]
    memory = np.empty(sum(rooms) + _ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % _ALIGNMENT
    flat = memory[start : start + sum(rooms)].view(dtype)
    begin, begins = 0, []
    for position, room in zip(piece, rooms, strict=True):
        value = operand[position]
        flat[begin : begin + value.size].reshape(value.shape)[...] = value
        begins.append(begin)
        begin += room // dtype.itemsize
    return raw_ops.Identity(input=flat), tf.constant(begins, tf.int64)


def _slice(operand: tuple[Any, Any], at: Any, like: Any) -> Any:
    flat, begins = operand
    size = tf.reshape(tf.size(like, tf.int64), [1])
    return tf.reshape(raw_ops.Slice(input=flat, begin=tf.reshape(begins[at], [1]), size=size), tf.shape(like))


# What NumPy views as it is.
_DTYPES = frozenset({tf.float16, tf.float32, tf.float64, tf.int8, tf.int16, tf.int32, tf.int64})
