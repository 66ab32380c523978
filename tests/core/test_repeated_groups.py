"""Group ops that are called again and again: the bits of the same ops called once, whatever the arrays are."""

from __future__ import annotations

import numpy as np
import pytest

from xweights.core import repeated_groups
from xweights.core.numpy_groups import NUMPY_GROUP_OPS
from xweights.core.repeated_groups import RepeatedGroupOps, repeat_edit

DTYPES = ("float32", "float64", "float16", "int8", "complex128")
ODD = (0.0, -0.0, np.inf, -np.inf, np.nan, -1.5)


def make(dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ((3, 4), (), (0, 2), (7,), (2, 3, 4), (20, 30))
    arrays = [np.asarray(rng.uniform(-5, 5, shape).astype(dtype)) for shape in shapes]
    if dtype != "int8":
        arrays[3][: len(ODD)] = ODD
    arrays[4] = np.asfortranarray(arrays[4])
    arrays[5] = arrays[5][::2, ::-3]
    return arrays


def masks(arrays: list[np.ndarray]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    made = [np.asarray(rng.random(array.shape) < 0.5) for array in arrays]
    made[2] = np.asarray(True)  # one number for all entries
    return made


@pytest.mark.parametrize("most", [1 << 28, 60, 0], ids=["all wide", "some wide", "none wide"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_have_the_bits_of_a_single_call(dtype: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_groups, "MOST_BYTES", most)
    arrays, expected = make(dtype), make(dtype)
    ops, keep = RepeatedGroupOps(arrays), masks(arrays)
    for _ in range(3):
        NUMPY_GROUP_OPS.keep(expected, keep)
        assert ops.keep(arrays, keep) is arrays
        assert [array.tobytes() for array in arrays] == [array.tobytes() for array in expected]
        for array, other in zip(arrays, expected, strict=True):
            array[...] = other[...] = 3


@pytest.mark.parametrize("most", [1 << 28, 60, 0], ids=["all wide", "some wide", "none wide"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_values_have_the_bits_of_a_single_call(dtype: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_groups, "MOST_BYTES", most)
    arrays, expected, values = make(dtype), make(dtype), [np.ascontiguousarray(array) for array in make(dtype)]
    ops, keep = RepeatedGroupOps(arrays), masks(arrays)
    for _ in range(3):
        for array, other in zip(arrays, expected, strict=True):
            array[...] = other[...] = 3
        NUMPY_GROUP_OPS.choose(expected, keep, values)
        assert ops.choose(arrays, keep, values) is arrays
        assert [array.tobytes() for array in arrays] == [array.tobytes() for array in expected]


def test_other_arrays_and_other_masks_are_no_known_ones() -> None:
    arrays = [np.ones(3, np.float32), np.ones(3, np.float32)]
    ops = RepeatedGroupOps(arrays)
    ops.keep(arrays, [np.array([True, False, True])] * 2)
    others = [np.ones(3, np.float32), np.ones(3, np.float32)]
    ops.keep(others, [np.array([False, True, True])] * 2)
    assert [array.tolist() for array in others] == [[0, 1, 1]] * 2
    assert [array.tolist() for array in arrays] == [[1, 0, 1]] * 2
    ops.keep(arrays, [np.array([True, True, False])] * 2)
    assert [array.tolist() for array in arrays] == [[1, 0, 0]] * 2
    ops.keep(arrays[:1], [np.array([False, True, True])])
    assert [array.tolist() for array in arrays] == [[0, 0, 0], [1, 0, 0]]


def test_ops_of_others_are_passed_on() -> None:
    seen = []
    edit = repeat_edit(lambda ws, ops: seen.append(ops), [np.ones(2)])
    ops = object()
    edit([], ops)
    edit([], NUMPY_GROUP_OPS)
    assert seen[0] is ops
    assert isinstance(seen[1], RepeatedGroupOps)
