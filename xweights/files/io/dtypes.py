"""The dtypes that files hold, by their names."""

from __future__ import annotations

from typing import Any

import numpy as np

PLAIN = frozenset(
    {"bool", "float16", "float32", "float64"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def dtype_named(name: str) -> np.dtype[Any]:
    """Return a dtype of NumPy or ml_dtypes."""
    if name in PLAIN:
        return np.dtype(name)
    import ml_dtypes

    found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return found


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in this machine's byte order."""
    return np.dtype(dtype.name) if dtype.name in PLAIN else dtype


def is_special(dtype: np.dtype[Any]) -> bool:
    """Return whether only ml_dtypes knows it, so that other readers of NumPy's formats see bare bytes."""
    return dtype.name not in PLAIN
