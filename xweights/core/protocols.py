"""Protocols of array math and storage: `Ops` and `Storage`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape

Function = TypeVar("Function", bound=Callable[..., Any])


class Ops(Protocol):
    """The array maths of one framework. Rules are written in nothing else, so they can be traced.

    *Edits* take the weights first and MAY reuse their memory: after ``y = ops.multiply(x, s)`` only ``y`` counts.
    The result has the dtype and shape of ``x``. Other operands are arrays made by :meth:`constant` (0-d for a
    number), of the dtype of ``x``, broadcast against it. Each is exact: the same bits on every backend.

    *Measures* never change their arguments.
    """

    name: str

    # edits
    def multiply(self, x: Any, y: Any) -> Any:
        """x * y, rounded once in the dtype of x."""

    def add(self, x: Any, y: Any) -> Any:
        """x + y, rounded once in the dtype of x."""

    def clip(self, x: Any, low: Any | None, high: Any | None) -> Any:
        """where(x < low, low, where(x > high, high, x)): NaN stays NaN, -0.0 stays -0.0."""

    def keep(self, x: Any, mask: Any) -> Any:
        """x where the bool mask is True, +0.0 elsewhere; moves bits, does no arithmetic."""

    def choose(self, x: Any, mask: Any, y: Any) -> Any:
        """x where the bool mask is True, y elsewhere; moves bits, does no arithmetic."""

    def fill(self, x: Any, value: Any) -> Any:
        """value, broadcast to the shape of x."""

    def set_at(self, x: Any, index: tuple[Any, ...], value: Any) -> Any:
        """x with x[index] = value. index: ints, slices and at most one bool array (NumPy), static while tracing."""

    def fence(self, x: Any) -> Any:
        """x, unchanged, through which no compiler may fuse arithmetic. A no-op in eager code."""

    # measures
    def sum_squares(self, x: Any, axes: tuple[int, ...] | None) -> Any:
        """Sum of squares in float64 over axes (kept with length 1), or over all (0-d) for None."""

    def largest_singular_value(self, x: Any) -> Any:
        """The largest singular value of a matrix, in float64, 0-d."""

    def rank(self, x: Any) -> Any:
        """The position (an integer) of each entry in the stable ascending order along the last axis; NaN goes last."""

    def abs(self, x: Any) -> Any: ...
    def sqrt(self, x: Any) -> Any: ...
    def divide(self, x: Any, y: Any) -> Any: ...
    def minimum(self, x: Any, y: Any) -> Any: ...
    def sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        """Sum over axes, kept with length 1; in the dtype of x."""

    def matmul(self, x: Any, y: Any) -> Any:
        """The product of two matrices."""

    def greater(self, x: Any, y: Any) -> Any: ...
    def where(self, mask: Any, x: Any, y: Any) -> Any: ...
    def cast(self, x: Any, dtype: np.dtype[Any]) -> Any: ...
    def reshape(self, x: Any, shape: Shape) -> Any: ...
    def transpose(self, x: Any, order: tuple[int, ...]) -> Any: ...
    def concatenate(self, xs: Sequence[Any]) -> Any:
        """Join 1-D arrays."""

    def differentiable(
        self, value: Callable[..., Any], gradient: Callable[..., Sequence[Any]], tensors: Sequence[Any]
    ) -> Any:
        """value(*tensors), a number, whose gradient is gradient(upstream, *tensors): one for each tensor, of its dtype.

        Both functions are written in these ops. First derivatives only: a second one raises, or fails by itself.
        """

    def constant(self, value: Array, like: Any) -> Any:
        """A host array as an array of this framework, on the device of ``like``. May share memory: read only."""

    def buffer(self, value: Array, like: Any) -> Any:
        """Something of the framework that holds ``value`` and can be refilled between calls of a compiled step."""

    def refill(self, buffer: Any, value: Array) -> None:
        """Copy other numbers into a buffer, in eager code; a step compiled before must see them."""

    def current(self, buffer: Any) -> Any:
        """The array that a buffer holds now; traceable."""


class Storage(Protocol):
    """How one kind of native array is read and lawfully written. Every read and every write goes through here.

    ``handle`` is what a Parameter carries: the native variable, or a small object that finds it. Arrays are in
    *stored* order and shape; the core does the rest.
    """

    fallible: bool
    """True if a checked write can still fail (user code runs, device memory is needed): the core then backs up."""
    # May also have ``replaces = True``: a write puts a new buffer in the old one's place, and never writes into one
    # that somebody may still look at. The core then doesn't read the parameter to find out whether a value lies in it.
    # Or ``pieces(handle)`` and ``read_into(handle, out)``, where entries needn't all be in memory at once (filling.py).
    # And ``fresh = True``: what read() returns is nobody else's, so that it needn't be copied to be kept.

    def identity(self, handle: Any) -> Hashable:
        """Return a key that two handles share if they are one array, so that a tied array counts once."""

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        """Why this array can't be read or written (distributed, unallocated, quantized, read-only), or None."""

    def read(self, handle: Any) -> Array:
        """Return the values on the host, as a view where there can be one. Callers neither keep nor change it."""

    def write(self, handle: Any, value: Array) -> None:
        """Copy ``value`` (right shape and dtype, any strides) in; in place, and never aliasing it."""

    def native_array(self, handle: Any, *, tensor: bool = False) -> Any:
        """Return the array that :class:`Ops` work on: in its fastest form, or as the framework's own tensor.

        It may be a writable view of the parameter, which ops may then edit in place.
        """

    def tracked(self, handle: Any) -> Any:
        """Return the framework's own tensor, through which gradients reach the array. It is only read."""

    def commit(self, handle: Any, native: Any, value: Any) -> None:
        """Store ``value``, the result of a rule applied to ``native``.

        If ``value is native`` the edit was in place, and only bookkeeping is left.
        """

    def guard(self) -> AbstractContextManager[Any]:
        """Return the context for edits of native arrays (no gradient is recorded inside)."""

    def backup(self, handle: Any) -> Any:
        """Return what :meth:`restore` needs to bring these very bits back, whoever wrote in between."""

    def restore(self, handle: Any, kept: Any) -> None:
        """Undo every write since :meth:`backup`."""

    def trainable(self, handle: Any) -> bool:
        """Return whether the framework would train it."""

    def set_trainable(self, handle: Any, flag: bool) -> None:
        """Set whether the framework trains it; raise WriteError where that can't be done."""
