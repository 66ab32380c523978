"""Pruning looks for NaN in the same pass that counts, and takes many small arrays at once."""

from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np
import pytest

import xweights as xw
from xweights.rules.order_statistics import PART, SAMPLE, at_least, order_statistic

RNG = np.random.default_rng(7)


def kernels(count: int, dtype: object = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {f"{i}/kernel": rng.standard_normal((60 + i % 7, 90)).astype(dtype) for i in range(count)}


@pytest.mark.parametrize("scope", ["each", "global"])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("count", [3, 80])  # few enough to be taken whole, and many enough for a sample
def test_one_nan_is_refused_and_named_and_nothing_is_changed(scope: str, fraction: float, count: int) -> None:
    weights = kernels(count)
    weights["2/kernel"][-1, -1] = np.nan
    before = {name: array.copy() for name, array in weights.items()}
    with pytest.raises(xw.NonfiniteError, match="'2/kernel' has NaN"):
        xw.prune(weights, fraction=fraction, scope=scope)
    assert all(np.array_equal(weights[name], before[name], equal_nan=True) for name in before)


@pytest.mark.parametrize("large", [np.inf, 3e38])
def test_infinity_and_sums_that_overflow_are_no_nan(large: float) -> None:
    weights = kernels(80)
    weights["2/kernel"][:2] = large
    masks = xw.prune(weights, fraction=0.9, scope="global")
    assert masks["2/kernel"][:2].all()
    kept = sum(int(mask.sum()) for mask in masks.values())
    total = sum(mask.size for mask in masks.values())
    assert kept == total - int(0.9 * total + 0.5)


@pytest.mark.parametrize("absolute", [True, False])
def test_arrays_of_all_sizes_and_dtypes_are_counted_once(absolute: bool) -> None:
    arrays = [RNG.standard_normal(size).astype(dtype) for size in (0, 1, PART - 1, PART, PART + 1, 5, 3 * PART)
              for dtype in (np.float32, ml_dtypes.bfloat16, np.float16)]  # fmt: skip
    arrays += [RNG.standard_normal((3, PART)).astype(np.float32).T, RNG.standard_normal((100, 50))[::2, ::3]]
    flat = np.concatenate([array.astype(np.float64).ravel() for array in arrays])
    flat = np.sort(np.abs(flat) if absolute else flat)
    assert flat.size > 4 * SAMPLE
    for k in (1, flat.size // 3, flat.size):
        edge, below, equal = order_statistic(arrays, k, absolute=absolute)
        assert float(edge) == flat[k - 1]
        assert (below, equal) == (int((flat < edge).sum()), int((flat == edge).sum()))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(100, 101), (3, 5, 7), (), (0, 4)])
def test_the_mask_has_the_memory_order_of_the_array(order: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(RNG.standard_normal(shape), order=order)
    mask = at_least(array, np.float64(0.5), absolute=True)
    assert np.array_equal(mask, np.abs(array) >= 0.5)
    assert mask.strides == tuple(stride // 8 for stride in array.strides)


# SHA-256 of the joined masks and weights, from the code that looked at one array at a time.
PINNED = {
    "each 0.1 float32": "c61220d240ce838f",
    "each 0.1 float64": "4d6cddff673a3005",
    "each 0.1 float16": "c0be8ceaa19dc965",
    "each 0.1 bfloat16": "76b29b5ac3dec8f0",
    "each 0.5 float32": "e6465610b3264b61",
    "each 0.5 float64": "7b76d91a709a1dfa",
    "each 0.5 float16": "dd76f45cbf281a13",
    "each 0.5 bfloat16": "f97091bdc6775cf8",
    "each 0.9 float32": "3e0892ad3c938159",
    "each 0.9 float64": "bd8b5cbbc9d8cf52",
    "each 0.9 float16": "2ca7a58ea67cb809",
    "each 0.9 bfloat16": "7148a1e811bcbc5a",
    "global 0.1 float32": "3b851fb80645dbcd",
    "global 0.1 float64": "fa8543b7b140dbc0",
    "global 0.1 float16": "1232f63db17ed689",
    "global 0.1 bfloat16": "9e518f596a4013c5",
    "global 0.5 float32": "12a127c174357353",
    "global 0.5 float64": "8f195e25b6d45b55",
    "global 0.5 float16": "7037c42e7f457c71",
    "global 0.5 bfloat16": "3ed35b3de8c883dd",
    "global 0.9 float32": "38471a7fc285966a",
    "global 0.9 float64": "23ebe6310189b0c7",
    "global 0.9 float16": "60ef3b705badeb43",
    "global 0.9 bfloat16": "91db6e7c8c06acd9",
}


@pytest.mark.parametrize("case", PINNED)
def test_masks_are_those_of_the_code_before(case: str) -> None:
    assert digest(case) == PINNED[case]


def digest(case: str) -> str:
    scope, fraction, dtype = case.split()
    weights = kernels(80, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for array in weights.values():
        array[::5] = np.round(array[::5].astype(np.float64))  # ties
    masks = xw.prune(weights, fraction=float(fraction), scope=scope)
    joined = b"".join(masks[name].tobytes() + weights[name].tobytes() for name in weights)
    return hashlib.sha256(joined).hexdigest()[:16]
