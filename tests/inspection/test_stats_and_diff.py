"""stats, summary, diff and equal, against NumPy in float64."""

from __future__ import annotations

import importlib.util
import math
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import xweights as xw
from xweights.core.blocks import BLOCK
from xweights.core.tables import render

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int32, np.bool_]
NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e-3, 77.0])


def same(got: float, expected: float) -> bool:
    return (math.isnan(got) and math.isnan(expected)) or math.isclose(got, expected, rel_tol=1e-12, abs_tol=1e-14)


def check(array: np.ndarray) -> None:
    row = xw.stats({"w": array})["w"]
    wide = array.astype(np.float64).ravel()
    there = wide[~np.isnan(wide)]
    with np.errstate(all="ignore"):
        assert (row.count, row.nan, row.zeros) == (array.size, int(np.isnan(wide).sum()), int((wide == 0).sum()))
        assert same(row.norm, math.sqrt(float((there**2).sum())))
        assert same(row.mean, float(there.mean()) if there.size else math.nan)
        assert same(row.std, float(there.std()) if there.size else math.nan)
        assert same(row.min, float(there.min()) if there.size else math.nan)
        assert same(row.max, float(there.max()) if there.size else math.nan)
    assert row.sparsity == (row.zeros / array.size if array.size else 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@given(arrays(np.float64, array_shapes(min_dims=0, max_side=5, min_side=0), elements=NUMBERS))
def test_stats_are_those_of_numpy(dtype, array: np.ndarray) -> None:
    check(array.astype(dtype))


@given(
    arrays(np.float32, array_shapes(max_side=4), elements=st.sampled_from([1.0, -2.0, np.nan, np.inf, -np.inf, 0.0]))
)
def test_stats_leave_out_nan_and_count_infinities(array: np.ndarray) -> None:
    check(array)


@pytest.mark.parametrize("lay", [lambda a: a, lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::2]])
def test_stats_of_several_blocks_are_merged(lay) -> None:
    array = np.random.default_rng(0).normal(3.0, 0.1, size=(5, BLOCK - 3)).astype(np.float32)
    array[3, 5:9] = [np.nan, np.inf, 0.0, -7.0]
    check(lay(array[[0, 1, 2, 4]]))
    check(lay(array))


@pytest.mark.parametrize("first", [1e8, -1e8, 0.0, np.inf])
def test_the_deviation_does_not_drown_in_a_first_entry_or_a_mean_that_is_large(first: float) -> None:
    array = np.random.default_rng(0).normal(1e3, 1.0, size=3 * BLOCK)
    check(array)
    array[0] = first
    check(array)


def test_stats_of_64_mb_need_less_than_8_mb_more() -> None:
    array = np.ones((1 << 12, 1 << 12), np.float32)
    for target in ({"w": array}, {"w": array.T}, {"w": np.ones((1 << 12, 1 << 13), np.float32)[:, ::2]}):
        tracemalloc.start()
        try:
            xw.stats(target)
            xw.diff(target, target)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 << 20


def test_stats_print_as_a_table_and_give_plain_rows() -> None:
    found = xw.stats({"a/kernel": np.array([3.0, 0.0, 4.0, np.nan]), "b": np.zeros(0)})
    lines = str(found).splitlines()
    assert lines[0].split() == ["name", "count", "norm", "mean", "std", "min", "max", "sparsity", "NaN"]
    assert lines[2].split() == ["a/kernel", "4", "5", "2.333", "1.7", "0", "4", "25.0%", "1"]
    assert found.as_dicts()[0]["sparsity"] == 0.25
    assert list(found) == ["a/kernel", "b"]


# Summary.


def test_the_summary_has_a_row_for_each_parameter_and_a_total() -> None:
    shared = np.ones((3, 2), np.float32)
    target = xw.Params(
        {"a/kernel": shared, "b/kernel": shared, "n": np.array([1, 2])}, axes={"a/kernel": ("in", "out")}
    )
    lines = xw.summary(target).splitlines()
    assert lines[0].split() == ["name", "axes", "shape", "dtype", "entries", "trainable", "also"]
    assert lines[2].split() == ["a/kernel", "in,", "out", "3,", "2", "float32", "6", "yes", "b/kernel"]
    assert lines[3].split() == ["n", "?", "2", "int64", "2", "no"]
    assert lines[-1] == "2 parameters, 8 entries (6 trainable), 0.0 MB"


