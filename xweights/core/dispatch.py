"""Find the ops of a native array, and convert between stored and neutral order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from xweights.core.layout import Layout
from xweights.core.numpy_backend import NumpyOps
from xweights.core.protocols import Ops, Storage
from xweights.core.registry import backend_for
from xweights.errors import TraceError

NUMPY_OPS = NumpyOps()


def ops_for(native: Any) -> Ops:
    """Return the ops for an array, by the array's own type."""
    if isinstance(native, np.ndarray):
        return NUMPY_OPS
    backend = backend_for(native)
    if backend is None:
        raise TraceError(f"no backend handles arrays of {type(native).__module__}.{type(native).__qualname__}")
    return backend.ops(native)


def to_neutral(ops: Ops, native: Any, layout: Layout) -> Any:
    """Return the neutral view of a stored array of any framework."""
    if layout.is_identity:
        return native
    return ops.transpose(ops.reshape(native, layout.split), layout.order)


def to_stored(ops: Ops, neutral: Any, layout: Layout) -> Any:
    """Return a neutral array of any framework in the stored order."""
    if layout.is_identity:
        return neutral
    return ops.reshape(ops.transpose(neutral, layout.inverse), layout.stored)


def edit_each(
    storage: Storage,
    edit: Callable[..., Any],
    handles: Sequence[Any],
    operands: Sequence[Any],
    positions: Iterable[int],
    *,
    tensor: bool = False,
) -> None:
    """Edit arrays of a group one after the other, as `GroupStorage.apply_group` does all of them."""
    shared: dict[int, Any] = {}
    for position in positions:
        native = storage.native_array(handles[position], tensor=tensor)
        ops = ops_for(native)
        own = []
        for number, operand in enumerate(operands):
            if isinstance(operand, list):
                own.append(ops.constant(operand[position], native))
            else:
                if number not in shared:
                    shared[number] = ops.constant(operand, native)
                own.append(shared[number])
        storage.commit(handles[position], native, edit(native, ops, *own))
