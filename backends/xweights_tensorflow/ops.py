"""Array math of TensorFlow: eagerly, in ``tf.function``, and compiled by XLA (``jit_compile=True``).

Rules that keep the bits the same everywhere (each was measured, and is tested):

* Numbers reach a graph as inputs, never as literals: with a literal, grappler and XLA turn ``x + 0.0`` into ``x``,
  which keeps -0.0.
* ``ClipByValue`` matches the definition of clip in TensorFlow's own kernel, but turns NaN into a bound under XLA;
  ``Maximum`` and ``Minimum`` are exact in both unless the bound is a zero.
* XLA widens halves to compare and move them, which quietens signalling NaNs: they are moved as integers.
* Measures run on the host in eager code, by the same code as for NumPy: the same bits, and no full-size float64
  copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import raw_ops

from xweights.core.dtypes import Array, is_floating
from xweights.core.layout import Shape
from xweights.core.numpy_backend import NumpyOps
from xweights.errors import TraceError
from xweights_tensorflow.graphs import any_gpu, has_outside, is_settled, lift, mark_settled, runtime_zero
from xweights_tensorflow.mirrored import storage_for
from xweights_tensorflow.storage import copy_to_tensor, host_view

HOST = NumpyOps()
_BITS = {1: tf.int8, 2: tf.int16, 4: tf.int32, 8: tf.int64}
_constants: dict[tuple[np.dtype[Any], Shape, bytes], Any] = {}
# Dtypes that TensorFlow stores and casts, but doesn't compute with.
_FLOAT8 = frozenset(
    getattr(tf.dtypes.experimental, name) for name in dir(tf.dtypes.experimental) if name.startswith("float8")
)


class TensorFlowOps:
    """Array math of :class:`xweights.backend.Ops` on tensors of TensorFlow, concrete or symbolic."""

    name = "tensorflow"

    # edits
    def multiply(self, x: Any, y: Any) -> Any:
        return _edit_float8(self.multiply, x, y) if x.dtype in _FLOAT8 else raw_ops.Mul(x=x, y=y)

    def add(self, x: Any, y: Any) -> Any:
        return _edit_float8(self.add, x, y) if x.dtype in _FLOAT8 else raw_ops.AddV2(x=x, y=y)

    def clip(self, x: Any, low: Any | None, high: Any | None) -> Any:
        if x.dtype in _FLOAT8:
            return _edit_float8(self.clip, x, low, high)
        if tf.executing_eagerly() and not any_gpu() and all(bound is None or not bound.ndim for bound in (low, high)):
            lowest, highest = _range(x.dtype)
            return raw_ops.ClipByValue(
                t=x, clip_value_min=lowest if low is None else low, clip_value_max=highest if high is None else high
            )
        # low <= high was checked, so applying one bound after the other matches the definition.
        y = x
        if low is not None:
            y = raw_ops.Maximum(x=y, y=low) if _is_exact_bound(y, low) else _select(raw_ops.Less(x=y, y=low), low, y)
        if high is not None:
            y = (
                raw_ops.Minimum(x=y, y=high)
                if _is_exact_bound(y, high)
                else _select(raw_ops.Greater(x=y, y=high), high, y)
            )
        return mark_settled(y, x, low, high)

    def keep(self, x: Any, mask: Any) -> Any:
        return self.choose(x, mask, self.constant(np.zeros((), x.dtype.as_numpy_dtype), x))

    def choose(self, x: Any, mask: Any, y: Any) -> Any:
        return mark_settled(_select(mask, x, y), x, y)

    def fill(self, x: Any, value: Any) -> Any:
        if x.dtype in _FLOAT8:
            return _edit_float8(self.fill, x, value)
        if value.shape.rank == 0:
            return mark_settled(raw_ops.Fill(dims=_shape_tensor(self, x.shape), value=value), value)
        if value.shape != x.shape:
            return mark_settled(raw_ops.BroadcastTo(input=value, shape=_shape_tensor(self, x.shape)), value)
        # Eager results are assigned directly, and two variables filled from one array should not share its memory.
        return raw_ops.DeepCopy(x=value) if tf.executing_eagerly() else value

    def set_at(self, x: Any, index: tuple[Any, ...], value: Any) -> Any:
        if x.dtype in _FLOAT8:
            return _edit_float8(self.set_at, x, index, value)
        shape = tuple(x.shape)
        mask = next((part for part in index if isinstance(part, np.ndarray)), None)
        if mask is not None and mask.shape == shape and value.shape.rank == 0:
            return self.choose(x, self.constant(~mask, x), value)
        bits, new = _bits(x), _bits(value)
        if mask is None and shape and all(not isinstance(part, slice) or part.step in (None, 1) for part in index):
            edited = _strided_update(self, bits, index, new)
        else:
            # No kernel supports this kind of index, but it is static: NumPy gives its flat positions.
            positions = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(shape)[index]
            edited = raw_ops.TensorScatterUpdate(
                tensor=tf.reshape(bits, [-1]),
                indices=self.constant(positions.reshape(-1, 1), x),
                updates=tf.reshape(raw_ops.BroadcastTo(input=new, shape=_shape_tensor(self, positions.shape)), [-1]),
            )
            edited = tf.reshape(edited, shape)
        return mark_settled(_unbits(edited, x.dtype), x, value)

    def fence(self, x: Any) -> Any:
        # Grappler turns (x * a) * b into x * (a * b), XLA rounds x * a + b once; a graph may be compiled by either, and
        # by both. The exclusive or with a zero that is passed in at run time is one pass in place, so it is left out
        # where nothing was computed: clip, keep, choose, fill and set_at can be fused without changing bits.
        if tf.executing_eagerly() or is_settled(x) or not x.dtype.is_floating:
            return x
        if x.dtype in _FLOAT8:
            return raw_ops.PlaceholderWithDefault(input=x, shape=x.shape)
        bits = _bits(x)
        return mark_settled(_unbits(raw_ops.BitwiseXor(x=bits, y=runtime_zero(bits.dtype)), x.dtype))

    # measures
    def sum_squares(self, x: Any, axes: tuple[int, ...] | None) -> Any:
        if tf.executing_eagerly():
            return tf.constant(HOST.sum_squares(host_view(x), axes))
        wide = tf.cast(x, tf.float64)
        return tf.reduce_sum(wide * wide, axis=None if axes is None else list(axes), keepdims=axes is not None)

    def largest_singular_value(self, x: Any) -> Any:
        if tf.executing_eagerly():
            return tf.constant(HOST.largest_singular_value(host_view(x)))
        if 0 in x.shape:
            return self.constant(np.zeros((), np.float64), x)
        return tf.reduce_max(tf.linalg.svd(tf.cast(x, tf.float64), compute_uv=False))

    def rank(self, x: Any) -> Any:
        if tf.executing_eagerly():
            return tf.constant(HOST.rank(host_view(x)))
        order = tf.argsort(_sort_key(x), axis=-1, stable=True)
        return tf.cast(tf.argsort(order, axis=-1), tf.int64)

    def abs(self, x: Any) -> Any:
        return tf.abs(x)

    def sqrt(self, x: Any) -> Any:
        return tf.sqrt(x)

    def divide(self, x: Any, y: Any) -> Any:
        return raw_ops.RealDiv(x=x, y=y)

    def minimum(self, x: Any, y: Any) -> Any:
        return raw_ops.Minimum(x=x, y=y)

    def sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        if tf.executing_eagerly():
            return tf.constant(HOST.sum(host_view(x), axes))
        return tf.reduce_sum(x, axis=list(axes), keepdims=True)

    def matmul(self, x: Any, y: Any) -> Any:
        return tf.linalg.matmul(x, y)

    def greater(self, x: Any, y: Any) -> Any:
        return raw_ops.Greater(x=x, y=y)

    def where(self, mask: Any, x: Any, y: Any) -> Any:
        return _select(mask, x, y)

    def cast(self, x: Any, dtype: np.dtype[Any]) -> Any:
        wanted = tf.as_dtype(dtype)
        if x.dtype == wanted:
            return x
        if x.dtype == tf.float64 and is_floating(dtype) and dtype.itemsize < 4:
            return _to_half(x, wanted)
        return raw_ops.Cast(x=x, DstT=wanted)

    def reshape(self, x: Any, shape: Shape) -> Any:
        return mark_settled(tf.reshape(x, shape), x)

    def transpose(self, x: Any, order: tuple[int, ...]) -> Any:
        return mark_settled(tf.transpose(x, order), x)

    def concatenate(self, xs: Sequence[Any]) -> Any:
        return tf.concat(xs, 0)

    def differentiable(
        self, value: Callable[..., Any], gradient: Callable[..., Sequence[Any]], tensors: Sequence[Any]
    ) -> Any:
        def measure(*xs: Any) -> tuple[Any, Callable[..., Any]]:
            def gradients(upstream: Any) -> Any:
                # In eager code measures run on the host: a second derivative would silently be None.
                return _once_differentiable(lambda up, *ys: tuple(gradient(up, *ys)), upstream, *xs)

            return value(*xs), gradients

        return tf.custom_gradient(measure)(*tensors)

    def constant(self, value: Array, like: Any) -> Any:
        if value.size > 16 or not has_outside():
            return lift(lambda: copy_to_tensor(value))
        # The same numbers come up for each parameter; making a tensor of one costs as much as an edit.
        key = (value.dtype, value.shape, value.tobytes())
        if key not in _constants:
            if len(_constants) >= 1024:
                _constants.clear()
            _constants[key] = lift(lambda: tf.constant(value))
        return _constants[key]

    def buffer(self, value: Array, like: Any) -> Any:
        return lift(lambda: tf.Variable(value, trainable=False))

    def refill(self, buffer: Any, value: Array) -> None:
        storage_for(buffer).write(buffer, value)  # one made in the scope of a strategy has several copies

    def current(self, buffer: Any) -> Any:
        return storage_for(buffer).native_array(buffer)


def _once_differentiable(function: Callable[..., Any], *tensors: Any) -> Any:
    """Return function(*tensors), whose differentiation raises."""

    def run(*xs: Any) -> tuple[Any, Callable[..., Any]]:
        def refuse(*upstream: Any) -> Any:
            raise TraceError("the gradient of a penalty can't be differentiated again: it has first derivatives only")

        return function(*xs), refuse

    return tf.custom_gradient(run)(*tensors)


def _edit_float8(edit: Callable[..., Any], x: Any, *operands: Any) -> Any:
    """Edit a float8 tensor: on the host, or in a graph via float32, rounded once as in ml_dtypes."""
    if tf.executing_eagerly():
        host_operands = [host_view(operand) if tf.is_tensor(operand) else operand for operand in operands]
        return copy_to_tensor(np.asarray(getattr(HOST, edit.__name__)(host_view(x), *host_operands)))

    def widen(operand: Any) -> Any:
        return (
            raw_ops.Cast(x=operand, DstT=tf.float32) if tf.is_tensor(operand) and operand.dtype == x.dtype else operand
        )

    return raw_ops.Cast(x=edit(*[widen(operand) for operand in (x, *operands)]), DstT=x.dtype)


def _bits(x: Any) -> Any:
    return raw_ops.Bitcast(input=x, type=_BITS[x.dtype.size]) if x.dtype.is_floating else x


def _unbits(x: Any, dtype: Any) -> Any:
    return raw_ops.Bitcast(input=x, type=dtype) if x.dtype != dtype else x


def _select(mask: Any, x: Any, y: Any) -> Any:
    dtype = x.dtype
    if dtype in _FLOAT8:
        return _edit_float8(TensorFlowOps().choose, x, mask, y)
    if dtype.is_floating and dtype.size < 4 and not tf.executing_eagerly():
        return _unbits(raw_ops.SelectV2(condition=mask, t=_bits(x), e=_bits(y)), dtype)
    return raw_ops.SelectV2(condition=mask, t=x, e=y)


def _shape_tensor(ops: TensorFlowOps, shape: Any) -> Any:
    # XLA needs shapes when it compiles, so a graph gets them as literals; in eager code making one is what costs.
    sizes = [int(n) for n in shape]
    return ops.constant(np.asarray(sizes, np.int32), None) if tf.executing_eagerly() else tf.constant(sizes, tf.int32)


_ranges: dict[Any, tuple[Any, Any]] = {}


def _range(dtype: Any) -> tuple[Any, Any]:
    if dtype not in _ranges:
        lowest, highest = (-np.inf, np.inf) if dtype.is_floating else (dtype.min, dtype.max)
        _ranges[dtype] = tf.constant(lowest, dtype), tf.constant(highest, dtype)
    return _ranges[dtype]


def _is_exact_bound(x: Any, bound: Any) -> bool:
    """Return whether ``Maximum`` and ``Minimum`` are exact: the bound is a concrete number other than zero."""
    # XLA widens halves, which quietens signalling NaNs.
    wide = x.dtype.size >= 4 or not x.dtype.is_floating
    return wide and bound.shape.rank == 0 and not tf.is_symbolic_tensor(bound) and bool(host_view(bound) != 0)


def _strided_update(ops: TensorFlowOps, bits: Any, index: tuple[Any, ...], value: Any) -> Any:
    """Return ``bits`` with the part that ints and forward slices select replaced."""
    begin, end, step, shape, shrink = [], [], [], [], 0
    for axis, (part, length) in enumerate(zip(index, bits.shape, strict=True)):
        if isinstance(part, slice):
            start, stop, stride = part.indices(length)
            shape.append(len(range(start, stop, stride)))
        else:
            start, stop, stride = int(part) % length, int(part) % length + 1, 1
            shrink |= 1 << axis
        begin.append(start)
        end.append(stop)
        step.append(stride)
    return raw_ops.TensorStridedSliceUpdate(
        input=bits, begin=begin, end=end, strides=step, shrink_axis_mask=shrink,
        value=raw_ops.BroadcastTo(input=value, shape=_shape_tensor(ops, shape)),
    )  # fmt: skip


def _sort_key(x: Any) -> Any:
    """Return integers in the order of NumPy's stable sort: -0.0 equals 0.0, and NaN comes last."""
    if not x.dtype.is_floating:
        return x
    if x.dtype.size < 4:
        x = raw_ops.Cast(x=x, DstT=tf.float32)
    bits = _bits(x)
    # A float's bits are sign and magnitude: for a negative number min - bits is the negative of the magnitude.
    key = tf.where(bits < 0, bits.dtype.min - bits, bits)
    return tf.where(tf.math.is_nan(x), bits.dtype.max, key)


def _to_half(x: Any, wanted: Any) -> Any:
    """Return float64 in a half type with the bits of NumPy's cast."""
    if wanted == tf.float16:
        # NumPy rounds once; via float32 it is right only if that step rounds to odd: truncate, and mark lost bits.
        lost = (1 << 29) - 1
        bits = raw_ops.Bitcast(input=x, type=tf.int64)
        odd = tf.where((bits & lost) != 0, tf.constant(1 << 29, tf.int64), tf.constant(0, tf.int64))
        x = raw_ops.Bitcast(input=(bits & ~lost) | odd, type=tf.float64)
    return raw_ops.Cast(x=raw_ops.Cast(x=x, DstT=tf.float32), DstT=wanted)
