"""Array math of JAX, for models whose weights are JAX arrays (Keras on JAX): eagerly and under ``jax.jit``.

Rules that keep the bits the same everywhere (each was measured, and is tested):

* XLA computes ``x * a + b`` in one rounding on a CPU, even through an optimization barrier, and turns ``x + 0.0``
  into ``x``, which keeps -0.0. It can't see through arithmetic on the bits themselves (:func:`_opaque_zero`).
* ``jnp.clip`` turns -0.0 into a bound that is 0.0, so clip is two selections.
* XLA widens halves to move them, which quietens signalling NaNs: they are moved as integers.
* Without JAX's 64-bit mode float64 exists inside ``jax.enable_x64`` only, also while tracing: every op runs in it.
  Before JAX 0.7.2 constants need help to stay 64 bits wide (:mod:`xweights_jax.older`); no newer JAX is changed by it.
* Measures run on the host in eager code, by the same code as for NumPy: the same bits, from a view.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from xweights.core.dtypes import Array, is_floating
from xweights.core.layout import Shape
from xweights.core.numpy_backend import NumpyOps
from xweights_jax import older

try:
    from jax._src.core import trace_state_clean as _is_top_level
except ImportError:  # not public: without it an operation is tried, which takes 0.1 ms

    def _is_top_level() -> bool:
        return not isinstance(jax.lax.full((), 0), jax.core.Tracer)


HOST = NumpyOps()
# It was in jax.experimental before JAX 0.8.
_has_enable_x64: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
_ShapeDtypeStruct: Any = jax.ShapeDtypeStruct
_BITS: dict[int, Any] = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
Method = TypeVar("Method", bound=Callable[..., Any])


def tracing() -> bool:
    """Return whether JAX is tracing: under jit, grad, vmap or a control-flow operation."""
    return not _is_top_level()


def x64() -> Any:
    """Return the context in which float64 exists."""
    return _has_enable_x64.enable_x64(True)


def _in_x64(method: Method) -> Method:
    @functools.wraps(method)
    def run(*arguments: Any) -> Any:
        with x64():
            return method(*arguments)

    @functools.wraps(method)
    def run_on_older_jax(*arguments: Any) -> Any:
        with x64():
            return method(*(jax.tree.map(older.widened, arguments) if tracing() else arguments))

    return cast("Method", run_on_older_jax if older.NARROWS_CONSTANTS else run)


class HostBuffer:
    """Numbers on the host that a compiled step reads each time it runs."""

    def __init__(self, value: Array) -> None:
        self.value = value.copy()


class JaxOps:
    """Array math of :class:`xweights.backend.Ops` on JAX arrays and tracers."""

    name = "jax"

    # edits
    @_in_x64
    def multiply(self, x: Any, y: Any) -> Any:
        return jnp.multiply(x, y)

    @_in_x64
    def add(self, x: Any, y: Any) -> Any:
        if tracing() and is_floating(x.dtype):
            zero = _opaque_zero(_bits(x))
            y = _unbits(jnp.broadcast_to(_bits(y), x.shape) ^ zero, x.dtype)
        return jnp.add(x, y)

    @_in_x64
    def clip(self, x: Any, low: Any | None, high: Any | None) -> Any:
        # low <= high was checked, so applying one bound after the other matches the definition.
        if low is not None:
            x = _select(jnp.less(x, low), low, x)
        if high is not None:
            x = _select(jnp.greater(x, high), high, x)
        return x

    @_in_x64
    def keep(self, x: Any, mask: Any) -> Any:
        return _select(mask, x, _constant(0, x.dtype))

    @_in_x64
    def choose(self, x: Any, mask: Any, y: Any) -> Any:
        return _select(mask, x, y)

    @_in_x64
    def fill(self, x: Any, value: Any) -> Any:
        return jnp.broadcast_to(value, x.shape)

    @_in_x64
    def set_at(self, x: Any, index: tuple[Any, ...], value: Any) -> Any:
        return _from_moved_bits(_bits(x).at[index].set(_bits(value)), x.dtype)

    @_in_x64
    def fence(self, x: Any) -> Any:
        if not tracing() or not is_floating(x.dtype):
            return x
        bits = _bits(x)
        return _unbits(bits ^ _opaque_zero(bits), x.dtype)

    # measures
    @_in_x64
    def sum_squares(self, x: Any, axes: tuple[int, ...] | None) -> Any:
        if _is_on_host(x):
            return jnp.array(HOST.sum_squares(np.asarray(x), axes))
        wide = x.astype(jnp.float64)
        return jnp.sum(wide * wide, axis=axes, keepdims=axes is not None)

    @_in_x64
    def largest_singular_value(self, x: Any) -> Any:
        if _is_on_host(x):
            return jnp.array(HOST.largest_singular_value(np.asarray(x)))
        if 0 in x.shape:
            return _constant(0, np.float64)
        if older.NARROWS_CONSTANTS and tracing():
            return older.measured_on_host(HOST.largest_singular_value, x)
        return jnp.max(jnp.linalg.svd(x.astype(jnp.float64), compute_uv=False))

    @_in_x64
    def rank(self, x: Any) -> Any:
        if _is_on_host(x):
            return jnp.array(HOST.rank(np.asarray(x)))
        order = jnp.argsort(_sort_key(x), axis=-1, stable=True)
        return jnp.argsort(order, axis=-1).astype(jnp.int64)

    @_in_x64
    def abs(self, x: Any) -> Any:
        return jnp.abs(x)

    @_in_x64
    def sqrt(self, x: Any) -> Any:
        return jnp.sqrt(x)

    @_in_x64
    def divide(self, x: Any, y: Any) -> Any:
        return jnp.divide(x, y)

    @_in_x64
    def minimum(self, x: Any, y: Any) -> Any:
        return jnp.minimum(x, y)

    @_in_x64
    def sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        if _is_on_host(x):
            return jnp.array(HOST.sum(np.asarray(x), axes))
        return jnp.sum(x, axis=axes, keepdims=True, dtype=x.dtype)

    @_in_x64
    def matmul(self, x: Any, y: Any) -> Any:
        return jnp.matmul(x, y, precision="highest")

    @_in_x64
    def greater(self, x: Any, y: Any) -> Any:
        return jnp.greater(x, y)

    @_in_x64
    def where(self, mask: Any, x: Any, y: Any) -> Any:
        return _select(mask, x, y)

    @_in_x64
    def cast(self, x: Any, dtype: np.dtype[Any]) -> Any:
        if x.dtype == np.float64 and is_floating(dtype) and dtype.itemsize < 4:
            return _to_half(x, dtype)
        return x.astype(dtype)

    @_in_x64
    def reshape(self, x: Any, shape: Shape) -> Any:
        return jnp.reshape(x, shape)

    @_in_x64
    def transpose(self, x: Any, order: tuple[int, ...]) -> Any:
        return jnp.transpose(x, order)

    @_in_x64
    def concatenate(self, xs: Sequence[Any]) -> Any:
        return jnp.concatenate(xs)

    def differentiable(
        self, value: Callable[..., Any], gradient: Callable[..., Sequence[Any]], tensors: Sequence[Any]
    ) -> Any:
        # A gradient derived by JAX would compute in float64 outside of the context in which that exists.
        measure = jax.custom_vjp(value)
        measure.defvjp(lambda *xs: (value(*xs), xs), lambda xs, upstream: tuple(gradient(upstream, *xs)))
        return measure(*tensors)

    @_in_x64
    def constant(self, value: Array, like: Any) -> Any:
        # On no particular device: it moves to that of the array it is used with. Never the caller's memory.
        return jnp.array(value, copy=True)

    def buffer(self, value: Array, like: Any) -> Any:
        return HostBuffer(value)

    def refill(self, buffer: HostBuffer, value: Array) -> None:
        buffer.value = value.copy()

    @_in_x64
    def current(self, buffer: HostBuffer) -> Any:
        if not tracing():
            return jnp.array(buffer.value, copy=True)
        # An array would become a constant of the compiled step; a call to the host doesn't.
        return io_callback(lambda: buffer.value, _ShapeDtypeStruct(buffer.value.shape, buffer.value.dtype))


def _constant(number: int, dtype: Any) -> Any:
    if older.NARROWS_CONSTANTS and tracing():
        return older.widened(np.asarray(number, dtype))
    return jnp.asarray(number, dtype)


def _bits(x: Any) -> Any:
    return jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize]) if is_floating(x.dtype) else x


def _unbits(x: Any, dtype: Any) -> Any:
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


def _from_moved_bits(bits: Any, dtype: Any) -> Any:
    """Return bits that were moved as integers in their own dtype, fenced against being moved as floats."""
    if isinstance(bits, jax.core.Tracer) and is_floating(dtype) and dtype.itemsize < 4:
        # XLA folds a pair of bitcasts into the operation between them (`w.at[2, 3, 4].set(value)`), then widens halves
        # to float32, which quietens signalling NaNs even of entries that weren't set (seen on an AMD EPYC with AVX2).
        bits = bits ^ _opaque_zero(bits)
    return _unbits(bits, dtype)


def _opaque_zero(bits: Any) -> Any:
    """Return zeros that a compiler can't fold: no square is 5 modulo 8."""
    # LLVM proves that bit 1 of a square is 0 and would fold the fence; it doesn't for three bits combined.
    seven, five = (_constant(number, bits.dtype) for number in (7, 5))
    return ((bits * bits & seven) == five).astype(bits.dtype)


