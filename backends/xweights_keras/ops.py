"""The array math for Keras: the ops of the framework whose tensor the native array is.

There are no Keras ops, so that a rule gives the same bits in a Keras model and outside.
"""

from __future__ import annotations

from typing import Any

import keras

from xweights.core.protocols import Ops
from xweights.core.registry import backend_for
from xweights.errors import TraceError
from xweights_keras.storage.base import raw_value


def ops_of(array: Any) -> Ops:
    """Return the ops for a Keras variable's value; refuse a symbolic tensor."""
    if isinstance(array, keras.KerasTensor):
        raise TraceError("a symbolic KerasTensor has no values\nFix: edit weights, not inputs or outputs")
    value = raw_value(array) if isinstance(array, keras.Variable) else array
    backend = backend_for(value)
    if backend is None or isinstance(value, keras.Variable):
        raise TraceError(f"no backend knows arrays of {type(value).__module__}.{type(value).__qualname__}")
    return backend.ops(value)
