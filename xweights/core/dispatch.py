"""Find the array math of a native array, and its neutral view."""

from __future__ import annotations

from typing import Any

import numpy as np

from xweights.core.layout import Layout
from xweights.core.numpy_backend import NumpyOps
from xweights.core.protocols import Ops
from xweights.core.registry import backend_for
from xweights.errors import (
    TraceError,
)

NUMPY_OPS = NumpyOps()


def ops_for(leaf: Any) -> Ops:
    """Return the maths for an array: by the array's own type."""
    if isinstance(leaf, np.ndarray):
        return NUMPY_OPS
    backend = backend_for(leaf)
    if backend is None:
        raise TraceError(f"no backend knows arrays of {type(leaf).__module__}.{type(leaf).__qualname__}")
    return backend.ops(leaf)


def to_neutral(ops: Ops, leaf: Any, layout: Layout) -> Any:
    """Return the neutral view of a stored array of any framework."""
    if layout.is_identity:
        return leaf
    return ops.transpose(ops.reshape(leaf, layout.split), layout.order)


def to_stored(ops: Ops, new: Any, layout: Layout) -> Any:
    """Return a neutral array of any framework in the stored order."""
    if layout.is_identity:
        return new
    return ops.reshape(ops.transpose(new, layout.inverse), layout.stored)
