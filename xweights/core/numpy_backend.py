"""NumPy as a backend: ops and storage of host arrays.

Also used for every framework whose tensors have writable NumPy views.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from xweights.core.blocks import TILE, align_pieces, blocks, copy_into, stored_order
from xweights.core.dtypes import Array, is_half
from xweights.core.layout import Shape
from xweights.core.protocols import BaseStorage
from xweights.errors import WriteError

# Same-width integers to move bits through: a float multiplication by a mask would turn dropped negatives into -0.0
# and keep NaN; the integer product of a bit pattern with 0 or 1 is exact and as fast (measured: 1.0x).
BITS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.int8),
    2: np.dtype(np.int16),
    4: np.dtype(np.int32),
    8: np.dtype(np.int64),
}


def _is_scattered(mask: Array) -> bool:
    """Return whether a mask changes often, judged by a few of its rows."""
    if mask.ndim == 0 or mask.size < TILE:
        return False
    order = stored_order(mask)
    rows = mask.transpose(order)
    sample = rows[:: max(1, rows.shape[0] // 8)] if rows.ndim > 1 else rows[: 16 * TILE]
    sample = sample.reshape(-1, sample.shape[-1])[:64]
    return bool((sample[:, 1:] != sample[:, :-1]).mean() > 0.02) if sample.shape[-1] > 1 else True


class NumpyOps:
    """The array math of host arrays; edits happen in place where ``x`` is writable."""

    name = "numpy"

    def multiply(self, x: Array, y: Array) -> Array:
        out = _out(x)
        if out is None or not y.shape:
            return np.multiply(x, y, out=out)
        for part, other in align_pieces(x, y):
            np.multiply(part, other, out=part)
        return out

    def add(self, x: Array, y: Array) -> Array:
        out = _out(x)
        if out is None or not y.shape:
            return np.add(x, y, out=out)
        for part, other in align_pieces(x, y):
            np.add(part, other, out=part)
        return out

    def clip(self, x: Array, low: Array | None, high: Array | None) -> Array:
        out = _out(x)
        if clip_is_exact(low, high) and not is_half(x.dtype):
            return np.clip(x, low, high, out=out)
        result = x.copy() if out is None else out
        for block in blocks(x.shape):
            cut: tuple[Any, ...] = (*block, ...)  # ... gives an array where a 0-d one would otherwise give a scalar
            part = result[cut]
            if low is not None:
                bound = bound_at(low, block, x.shape)
                np.copyto(part, bound, where=part < bound)
            if high is not None:
                bound = bound_at(high, block, x.shape)
                np.copyto(part, bound, where=part > bound)
        return result

    def keep(self, x: Array, mask: Array) -> Array:
        bits = BITS.get(x.dtype.itemsize)
        if bits is None:  # wider than any integer
            return self.choose(x, mask, np.zeros((), x.dtype))
        out = _out(x)
        result = np.empty_like(x) if out is None else out
        if out is None:
            np.multiply(x.view(bits), mask, out=result.view(bits))
            return result
        for part, other in align_pieces(x.view(bits), mask):
            np.multiply(part, other, out=part)
        return result

    def choose(self, x: Array, mask: Array, y: Array) -> Array:
        out = _out(x)
        result = x.copy() if out is None else out
        bits = BITS.get(x.dtype.itemsize)
        if bits is None or np.shape(y) != x.shape or y.dtype != x.dtype or not _is_scattered(mask):
            np.copyto(result, y, where=~mask)
            return result
        # A scattered masked copy takes 8 times as long: half of 784 x 512 entries 4.4 ms, this way 0.6 ms.
        old, new = result.view(bits), y.view(bits)
        for cut in blocks(x.shape):
            change = np.bitwise_xor(old[cut], new[cut])
            np.multiply(change, ~mask[cut], out=change)
            np.bitwise_xor(old[cut], change, out=old[cut])
        return result

    def fill(self, x: Array, value: Array) -> Array:
        out = _out(x)
        result = np.empty_like(x) if out is None else out
        np.copyto(result, value, casting="no")
        return result

    def set_at(self, x: Array, index: tuple[Any, ...], value: Array) -> Array:
        result = x if x.flags.writeable else x.copy()
        result[index] = value
        return result

    def fence(self, x: Array) -> Array:
        return x

    def sum_squares(self, x: Array, axes: tuple[int, ...] | None) -> Array:
        if axes is None:
            total = 0.0
            for block in blocks(x.shape):
                part = x[block].astype(np.float64).ravel()
                total += float(np.dot(part, part))
            return np.asarray(total)
        shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        result = np.zeros(shape, np.float64)
        for block in blocks(x.shape):
            part = x[block].astype(np.float64)
            where = tuple(slice(0, 1) if i in axes else cut for i, cut in enumerate(block))
            with np.errstate(all="ignore"):
                np.multiply(part, part, out=part)
                result[where] += part.sum(axis=axes, keepdims=True)
        return result

    def largest_singular_value(self, x: Array) -> Array:
        wide = x.astype(np.float64)
        if not np.isfinite(wide).all():  # where the decomposition would raise, with some parameters written
            return np.asarray(np.nan)
        return np.asarray(np.linalg.svd(wide, compute_uv=False).max(initial=0.0))

    def rank(self, x: Array) -> Array:
        order = np.argsort(x.astype(np.float32) if is_half(x.dtype) else x, axis=-1, kind="stable")
        return np.argsort(order, axis=-1, kind="stable")

    def abs(self, x: Array) -> Array:
        return np.abs(x)

    def sqrt(self, x: Array) -> Array:
        return np.sqrt(x)

    def divide(self, x: Array, y: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.divide(x, y)

    def minimum(self, x: Array, y: Array) -> Array:
        return np.minimum(x, y)

    def sum(self, x: Array, axes: tuple[int, ...]) -> Array:
        return np.asarray(np.sum(x, axis=axes, keepdims=True))

    def matmul(self, x: Array, y: Array) -> Array:
        return np.asarray(np.matmul(x, y))

    def greater(self, x: Array, y: Array) -> Array:
        return np.greater(x, y)

    def where(self, mask: Array, x: Array, y: Array) -> Array:
        return np.where(mask, x, y)

    def cast(self, x: Array, dtype: np.dtype[Any]) -> Array:
        return x.astype(dtype, copy=False)

    def reshape(self, x: Array, shape: Shape) -> Array:
        return x.reshape(shape)

    def transpose(self, x: Array, order: tuple[int, ...]) -> Array:
        return x.transpose(order)

    def concatenate(self, xs: Sequence[Array]) -> Array:
        return np.concatenate(xs)

    def differentiable(
        self, value: Callable[..., Any], gradient: Callable[..., Sequence[Any]], tensors: Sequence[Array]
    ) -> Any:
        return value(*tensors)

    def constant(self, value: Array, like: Array) -> Array:
        return value

    def buffer(self, value: Array, like: Array) -> Array:
        return value.copy()

    def refill(self, buffer: Array, value: Array) -> None:
        np.copyto(buffer, value)

    def current(self, buffer: Array) -> Array:
        return buffer


def bound_at(bound: Array, block: tuple[slice, ...], shape: Shape) -> Array:
    """Return the part of a bound for a block of ``shape``; a 0-d bound is for all blocks."""
    return np.broadcast_to(bound, shape)[block] if bound.shape else bound


def _out(x: Array) -> Array | None:
    # Without out= a 0-d result would be a NumPy scalar, and a read-only array (a JAX array seen from the host, the
    # caller's constant) must not be written.
    return x if x.flags.writeable else None


def clip_is_exact(low: Array | None, high: Array | None) -> bool:
    """Return whether np.clip with these bounds has the bits of the definition."""
    # np.clip turns -0.0 into a bound of +0.0 (and the reverse); the comparison of the definition keeps it.
    # (bool() rather than "!= 0", which takes as long as clipping a thousand entries.)
    return all(bound is None or (bound.shape == () and bool(bound)) for bound in (low, high))


class NumpyStorage(BaseStorage):
    """Host arrays, read and written as they are."""

    def identity(self, handle: Array) -> Hashable:
        # Two views of the same entries are one array, whatever objects they are.
        if not handle.size:
            return id(handle)
        return (handle.__array_interface__["data"][0], handle.shape, handle.strides, handle.dtype)

    def refusal(self, handle: Array, *, writing: bool) -> str | None:
        if writing and not handle.flags.writeable:
            return "the array is read-only; pass a copy, or set array.flags.writeable = True if you own it"
        return None

    def read(self, handle: Array) -> Array:
        return handle

    def write(self, handle: Array, value: Array) -> None:
        copy_into(handle, value)

    def native_array(self, handle: Array, *, tensor: bool = False) -> Array:
        return handle

    def tracked(self, handle: Array) -> Array:
        return handle

    def commit(self, handle: Array, native: Array, value: Array) -> None:
        if value is not native:
            np.copyto(handle, value, casting="no")

    def guard(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backup(self, handle: Array) -> Array:
        return handle.copy()

    def restore(self, handle: Array, kept: Array) -> None:
        read_only = not handle.flags.writeable
        if read_only:
            try:
                handle.flags.writeable = True
            except ValueError:  # memory that can't have been written to
                return
        np.copyto(handle, kept)
        handle.flags.writeable = not read_only

    def trainable(self, handle: Array) -> bool:
        return handle.dtype.kind not in "iub"

    def set_trainable(self, handle: Array, flag: bool) -> None:
        if flag != self.trainable(handle):
            raise WriteError("a NumPy array has no trainable flag: only a framework can freeze it")
