"""Predicates on dtypes, and the roles of counters."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


# Roles of counters that frameworks keep beside the weights. Other frameworks have no counterpart, so they may be absent
# on either side of a comparison or a strict set_params.
COUNTERS = frozenset({"num_batches_tracked", "count"})


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return True for NumPy's and ml_dtypes' floating-point types (the latter have kind 'V' or 'f')."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat16", "float8", "float4", "float6"))


def is_half(dtype: np.dtype[Any]) -> bool:
    """Return True for floating-point types of fewer than 32 bits."""
    return is_floating(dtype) and dtype.itemsize < 4
