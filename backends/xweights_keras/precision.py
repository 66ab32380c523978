"""What float64 is worth in Keras.

Keras' dtype promotion makes float32 of float64 on every backend but TensorFlow (``result_type`` in
keras/src/backend/common/dtypes.py, 3.15, with JAX's x64 and ``set_floatx`` all the same): a Dense layer of float64 on
PyTorch is off by 1e-7.
"""

from __future__ import annotations

import keras
import numpy as np

from xweights.core.dtypes import Array

PROMOTES_FLOAT64 = keras.backend.backend() != "tensorflow"


def to_effective_dtype(array: Array) -> Array:
    """Return what a float64 layer made in the dtype that it is good for."""
    return array.astype(np.float32) if PROMOTES_FLOAT64 and array.dtype == np.float64 else array


def computed(dtype: str) -> str:
    """Return the dtype that a model of a dtype computes in."""
    return "float32" if PROMOTES_FLOAT64 and dtype == "float64" else dtype
