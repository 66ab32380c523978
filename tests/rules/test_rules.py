"""Every rule against its definition in NumPy, on arrays of every kind."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import xweights as xw
from xweights.core.blocks import BLOCK, as_stored, blocks
from xweights.core.numpy_backend import NumpyOps

BRAIN = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float16), BRAIN, np.dtype(np.float32), np.dtype(np.float64)]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -3.5, np.inf, -np.inf, np.nan, -np.nan, 6e-8, -6e-8]

LAYS = {
    "contiguous": lambda a: a.copy(),
    "transposed": lambda a: a.T.copy().T,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[::-1].copy()[::-1],
}


def raw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def specials(dtype, lay: str = "contiguous") -> np.ndarray:
    """Return all special numbers and a NaN with a payload, in two dimensions."""
    array = np.array([*SPECIAL, 0.25, -0.25], np.float64).astype(dtype).reshape(4, 4)
    raw(array)[:]  # a view, to be sure that there is one
    array.view(f"u{array.dtype.itemsize}")[2, 3] |= 5
    return LAYS[lay](array)


def clip_by_hand(w, low, high):
    low = -np.inf if low is None else low
    high = np.inf if high is None else high
    with np.errstate(invalid="ignore"):
        return np.where(w < low, low, np.where(w > high, high, w)).astype(w.dtype)


def number(value, dtype):
    return np.asarray(value, np.float64).astype(dtype)


# Elementwise rules.

RULES = {
    "fill": (xw.Fill(0.1), lambda w: np.full(w.shape, number(0.1, w.dtype))),
    "scale": (xw.Scale(0.9), lambda w: w * number(0.9, w.dtype)),
    "scale by zero": (xw.Scale(-0.0), lambda w: w * number(-0.0, w.dtype)),
    "add": (xw.Add(0.3), lambda w: w + number(0.3, w.dtype)),
    "clip": (xw.Clip(-0.5, 0.75), lambda w: clip_by_hand(w, number(-0.5, w.dtype), number(0.75, w.dtype))),
    "clip below zero": (xw.Clip(None, 0), lambda w: clip_by_hand(w, None, number(0, w.dtype))),
    "clip above minus zero": (xw.Clip(-0.0, None), lambda w: clip_by_hand(w, number(-0.0, w.dtype), None)),
    "clip to one number": (xw.Clip(0.5, 0.5), lambda w: clip_by_hand(w, *[number(0.5, w.dtype)] * 2)),
    "clip by infinity": (xw.Clip(-np.inf, np.inf), lambda w: w),
    "non-negative": (xw.NonNegative(), lambda w: np.where(w < 0, number(0, w.dtype), w)),
}


@pytest.mark.parametrize("lay", LAYS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rule", RULES)
@np.errstate(all="ignore")
def test_an_elementwise_rule_gives_the_bits_of_its_definition_in_the_same_array(rule: str, dtype, lay: str) -> None:
    the_rule, by_hand = RULES[rule]
    array = specials(dtype, lay)
    target, expected = {"w": array}, by_hand(array.copy())
    strides = array.strides
    xw.apply(target, the_rule, where="w")
    assert target["w"] is array
    assert (array.dtype, array.strides, expected.dtype) == (dtype, strides, dtype)
    nan = np.isnan(expected.astype(np.float64))
    assert np.array_equal(nan, np.isnan(array.astype(np.float64)))
    assert np.array_equal(raw(array)[~nan], raw(expected)[~nan])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rule", [r for r in RULES if "clip" in r or r == "non-negative"])
def test_nan_keeps_its_payload_where_nothing_is_computed(rule: str, dtype) -> None:
    array = specials(dtype)
    before = raw(array).copy()
    xw.apply({"w": array}, RULES[rule][0], where="w")
    nan = np.isnan(array.astype(np.float64))
    assert nan.sum() >= 2
    assert np.array_equal(raw(array)[nan], before[nan])


@pytest.mark.parametrize("lay", LAYS)
@pytest.mark.parametrize("dtype", [*FLOATS, np.dtype(np.int8), np.dtype(np.complex128), np.dtype(np.bool_)], ids=str)
def test_a_mask_keeps_bits_and_drops_to_plus_zero(dtype, lay: str) -> None:
    array = LAYS[lay](np.arange(16, dtype=np.float64).reshape(4, 4).astype(dtype)) if dtype.kind in "ibc" else None
    array = specials(dtype, lay) if array is None else array
    keep = np.arange(16).reshape(4, 4) % 3 > 0
    expected = array.copy()
    expected[~keep] = 0
    xw.mask({"w": array}, keep, where="w")
    assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_bounds_may_be_arrays_that_broadcast(dtype) -> None:
    array = specials(dtype)
    low, high = np.array([-1.0, -0.5, 0.0, -np.inf]), np.array([[1.0], [0.5], [2.0], [np.inf]])
    expected = clip_by_hand(array.copy(), low.astype(dtype), high.astype(dtype))
    xw.clip({"w": array}, low, high)
    nan = np.isnan(expected.astype(np.float64))
    assert np.array_equal(raw(array)[~nan], raw(expected)[~nan])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_a_scalar_parameter_and_an_empty_one_are_edited_like_others(rule: str, dtype) -> None:
    the_rule, by_hand = RULES[rule]
    scalar, empty = np.array(-2.0, np.float64).astype(dtype), np.zeros((0, 3), dtype)
    expected = by_hand(scalar.reshape(1).copy())
    target = {"s": scalar, "e": empty}
    xw.apply(target, the_rule, where=...)
    assert target["s"] is scalar
    assert scalar.shape == ()
    assert scalar.tobytes() == expected.tobytes()


def test_integer_parameters_are_edited_exactly_if_selected_and_never_by_default() -> None:
    target = {"n": np.array([-3, 0, 7]), "w": np.ones(1)}
    xw.scale(target, 3)
    assert target["n"].tolist() == [-3, 0, 7]
    xw.scale(target, 3, where="n")
    xw.add(target, 2**40, where="n")
    assert target["n"].tolist() == [-9 + 2**40, 2**40, 21 + 2**40]
    xw.clip(target, 0, 5, where="n")
    assert target["n"].tolist() == [5, 5, 5]
    with pytest.raises(xw.DtypeError):
        xw.scale(target, 0.5, where="n")
    with pytest.raises(xw.DtypeError):
        xw.noise(target, 0.5, seed=0, where="n")


def test_big_endian_arrays_are_edited_like_others() -> None:
    target = {"k/kernel": np.array([1.0, -2.0, 0.25], ">f4")}
    xw.scale(target, 0.5)
    xw.clip(target, -0.75, None)
    xw.mask(target, np.array([True, True, False]))
    assert target["k/kernel"].tolist() == [0.5, -0.75, 0.0]
    xw.prune(target, threshold=0.5)
    assert target["k/kernel"].tolist() == [0.0, -0.75, 0.0]


@given(arrays(np.float32, array_shapes(max_side=4), elements=st.floats(-4, 4, width=32)), st.floats(0, 2))
def test_clip_and_mask_are_idempotent(array: np.ndarray, bound: float) -> None:
    for rule in (xw.Clip(-bound, bound), xw.Mask(array > 0)):
        target = {"w": array.copy()}
        xw.apply(target, rule, where="w")
        once = target["w"].tobytes()
        xw.apply(target, rule, where="w")
        assert target["w"].tobytes() == once


@pytest.mark.parametrize("shape", [(3 * BLOCK + 5,), (7, BLOCK - 1), (2, 3, BLOCK // 2, 3), (5, 0, 3), (), (BLOCK, 3)])
def test_blocks_cover_every_entry_once_in_order(shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    numbered = np.arange(size, dtype=np.int32).reshape(shape)
    pieces = [np.ravel(numbered[cut]) for cut in blocks(shape)]
    assert np.array_equal(np.concatenate(pieces), np.arange(size))
    assert max(piece.size for piece in pieces) <= max(BLOCK, shape[-1] if shape else 1)


@pytest.mark.parametrize("lay", LAYS)
def test_an_array_as_stored_has_the_same_entries(lay: str) -> None:
    array = LAYS[lay](np.arange(24.0).reshape(2, 3, 4))
    assert np.array_equal(np.sort(np.ravel(as_stored(array))), np.arange(24.0))
    assert np.shares_memory(as_stored(array), array)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16)], ids=str)
def test_arrays_of_several_blocks_are_edited_everywhere(dtype) -> None:
    array = np.random.default_rng(0).normal(size=(3, BLOCK + 7)).astype(dtype)
    by_hand = clip_by_hand(array.copy(), number(0, dtype), number(1, dtype))
    target = {"w": array.copy()}
    xw.clip(target, 0, 1)
    assert np.array_equal(raw(target["w"]), raw(by_hand))


# Rules of norms.


def units(w: np.ndarray, others: tuple[int, ...]) -> np.ndarray:
    return np.sqrt((w.astype(np.float64) ** 2).sum(axis=others, keepdims=True))


PER = {
    "out": (("h", "in", "out"), (0, 1)),
    "in": (("h", "in", "out"), (0, 2)),
    ("h", "out"): (("h", "in", "out"), (1,)),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("per", PER, ids=str)
def test_max_norm_scales_down_the_units_beyond_it_and_no_other(per, dtype) -> None:
    axes, others = PER[per]
    array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(dtype)
    array[..., 1] *= number(0.01, dtype)
    before = array.copy()
    limit = 0.8 * float(units(before, others).max())
    target = xw.Params({"k/kernel": array}, axes={"k/kernel": axes})
    xw.max_norm(target, limit, per=per)
    norms = units(before, others)
    expected = before.astype(np.float64) * np.minimum(1.0, limit / norms)
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert np.allclose(array.astype(np.float64), expected, rtol=2 * max(eps, 1e-7), atol=1e-7)
    within = np.broadcast_to(norms <= limit, array.shape)
    assert within.any()
    assert not within.all()
    assert np.array_equal(raw(array)[within], raw(before)[within])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 300.0])
def test_unit_norm_makes_units_of_norm_one_also_from_tiny_ones_and_leaves_zeros(dtype, size: float) -> None:
    array = (np.random.default_rng(0).normal(size=(8, 3)) * size).astype(dtype)
    array[:, 1] = 0
    before = array.astype(np.float64)
    xw.unit_norm(xw.Params({"kernel": array}, axes={"kernel": ("in", "out")}), per="out")
    norms = np.linalg.norm(before, axis=0, keepdims=True)
    expected = before / np.where(norms == 0, 1, norms)
    assert np.allclose(array.astype(np.float64), expected, rtol=2 * float(ml_dtypes.finfo(dtype).eps), atol=1e-6)
    assert not array[:, 1].any()


def test_per_takes_packed_gates_apart() -> None:
    array = np.random.default_rng(0).normal(size=(3, 8))
    target = xw.Params({"recurrent_kernel": array.copy()}, axes={"recurrent_kernel": ("unit_in", "gate*unit")},
                       gates={"recurrent_kernel": ("i", "f", "c", "o")})  # fmt: skip
    xw.unit_norm(target, per="gate")
    fine = array.reshape(3, 4, 2)
    assert np.allclose(target["recurrent_kernel"], (fine / units(fine, (0, 2))).reshape(3, 8), rtol=1e-12)


@pytest.mark.parametrize("scope", ["each", "global"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_clip_norm_bounds_each_norm_or_that_of_all(scope: str, dtype) -> None:
    rng = np.random.default_rng(0)
    before = {"a": rng.normal(size=(5, 3)).astype(dtype), "b": (rng.normal(size=7) * 0.01).astype(dtype)}
    target = {name: array.copy() for name, array in before.items()}
    xw.clip_norm(target, 0.5, scope=scope)
    wide = {name: array.astype(np.float64) for name, array in before.items()}
    whole = np.sqrt(sum((array**2).sum() for array in wide.values()))
    for name, array in wide.items():
        norm = np.linalg.norm(array) if scope == "each" else whole
        eps = float(ml_dtypes.finfo(dtype).eps)
        assert np.allclose(
            target[name].astype(np.float64), array * min(1, 0.5 / norm), rtol=2 * max(eps, 1e-7), atol=1e-7
        )


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 2, 4)])
def test_spectral_norm_bounds_the_largest_singular_value(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    axes = ("h", "in", "out")[-len(shape) :]
    target = xw.Params({"kernel": array.copy()}, axes={"kernel": axes})
    xw.spectral_norm(target, 0.7)
    largest = np.linalg.norm(array.reshape(-1, shape[-1]), 2)
    assert np.allclose(target["kernel"], array * 0.7 / largest, rtol=1e-5)
    xw.spectral_norm(target, 5.0)
    assert np.isclose(np.linalg.norm(target["kernel"].reshape(-1, shape[-1]), 2), 0.7)


def test_spectral_norm_counts_out_as_columns_wherever_it_is() -> None:
    array = np.random.default_rng(0).normal(size=(2, 3, 4))
    target = xw.Params({"kernel": array.copy()}, axes={"kernel": ("out", "h", "in")})
    xw.spectral_norm(target, 0.1)
    largest = np.linalg.norm(array.transpose(1, 2, 0).reshape(12, 2), 2)
    assert np.allclose(target["kernel"], array * 0.1 / largest, rtol=1e-5)


@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_a_norm_that_is_not_finite_stops_no_verb_in_the_middle(what: float) -> None:
    for verb in (lambda t: xw.spectral_norm(t, 1.0), lambda t: xw.max_norm(t, 1.0, per="out")):
        target = xw.Params({"a/kernel": np.full((2, 2), 3.0), "b/kernel": np.full((2, 2), what)},
                           axes={"a/kernel": ("in", "out"), "b/kernel": ("in", "out")})  # fmt: skip
        verb(target)
        assert np.linalg.norm(target["a/kernel"]) < 2


def test_a_unit_with_nan_keeps_its_bits() -> None:
    array = np.array([[np.nan, 3.0], [5.0, 4.0]])
    xw.max_norm(xw.Params({"kernel": array}, axes={"kernel": ("in", "out")}), 1.0, per="out")
    assert array[1].tolist() == [5.0, 0.8]


def test_sums_of_squares_are_accumulated_in_float64() -> None:
    array = np.full(2 * BLOCK, 1e-4, np.float16)
    exact = float(np.float16(1e-4)) ** 2 * array.size
    assert np.isclose(float(NumpyOps().sum_squares(array, None)), exact, rtol=1e-12)
    assert np.allclose(NumpyOps().sum_squares(array.reshape(2, -1), (1,)), exact / 2, rtol=1e-12)
