"""`set_params` under a mistake, a failure or Ctrl-C: either every byte stays as it was, or everything is written."""

from __future__ import annotations

import signal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_target import KEYS, bits, stored, target, values

import xweights as xw
from xweights.core.numpy_backend import NumpyStorage

MISTAKES = {
    "missing": (lambda v, k: v.pop(k), xw.SelectionError, "there is no value for"),
    "unknown": (lambda v, k: v.update({k + "x": v[k]}), xw.SelectionError, "is no parameter of the target"),
    "shape": (lambda v, k: v.update({k: np.ones((3, 2), np.float32)}), xw.ShapeError, "got: "),
    "dtype": (lambda v, k: v.update({k: np.full((2, 3), 0.1)}), xw.DtypeError, "would change in 6 of 6"),
    "nan": (lambda v, k: v[k].__setitem__((1, 1), np.nan), xw.NonfiniteError, "1 NaN, 0 infinite"),
    "infinity": (lambda v, k: v[k].__setitem__((1, 1), -np.inf), xw.NonfiniteError, "0 NaN, 1 infinite"),
    "no array": (lambda v, k: v.update({k: object()}), xw.ArgumentError, "is no array"),
    "ragged": (lambda v, k: v.update({k: [[1.0], [1.0, 2.0]]}), xw.ShapeError, "ragged"),
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_anywhere_leaves_every_byte_as_it_was(mistake: str, key: str) -> None:
    into, new = target(), values()
    spoil, kind, text = MISTAKES[mistake]
    spoil(new, key)
    before = bits(into)
    with pytest.raises(kind, match=text) as caught:
        xw.set_params(into, new)
    assert key in str(caught.value)
    assert bits(into) == before


@pytest.mark.parametrize("key", KEYS)
def test_a_read_only_array_anywhere_is_refused_and_nothing_is_written(key: str) -> None:
    into = target()
    into[key].flags.writeable = False
    before = bits(into)
    with pytest.raises(xw.WriteError, match=f"'{key}' can't be written: the array is read-only"):
        xw.set_params(into, values())
    assert bits(into) == before


def test_everything_that_is_wrong_is_raised_once_as_an_error_of_every_kind() -> None:
    into, new = target(), values()
    new[KEYS[0]] = np.ones((9, 9), np.float32)
    new[KEYS[1]] = np.full((2, 3), np.nan, np.float32)
    new[KEYS[2]] = np.full((2, 3), 0.1)
    new["extra"] = np.ones(1)
    before = bits(into)
    with pytest.raises(xw.XweightsError) as caught:
        xw.set_params(into, new)
    for kind in (
        xw.ShapeError,
        xw.NonfiniteError,
        xw.DtypeError,
        xw.SelectionError,
        ValueError,
        TypeError,
        LookupError,
    ):
        assert isinstance(caught.value, kind)
    assert all(key in str(caught.value) for key in (*KEYS, "extra"))
    assert bits(into) == before


def test_nonfinite_values_are_written_if_asked_for() -> None:
    into, new = target(), values()
    new[KEYS[0]][0, 0] = np.nan
    xw.set_params(into, new, allow_nonfinite=True)
    assert bits(into) == bits(new)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@given(place=st.integers(0, 199_999), what=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_one_nonfinite_entry_is_found_wherever_it_is(dtype, place: int, what: float) -> None:
    new = np.ones((400, 500), dtype)
    new.flat[place] = what
    with pytest.raises(xw.NonfiniteError, match="1 non-finite"):
        xw.set_params({"w": np.zeros((500, 400), dtype)}, {"w": new.T})


def test_large_finite_values_whose_sum_overflows_are_finite() -> None:
    new = np.full(5, 3e38, np.float32)
    into = {"w": np.zeros(5, np.float32)}
    xw.set_params(into, {"w": new})
    assert np.array_equal(into["w"], new)


class Breaking(NumpyStorage):
    """Storage whose third write fails, like a device out of memory."""

    fallible = True

    def __init__(self) -> None:
        self.writes = 0

    def write(self, handle, value) -> None:
        self.writes += 1
        if self.writes == 3:
            np.copyto(handle[:1], value[:1])
            raise MemoryError("full")
        super().write(handle, value)


def test_a_failure_in_the_middle_of_writing_restores_the_parameters_already_written() -> None:
    storage, arrays = Breaking(), [np.zeros(2) for _ in range(4)]
    parameters = [stored(f"p{i}", "x", array, storage) for i, array in enumerate(arrays)]
    with pytest.raises(MemoryError):
        xw.set_params(parameters, [np.full(2, i + 1.0) for i in range(4)])
    assert [array.tolist() for array in arrays] == [[0.0, 0.0]] * 4


def test_a_failure_in_one_framework_leaves_the_other_as_it_was() -> None:
    storage, arrays, safe = Breaking(), [np.zeros(2) for _ in range(3)], np.zeros(2)
    parameters = [stored("safe", "x", safe), *(stored(f"p{i}", "x", a, storage) for i, a in enumerate(arrays))]
    with pytest.raises(MemoryError):
        xw.set_params(parameters, [np.ones(2)] * 4)
    assert [array.tolist() for array in (safe, *arrays)] == [[0.0, 0.0]] * 4


class Interrupted(NumpyStorage):
    """Storage whose second write is interrupted by Ctrl-C."""

    def __init__(self, *, fallible: bool = False) -> None:
        self.writes, self.fallible = 0, fallible

    def write(self, handle, value) -> None:
        self.writes += 1
        if self.writes == 2:
            signal.raise_signal(signal.SIGINT)
        super().write(handle, value)


@pytest.mark.parametrize("fallible", [False, True])
def test_ctrl_c_in_the_middle_waits_until_all_is_written(fallible: bool) -> None:
    storage, arrays, plain = Interrupted(fallible=fallible), [np.zeros(2) for _ in range(3)], np.zeros(2)
    parameters = [stored("plain", "x", plain), *(stored(f"p{i}", "x", a, storage) for i, a in enumerate(arrays))]
    with pytest.raises(KeyboardInterrupt):
        xw.set_params(parameters, [np.ones(2)] * 4)
    assert [array.tolist() for array in (plain, *arrays)] == [[1.0, 1.0]] * 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
