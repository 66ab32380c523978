"""Params: an ordered mapping of arrays with axes and roles, and arithmetic on it."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import xweights as xw


def params(scale: float = 1.0, dtype=np.float32) -> xw.Params:
    arrays = {
        "d/kernel": (np.arange(6).reshape(2, 3) * scale).astype(dtype),
        "d/bias": (np.ones(3) * scale).astype(dtype),
    }
    return xw.Params(arrays, axes={"d/kernel": ("in", "out"), "d/bias": ["out"]})


def test_params_are_an_ordered_mapping_that_shares_the_arrays() -> None:
    array = np.ones(2)
    made = xw.Params({"b": {"x": array}, "a": np.zeros(1)})
    assert list(made) == ["b/x", "a"]
    assert made["b/x"] is array
    assert (len(made), "a" in made, "c" in made) == (2, True, False)


def test_params_have_axes_roles_and_gates() -> None:
    made = xw.Params(
        {"l/kernel": np.ones((1, 4))}, axes={"l/kernel": ["in", "gate*unit"]}, gates={"l/kernel": ("i", "f")}
    )
    assert (made.axes["l/kernel"], made.roles["l/kernel"], made.gates["l/kernel"]) == (
        ("in", "gate*unit"),
        "kernel",
        ("i", "f"),
    )
    with pytest.raises(TypeError):
        made.axes["l/kernel"] = None
    assert xw.parameters(xw.Params({"a": np.ones(1)}, roles={"a": "bias"}))[0].role == "bias"


def test_the_result_of_get_params_has_the_same_facts() -> None:
    got = xw.get_params(params())
    assert dict(got.axes) == dict(params().axes)
    assert dict(got.roles) == {"d/kernel": "kernel", "d/bias": "bias"}


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        ({"axes": {"k": ("in",)}}, xw.LayoutError, "its axes are"),
        ({"axes": {"k": "io"}}, xw.LayoutError, "tuple of names"),
        ({"axes": {"k": ("in", "in")}}, xw.LayoutError, "two axes of one name"),
        ({"axes": {"x": ("in", "out")}}, xw.SelectionError, "'x' is no array"),
        ({"roles": {"x": "bias"}}, xw.SelectionError, "'x' is no array"),
    ],
)
def test_facts_that_do_not_fit_the_arrays_are_refused(words, kind, text: str) -> None:
    with pytest.raises(kind, match=text):
        xw.Params({"k": np.ones((2, 2))}, **words)


@pytest.mark.parametrize(
    "mapping", [{1: np.ones(1)}, {"a": object()}, {"a": np.array(["x"])}, {"a/b": np.ones(1), "a": {"b": np.ones(1)}}]
)
def test_an_object_that_is_no_mapping_of_named_arrays_is_refused(mapping) -> None:
    with pytest.raises(xw.XweightsError):
        xw.Params(mapping)


def test_a_missing_name_is_a_key_error_with_near_names() -> None:
    with pytest.raises(KeyError, match="Near names: 'd/kernel'") as caught:
        params()["d/kernal"]
    assert isinstance(caught.value, xw.SelectionError)
    assert params().get("nothing") is None


def test_the_repr_shows_names_axes_shapes_and_dtypes() -> None:
    assert repr(params()).splitlines() == [
        "Params of 2 arrays, 9 entries",
        "  d/kernel  (in, out) = (2, 3)  float32",
        "  d/bias    (out) = (3)  float32",
    ]
    assert repr(xw.Params({str(i): np.ones(1) for i in range(15)})).endswith("... and 3 more")


# Arithmetic.


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_arithmetic_goes_entry_by_entry_and_keeps_the_dtype(dtype) -> None:
    a, b = params(1.5, dtype), params(0.5, dtype)
    cases = [
        (a + b, lambda x, y: x + y), (a - b, lambda x, y: x - y), (a * b, lambda x, y: x * y), (-a, lambda x, y: -x),
        (a + 0.5, lambda x, y: x + dtype(0.5)), (0.5 * a, lambda x, y: x * dtype(0.5)),
        (2 - a, lambda x, y: dtype(2) - x), (a / 2, lambda x, y: x / dtype(2)), (1 + a, lambda x, y: dtype(1) + x),
        (a + 0.1 * (b - a), lambda x, y: x + dtype(0.1) * (y - x)),
    ]  # fmt: skip
    for made, by_hand in cases:
        for name in a:
            assert made[name].dtype == np.dtype(dtype)
            assert made[name].tobytes() == np.asarray(by_hand(a[name], b[name])).astype(dtype).tobytes()
            assert not np.shares_memory(made[name], a[name])
        assert made.axes == a.axes


def test_numpys_numbers_may_be_on_either_side() -> None:
    assert xw.equal(np.float32(0.5) * params(), params() * 0.5)
    assert xw.equal(params() * np.float64(0.5), params() * 0.5)


def test_a_plain_mapping_may_be_on_the_right() -> None:
    assert xw.equal(params() - dict(params()), params(0.0))


def test_scalars_stay_arrays() -> None:
    made = xw.Params({"s": np.array(2.0)}) * 3
    assert isinstance(made["s"], np.ndarray)
    assert made["s"] == 6.0


def test_everything_that_does_not_match_is_raised_at_once() -> None:
    a = xw.Params(
        {"x": np.ones(2), "y": np.ones(2), "z": np.ones((2, 2)), "only": np.ones(1)}, axes={"z": ("in", "out")}
    )
    b = xw.Params({"x": np.ones(3), "y": np.ones(2, np.float32), "z": np.ones((2, 2))}, axes={"z": ("out", "in")})
    with pytest.raises(xw.XweightsError) as caught:
        a - b
    for kind in (xw.ShapeError, xw.DtypeError, xw.LayoutError, xw.SelectionError):
        assert isinstance(caught.value, kind)


@pytest.mark.parametrize(
    "calculate",
    [
        lambda p: p / 2,
        lambda p: p * 0.5,
        lambda p: -xw.Params({"m": np.array([True])}),
        lambda p: xw.Params({"m": np.array([True])}) + xw.Params({"m": np.array([True])}),
    ],
)
def test_arithmetic_that_could_not_keep_the_dtype_is_refused(calculate) -> None:
    with pytest.raises(xw.DtypeError):
        calculate(xw.Params({"n": np.array([1, 2])}))


@pytest.mark.parametrize("other", ["x", None, [1], np.ones(2)])
def test_arithmetic_with_something_else_is_a_type_error(other) -> None:
    with pytest.raises(TypeError):
        params() + other


def test_neutral_and_native_order_do_not_mix() -> None:
    with pytest.raises(xw.LayoutError, match="native order"):
        params() + xw.Params(dict(params()), layout="native")


# As a target.


def test_select_shares_the_arrays_and_keeps_tied_names() -> None:
    shared = np.ones(2)
    made = xw.Params({"a/kernel": shared, "b/kernel": shared, "c": np.ones(1)})
    assert list(made.select("*/kernel")) == ["a/kernel", "b/kernel"]
    assert made.select("c")["c"] is made["c"]


def test_a_copy_has_arrays_of_its_own() -> None:
    made = params()
    copied = made.copy()
    xw.fill(copied, 0.0)
    assert made["d/bias"].all()
    assert copied.axes == made.axes


def test_verbs_edit_the_arrays_of_params_in_place() -> None:
    made = params()
    home = made["d/kernel"]
    xw.scale(made, 2.0)
    assert made["d/kernel"] is home
    assert home[1, 2] == 10.0


# Reading.


def test_a_copy_is_a_copy_and_a_view_is_read_only_and_shares_memory() -> None:
    target = {"w": np.zeros(2)}
    copied, seen = xw.get_params(target)["w"], xw.get_params(target, copy=False)["w"]
    target["w"][:] = 1.0
    assert copied.tolist() == [0.0, 0.0]
    assert seen.tolist() == [1.0, 1.0]
    assert not seen.flags.writeable
    assert target["w"].flags.writeable


def test_a_layout_of_another_name_is_refused() -> None:
    with pytest.raises(xw.ArgumentError, match="layout="):
        xw.get_params({"w": np.zeros(2)}, layout="torch")
