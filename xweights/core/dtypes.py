"""Predicates on dtypes, and the names of arrays that aren't trained: counters, statistics, scales of quantisation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


# Roles of counters that frameworks keep beside the weights. Other frameworks have no counterpart, so they may be absent
# on either side of a comparison or a strict set_params.
COUNTERS = frozenset({"num_batches_tracked", "count"})
# In a file or a state dict also that of PyTorch's AveragedModel.
SAVED_COUNTERS = COUNTERS | {"n_averaged"}
# What the last part of a name alone shows to be no weight that is trained, whoever wrote the file.
_NEVER_TRAINED = (
    r"(running|moving)_(mean|var|variance)|num_batches_tracked|n_averaged|global_step|iterations|seed_generator_state"
    r"|\w*(weight|input|output|act|activation|kernel|key|value|k|v)_scales?(_inv)?|\w*zero_points?|qzeros|g_idx|SCB"
    r"|absmax|quant_map|nested_absmax|nested_quant_map|\w*amax_history\w*|\w+_mask|weight_u|_u|inv_freq"
)


def is_never_trained(role: str) -> bool:
    """Return whether the last part of a name is one of a counter, a statistic, a mask or a scale of quantisation."""
    return re.fullmatch(_NEVER_TRAINED, role) is not None


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return True for NumPy's and ml_dtypes' floating-point types (the latter have kind 'V' or 'f')."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat16", "float8", "float4", "float6"))


def is_complex(dtype: np.dtype[Any]) -> bool:
    """Return True for complex64 and complex128; no framework has NumPy's longer ones."""
    return dtype.kind == "c" and dtype.itemsize <= 16


def part_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the real and the imaginary part of a complex dtype."""
    return np.dtype(np.float32 if dtype.itemsize == 8 else np.float64)


def widen(array: Array) -> Array:
    """Return a copy in float64, or in complex128 for complex numbers: an imaginary part is never dropped."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def bits_differ(a: Array, b: Array) -> Array:
    """Return which entries of two flat arrays of one dtype differ in their bits."""
    if a.dtype.itemsize <= 8:
        bits = np.dtype(f"u{a.dtype.itemsize}")
        unequal: Array = a.view(bits) != b.view(bits)
        return unequal
    parts = [np.ascontiguousarray(array).view(np.uint64).reshape(array.size, -1) for array in (a, b)]
    different: Array = (parts[0] != parts[1]).any(axis=1)
    return different


def is_half(dtype: np.dtype[Any]) -> bool:
    """Return True for floating-point types of fewer than 32 bits."""
    return dtype.itemsize < 4 and is_floating(dtype)  # the name of a dtype takes a microsecond
