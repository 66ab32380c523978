"""Dtypes by name, and their byte order."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from xweights.core.dtypes import is_complex

PLAIN = frozenset(
    {"bool", "float16", "float32", "float64", "complex64", "complex128"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


@lru_cache(maxsize=64)
def dtype_from_name(name: str) -> np.dtype[Any]:
    """Return a dtype of NumPy or ml_dtypes by its name."""
    if name in PLAIN:
        return np.dtype(name)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def to_native_byteorder(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in this machine's byte order."""
    return np.dtype(dtype.name) if dtype.name in PLAIN else dtype


def is_number(dtype: np.dtype[Any]) -> bool:
    """Return whether weights may have this dtype: numbers of up to 64 bits, or complex ones of two such parts."""
    if dtype.kind == "V":  # ml_dtypes; bare bytes and records are no numbers
        return dtype.isbuiltin == 2 and not dtype.names
    return (dtype.kind in "biuf" and dtype.itemsize <= 8) or is_complex(dtype)


def is_special(dtype: np.dtype[Any]) -> bool:
    """Return whether the dtype is one of ml_dtypes; other readers of NumPy's formats see bare bytes."""
    return dtype.name not in PLAIN
