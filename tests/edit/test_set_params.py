"""`set_params` writes all values or none, and never aliases the caller's arrays."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from small_target import KEYS, Torchlike, bits, stored, target, values

import xweights as xw
from xweights.core.layout import layout_of, plain_layout
from xweights.core.parameter import Parameter
from xweights.core.values import fit_value

# What is written.


def test_values_are_written_in_place_and_not_aliased() -> None:
    into, new = target(), values()
    homes = {key: into[key] for key in KEYS}
    xw.set_params(into, new)
    assert bits(into) == bits(new)
    assert all(into[key] is homes[key] for key in KEYS)
    assert not any(np.shares_memory(into[key], new[key]) for key in KEYS)


@given(
    arrays(np.uint32, array_shapes(min_dims=0, max_dims=3, max_side=4)),
    st.sampled_from([np.float32, np.int32, ml_dtypes.bfloat16]),
)
def test_get_params_returns_the_values_of_set_params_bit_for_bit(raw: np.ndarray, dtype) -> None:
    raw = raw.astype(f"u{np.dtype(dtype).itemsize}")
    array = np.array(raw).view(dtype)
    into = {"w": np.zeros(array.shape, dtype)}
    xw.set_params(into, {"w": array}, allow_nonfinite=True)
    got = xw.get_params(into)["w"]
    assert (got.tobytes(), got.shape, got.dtype) == (array.tobytes(), array.shape, array.dtype)


@pytest.mark.parametrize("view", [np.asfortranarray, lambda a: a[::-1, ::-1], lambda a: np.repeat(a, 2, 1)[:, ::2]])
def test_values_and_targets_of_any_strides_work(view) -> None:
    new = view(values()[KEYS[1]] + np.arange(6, dtype=np.float32).reshape(2, 3))
    into = {"w": view(np.zeros((2, 3), np.float32))}
    xw.set_params(into, {"w": new})
    assert np.array_equal(into["w"], new)


def test_nested_mappings_are_values_too() -> None:
    into = target()
    xw.set_params(into, {key.partition("/")[0]: {"kernel": value} for key, value in values().items()})
    assert bits(into) == bits(values())


@pytest.mark.parametrize("make", [list, tuple, iter, lambda v: dict(enumerate(v)).values()])
def test_a_list_goes_by_position(make) -> None:
    into = target()
    xw.set_params(into, make(list(values().values())))
    assert bits(into) == bits(values())


def test_a_list_of_another_length_is_refused() -> None:
    into = target()
    before = bits(into)
    with pytest.raises(xw.ShapeError, match="2 values"):
        xw.set_params(into, list(values().values())[:2])
    assert bits(into) == before


@pytest.mark.parametrize("wrong", [None, 5, b"x", np.ones(3), {1.0, 2.0}, object()])
def test_values_of_another_kind_are_refused(wrong) -> None:
    with pytest.raises(xw.ArgumentError, match="values="):
        xw.set_params(target(), wrong)


def test_a_path_to_nothing_is_refused_as_values() -> None:
    with pytest.raises(xw.FileAccessError, match="No such file"):
        xw.set_params(target(), "path.npz")


def test_params_are_transposed_by_axis_name_square_ones_too() -> None:
    into = xw.Params({"k": np.zeros((2, 2))}, axes={"k": ("in", "out")})
    xw.set_params(into, xw.Params({"k": np.array([[1.0, 2.0], [3.0, 4.0]])}, axes={"k": ("out", "in")}))
    assert into["k"].tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_params_whose_axes_can_not_be_matched_are_refused() -> None:
    into = xw.Params({"k": np.zeros((2, 2))}, axes={"k": ("in", "out")})
    with pytest.raises(xw.LayoutError, match="by name"):
        xw.set_params(into, xw.Params({"k": np.ones((2, 2))}, axes={"k": ("h", "w")}))


def test_gates_in_another_order_are_refused_and_port_is_named() -> None:
    into = xw.Params({"k": np.zeros((1, 4))}, gates={"k": ("i", "f", "c", "o")})
    with pytest.raises(xw.LayoutError, match="port"):
        xw.set_params(into, xw.Params({"k": np.ones((1, 4))}, gates={"k": ("i", "c", "f", "o")}))


def test_neutral_and_native_order_are_distinguished() -> None:
    array = np.zeros((3, 2), np.float32)
    p = stored("k", "out in -> in out", array)
    neutral = np.arange(6, dtype=np.float32).reshape(2, 3)
    xw.set_params(p, {"k": neutral})
    assert np.array_equal(array, neutral.T)
    xw.set_params(p, {"k": neutral.T * 2}, layout="native")
    assert np.array_equal(array, neutral.T * 2)


def test_native_values_in_neutral_order_get_a_hint() -> None:
    with pytest.raises(xw.ShapeError, match='layout="native"'):
        xw.set_params(stored("k", "out in -> in out", np.zeros((3, 2))), {"k": np.ones((3, 2))})


def test_native_params_need_no_layout_argument() -> None:
    array = np.arange(6.0).reshape(3, 2)
    p = stored("k", "out in -> in out", array.copy())
    kept = xw.get_params(p, layout="native")
    assert kept["k"].shape == (3, 2)
    xw.fill(p, 0.0)
    xw.set_params(p, kept)
    assert np.array_equal(p.handle, array)


def test_a_layout_of_another_name_is_refused() -> None:
    with pytest.raises(xw.ArgumentError, match="layout="):
        xw.set_params(target(), values(), layout="keras")


def test_fitted_values_have_the_stored_shape() -> None:
    p = Parameter(
        name="k", native_name="k", layout=layout_of("(in mult) 1 h -> h in mult", (4, 1, 3), mult=2),
        dtype=np.dtype(float), storage=Torchlike(), handle=np.zeros((4, 1, 3)),
    )  # fmt: skip
    assert fit_value(np.zeros((3, 2, 2)), p, "neutral", axes=None, gates=None).shape == (4, 1, 3)


def test_native_names_are_keys_too() -> None:
    array = np.zeros(2)
    xw.set_params(stored("dense/bias", "out", array, native_name="0.bias"), {"0.bias": np.ones(2)})
    assert array.tolist() == [1.0, 1.0]


def test_a_key_that_names_one_neutrally_and_another_natively_is_refused_unless_it_comes_from_params() -> None:
    first, second = np.zeros(2), np.zeros(2)
    both = [stored("a", "x", first, native_name="b"), stored("b", "x", second, native_name="c")]
    with pytest.raises(xw.SelectionError, match="could mean 2"):
        xw.set_params(both, {"a": np.ones(2), "b": np.full(2, 2.0)})
    assert not first.any()
    xw.set_params(both, xw.Params({"a": np.ones(2), "b": np.full(2, 2.0)}))
    assert (first.tolist(), second.tolist()) == ([1.0, 1.0], [2.0, 2.0])


def test_names_lead_from_the_targets_names_to_the_values_names() -> None:
    into = {"0/kernel": np.zeros(2), "0/bias": np.zeros(2), "head/bias": np.zeros(2)}
    new = {"dense/0/kernel": np.ones(2), "dense/0/bias": np.full(2, 2.0), "head/bias": np.full(2, 3.0)}
    xw.set_params(into, new, names={"0/*": "dense/0/*"})
    assert [array[0] for array in into.values()] == [1.0, 2.0, 3.0]


def test_names_that_send_two_parameters_to_one_value_are_refused() -> None:
    into = {"0/kernel": np.zeros(2), "1/kernel": np.zeros(2)}
    with pytest.raises(xw.SelectionError, match="could mean 2"):
        xw.set_params(into, {"1/kernel": np.ones(2)}, names={"0/*": "1/*"}, strict=False)
    assert not into["1/kernel"].any()


def test_names_need_as_many_stars_on_both_sides() -> None:
    with pytest.raises(xw.ArgumentError, match=r"as many \*"):
        xw.set_params(target(), values(), names={"a/*": "b"})


def test_where_narrows_the_names_that_a_strict_call_requires() -> None:
    into = target()
    xw.set_params(into, {KEYS[1]: values()[KEYS[1]]}, where="middle/*")
    assert into[KEYS[1]][0, 0] == 2
    with pytest.raises(xw.SelectionError, match="not selected by where="):
        xw.set_params(into, values(), where="middle/*")


def test_a_subset_is_written_if_strict_is_off_and_an_unknown_key_is_an_error_even_then() -> None:
    into = target()
    xw.set_params(into, {KEYS[2]: values()[KEYS[2]]}, strict=False)
    assert into[KEYS[2]][0, 0] == 3
    with pytest.raises(xw.SelectionError, match="'last/kernal' is no parameter"):
        xw.set_params(into, {"last/kernal": values()[KEYS[2]]}, strict=False)


@pytest.mark.parametrize("counter", ["norm/num_batches_tracked", "norm/count"])
def test_counters_may_be_absent_on_either_side(counter: str) -> None:
    into = {"norm/gamma": np.zeros(2), counter: np.array(5)}
    xw.set_params(into, {"norm/gamma": np.ones(2)})
    assert into[counter] == 5
    del into[counter]
    xw.set_params(into, {"norm/gamma": np.ones(2), counter: np.array(7)})
    assert into["norm/gamma"].tolist() == [1.0, 1.0]


# Tied parameters.


def test_a_tied_parameter_takes_one_value_or_equal_ones() -> None:
    shared = np.zeros(2)
    into = {"a": shared, "b": shared}
    xw.set_params(into, {"b": np.ones(2)})
    assert shared.tolist() == [1.0, 1.0]
    xw.set_params(into, {"a": np.array([2.0, np.nan]), "b": np.array([2.0, np.nan])}, allow_nonfinite=True)
    assert shared[0] == 2.0


def test_different_values_for_one_tied_parameter_are_refused() -> None:
    shared = np.zeros(2)
    with pytest.raises(xw.SelectionError, match="one tied parameter"):
        xw.set_params({"a": shared, "b": shared}, {"a": np.ones(2), "b": np.zeros(2)})
    assert not shared.any()


# The target's own arrays as values.


def test_two_arrays_can_be_swapped() -> None:
    into = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
    xw.set_params(into, {"a": into["b"], "b": into["a"]})
    assert (into["a"].tolist(), into["b"].tolist()) == ([3.0, 4.0], [1.0, 2.0])


def test_views_of_one_buffer_can_be_rotated() -> None:
    buffer = np.arange(6.0)
    into = {name: buffer[2 * i : 2 * i + 2] for i, name in enumerate("abc")}
    xw.set_params(into, {"a": buffer[1:3], "b": buffer[0:2], "c": buffer[3:5][::-1]})
    assert buffer.tolist() == [1.0, 2.0, 0.0, 1.0, 4.0, 3.0]


def test_an_array_can_be_set_to_its_own_reverse_and_transpose() -> None:
    into = {"k": np.array([[1.0, 2.0], [3.0, 4.0]])}
    xw.set_params(into, {"k": into["k"][::-1]})
    xw.set_params(into, {"k": into["k"].T})
    assert into["k"].tolist() == [[3.0, 1.0], [4.0, 2.0]]


def test_a_targets_own_views_change_nothing() -> None:
    into = target()
    before = bits(into)
    xw.set_params(into, xw.get_params(into, copy=False))
    assert bits(into) == before


def test_a_parameter_can_be_assigned_alone() -> None:
    into = target()
    xw.parameters(into)[1].assign(np.ones((2, 3)))
    assert into[KEYS[1]].tolist() == [[1.0] * 3] * 2
    with pytest.raises(xw.ShapeError):
        xw.parameters(into)[1].assign(1.0)


def test_a_list_of_targets_is_set_by_prefixed_names() -> None:
    first, second = {"a": np.zeros(1)}, {"a": np.zeros(1)}
    xw.set_params([first, second], {"0/a": np.ones(1), "1": {"a": np.full(1, 2.0)}})
    assert (first["a"][0], second["a"][0]) == (1.0, 2.0)


def test_a_scalar_and_an_empty_array_are_parameters_like_others() -> None:
    into = {"s": np.array(0.0), "e": np.zeros((0, 3))}
    xw.set_params(into, {"s": 2.0, "e": np.ones((0, 3))})
    assert into["s"] == 2.0


def test_plain_layouts_know_no_axes() -> None:
    assert plain_layout((1, 2)).axes is None


@pytest.mark.parametrize("source", ["a mapping", "a file"])
def test_tiny_values_are_checked_where_numpy_is_set_to_raise(source: str, tmp_path) -> None:
    """Their squares are too small for a float, which is no reason to raise."""
    tiny = {"a": np.full(300, 1e-30, np.float32)}
    if source == "a file":
        xw.save(tiny, tmp_path / "tiny.npz")
    target = {"a": np.zeros(300, np.float32)}
    with np.errstate(all="raise"):
        xw.set_params(target, tiny if source == "a mapping" else tmp_path / "tiny.npz")
        xw.prune(target, fraction=0.5, where="a")
    assert np.count_nonzero(target["a"] == tiny["a"]) == 150
