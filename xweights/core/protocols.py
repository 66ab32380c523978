"""The protocols of array math and of storage: `Ops` and `Storage`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape

Function = TypeVar("Function", bound=Callable[..., Any])


class Ops(Protocol):
    """The array math of one framework; rules use nothing else, so they can be traced.

    *Edits* take the weights first and MAY reuse their memory: after ``y = ops.multiply(x, s)`` only ``y`` counts.
    The result has the dtype and shape of ``x``. Other operands are arrays made by :meth:`constant` (0-d for a
    number), of the dtype of ``x``, broadcast against it. Each is exact: the same bits on every backend.

    *Measures* never change their arguments.
    """

    name: str

    # edits
    def multiply(self, x: Any, y: Any) -> Any:
        """Return x * y, rounded once in the dtype of x."""

    def add(self, x: Any, y: Any) -> Any:
        """Return x + y, rounded once in the dtype of x."""

    def clip(self, x: Any, low: Any | None, high: Any | None) -> Any:
        """Return where(x < low, low, where(x > high, high, x)): NaN stays NaN, -0.0 stays -0.0."""

    def keep(self, x: Any, mask: Any) -> Any:
        """Return x where the bool mask is True, +0.0 elsewhere; moves bits, does no arithmetic."""

    def choose(self, x: Any, mask: Any, y: Any) -> Any:
        """Return x where the bool mask is True, y elsewhere; moves bits, does no arithmetic."""

    def fill(self, x: Any, value: Any) -> Any:
        """Return value, broadcast to the shape of x."""

    def set_at(self, x: Any, index: tuple[Any, ...], value: Any) -> Any:
        """Return x with x[index] = value; index: ints, slices, at most one bool array (NumPy), static while tracing."""

    def fence(self, x: Any) -> Any:
        """Return x unchanged, as a barrier across which no compiler fuses arithmetic; a no-op in eager code."""

    # measures
    def sum_squares(self, x: Any, axes: tuple[int, ...] | None) -> Any:
        """Return the sum of squares in float64 over axes (kept with length 1), or over all (0-d) for None."""

    def largest_singular_value(self, x: Any) -> Any:
        """Return the largest singular value of a matrix, in float64, 0-d."""

    def rank(self, x: Any) -> Any:
        """Return each entry's position (integer) in the stable ascending order along the last axis; NaN goes last."""

    def abs(self, x: Any) -> Any: ...
    def sqrt(self, x: Any) -> Any: ...
    def divide(self, x: Any, y: Any) -> Any: ...
    def minimum(self, x: Any, y: Any) -> Any: ...
    def sum(self, x: Any, axes: tuple[int, ...]) -> Any:
        """Return the sum over axes, kept with length 1, in the dtype of x."""

    def matmul(self, x: Any, y: Any) -> Any:
        """Return the product of two matrices."""

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
        """Return value(*tensors), a number with the gradient gradient(upstream, *tensors): per tensor, of its dtype.

        Both functions are written in these ops. First derivatives only: a second one raises, or fails by itself.
        """

    def constant(self, value: Array, like: Any) -> Any:
        """Return a host array as an array of this framework, on the device of ``like``; read-only, may share memory."""

    def buffer(self, value: Array, like: Any) -> Any:
        """Return a buffer of the framework with ``value``, which can be refilled between calls of a compiled step."""

    def refill(self, buffer: Any, value: Array) -> None:
        """Copy new numbers into a buffer, in eager code; steps compiled earlier must see them."""

    def current(self, buffer: Any) -> Any:
        """Return the array that a buffer holds now; traceable."""


class BaseStorage:
    """Base class of storages: what most of them are. See :class:`Storage` for the meaning of each."""

    fallible: bool = False
    replaces: bool = False
    fresh: bool = False

    def edit_refusal(self, handle: Any) -> str | None:
        return None

    def effective(self, handle: Any) -> Array | None:
        return None

    def is_part(self, handle: Any) -> bool:
        return False