def _select(mask: Any, x: Any, y: Any) -> Any:
    if is_floating(x.dtype) and x.dtype.itemsize < 4:
        return _from_moved_bits(jnp.where(mask, _bits(x), _bits(y)), x.dtype)
    return jnp.where(mask, x, y)


def _is_on_host(x: Any) -> bool:
    """Return True for a concrete array in host memory, which NumPy can view without a copy."""
    return not isinstance(x, jax.core.Tracer) and all(device.platform == "cpu" for device in x.devices())


def _sort_key(x: Any) -> Any:
    """Return integers in the order of NumPy's stable sort: -0.0 equals 0.0, and NaN comes last."""
    if not is_floating(x.dtype):
        return x
    if x.dtype.itemsize < 4:
        x = x.astype(jnp.float32)
    bits = _bits(x)
    info = np.iinfo(bits.dtype)
    # A float's bits are sign and magnitude: for a negative number min - bits is the negative of the magnitude.
    key = jnp.where(bits < _constant(0, bits.dtype), _constant(info.min, bits.dtype) - bits, bits)
    return jnp.where(jnp.isnan(x), _constant(info.max, bits.dtype), key)


def _to_half(x: Any, dtype: Any) -> Any:
    """Return float64 in a half type with the bits of NumPy's cast."""
    if dtype == np.float16:
        # NumPy rounds once; via float32 it is right only if that step rounds to odd: truncate, and mark lost bits.
        lost, none, last = (_constant(number, np.int64) for number in ((1 << 29) - 1, 0, 1 << 29))
        bits = _bits(x)
        odd = jnp.where((bits & lost) != none, last, none)
        x = _unbits((bits & ~lost) | odd, np.dtype(np.float64))
    return x.astype(jnp.float32).astype(dtype)