def test_the_summary_leaves_out_the_column_of_aliases_where_there_are_none() -> None:
    assert "also" not in xw.summary({"a": np.ones(1)})


def test_a_narrow_terminal_breaks_no_row(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setitem(os.environ, "TERM", "dumb")
    name = "encoder/" * 30 + "kernel"
    (row,) = [line for line in xw.summary({name: np.ones((3, 2))}).splitlines() if "encoder" in line]
    assert row.startswith(name)
    assert row.endswith("yes")


def test_names_are_shown_as_they_are() -> None:
    for name in ("[bold]x[/bold]", ":smile:", "重み/kernel", "é"):
        assert name in xw.summary({name: np.ones(1)})


def test_numbers_of_a_table_are_aligned_to_the_right() -> None:
    assert render(["name", "n"], [["a", "1"], ["b", "100"]]).splitlines()[2:] == ["a        1", "b      100"]


# Diff and equal.


@given(arrays(np.uint32, array_shapes(max_side=4)))
def test_nothing_differs_from_itself_whatever_its_bits(raw: np.ndarray) -> None:
    target = {"w": raw.view(np.float32)}
    found = xw.diff(target, {"w": raw.copy().view(np.float32)})
    assert not found
    assert str(found) == "no difference in 1 parameters"
    assert xw.equal(target, {"w": raw.copy().view(np.float32)})


@pytest.mark.parametrize("lay", [lambda a: a, np.asfortranarray, lambda a: a.T])
def test_differences_are_counted_and_measured(lay) -> None:
    a = np.random.default_rng(0).normal(size=(5, BLOCK)).astype(np.float32)
    b = a.copy()
    b[2, 7] += 0.5
    b[4, :3] -= 0.25
    (change,) = xw.diff({"w": lay(a)}, {"w": lay(b)}).changes
    gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    assert (change.name, change.count, change.changed) == ("w", a.size, 4)
    assert change.max_abs == gap.max()
    assert math.isclose(change.rel, gap.max() / np.abs(a).max(), rel_tol=1e-7)


def test_scalars_are_compared_too() -> None:
    (change,) = xw.diff({"s": np.array(2.0)}, {"s": np.array(3.0)}).changes
    assert (change.changed, change.max_abs, change.rel) == (1, 1.0, 0.5)


def test_the_sign_of_zero_and_the_payload_of_nan_are_differences() -> None:
    zeros = xw.diff({"w": np.array([0.0])}, {"w": np.array([-0.0])}).changes[0]
    assert (zeros.changed, zeros.max_abs) == (1, 0.0)
    payloads = np.array([0x7FC00001, 0x7FC00002], np.uint32).view(np.float32)
    assert xw.diff({"w": payloads[:1]}, {"w": payloads[1:]}).changes[0].changed == 1
    assert not xw.equal({"w": payloads[:1]}, {"w": payloads[1:]})
    assert not xw.diff({"w": payloads}, {"w": payloads.copy()})


def test_infinity_against_a_number_is_infinitely_far() -> None:
    found = xw.diff({"w": np.array([np.inf, 1.0])}, {"w": np.array([1.0, 1.0])})
    assert (found.changes[0].changed, found.max_abs) == (1, math.inf)


def test_another_dtype_is_a_difference_even_if_no_value_is() -> None:
    single, double = {"w": np.array([1.0, np.nan], np.float32)}, {"w": np.array([1.0, np.nan])}
    (change,) = xw.diff(single, double).changes
    assert (change.changed, change.note) == (0, "dtype float32 against float64")
    assert not xw.equal(single, double)
    assert xw.equal(single, double, rtol=1e-6)


def test_another_shape_or_gate_order_is_noted() -> None:
    assert xw.diff({"w": np.ones(2)}, {"w": np.ones((2, 1))}).changes[0].note == "shape (2,) against (2, 1)"
    a = xw.Params({"w": np.ones(4)}, gates={"w": ("i", "f")})
    b = xw.Params({"w": np.ones(4)}, gates={"w": ("f", "i")})
    assert xw.diff(a, b).changes[0].note.startswith("gates")
    assert not xw.equal(a, b, rtol=1.0)


def test_params_of_other_axis_orders_meet_by_name() -> None:
    array = np.arange(9.0).reshape(3, 3)
    a, b = (
        xw.Params({"w": array}, axes={"w": ("in", "out")}),
        xw.Params({"w": array.T.copy()}, axes={"w": ("out", "in")}),
    )
    assert xw.equal(a, b)
    assert not xw.equal(a, {"w": array.T.copy()})
    c = xw.Params({"w": array}, axes={"w": ("h", "w")})
    assert xw.diff(a, c).changes[0].note.startswith("axes")


def test_parameters_on_one_side_only_are_listed() -> None:
    found = xw.diff({"a": np.ones(1), "x": np.ones(1)}, {"b": np.ones(1), "x": np.ones(1)})
    assert (found.only_a, found.only_b, found.same) == (["a"], ["b"], 1)
    assert "only in a" in str(found)
    assert "only in b" in str(found)
    assert not xw.equal({"a": np.ones(1)}, {})
    assert not xw.equal({}, {"a": np.ones(1)})


def test_counters_on_one_side_only_are_left_out() -> None:
    assert xw.equal({"a": np.ones(1), "n/num_batches_tracked": np.array(3)}, {"a": np.ones(1)})
    assert xw.equal({"a": np.ones(1)}, {"a": np.ones(1), "n/count": np.array(3)})
    assert not xw.equal({"n/count": np.array(3)}, {"n/count": np.array(4)})


def test_a_tied_parameter_differs_from_a_file_in_which_one_of_its_names_has_other_values(tmp_path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.ModuleDict({"emb": torch.nn.Embedding(3, 2), "head": torch.nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["emb"].weight
    torch.save({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "same.pt")
    untied = {**model.state_dict(), "head.weight": torch.ones(3, 2)}
    torch.save(untied, tmp_path / "other.pt")
    assert xw.equal(model, tmp_path / "same.pt")
    assert str(xw.diff(model, tmp_path / "same.pt")) == "no difference in 1 parameters"
    for other in (tmp_path / "other.pt", untied):
        assert not xw.equal(model, other)
        assert not xw.equal(other, model)


def test_names_lead_from_one_side_to_the_other() -> None:
    a, b = {"0/kernel": np.ones(1), "0/bias": np.zeros(1)}, {"dense/0/kernel": np.ones(1), "dense/0/bias": np.zeros(1)}
    assert xw.equal(a, b, names={"0/*": "dense/0/*"})
    assert xw.equal(a, b, names={"0/*": "dense/0/*"}, where="*/bias")
    assert not xw.equal(a, b)


def test_where_narrows_the_comparison() -> None:
    assert xw.equal({"a": np.ones(1), "b": np.ones(1)}, {"a": np.ones(1), "b": np.zeros(1)}, where="a")


@pytest.mark.parametrize(("rtol", "expected"), [(0, False), (0.04, False), (0.06, True)])
def test_equal_within_a_tolerance_of_the_largest_value(rtol: float, expected: bool) -> None:
    assert xw.equal({"w": np.array([10.0, 1.0])}, {"w": np.array([10.0, 1.5])}, rtol=rtol) is expected


@pytest.mark.parametrize("rtol", [-1.0, math.nan, math.inf])
def test_a_tolerance_out_of_range_is_refused(rtol: float) -> None:
    with pytest.raises(xw.ArgumentError, match="rtol="):
        xw.equal({"w": np.ones(1)}, {"w": np.ones(1)}, rtol=rtol)


def test_a_diff_prints_as_a_table() -> None:
    lines = str(
        xw.diff({"w": np.zeros(3), "v": np.ones(1)}, {"w": np.array([0.0, 0.0, 2.0]), "v": np.ones(1)})
    ).splitlines()
    assert "note" not in lines[0]
    assert lines[2].split()[:4] == ["w", "1", "of", "3"]
    assert lines[-1] == "1 parameters are equal"


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch isn't installed")
@pytest.mark.parametrize("file_first", [True, False])
def test_entries_that_differ_most_are_found_in_files_with_names_of_a_framework_s_own(tmp_path, file_first):
    import torch

    from xweights.inspection.histograms import top_entries

    model, path = torch.nn.Sequential(torch.nn.Linear(3, 2)), tmp_path / "model.pt"
    torch.save({"model": model.state_dict(), "epoch": 1}, path)
    with torch.no_grad():
        model[0].weight[1, 2] += 1
    pair = (path, model) if file_first else (model, path)
    [top] = top_entries(xw.diff(*pair), *pair, 5)
    assert (top.name, top.index) == ("0/kernel", (2, 1))
    assert top.gap == pytest.approx(1)
    assert (top.a < top.b) is file_first