class Storage(Protocol):
    """Reads and writes of one kind of native array; every read and every write goes through here.

    ``handle`` is what a Parameter carries: the native variable, or a small object that finds it. Arrays are in
    *stored* order and shape; the core converts them.
    """

    fallible: bool
    """True if a checked write can still fail (user code runs, device memory is needed): the core then backs up."""
    replaces: bool
    """True if a write replaces the buffer, and never writes into one that others may still read.

    The core then doesn't read the parameter to find out whether a value shares its memory.
    """
    fresh: bool
    """True if ``read`` returns an array of the caller's own, which needn't be copied to be kept."""

    def identity(self, handle: Any) -> Hashable:
        """Return a key that handles of one array share, so that a tied array counts once."""

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        """Return why the array can't be read or written (distributed, unallocated, quantized, read-only), or None."""

    def edit_refusal(self, handle: Any) -> str | None:
        """Return why a layer wouldn't obey an edit of the array by a rule, or None.

        Such as the frozen kernel under LoRA factors. Values may still be read, and written: a file has them.
        """

    def effective(self, handle: Any) -> Array | None:
        """Return what the layer computes with in place of an array whose edits it wouldn't obey, in stored order.

        A new array, as the framework itself merges it; None where nothing stands for the array.
        """

    def is_part(self, handle: Any) -> bool:
        """Return whether the array is no weight by itself: an adapter's factor, the original of a copy in use."""

    def read(self, handle: Any) -> Array:
        """Return the values on the host, as a view where possible; callers neither keep nor change it."""

    def write(self, handle: Any, value: Array) -> None:
        """Copy ``value`` (right shape and dtype, any strides) in: in place, and never aliasing it."""

    def native_array(self, handle: Any, *, tensor: bool = False) -> Any:
        """Return the array that :class:`Ops` work on: in its fastest form, or as the framework's own tensor.

        It may be a writable view of the parameter, which ops may then edit in place.
        """

    def tracked(self, handle: Any) -> Any:
        """Return the framework's own tensor, through which gradients reach the array; it is only read."""

    def commit(self, handle: Any, native: Any, value: Any) -> None:
        """Store ``value``, the result of a rule applied to ``native``.

        If ``value is native`` the edit was in place, and only bookkeeping is left.
        """

    def guard(self) -> AbstractContextManager[Any]:
        """Return the context for edits of native arrays (no gradient is recorded inside)."""

    def backup(self, handle: Any) -> Any:
        """Return what :meth:`restore` needs to restore exactly the same bits, whoever wrote in between."""

    def restore(self, handle: Any, kept: Any) -> None:
        """Undo every write since :meth:`backup`."""

    def trainable(self, handle: Any) -> bool:
        """Return whether the framework would train the array."""

    def set_trainable(self, handle: Any, flag: bool) -> None:
        """Set whether the framework trains the array; raise WriteError where that can't be done."""


@runtime_checkable
class GroupStorage(Protocol):
    """A storage that edits many arrays in one call; one without it edits them one after the other."""

    replaces: bool
    """As for :class:`Storage`."""

    def group_key(self, handle: Any) -> Hashable | None:
        """Return what the arrays of one group share beyond their dtype (a device), None for one that goes by itself.

        An array in a group can be written by an edit that can't fail.
        """

    def group_state(self, handles: Sequence[Any]) -> list[Hashable]:
        """Return for each array a value that is equal as long as it is where and what it was; None if it was replaced.

        It decides whether what was prepared for these arrays may still be used.
        """

    def read_group(self, handles: Sequence[Any]) -> list[Array]:
        """Return the values on the host, as new views of the arrays' own memory."""

    def write_group(self, handles: Sequence[Any], values: Sequence[Array]) -> None:
        """Copy host arrays of the right shape and dtype, in stored order, that share no memory with these."""

    def apply_group(
        self,
        edit: Callable[..., Any],
        handles: Sequence[Any],
        operands: Sequence[Any],
        views: Sequence[Array] | None = None,
    ) -> None:
        """Edit arrays of one group in place and commit them: ``new = edit(ws, ops, *operands)``.

        ``ws`` is a list of native arrays in stored order, and ``ops`` an :class:`Ops` that edits such lists. An operand
        is a 0-d host array for all of them, or a list of host arrays in stored order, one for each. ``views`` is what
        :meth:`read_group` returned for these handles, if :meth:`group_state` is as it was then.
        """


@runtime_checkable
class StreamingStorage(Protocol):
    """A storage whose arrays needn't be in memory as a whole, such as that of a file."""

    def pieces(self, handle: Any) -> Iterator[Array]:
        """Yield the entries in stored order, as flat arrays that are valid until the next one."""

    def read_into(self, handle: Any, out: Array) -> None:
        """Fill a flat, contiguous array with all entries in stored order."""

    def may_fail(self, handle: Any) -> bool:
        """Return whether reading may still fail after a check."""


@runtime_checkable
class UnpackingStorage(Protocol):
    """A storage some of whose arrays have to be unpacked, as compressed ones, each time that they are read."""

    def unpacks(self, handle: Any) -> bool:
        """Return whether reading means unpacking; it may then also fail after a check."""


@runtime_checkable
class PlainBytesStorage(Protocol):
    """A storage whose arrays are plain bytes where :meth:`is_plain` says so: of a file, on any number of threads.

    Those that lie side by side are read together: one read for 1,000 small arrays.
    """

    def is_plain(self, handle: Any) -> bool:
        """Return whether an array is plain bytes in stored order; the others are read one by one."""

    def split(self, handles: Sequence[Any], count: int) -> list[list[int]]:
        """Return the positions of plain arrays in up to ``count`` parts of about as many bytes, neighbours together."""

    def pieces_together(self, handles: Sequence[Any]) -> Iterator[Array]:
        """Yield all entries of plain arrays in any order, as flat arrays that are valid until the next one."""

    def read_together(self, handles: Sequence[Any], outs: Sequence[Array]) -> None:
        """Fill contiguous arrays with all entries of plain arrays, in stored order."""


@runtime_checkable
class MemoryStorage(Protocol):
    """A storage that shows an array's own memory, whatever its ops work on, so that a file can be read into it."""

    def memory(self, handle: Any) -> Array | None:
        """Return the memory as a writable host array; None where there is none. ``commit`` it after a write."""
