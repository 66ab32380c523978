"""Exact order statistics of large arrays in bounded memory, on adversarial data, against a full sort."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import xweights as xw
from xweights.core.blocks import BLOCK
from xweights.rules.order_statistics import SAMPLE, has_nan, keep_largest, order_statistic

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SIZE = 4 * SAMPLE + 1234
RNG = np.random.default_rng(1)
ADVERSARIES = {
    "all equal": np.full(SIZE, 0.5, np.float32),
    "two values": np.where(np.arange(SIZE) % 1000 == 0, 1.0, 2.0),
    "sorted": np.arange(SIZE, dtype=np.float32),
    "sorted downwards": np.arange(SIZE, dtype=np.float32)[::-1],
    "heavy ties": RNG.integers(0, 5, SIZE).astype(np.float16),
    "mostly zeros": np.where(np.arange(SIZE) % 50 == 0, np.arange(SIZE), 0).astype(np.float32),
    "one giant": np.append(np.zeros(SIZE - 1), 1e300),
    "infinities": np.where(np.arange(SIZE) % 3 == 0, np.inf, RNG.normal(size=SIZE)),
    "normal": RNG.normal(size=SIZE).astype(np.float32),
    "half types": RNG.normal(size=SIZE).astype(ml_dtypes.bfloat16),
    "transposed": RNG.normal(size=(SIZE // 7, 7)).astype(np.float32).T,
    "strided": RNG.normal(size=(SIZE, 2))[:, 0],
}


@pytest.mark.parametrize("data", ADVERSARIES)
@pytest.mark.parametrize("share", [1e-6, 0.2, 0.5, 0.98, 1.0])
def test_the_order_statistic_is_that_of_a_partition(data: str, share: float) -> None:
    array = ADVERSARIES[data]
    k = max(1, round(share * array.size))
    magnitude = np.sort(np.abs(array.astype(np.float64)).ravel())
    edge, below, equal = order_statistic([array], k, absolute=True)
    assert float(edge) == magnitude[k - 1]
    assert (below, equal) == (int((magnitude < magnitude[k - 1]).sum()), int((magnitude == magnitude[k - 1]).sum()))


@pytest.mark.parametrize("data", ADVERSARIES)
def test_masks_of_large_arrays_are_those_of_a_stable_sort(data: str) -> None:
    array, drop = ADVERSARIES[data], SIZE // 3
    order = np.argsort(np.abs(array.astype(np.float64)).ravel(), kind="stable")
    expected = np.ones(array.size, bool)
    expected[order[:drop]] = False
    (mask,) = keep_largest([array], drop, absolute=True)
    assert np.array_equal(mask.ravel(), expected)


def test_empty_arrays_and_scalars_take_part() -> None:
    target = {"a/kernel": np.zeros((0, 5)), "b/kernel": np.arange(float(SIZE)), "c/kernel": np.array(0.5)}
    masks = xw.prune(target, count=2, scope="global")
    assert (masks["a/kernel"].shape, masks["b/kernel"][:3].tolist(), bool(masks["c/kernel"])) == (
        (0, 5),
        [False, True, True],
        False,
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_nan_is_found_wherever_it_is(dtype) -> None:
    array = np.full((3, BLOCK), 1e4, np.float64).astype(dtype)
    assert not has_nan(array)
    array[2, BLOCK - 1] = np.nan
    assert has_nan(array)
    assert has_nan(array.T)


def test_global_pruning_of_64_mb_takes_little_more_than_the_masks() -> None:
    target = {f"{i}/kernel": RNG.standard_normal((1 << 10, 1 << 12), np.float32) for i in range(4)}
    tracemalloc.start()
    try:
        xw.prune(target, fraction=0.9, scope="global")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    masks = 16 << 20
    assert peak - masks < 0.02 * (64 << 20) + (2 << 20)
