"""Array operations on the host keep every bit that they move, whatever the array's memory layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xweights.core.numpy_backend import NumpyOps

OPS = NumpyOps()
MASKS = {
    "scattered": lambda shape: np.random.default_rng(2).random(shape) < 0.5,
    "rows": lambda shape: np.broadcast_to(np.arange(shape[0])[:, None] > 3, shape).copy(),
    "all": lambda shape: np.ones(shape, np.bool_),
    "none": lambda shape: np.zeros(shape, np.bool_),
}


def any_bits(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Draw numbers of every kind: both zeros, subnormals, infinities, NaN of any payload."""
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    return raw.view(dtype)[..., 0].copy()


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_choosing_moves_bits_for_any_layout_of_the_mask(dtype: str, mask: str, transposed: bool) -> None:
    x, y = any_bits((300, 400), dtype, 0), any_bits((300, 400), dtype, 1)
    kept = MASKS[mask]((300, 400))
    if transposed:
        x, y, kept = x.T, y.T, kept.T
    expected = np.where(kept, bits(x), bits(y))
    found = OPS.choose(x, kept, y)
    assert (bits(found) == expected).all()
    assert found is x  # in place


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 300))
def test_choosing_equals_where_on_the_bits(seed: int, rows: int, columns: int) -> None:
    x, y = any_bits((rows, columns), "float32", seed), any_bits((rows, columns), "float32", seed + 1)
    kept = np.random.default_rng(seed).random((rows, columns)) < 0.3
    expected = np.where(kept, bits(x), bits(y))
    assert (bits(OPS.choose(x, kept, y)) == expected).all()
