"""Complex parameters: both parts count in every measure, and a rule is right for them or refuses them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xweights as xw

SINGLE, DOUBLE = np.dtype(np.complex64), np.dtype(np.complex128)
VALUES = np.array([[3j, 4j], [1 + 2j, 0]])
both_dtypes = pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=str)


def in_numpy(values: np.ndarray) -> Any:
    return {"w": values.copy()}


def in_torch(values: np.ndarray) -> Any:
    torch = pytest.importorskip("torch", reason="a target of PyTorch")
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.tensor(values))
    return module


def in_tensorflow(values: np.ndarray) -> Any:
    tf = pytest.importorskip("tensorflow", reason="a target of TensorFlow")
    module = tf.Module()
    module.w = tf.Variable(values, name="w")
    return module


TARGETS = [in_numpy, in_torch, in_tensorflow]
all_targets = pytest.mark.parametrize("make", TARGETS)


def value_of(target: Any) -> np.ndarray:
    (array,) = xw.get_params(target).values()
    return array


# Measures.


@all_targets
@both_dtypes
def test_statistics_see_both_parts(make: Callable, dtype: np.dtype) -> None:
    row = next(iter(xw.stats(make(VALUES.astype(dtype))).values()))
    assert row.norm == pytest.approx(math.sqrt(9 + 16 + 5))
    assert row.mean == pytest.approx((1 + 9j) / 4)
    assert row.std == pytest.approx(np.std(VALUES))
    assert (row.min, row.max, row.zeros, row.nan) == (0.0, 4.0, 1, 0)
    assert row.dtype == dtype.name


def test_statistics_of_numbers_that_are_not_finite_and_of_none_at_all() -> None:
    row = xw.stats({"w": np.array([complex(math.nan, 1), 1j, complex(math.inf, 0)])})["w"]
    assert (row.nan, row.norm, row.max, row.mean) == (1, math.inf, math.inf, complex(math.inf, 0.5))
    assert math.isnan(xw.stats({"w": np.zeros(0, SINGLE)})["w"].std)
    text = json.dumps(xw.stats({"w": VALUES}).as_dicts())
    assert json.loads(text)[0]["mean"] == [0.25, 2.25]
    assert "0.25+2.25j" in str(xw.stats({"w": VALUES}))


@both_dtypes
def test_differences_and_tolerances_see_both_parts(dtype: np.dtype) -> None:
    a, b = {"w": np.array([3j, 4j], dtype)}, {"w": np.array([9j, 4j], dtype)}
    change = xw.diff(a, b).changes[0]
    assert (change.changed, change.max_abs, change.rel) == (1, 6.0, 1.5)
    assert not xw.equal(a, b, rtol=1e-3)
    assert xw.equal(a, b, rtol=1.5)
    assert not xw.equal(a, {"w": np.array([3j, 4j * (1 + 1e-7)], dtype)}) or dtype == SINGLE
    assert xw.diff({"w": np.array([3.0, 0.0])}, {"w": np.array([3.0, 4j], dtype)}).changes[0].max_abs == 4.0
    assert xw.checksum(a) == xw.checksum({"w": a["w"].copy()}) != xw.checksum(b)


@both_dtypes
def test_histograms_are_of_magnitudes_and_entries_that_differ_most_keep_both_parts(dtype: np.dtype) -> None:
    from xweights.inspection.histograms import histogram, singular_values, top_entries

    (p,) = xw.parameters({"w": VALUES.astype(dtype)})
    counted = histogram(p)
    assert (counted.zeros, counted.counts.sum()) == (1, 3)
    assert (counted.edges[0], counted.edges[-1]) == (pytest.approx(math.sqrt(5)), 4.0)
    np.testing.assert_allclose(singular_values(p), np.linalg.svd(VALUES, compute_uv=False), rtol=1e-6)
    a, b = {"w": VALUES.astype(dtype)}, {"w": (VALUES + np.array([[0, 2], [0, 0]])).astype(dtype)}
    (top,) = top_entries(xw.diff(a, b), a, b, 5)
    assert (top.index, top.a, top.b, top.gap) == ((0, 1), 4j, 2 + 4j, 2.0)


def test_the_page_for_a_browser_shows_them() -> None:
    pytest.importorskip("matplotlib", reason="the page has pictures")
    from xweights.inspection.html_report import page

    shown = page({"w": VALUES}, {"w": VALUES + 1j})
    assert "0.25+2.25j" in shown


# Reading and writing.


@all_targets
@both_dtypes
def test_values_go_in_and_out_bit_for_bit(make: Callable, dtype: np.dtype) -> None:
    values = np.array([[complex(-0.0, 1e-40), 4j], [1 - 2j, complex(0.0, -0.0)]], dtype)
    target = make(np.zeros((2, 2), dtype))
    xw.set_params(target, [values])
    assert value_of(target).tobytes() == values.tobytes()
    assert value_of(target).dtype == dtype


@all_targets
def test_real_values_fit_and_an_imaginary_part_is_never_dropped(make: Callable) -> None:
    target = make(VALUES.astype(SINGLE))
    xw.set_params(target, [np.ones((2, 2), np.float32)])
    assert value_of(target).tolist() == np.ones((2, 2)).tolist()
    real = make(np.zeros((2, 2), np.float32))
    for cast in (False, True):
        with pytest.raises(xw.DtypeError, match="an imaginary part in 3 of 4 entries"):
            xw.set_params(real, [VALUES], cast=cast)
    xw.set_params(real, [VALUES.real + 0j])
    assert value_of(real).tolist() == VALUES.real.tolist()


def test_precision_is_lost_with_cast_only_and_nan_needs_to_be_meant() -> None:
    target = {"w": np.zeros(1, SINGLE)}
    with pytest.raises(xw.DtypeError, match="would change in 1 of 1"):
        xw.set_params(target, {"w": np.array([complex(1, 0.1)])})
    xw.set_params(target, {"w": np.array([complex(1, 0.1)])}, cast=True)
    assert target["w"][0] == np.complex64(complex(1, 0.1))
    with pytest.raises(xw.NonfiniteError, match="1 NaN"):
        xw.set_params(target, {"w": np.array([complex(1, math.nan)], SINGLE)})
    xw.set_params(target, {"w": [complex(1, 0.2)]})  # Python numbers are rounded once, as real ones are
    assert target["w"][0] == np.complex64(complex(1, 0.2))


def test_undo_puts_them_back() -> None:
    target = {"w": VALUES.copy()}
    kept = xw.snapshot(target)
    xw.fill(target, 1j, where="w")
    kept.restore()
    assert target["w"].tolist() == VALUES.tolist()


def test_longer_complex_numbers_and_other_things_are_refused() -> None:
    for value in (np.zeros(1, np.clongdouble), np.array(["x"])):
        if value.dtype.itemsize == 16:
            continue  # NumPy's longest are complex128 here
        with pytest.raises(xw.TargetError, match="no numbers of a kind that weights have"):
            xw.parameters({"w": value})
        with pytest.raises(xw.DtypeError, match="no numbers of a kind that weights have"):
            xw.Params({"w": value})


# Rules.

MASK = np.array([[True, False], [True, True]])
RIGHT: dict[str, tuple[Callable[[Any], object], np.ndarray]] = {
    "scale": (lambda target: xw.scale(target, 2.0, where="w"), 2 * VALUES),
    "scale by an array": (lambda target: xw.scale(target, np.array([2.0, 4.0]), where="w"), VALUES * [2, 4]),
    "add": (lambda target: xw.add(target, 1.5, where="w"), VALUES + 1.5),
    "add a complex number": (lambda target: xw.add(target, 1.5j, where="w"), VALUES + 1.5j),
    "fill": (lambda target: xw.fill(target, 2, where="w"), np.full((2, 2), 2 + 0j)),
    "fill with a complex number": (lambda target: xw.fill(target, 2 - 1j, where="w"), np.full((2, 2), 2 - 1j)),
    "mask": (lambda target: xw.mask(target, MASK, where="w"), VALUES * MASK),
    "set an entry": (lambda target: xw.set_entries(target, (0, 1), 7j, where="w"), np.array([[3j, 7j], [1 + 2j, 0]])),
    "set by a mask": (lambda target: xw.set_entries(target, ~MASK, 7.0, where="w"), np.array([[3j, 7], [1 + 2j, 0]])),
    "zeros": (lambda target: xw.init(target, "zeros", seed=0, where="w"), np.zeros((2, 2))),
    "constant": (lambda target: xw.init(target, "constant", seed=0, value=2j, where="w"), np.full((2, 2), 2j)),
    "a function": (lambda target: xw.apply(target, lambda w: w * 2, where="w"), 2 * VALUES),
}
REFUSED: dict[str, Callable[[Any], object]] = {
    "clip": lambda target: xw.clip(target, -1, 1, where="w"),
    "non-negative": lambda target: xw.non_negative(target, where="w"),
    "clip norm": lambda target: xw.clip_norm(target, 1.0, where="w"),
    "max norm": lambda target: xw.max_norm(target, 1.0, per="out", where="w"),
    "unit norm": lambda target: xw.unit_norm(target, per="out", where="w"),
    "spectral norm": lambda target: xw.spectral_norm(target, 1.0, where="w"),
    "noise": lambda target: xw.noise(target, 0.1, seed=0, where="w"),
    "draws": lambda target: xw.init(target, "normal", seed=0, where="w"),
    "prune": lambda target: xw.prune(target, fraction=0.5, where="w"),
    "prune all": lambda target: xw.prune(target, fraction=0.5, scope="global", where="w"),
    "hold": lambda target: xw.hold(target, xw.Clip(-1, 1), where="w"),
    "pattern": lambda target: xw.hold(target, xw.Pattern(1, 2, "in"), where="w"),
    "sums": lambda target: xw.hold(target, xw.SumToOne(per="out"), where="w"),
    "symmetric": lambda target: xw.hold(target, xw.Symmetric(), where="w"),
    "averages": lambda target: xw.average(target, decay=0.9, attach=False, where="w"),
    "scale by a complex number": lambda target: xw.scale(target, 2j, where="w"),
}


@all_targets
@both_dtypes
@pytest.mark.parametrize("name", RIGHT)
def test_rules_that_make_sense_of_complex_numbers_are_right(make: Callable, dtype: np.dtype, name: str) -> None:
    target = make(VALUES.astype(dtype))
    change, expected = RIGHT[name]
    change(target)
    assert value_of(target).dtype == dtype
    assert value_of(target).tolist() == expected.astype(dtype).tolist()


@all_targets
@pytest.mark.parametrize("name", REFUSED)
def test_rules_that_need_real_numbers_refuse_them_and_change_nothing(make: Callable, name: str) -> None:
    target = make(VALUES.astype(SINGLE))
    with pytest.raises(xw.DtypeError, match="complex"):
        REFUSED[name](target)
    assert value_of(target).tolist() == VALUES.tolist()


def test_a_real_target_takes_no_complex_number() -> None:
    for change in (xw.add, xw.fill, xw.scale):
        with pytest.raises(xw.DtypeError, match="complex"):
            change({"w": np.ones(2)}, 1j, where="w")


def test_infinite_parts_are_scaled_each_for_itself() -> None:
    target = {"w": np.array([complex(math.inf, -1.0)])}
    xw.scale(target, 2.0, where="w")
    assert target["w"][0] == complex(math.inf, -2.0)


def test_a_default_selection_has_them(recwarn) -> None:
    torch = pytest.importorskip("torch", reason="a module")
    module = torch.nn.Linear(2, 2)
    module.spectrum = torch.nn.Parameter(torch.tensor([1j, 2]))
    xw.scale(module, 2.0)
    assert module.spectrum.tolist() == [2j, 4]
    with pytest.raises(xw.DtypeError, match="'spectrum' is complex64"):
        xw.clip(module, -1, 1)


@all_targets
@both_dtypes
def test_entries_are_frozen_and_held(make: Callable, dtype: np.dtype) -> None:
    target = make(VALUES.astype(dtype))
    with xw.hold(target, xw.Keep((0,)), where="w"):
        xw.fill(target, 1j, where="w")
        assert value_of(target).tolist() == [[3j, 4j], [1j, 1j]]


def test_arithmetic_of_params_has_both_parts() -> None:
    a = xw.Params({"w": np.array([1j, 2], SINGLE)})
    assert (2j * a + a - 0.5 * a)["w"].tolist() == [-2 + 0.5j, 1 + 4j]
    with pytest.raises(xw.DtypeError, match="complex"):
        2j * xw.Params({"w": np.ones(2)})


def test_a_merge_of_complex_parameters_is_refused_where_they_differ() -> None:
    a, b = {"w": np.array([1j]), "v": np.zeros(1)}, {"w": np.array([2j]), "v": np.ones(1)}
    with pytest.raises(xw.DtypeError, match="'w' is complex128, which isn't merged"):
        xw.merge([a, b])
    assert xw.merge([a, {**a, "v": np.ones(1)}])["v"].tolist() == [0.5]
