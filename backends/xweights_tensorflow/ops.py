"""The array maths of TensorFlow: eagerly, in ``tf.function``, and compiled by XLA (``jit_compile=True``).

Owns :class:`TensorFlowOps`. Imports TensorFlow, NumPy, the core and this package's ``graphs`` and ``storage``.

What keeps the bits the same everywhere (each line was measured; the tests hold it):

* Numbers reach a graph as inputs, never as literals: a literal lets grappler and XLA rewrite ``x + 0.0`` to ``x``
  (which keeps -0.0) and ``x * 0.0`` to zeros, and merge ``(x * a) * b``.
* ``ClipByValue`` is the definition of clip in TensorFlow's own kernel, but turns NaN into a bound under XLA; ``Maximum``
  and ``Minimum`` are exact in both unless the bound is a zero.
* XLA widens bfloat16 to move it, which quietens signalling NaNs: halves are moved as integers.
* Measures run on the host in eager code, in the very code that serves NumPy: the same bits, and no full-size
  float64 copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow import raw_ops

from xweights.arrays import NumpyOps
from xweights.axes import Shape
from xweights.parameter import Array, is_floating
from xweights_tensorflow.graphs import any_gpu, in_xla, lifted, runtime_zero
from xweights_tensorflow.storage import VARIABLES, copied

HOST = NumpyOps()
FLOAT64 = np.dtype(np.float64)
INT64 = np.dtype(np.int64)
_BITS = {1: tf.int8, 2: tf.int16, 4: tf.int32, 8: tf.int64}
_constants: dict[tuple[np.dtype[Any], bytes], Any] = {}


class TensorFlowOps:
    """The maths of :class:`xweights.backend.Ops` on tensors of TensorFlow, concrete or symbolic."""

    name = "tensorflow"

    # edits
    def multiply(self, x: Any, y: Any) -> Any:
        return raw_ops.Mul(x=x, y=y) if _is_native(x) else _widened(raw_ops.Mul, x, y)

    def add(self, x: Any, y: Any) -> Any:
        return raw_ops.AddV2(x=x, y=y) if _is_native(x) else _widened(raw_ops.AddV2, x, y)

    def clip(self, x: Any, low: Any | None, high: Any | None) -> Any:
        if not _is_native(x):
            return _widened(self.clip, x, low, high)
        if tf.executing_eagerly() and not any_gpu() and all(bound is None or bound.shape.rank == 0 for bound in (low, high)):
            least, most = _range(x.dtype)
            return raw_ops.ClipByValue(
                t=x, clip_value_min=least if low is None else low, clip_value_max=most if high is None else high
            )
        # Where high < x < low can't be (low <= high is checked), one bound after the other is the definition.
        if low is not None:
            x = raw_ops.Maximum(x=x, y=low) if _is_nonzero(low) else _select(raw_ops.Less(x=x, y=low), low, x)
        if high is not None:
            x = raw_ops.Minimum(x=x, y=high) if _is_nonzero(high) else _select(raw_ops.Greater(x=x, y=high), high, x)
        return x

    def keep(self, x: Any, mask: Any) -> Any:
        return _select(mask, x, self.constant(np.zeros((), x.dtype.as_numpy_dtype), x))

    def choose(self, x: Any, mask: Any, y: Any) -> Any:
        return _select(mask, x, y)

    def fill(self, x: Any, value: Any) -> Any:
        if value.shape.rank == 0:
            return raw_ops.Fill(dims=self.constant(np.asarray(x.shape, np.int32), x), value=value)
        if value.shape != x.shape:
            return raw_ops.BroadcastTo(input=value, shape=self.constant(np.asarray(x.shape, np.int32), x))
        # Two variables filled from one array must not share its memory (nor this one, should it belong to a caller).
        return raw_ops.DeepCopy(x=value) if tf.executing_eagerly() else raw_ops.Identity(input=value)

    def set_at(self, x: Any, index: tuple[Any, ...], value: Any) -> Any:
        mask = next((one for one in index if isinstance(one, np.ndarray)), None)
        if mask is not None and len(index) == 1 and mask.shape == tuple(x.shape) and value.shape.rank == 0:
            return _select(self.constant(~mask, x), x, value)
        bits, new = _bits(x), _bits(value)
        if mask is None and all(not isinstance(one, slice) or (one.step or 1) > 0 for one in index):
            edited = _strided_update(self, bits, index, new)
        else:
            # No kernel knows this kind of index, but it is static: NumPy says which flat positions it means.
            shape = tuple(x.shape)
            positions = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.int64).reshape(shape)[index]
            target = self.constant(np.asarray(positions.shape, np.int32), x)
            edited = raw_ops.TensorScatterUpdate(
                tensor=tf.reshape(bits, [-1]),
                indices=self.constant(positions.reshape(-1, 1), x),
                updates=tf.reshape(raw_ops.BroadcastTo(input=new, shape=target), [-1]),
            )
            edited = tf.reshape(edited, shape)
        return _unbits(edited, x.dtype)

    def fence(self, x: Any) -> Any:
        if tf.executing_eagerly() or not x.dtype.is_floating or not in_xla():
            return x
        bits = _bits(x)
        return _unbits(raw_ops.BitwiseXor(x=bits, y=runtime_zero(bits.dtype)), x.dtype)

    # measures
    def sum_squares(self, x: Any, axes: tuple[int, ...] | None) -> Any:
        if tf.executing_eagerly():
            return tf.constant(HOST.sum_squares(_view(x), axes))
        wide = tf.cast(x, tf.float64)
        return tf.reduce_sum(wide * wide, axis=None if axes is None else list(axes), keepdims=axes is not None)

    def largest_singular_value(self, x: Any) -> Any:
        if tf.executing_eagerly():
            return tf.constant(HOST.largest_singular_value(_view(x)))
        if 0 in x.shape:
            return self.constant(np.zeros((), np.float64), x)
        return tf.reduce_max(tf.linalg.svd(tf.cast(x, tf.float64), compute_uv=False))

    def rank(self, x: Any) -> Any:
        if tf.executing_eagerly():
            return tf.constant(HOST.rank(_view(x)))
        order = tf.argsort(_sort_key(x), stable=True)
        return tf.cast(tf.math.invert_permutation(order), tf.int64)

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
            return tf.constant(HOST.sum(_view(x), axes))
        return tf.reduce_sum(x, axis=list(axes))

    def greater(self, x: Any, y: Any) -> Any:
        return raw_ops.Greater(x=x, y=y)

    def where(self, mask: Any, x: Any, y: Any) -> Any:
        return _select(mask, x, y)

    def cast(self, x: Any, dtype: np.dtype[Any]) -> Any:
        wanted = tf.as_dtype(dtype)
        if x.dtype == wanted:
            return x
        if x.dtype == tf.float64 and is_floating(dtype) and dtype.itemsize < 4:
            return _narrowed(x, wanted)
        return raw_ops.Cast(x=x, DstT=wanted)

    def reshape(self, x: Any, shape: Shape) -> Any:
        return tf.reshape(x, shape)

    def transpose(self, x: Any, order: tuple[int, ...]) -> Any:
        return tf.transpose(x, order)

    def concatenate(self, xs: Sequence[Any]) -> Any:
        return tf.concat(xs, 0)

    def constant(self, value: Array, like: Any) -> Any:
        # Numbers come again and again, one for each parameter; making a tensor of one costs as much as an edit.
        if value.size > 16:
            return lifted(lambda: copied(value))
        key = (value.dtype, value.shape, value.tobytes())
        if key not in _constants:
            made = lifted(lambda: tf.constant(value))
            if tf.is_symbolic_tensor(made):
                return made
            if len(_constants) >= 1024:
                _constants.clear()
            _constants[key] = made
        return _constants[key]

    def buffer(self, value: Array, like: Any) -> Any:
        return lifted(lambda: tf.Variable(value, trainable=False))

    def refill(self, buffer: Any, value: Array) -> None:
        VARIABLES.write(buffer, value)

    def current(self, buffer: Any) -> Any:
        return VARIABLES.leaf(buffer)
