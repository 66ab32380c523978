"""Pairing parameters of several targets, refused merges, and the destination of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import xweights as xw

Array = np.ndarray[Any, Any]


def params(seed: int = 0, dtype: Any = np.float32, **more: Array) -> xw.Params:
    source = np.random.Generator(np.random.PCG64(seed))
    found = {
        "a/kernel": source.normal(size=(4, 3)).astype(dtype),
        "a/bias": source.normal(size=3).astype(dtype),
        "b/kernel": source.normal(size=(3, 2)).astype(dtype),
        **more,
    }
    return xw.Params(found, axes={"a/kernel": ("in", "out"), "a/bias": ("out",), "b/kernel": ("in", "out")})


# Per parameter.


def test_weights_may_differ_by_where_and_the_last_that_matches_counts() -> None:
    a, b = params(0), params(1)
    merged = xw.merge([a, b], weights={"*": (1, 3), "a/*": (1, 0), "a/bias": (0, 1)})
    assert np.array_equal(merged["a/kernel"], a["a/kernel"])
    assert np.array_equal(merged["a/bias"], b["a/bias"])
    np.testing.assert_allclose(merged["b/kernel"], 0.25 * a["b/kernel"] + 0.75 * b["b/kernel"], rtol=1e-6)


def test_parameters_that_no_where_of_an_option_matches_have_the_default() -> None:
    a, b = params(0), params(1)
    merged = xw.merge([a, b], weights={"a/*": (1, 0)})
    assert np.array_equal(merged["b/kernel"], xw.merge([a, b])["b/kernel"])


def test_any_number_of_a_method_may_differ_by_where() -> None:
    a, b = params(0), params(1)
    merged = xw.merge([a, b], "lerp", t={"*": 0, xw.role("bias"): 1})
    assert np.array_equal(merged["a/kernel"], a["a/kernel"])
    assert np.array_equal(merged["a/bias"], b["a/bias"])


def test_where_narrows_the_result_to_the_selected_parameters() -> None:
    assert list(xw.merge([params(0), params(1)], where="a/*")) == ["a/kernel", "a/bias"]


# Names and axes.


def test_arrays_meet_by_the_names_of_their_axes() -> None:
    a, b = params(0), params(1)
    turned = xw.Params(
        {name: array.T for name, array in b.items()}, axes={name: axes[::-1] for name, axes in b.axes.items()}
    )
    assert xw.equal(xw.merge([a, b]), xw.merge([a, turned]))
    other_way = xw.merge([turned, a])
    assert other_way.axes["a/kernel"] == ("out", "in")
    assert np.array_equal(other_way["a/kernel"].T, xw.merge([a, b])["a/kernel"])


def test_twins_whose_names_differ_are_paired_by_names_which_also_key_randomness() -> None:
    a, b, base = params(0), params(1), params(2)
    renamed = xw.Params(
        {f"0/{name}": array for name, array in a.items()}, axes={f"0/{n}": x for n, x in a.axes.items()}
    )
    options: dict[str, Any] = {"density": 0.5, "seed": 3}
    plain = xw.merge([a, b], "dare_linear", base=base, **options)
    merged = xw.merge([renamed, b], "dare_linear", base=base, names={"0/*": "*"}, **options)
    assert list(merged) == [f"0/{name}" for name in plain]
    assert all(np.array_equal(merged[f"0/{name}"], plain[name]) for name in plain)


def test_one_mapping_of_names_leaves_alone_a_side_with_the_names_of_the_first() -> None:
    a, b = params(0), params(1)
    renamed = xw.Params({f"0/{name}": array for name, array in b.items()})
    assert xw.equal(xw.merge([a, a, renamed], layout="neutral", names={"*": "0/*"}), xw.merge([a, a, b]))


def test_names_that_could_mean_two_pairings_are_refused_and_may_be_given_side_by_side() -> None:
    a, b = {"p": np.zeros(2), "q": np.ones(2)}, {"p": np.full(2, 4.0), "q": np.full(2, 8.0)}
    swapped = {"p": "q", "q": "p"}
    with pytest.raises(xw.SelectionError, match="Fix: give names= as a list"):
        xw.merge([a, b], names=swapped)
    assert xw.merge([a, b], names=[swapped])["p"].tolist() == [4.0, 4.0]
    assert xw.merge([a, b], names=[None])["p"].tolist() == [2.0, 2.0]


def test_gates_in_another_order_are_refused_and_port_is_named() -> None:
    arrays = {"cell/kernel": np.ones((2, 6))}
    axes = {"cell/kernel": ("in", "gate*unit")}
    a = xw.Params(arrays, axes=axes, gates={"cell/kernel": ("r", "z", "n")})
    b = xw.Params(arrays, axes=axes, gates={"cell/kernel": ("z", "r", "n")})
    with pytest.raises(xw.LayoutError, match=r"z, r, n\n.*r, z, n\nFix: port"):
        xw.merge([a, b])


def test_unknown_axes_mixed_with_known_ones_are_refused_until_a_layout_is_given() -> None:
    a = params(0)
    plain = {name: array.copy() for name, array in params(1).items()}
    with pytest.raises(xw.LayoutError, match="target 1 doesn't know the axes of 'a/kernel' and of 1 more") as found:
        xw.merge([a, plain])
    assert 'Fix: layout="neutral"' in str(found.value)
    expected = xw.merge([a, params(1)])
    assert xw.equal(xw.merge([a, plain], layout="neutral"), expected)
    assert xw.equal(xw.merge([plain, a], layout="neutral"), expected)


def test_into_that_does_not_know_its_axes_is_refused_like_a_target() -> None:
    target = {name: np.zeros_like(array) for name, array in params(0).items()}
    with pytest.raises(xw.LayoutError, match="into doesn't know the axes of 'a/kernel'"):
        xw.merge([params(0), params(1)], into=target)
    xw.merge([params(0), params(1)], into=target, layout="neutral")
    assert np.array_equal(target["a/kernel"], xw.merge([params(0), params(1)])["a/kernel"])


def test_many_names_that_are_missing_are_counted_after_the_first_few() -> None:
    many = {f"{i}/kernel": np.zeros(1) for i in range(300)}
    with pytest.raises(xw.SelectionError) as found:
        xw.merge([many, {"z": np.zeros(1), **{f"y{i}": np.zeros(1) for i in range(20)}}])
    text = str(found.value)
    assert "target 1 has no '0/kernel'" in text
    assert "target 1 hasn't 295 more, either" in text
    assert "target 1 has 'z', 'y0', 'y1', 'y2', 'y3' and 16 more, and target 0 hasn't" in text
    assert len(text.splitlines()) < 20


# Everything that is wrong, at once.


def test_all_problems_are_raised_at_once_and_nothing_is_changed() -> None:
    a, b = params(0), params(1)
    wrong = {
        "a/kernel": np.ones((4, 2), np.float32),
        "a/bias": b["a/bias"].astype(np.float64),
        "c/kernel": b["b/kernel"],
    }
    before = a.copy()
    with pytest.raises(xw.XweightsError) as found:
        xw.merge([a, wrong], "ties", density=7, colour=1, layout="neutral", into=a)
    kinds = (xw.ShapeError, xw.DtypeError, xw.SelectionError, xw.ArgumentError)
    assert all(isinstance(found.value, kind) for kind in kinds)
    text = str(found.value)
    for part in ("target 1 has no 'b/kernel'", "target 1 has 'c/kernel', and target 0 hasn't", "'a/kernel'", "'a/bias'",
                 "needs base=", "no option 'colour'", "density= is a number, between 0 and 1"):  # fmt: skip
        assert part in text
    assert "got:      (4, 2)\n    expected: (4, 3)" in text
    assert xw.equal(a, before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "avrage"}, "Near names: 'average'"),
        ({"method": "lerp"}, "needs t="),
        ({"method": "slerp", "t": "half"}, "t= is a number, finite"),
        ({"method": "ema", "decay": 1.0}, ">= 0 and < 1"),
        ({"weights": (1, 2, 3)}, "a number for each target"),
        ({"weights": (1, -1)}, "add up to 0"),
        ({"weights": {"z/*": (1, 2)}}, "matches no neutral name"),
        ({"method": "lerp", "t": {"a/*": 0.5}}, 'begin the mapping with "*"'),
        ({"base": {}}, "no base|has no"),
        ({"normalize": 1}, "normalize= is True or False"),
        ({"method": "dare_ties", "base": "a", "density": 0.5}, "needs seed="),
        ({"method": "dare_ties", "base": "a", "density": 0.5, "seed": 0.5}, "seed= must be an int"),
        ({"method": "della", "base": "a", "density": 0.1, "seed": 0, "epsilon": 0.2}, "probabilities"),
        ({"method": "ties", "base": "a", "density": 0.5, "rescale": "l2"}, 'rescale= is "density"'),
        ({"method": "della", "base": "a", "density": 0.5, "seed": 0, "per": "unit"}, "has no axis 'unit'"),
        ({"method": "della", "base": "a", "density": 0.5, "seed": 0, "per": 2}, "has no axis 2"),
        ({"layout": "torch"}, 'layout= is "neutral"'),
        ({"names": 3}, "names= is a mapping"),
        ({"names": [None, None]}, "for each target but the first"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    options = {**options, **({"base": params(2)} if options.get("base") == "a" else {})}
    with pytest.raises(xw.XweightsError, match=said):
        xw.merge([params(0), params(1)], **options)


@pytest.mark.parametrize("targets", [{"a": np.ones(1)}, [], None])
def test_targets_are_a_list(targets: Any) -> None:
    with pytest.raises(xw.ArgumentError, match="list of targets"):
        xw.merge(targets)


@pytest.mark.parametrize("count", [1, 3])
def test_an_interpolation_takes_two_targets(count: int) -> None:
    with pytest.raises(xw.ArgumentError, match=f"'slerp' merges 2 targets\n.*got: {count}"):
        xw.merge([params(i) for i in range(count)], "slerp", t=0.5)


def test_a_target_that_is_none_is_named_by_its_place() -> None:
    with pytest.raises(xw.TargetError, match="target 1: "):
        xw.merge([params(0), np.ones(3)])


# Values that aren't merged, or not finite.


@pytest.mark.parametrize("method", ["average", "slerp", "ties"])
def test_nonfinite_entries_are_counted_for_every_target_and_refused(method: str, tmp_path: Path) -> None:
    a, b, base = params(0), params(1), params(2)
    a["a/kernel"][0] = np.nan
    b["b/kernel"][0, 0] = np.inf
    options: dict[str, Any] = {"average": {}, "slerp": {"t": 0.5}, "ties": {"density": 0.5, "base": base}}[method]
    path = tmp_path / "out.npz"
    for more in ({}, {"out": path}, {"into": base}):
        with pytest.raises(xw.NonfiniteError) as found:
            xw.merge([a, b], method, **options, **more)
        assert "'a/kernel' of target 0: 3 of 12 entries aren't finite" in str(found.value)
        assert "'b/kernel' of target 1: 1 of 6 entries aren't finite" in str(found.value)
    assert not list(tmp_path.iterdir())
    assert xw.equal(base, params(2))
    assert np.isnan(xw.merge([a, b], method, allow_nonfinite=True, **options)["a/kernel"][0]).all()


def test_a_target_without_weight_is_not_looked_at() -> None:
    a, b = params(0), params(1)
    b["a/kernel"][:] = np.nan
    assert xw.equal(xw.merge([a, b], weights=(1, 0)), a)


def test_a_result_that_its_dtype_cannot_hold_is_refused() -> None:
    a = {"w": np.array([60000.0], np.float16)}
    with pytest.raises(xw.NonfiniteError, match="1 merged entries are too large for float16"):
        xw.merge([a, a], "task_arithmetic", base={"w": np.zeros(1, np.float16)})


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.bool_])
def test_integers_and_bools_are_kept_where_they_are_equal_and_refused_where_they_differ(kind: Any) -> None:
    a, b = params(0, step=np.array([1, 0], kind)), params(1, step=np.array([1, 0], kind))
    merged = xw.merge([a, b])["step"]
    assert merged.dtype == kind
    assert merged.tolist() == [1, 0]
    assert not np.shares_memory(merged, a["step"])
    b["step"][1] = 1
    with pytest.raises(xw.DtypeError, match=r"'step' is .* isn't merged, and differs in target 1"):
        xw.merge([a, b])
    assert "step" not in xw.merge([a, b], where="*/kernel")


def test_counters_are_the_first_ones_and_may_be_absent_elsewhere() -> None:
    a = params(0, **{"norm/num_batches_tracked": np.array(3)})
    b = params(1, **{"norm/num_batches_tracked": np.array(8)})
    assert xw.merge([a, b])["norm/num_batches_tracked"] == 3
    assert xw.merge([a, params(1)])["norm/num_batches_tracked"] == 3
    assert "norm/num_batches_tracked" not in xw.merge([params(1), a])


def test_other_dtypes_are_refused_or_rounded_once_to_the_first_ones() -> None:
    a, b = params(0), params(1, np.float64)
    with pytest.raises(xw.DtypeError, match="cast=True"):
        xw.merge([a, b])
    merged = xw.merge([a, b], cast=True)["a/kernel"]
    assert merged.dtype == np.float32
    assert np.array_equal(merged, ((a["a/kernel"] + b["a/kernel"]) / 2).astype(np.float32))
    assert xw.merge([b, a], cast=True)["a/kernel"].dtype == np.float64


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_narrow_dtypes_are_merged_in_float32_and_rounded_once(kind: Any) -> None:
    a, b = params(0, kind), params(1, kind)
    merged = xw.merge([a, b], weights=(1, 2))["a/kernel"]
    exact = (a["a/kernel"].astype(np.float64) + 2 * b["a/kernel"].astype(np.float64)) / 3
    assert merged.dtype == kind
    assert np.array_equal(merged.view(np.uint8), exact.astype(np.float32).astype(kind).view(np.uint8))


# Tied parameters.


def test_a_tied_parameter_is_merged_once_and_meets_whichever_name_the_other_has() -> None:
    shared = np.ones((2, 2))
    tied = {"in/embeddings": shared, "out/kernel": shared}
    for name in tied:
        merged = xw.merge([tied, {name: np.full((2, 2), 3.0)}])
        assert {name: array.tolist() for name, array in merged.items()} == {"in/embeddings": [[2.0, 2.0], [2.0, 2.0]]}


@pytest.mark.parametrize("shared_first", [True, False])
@pytest.mark.parametrize("changed", [3.0, 5.0])
def test_an_array_that_is_tied_in_one_target_stands_for_both_of_another(shared_first: bool, changed: float) -> None:
    shared = np.ones((2, 2))
    tied = {"in/embeddings": shared, "out/kernel": shared, "b": np.zeros(1)}
    untied = {"in/embeddings": np.full((2, 2), 3.0), "out/kernel": np.full((2, 2), changed), "b": np.ones(1)}
    merged = xw.merge([tied, untied] if shared_first else [untied, tied])
    # Names don't depend on values: two arrays also where they happen to be equal.
    assert {name: array.flat[0] for name, array in merged.items()} == {
        "in/embeddings": 2.0,
        "out/kernel": (1 + changed) / 2,
        "b": 0.5,
    }
    assert xw.merge([tied, untied], weights={"*": (1, 1), "out/*": (0, 1)})["out/kernel"].flat[0] == changed
    assert list(xw.merge([tied, untied], where="out/*")) == ["out/kernel"]


def test_a_target_that_does_not_know_its_ties_learns_them_from_another() -> None:
    shared = np.ones((2, 2))
    tied, headless = {"in/emb": shared, "out/kernel": shared}, {"in/emb": np.full((2, 2), 4.0)}
    untied = {"in/emb": np.full((2, 2), 7.0), "out/kernel": np.full((2, 2), 10.0)}
    for targets in ([tied, headless, untied], [headless, untied, tied], [untied, tied, headless]):
        merged = xw.merge(targets)
        assert {name: array.flat[0] for name, array in merged.items()} == {"in/emb": 4.0, "out/kernel": 5.0}
    with pytest.raises(xw.SelectionError) as found:
        xw.merge([headless, untied])
    assert "Fix: put target 1 first, with names={'out/kernel': 'in/emb'} if it is tied to that there" in str(
        found.value
    )
    with pytest.raises(xw.SelectionError, match=r"Fix: names=\{'out/kernel': 'in/emb'\} if it is tied"):
        xw.merge([untied, headless])
    assert xw.merge([untied, headless], names={"out/kernel": "in/emb"})["out/kernel"].flat[0] == 7.0


def test_three_names_of_one_array_are_told_apart_as_far_as_another_target_does() -> None:
    shared = np.zeros(2)
    tied = {"a": shared, "b": shared, "c": shared}
    merged = xw.merge([tied, {"a": np.full(2, 2.0), "b": (both := np.full(2, 4.0)), "c": both}])
    assert {name: array.tolist() for name, array in merged.items()} == {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    merged = xw.merge([tied, {"a": both, "b": np.full(2, 6.0), "c": both}, {"a": both, "b": both, "c": shared}])
    assert sorted(merged) == ["a", "b", "c"]


def test_two_arrays_are_never_written_to_one() -> None:
    shared = np.ones((2, 2))
    tied = {"in/emb": shared, "out/kernel": shared}
    untied = {"in/emb": np.full((2, 2), 3.0), "out/kernel": np.full((2, 2), 5.0)}
    for targets in ([tied, untied], [untied, tied], [untied, untied]):
        with pytest.raises(
            xw.SelectionError, match="'in/emb' and 'out/kernel' are two arrays of the result and one tied"
        ):
            xw.merge(targets, into=tied)
    assert (shared == 1).all()
    xw.merge([tied, tied], into=untied)
    assert {name: array.flat[0] for name, array in untied.items()} == {"in/emb": 1.0, "out/kernel": 1.0}


# Where the result goes.


def test_into_writes_in_place_whatever_is_among_the_targets() -> None:
    a, b = params(0), params(1)
    expected = xw.merge([a, b])
    places = dict(a.items())
    assert xw.merge([a, b], into=a) is None
    assert xw.equal(a, expected)
    assert all(a[name] is place for name, place in places.items())


def test_into_may_have_other_names_and_axes_and_is_rounded_once_to_its_dtypes() -> None:
    a, b = params(0), params(1)
    target = xw.Params(
        {f"model/{n}": np.zeros(v.T.shape, np.float16) for n, v in a.items()},
        axes={f"model/{n}": x[::-1] for n, x in a.axes.items()},
    )
    with pytest.raises(xw.DtypeError, match="of into has another dtype"):
        xw.merge([a, b], into=target, names={"*": "model/*"})
    xw.merge([a, b], into=target, names={"*": "model/*"}, cast=True)
    expected = xw.merge([a, b])
    assert all(np.array_equal(target[f"model/{n}"], expected[n].T.astype(np.float16)) for n in expected)


def test_into_has_to_have_all_that_is_merged_and_nothing_else() -> None:
    target = {"a/kernel": np.zeros((4, 3), np.float32), "z": np.zeros(1)}
    with pytest.raises(xw.SelectionError, match="into has no 'b/kernel'") as found:
        xw.merge([params(0), params(1)], into=target, layout="neutral")
    assert "into has 'z', and target 0 hasn't" in str(found.value)
    xw.merge([params(0), params(1)], into=target, where="a/kernel", layout="neutral")
    assert np.array_equal(target["a/kernel"], xw.merge([params(0), params(1)])["a/kernel"])


def test_a_read_only_array_as_into_changes_nothing() -> None:
    target = params(2)
    target["b/kernel"].flags.writeable = False
    with pytest.raises(xw.WriteError, match="read-only"):
        xw.merge([params(0), params(1)], into=target)
    assert xw.equal(target, params(2))


def test_holds_on_the_target_merged_into_are_reapplied() -> None:
    target = params(2)
    before = target.copy()
    with xw.hold(target, xw.Clip(-0.1, 0.1), where="a/kernel"), xw.freeze(target, where="b/kernel"):
        xw.merge([params(0), params(1)], into=target)
        merged = xw.merge([params(0), params(1)])
        assert np.array_equal(target["a/kernel"], np.clip(merged["a/kernel"], np.float32(-0.1), np.float32(0.1)))
        assert np.array_equal(target["b/kernel"], before["b/kernel"])
        assert np.array_equal(target["a/bias"], merged["a/bias"])


def test_a_path_is_written_by_out_not_by_into(tmp_path: Path) -> None:
    with pytest.raises(xw.ArgumentError, match="Fix: out="):
        xw.merge([params(0), params(1)], into=tmp_path / "x.npz")


def test_into_and_out_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(xw.ArgumentError, match="into= and out="):
        xw.merge([params(0), params(1)], into=params(2), out=tmp_path / "x.npz")
