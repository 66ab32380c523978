"""Conversion of numbers, arrays and mappings for a parameter: rounded once, never changed silently."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xweights as xw

HALF = np.dtype(np.float16)
BRAIN = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
SINGLE = np.dtype(np.float32)


def fill_one(value, dtype) -> np.ndarray:
    target = {"w": np.zeros(2, dtype)}
    xw.fill(target, value, where="w", allow_nonfinite=True)
    return target["w"]


def every_number(dtype: np.dtype) -> list[Fraction]:
    """Return all finite non-negative numbers of a small floating-point type, in the order of their bits."""
    bits = np.arange(1 << (8 * dtype.itemsize - 1), dtype=f"u{dtype.itemsize}")
    return [Fraction(x) for x in map(float, bits.view(dtype)) if math.isfinite(x)]


NUMBERS = {dtype: every_number(dtype) for dtype in (HALF, BRAIN, E4M3)}


def nearest_even(exact: Fraction, dtype: np.dtype) -> float:
    """Round to nearest, ties to even bits, by comparing both neighbours: without NumPy or ml_dtypes."""
    numbers = NUMBERS[dtype]
    low, high = 0, len(numbers) - 1
    while low < high:  # the last one that isn't larger
        middle = (low + high + 1) // 2
        low, high = (middle, high) if numbers[middle] <= abs(exact) else (low, middle - 1)
    below = abs(exact) - numbers[low]
    above = numbers[min(low + 1, len(numbers) - 1)] - abs(exact)
    at = low if below < above or (below == above and low % 2 == 0) else low + 1
    return math.copysign(float(numbers[at]), exact)


# Rounding.


@pytest.mark.parametrize("dtype", [HALF, BRAIN, E4M3], ids=str)
@given(number=st.floats(-400, 400) | st.floats(-1e-6, 1e-6))
def test_a_number_is_rounded_once_to_nearest_even(dtype: np.dtype, number: float) -> None:
    assert float(fill_one(number, dtype)[0]) == nearest_even(Fraction(number), dtype)


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=str)
@given(place=st.integers(0, 30000), sign=st.sampled_from([1, -1]), tail=st.integers(30, 45))
def test_a_number_next_to_a_tie_is_rounded_once(dtype: np.dtype, place: int, sign: int, tail: int) -> None:
    """Round by way of float32 and it would reach the tie first, and then the even side."""
    low, high = NUMBERS[dtype][place], NUMBERS[dtype][place + 1]
    tie = (low + high) / 2
    number = float(tie + sign * tie / 2**tail)
    assert float(fill_one(number, dtype)[0]) == nearest_even(Fraction(number), dtype)


def test_a_tie_that_double_rounding_gets_wrong_is_right() -> None:
    number = 1 + 2**-8 + 2**-40  # just above the tie between 1 and the next bfloat16
    assert float(np.float64(number).astype(np.float32).astype(BRAIN)) == 1.0  # by way of float32
    assert float(fill_one(number, BRAIN)[0]) == 1 + 2**-7


def test_an_int_beyond_float64s_precision_is_rounded_once() -> None:
    number = 2**60 + 2**36 + 1  # just above the tie between two float32 numbers; as a float64 it is the tie
    assert fill_one(number, SINGLE)[0] == np.float32(2**60 + 2**37)
    assert fill_one(-number, SINGLE)[0] == np.float32(-(2**60) - 2**37)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_float32_number_is_kept(number: float) -> None:
    assert fill_one(number, SINGLE).tobytes() == np.full(2, number, SINGLE).tobytes()


@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE, np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize("number", [-0.0, math.inf, -math.inf, math.nan])
def test_zeros_infinities_and_nan_are_kept(dtype: np.dtype, number: float) -> None:
    got = float(fill_one(number, dtype)[0])
    assert got == number or (math.isnan(got) and math.isnan(number))
    assert math.copysign(1, got) == math.copysign(1, number)


@pytest.mark.parametrize(
    ("number", "dtype"),
    [
        (65520.0, HALF),
        (-1e5, HALF),
        (3.4e38, BRAIN),
        (1e39, SINGLE),
        (10**400, np.float64),
        (-(10**400), SINGLE),
        (500, E4M3),
        (math.inf, E4M3),
        (2**1024, np.float64),
    ],
)
def test_a_number_that_overflows_is_refused(number: float, dtype) -> None:
    with pytest.raises(xw.DtypeError, match="overflows"):
        fill_one(number, dtype)


def test_the_largest_number_of_a_type_does_not_overflow() -> None:
    assert fill_one(65519.0, HALF)[0] == 65504.0
    assert fill_one(65504, HALF)[0] == 65504.0


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 2**53 + 1, 7.0, np.int8(-3), np.float32(2.0)])
def test_a_whole_number_is_stored_in_an_integer_parameter(number) -> None:
    assert fill_one(number, np.int64).tolist() == [int(number)] * 2


@pytest.mark.parametrize("number", [0.5, 2**63, -(2**63) - 1, math.inf, math.nan, 10**400])
def test_a_number_that_an_integer_parameter_can_not_hold_is_refused(number) -> None:
    with pytest.raises(xw.DtypeError, match="can't be stored as int64"):
        fill_one(number, np.int64)


@pytest.mark.parametrize("number", [True, "0.5", None, 1j, np.array(1j), np.array("x")])
def test_a_value_that_is_no_number_is_refused(number) -> None:
    with pytest.raises((xw.ArgumentError, xw.DtypeError)):
        fill_one(number, SINGLE)


@pytest.mark.parametrize("number", [ml_dtypes.bfloat16(0.5), np.float16(0.5), np.array(0.5), np.array(0.5, BRAIN)])
def test_numpys_numbers_are_numbers(number) -> None:
    target = {"w": np.array([0.25, 1.0], np.float32)}
    xw.clip(target, number)
    xw.noise(target, number, seed=0)
    xw.scale(xw.Params(target) * 1, number)
    assert target["w"].dtype == np.float32


@pytest.mark.parametrize("dtype", [HALF, BRAIN, SINGLE], ids=str)
def test_a_list_of_numbers_is_rounded_as_numbers_are(dtype: np.dtype) -> None:
    target = {"w": np.zeros((2, 2), dtype)}
    xw.set_params(target, {"w": [[0.1, 0.2], [0.3, 7]]})
    by_one = [float(fill_one(x, dtype)[0]) for x in (0.1, 0.2, 0.3, 7)]
    assert target["w"].astype(np.float64).ravel().tolist() == by_one
    target = {"w": np.zeros(2, dtype)}
    xw.add(target, [0.1, 0.2])
    assert target["w"].astype(np.float64).tolist() == by_one[:2]


def test_a_list_of_numbers_that_overflow_is_refused() -> None:
    with pytest.raises(xw.DtypeError, match="overflows float16"):
        xw.set_params({"w": np.zeros(2, HALF)}, {"w": [1.0, 1e6]})


def test_a_list_of_float64_arrays_is_a_cast_and_refused() -> None:
    with pytest.raises(xw.DtypeError, match="would change"):
        xw.set_params({"w": np.zeros((1, 2), SINGLE)}, {"w": [np.array([0.1, 0.2])]})


# Casts.


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([0.1, 1.0]), SINGLE),
        (np.array([1e39, 1.0]), SINGLE),
        (np.array([2**24 + 1, 1]), SINGLE),
        (np.array([0.5, 1.0]), np.dtype(np.int32)),
        (np.array([1e20, 1.0]), np.dtype(np.int32)),
        (np.array([np.nan, 1.0]), np.dtype(np.int32)),
        (np.array([300, 1]), np.dtype(np.uint8)),
        (np.array([-1, 1]), np.dtype(np.uint8)),
        (np.array([2**53 + 1, 1]), np.dtype(np.float64)),
        (np.array([1.001, 1.0], np.float32), BRAIN),
        (np.array([True, False]), SINGLE),
        (np.array([1, 0]), np.dtype(np.bool_)),
    ],
)
def test_a_cast_that_would_change_a_value_is_refused(value: np.ndarray, dtype: np.dtype) -> None:
    target = {"w": np.zeros(2, dtype)}
    with pytest.raises(xw.DtypeError, match="got: "):
        xw.set_params(target, {"w": value}, allow_nonfinite=True)
    assert not target["w"].any()


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([0.5, np.nan, np.inf]), SINGLE),
        (np.array([1, 2, 3]), HALF),
        (np.array([1.0, -2.0, 3.0]), np.dtype(np.int8)),
        (np.array([0.5, 2.0, 1.0], np.float32), BRAIN),
        (np.array([0.5, 2.0, 1.0], BRAIN), np.dtype(np.float64)),
        (np.array([0.5, 2.0, 1.0], ">f4"), SINGLE),
    ],
)
def test_a_cast_that_changes_no_value_is_accepted(value: np.ndarray, dtype: np.dtype) -> None:
    target = {"w": np.zeros(3, dtype)}
    xw.set_params(target, {"w": value}, allow_nonfinite=True)
    assert target["w"].dtype == dtype
    assert np.array_equal(target["w"].astype(np.float64), value.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize("dtype", [HALF, BRAIN], ids=str)
@given(numbers=st.lists(st.floats(-400, 400), min_size=1, max_size=5))
def test_a_cast_that_is_asked_for_rounds_once(dtype: np.dtype, numbers: list[float]) -> None:
    target = {"w": np.zeros(len(numbers), dtype)}
    xw.set_params(target, {"w": np.array(numbers)}, cast=True)
    assert [float(x) for x in target["w"]] == [nearest_even(Fraction(x), dtype) for x in numbers]


# Shapes and names.


def test_an_array_broadcasts_to_the_parameters_shape() -> None:
    target = {"w": np.zeros((2, 3), np.float32)}
    xw.add(target, np.array([1, 2, 3]))
    xw.add(target, np.array([[10], [20]]))
    assert target["w"].tolist() == [[11, 12, 13], [21, 22, 23]]


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 2, 3), (0,)])
def test_an_array_that_does_not_broadcast_is_refused(shape: tuple[int, ...]) -> None:
    target = {"w": np.zeros((2, 3), np.float32)}
    with pytest.raises(xw.ShapeError, match=r"expected: \(2, 3\)"):
        xw.add(target, np.ones(shape))


def test_a_mapping_gives_each_parameter_its_own_value() -> None:
    target = {"a": np.ones(2), "b": np.ones(2)}
    xw.scale(target, {"a": 2.0, "b": np.array([3.0, 4.0])})
    assert (target["a"].tolist(), target["b"].tolist()) == ([2.0, 2.0], [3.0, 4.0])


def test_a_mapping_without_a_selected_name_is_refused() -> None:
    with pytest.raises(xw.SelectionError, match="nothing for 'b'"):
        xw.scale({"a": np.ones(2), "b": np.ones(2)}, {"a": 2.0}, where=...)


def test_a_mapping_with_an_unknown_name_is_refused() -> None:
    with pytest.raises(xw.SelectionError, match="'c'"):
        xw.scale({"a": np.ones(2)}, {"a": 2.0, "c": 1.0})


def test_params_are_transposed_by_axis_name() -> None:
    target = xw.Params({"k": np.zeros((2, 2))}, axes={"k": ("in", "out")})
    delta = xw.Params({"k": np.array([[1.0, 2.0], [3.0, 4.0]])}, axes={"k": ("out", "in")})
    xw.add(target, delta)
    assert target["k"].tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_values_that_are_the_targets_own_arrays_are_read_before_they_change() -> None:
    target = {"a": np.array([1.0, 2.0]), "b": np.array([10.0, 20.0])}
    xw.add(target, {"a": target["b"], "b": target["a"]})
    assert (target["a"].tolist(), target["b"].tolist()) == ([11.0, 22.0], [11.0, 22.0])


def test_a_target_can_be_added_to_itself_and_to_its_own_transpose() -> None:
    target = {"k": np.array([[1.0, 2.0], [3.0, 4.0]])}
    xw.add(target, target)
    xw.add(target, {"k": target["k"].T})
    assert target["k"].tolist() == [[4.0, 10.0], [10.0, 16.0]]


def test_a_rule_that_was_bound_keeps_its_own_copy_of_an_array() -> None:
    target, delta = {"w": np.zeros(2)}, np.ones(2)
    step = xw.bind(target, xw.Add(delta), where="w")
    delta[:] = 100.0
    step()
    assert target["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [object(), {1, 2}, "abc", [[1, 2], [3]], np.array(["1", "2"]), np.array([1j, 2j])])
def test_an_array_without_numbers_is_refused_and_nothing_changes(value) -> None:
    target = {"w": np.zeros(2)}
    with pytest.raises(xw.XweightsError):
        xw.set_params(target, {"w": value})
    with pytest.raises(xw.XweightsError):
        xw.add(target, value)
    assert target["w"].tolist() == [0.0, 0.0]
