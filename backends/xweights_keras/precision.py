"""The precision in which Keras computes float64 layers.

Keras' dtype promotion turns float64 into float32 on every backend but TensorFlow (``result_type`` in
keras/src/backend/common/dtypes.py, 3.15, whatever JAX's x64 and ``set_floatx`` are): a float64 Dense layer on PyTorch
is off by 1e-7.
"""

from __future__ import annotations

import keras
import numpy as np

from xweights.core.dtypes import Array

PROMOTES_FLOAT64 = keras.backend.backend() != "tensorflow"


def to_effective_dtype(array: Array) -> Array:
    """Return the output of a layer in the dtype of its real precision."""
    return array.astype(np.float32) if PROMOTES_FLOAT64 and array.dtype == np.float64 else array


def compute_dtype(dtype: str) -> str:
    """Return the dtype in which a model of this dtype computes."""
    return "float32" if PROMOTES_FLOAT64 and dtype == "float64" else dtype
