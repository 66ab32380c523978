"""Pruning: exact counts and ties, against a brute-force sort on (score, name, index)."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import xweights as xw
from xweights.core.blocks import BLOCK
from xweights.core.numpy_backend import NumpyOps
from xweights.core.targets import open_target
from xweights.rules.pruning import host_masks

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
MANY_TIES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 0.1, np.inf, -np.inf])
AXES = ("h", "in", "out")


def brute_force(scores: dict[str, np.ndarray], drop: int) -> dict[str, np.ndarray]:
    """Sort every entry on (score, name, flat index) and drop the first ones."""
    flat = [(float(x), name, i) for name, array in scores.items() for i, x in enumerate(array.ravel().tolist())]
    kept = {name: np.ones(array.size, bool) for name, array in scores.items()}
    for _, name, i in sorted(flat)[:drop]:
        kept[name][i] = False
    return {name: kept[name].reshape(array.shape) for name, array in scores.items()}


def magnitudes(target) -> dict[str, np.ndarray]:
    return {name: np.abs(array.astype(np.float64)) for name, array in target.items()}


def arrays_of(dtype):
    wide = arrays(np.float64, array_shapes(max_dims=3, max_side=4), elements=MANY_TIES)
    return wide.map(lambda array: array.astype(dtype))


weights = st.dictionaries(
    st.sampled_from(["b/kernel", "a/kernel", "Z/kernel", "é/kernel", "a/0/kernel"]),
    st.sampled_from(FLOATS).flatmap(arrays_of),
    min_size=1,
)


@given(weights, st.floats(0, 1))
def test_each_parameter_loses_exactly_its_share_of_its_smallest(target, fraction: float) -> None:
    expected = {}
    for name, score in magnitudes(target).items():
        expected |= brute_force({name: score}, math.floor(fraction * score.size + 0.5))
    before = {name: array.copy() for name, array in target.items()}
    masks = xw.prune(target, fraction=fraction)
    for name in target:
        assert np.array_equal(masks[name], expected[name])
        bits = before[name].view(f"u{before[name].dtype.itemsize}").copy()
        bits[~expected[name]] = 0
        assert np.array_equal(target[name].view(bits.dtype), bits)


@given(weights, st.floats(0, 1))
def test_all_together_lose_exactly_their_share_whatever_their_dtypes(target, fraction: float) -> None:
    drop = math.floor(fraction * sum(array.size for array in target.values()) + 0.5)
    expected = brute_force(magnitudes(target), drop)
    masks = xw.prune(target, fraction=fraction, scope="global")
    assert sum(int((~mask).sum()) for mask in masks.values()) == drop
    for name in target:
        assert np.array_equal(masks[name], expected[name])


@given(weights, st.data())
def test_a_count_is_kept_exactly(target, data) -> None:
    count = data.draw(st.integers(0, sum(array.size for array in target.values())))
    expected = brute_force(magnitudes(target), count)
    masks = xw.prune(target, count=count, scope="global")
    assert all(np.array_equal(masks[name], expected[name]) for name in target)


def test_an_edge_of_float64_between_two_float32_numbers_is_no_tie() -> None:
    single = np.array([1.0, 2.0], np.float32)
    target = {"a/kernel": single, "b/kernel": np.array([1.0 + 1e-12, 3.0])}
    masks = xw.prune(target, count=2, scope="global")
    assert (masks["a/kernel"].tolist(), masks["b/kernel"].tolist()) == ([False, True], [False, True])
    target = {"a/kernel": np.array([1.0, 2.0], np.float32), "b/kernel": np.array([1.0 - 1e-12, 3.0])}
    masks = xw.prune(target, count=1, scope="global")
    assert (masks["a/kernel"].tolist(), masks["b/kernel"].tolist()) == ([True, True], [False, True])


def test_ties_fall_by_the_code_points_of_names_and_then_by_index() -> None:
    target = {name: np.ones(2) for name in ("b/kernel", "a/kernel", "Z/kernel", "é/kernel")}
    masks = xw.prune(target, count=5, scope="global")
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "Z/kernel": 0,
        "a/kernel": 0,
        "b/kernel": 1,
        "é/kernel": 2,
    }
    assert masks["b/kernel"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("size", "fraction", "drop"), [(5, 0.1, 1), (5, 0.5, 3), (4, 0.125, 1), (3, 0.1, 0), (7, 1.0, 7)]
)
def test_a_share_is_rounded_half_up(size: int, fraction: float, drop: int) -> None:
    assert (~xw.prune({"kernel": np.ones(size)}, fraction=fraction)["kernel"]).sum() == drop


def test_entries_that_are_zero_already_count() -> None:
    target = {"kernel": np.array([0.0, 0.0, 0.0, 1.0])}
    xw.prune(target, fraction=0.5)
    assert target["kernel"][3] == 1.0


def test_ties_across_blocks_fall_in_flat_order_of_the_neutral_array() -> None:
    shape = (3, BLOCK // 2 + 11, 2)
    target = {"kernel": np.ones(shape, np.float32, order="F")}
    drop = BLOCK + 4321
    mask = xw.prune(target, count=drop)["kernel"]
    assert np.array_equal(np.ravel(mask), np.arange(mask.size) >= drop)


# Thresholds.


@pytest.mark.parametrize("dtype", FLOATS)
@given(
    weights=arrays(np.float64, st.integers(1, 8), elements=st.sampled_from([0.0, -0.0, 0.1, -0.1, 0.3, 1e-7, 0.10003])),
    threshold=st.sampled_from([0.0, -0.0, 0.1, 0.3, 1e-7, 1e-50, 0.0999756, 0.10003]),
)
def test_a_threshold_drops_exactly_the_magnitudes_up_to_it_however_the_dtype_rounds(dtype, weights, threshold) -> None:
    target = {"kernel": weights.astype(dtype)}
    expected = np.abs(target["kernel"].astype(np.float64)) > threshold
    assert np.array_equal(xw.prune(target, threshold=threshold)["kernel"], expected)


def test_a_threshold_beyond_the_dtype_is_refused_and_infinity_is_kept_by_a_finite_one() -> None:
    target = {"kernel": np.array([np.inf, 3.0], np.float16)}
    assert xw.prune(target, threshold=65504.0)["kernel"].tolist() == [True, False]
    with pytest.raises(xw.DtypeError, match="overflows float16"):
        xw.prune(target, threshold=1e6)


# Units, blocks and patterns.


@pytest.mark.parametrize("per", ["out", "in", ("h", "out")])
@pytest.mark.parametrize("scope", ["each", "global"])
@given(array=arrays(np.float32, (2, 3, 4), elements=st.sampled_from([0.0, 1.0, -1.0, 2.0])), count=st.integers(0, 3))
def test_whole_units_fall_by_their_norm(per, scope: str, array: np.ndarray, count: int) -> None:
    wanted = (per,) if isinstance(per, str) else per
    others = tuple(i for i, axis in enumerate(AXES) if axis not in wanted)
    norms = np.sqrt((array.astype(np.float64) ** 2).sum(axis=others, keepdims=True))
    expected = np.broadcast_to(brute_force({"kernel": norms}, count)["kernel"], array.shape)
    target = xw.Params({"kernel": array}, axes={"kernel": AXES})
    mask = xw.prune(target, count=count, per=per, scope=scope)["kernel"]
    assert np.array_equal(mask, expected)
    assert mask.flags.writeable


@given(arrays(np.float32, (4, 6), elements=st.sampled_from([0.0, 1.0, -1.0, 2.0])), st.integers(0, 6))
def test_whole_blocks_fall_by_their_norm(array: np.ndarray, count: int) -> None:
    target = xw.Params({"kernel": array.copy()}, axes={"kernel": ("in", "out")})
    masks = xw.prune(target, count=count, block={"in": 2, "out": 2})
    norms = np.sqrt((array.reshape(2, 2, 3, 2).astype(np.float64) ** 2).sum(axis=(1, 3)))
    expected = np.kron(brute_force({"kernel": norms}, count)["kernel"], np.ones((2, 2))).astype(bool)
    assert np.array_equal(masks["kernel"], expected)


@pytest.mark.parametrize(("n", "m", "axis"), [(2, 4, "in"), (1, 2, "out"), (0, 4, "in"), (4, 4, "in"), (1, 3, "h")])
@given(array=arrays(np.float16, (3, 4, 2), elements=MANY_TIES))
def test_n_of_m_keeps_the_n_largest_of_every_m_along_an_axis(n: int, m: int, axis: str, array: np.ndarray) -> None:
    at = AXES.index(axis)
    expected = np.ones(array.shape, bool)
    for where in np.ndindex(*(k for i, k in enumerate(array.shape) if i != at)):
        line = (*where[:at], slice(None), *where[at:])
        for start in range(0, array.shape[at], m):
            group = np.abs(array[line][start : start + m].astype(np.float64))
            for i in sorted(range(m), key=lambda i: (group[i], i))[: m - n]:
                expected[(*where[:at], start + i, *where[at:])] = False
    target = xw.Params({"kernel": array.copy()}, axes={"kernel": AXES})
    assert np.array_equal(xw.prune(target, pattern=(n, m, axis))["kernel"], expected)


# Scores.


@given(arrays(np.float32, (2, 3, 4), elements=st.floats(-4, 4, width=32)), st.floats(0, 1))
def test_a_score_function_decides_instead_of_the_magnitude(array: np.ndarray, fraction: float) -> None:
    drop = math.floor(fraction * array.size + 0.5)
    expected = brute_force({"kernel": array.astype(np.float64) * 2}, drop)["kernel"]
    assert np.array_equal(
        xw.prune({"kernel": array.copy()}, fraction=fraction, score=lambda w: w * 2)["kernel"], expected
    )


def test_scores_by_name_decide_and_units_sum_them() -> None:
    target = xw.Params({"kernel": np.ones((2, 2))}, axes={"kernel": ("in", "out")})
    scores = {"kernel": np.array([[1.0, -5.0], [1.0, 6.0]])}
    assert xw.prune(target.copy(), count=1, score=scores)["kernel"].tolist() == [[True, False], [True, True]]
    assert xw.prune(target.copy(), count=1, per="out", score=scores)["kernel"].tolist() == [
        [True, False],
        [True, False],
    ]
    assert xw.prune(target.copy(), pattern=(1, 2, "in"), score=scores)["kernel"].tolist() == [
        [False, False],
        [True, True],
    ]


def test_a_score_function_sees_the_weights_read_only() -> None:
    def meddling(w):
        w[:] = 0
        return w

    target = {"kernel": np.ones(3)}
    with pytest.raises(ValueError, match="read-only"):
        xw.prune(target, fraction=0.5, score=meddling)
    assert target["kernel"].all()


@pytest.mark.parametrize(
    ("score", "kind"),
    [
        (lambda w: w[:1, :1, :1].repeat(9), xw.ShapeError),
        (lambda w: None, xw.ArgumentError),
        (lambda w: np.full(w.shape, np.nan), xw.NonfiniteError),
        ({"other": 1.0}, xw.SelectionError),
        ({"kernel": np.ones(7)}, xw.ShapeError),
    ],
)
def test_a_score_that_can_not_be_used_is_refused(score, kind) -> None:
    target = {"kernel": np.ones((2, 3, 4))}
    with pytest.raises(kind):
        xw.prune(target, fraction=0.5, score=score)
    assert target["kernel"].all()


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "exactly one of"),
        ({"fraction": 0.5, "count": 3}, "exactly one of"),
        ({"fraction": 1}, r"float between 0.0 and 1.0\ngot: 1\nFix: count="),
        ({"fraction": True}, "float between"),
        ({"fraction": 1.5}, "between 0.0 and 1.0"),
        ({"fraction": -0.1}, "between 0.0 and 1.0"),
        ({"fraction": math.nan}, "between 0.0 and 1.0"),
        ({"count": 1.0}, "whole number"),
        ({"count": -1}, "whole number"),
        ({"count": True}, "whole number"),
        ({"threshold": -1.0}, "threshold="),
        ({"threshold": math.inf}, "threshold="),
        ({"threshold": math.nan}, "threshold="),
        ({"count": 7}, "count=7 is more than"),
        ({"count": 7, "scope": "global"}, "count=7 is more than"),
        ({"fraction": 0.5, "scope": "all"}, "scope="),
        ({"fraction": 0.5, "per": "out", "block": {"in": 2}}, "not both"),
        ({"pattern": (2, 4)}, "keep n of m"),
        ({"pattern": (5, 4, "in")}, "0 <= n <= m"),
        ({"pattern": (1, 2, "in"), "per": "out"}, "goes with neither"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, text: str) -> None:
    target = {"kernel": np.ones((2, 3))}
    with pytest.raises(xw.ArgumentError, match=text):
        xw.prune(target, **arguments)
    assert target["kernel"].all()


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"pattern": (2, 4, "in")}, xw.ShapeError),
        ({"pattern": (1, 2, "h")}, xw.LayoutError),
        ({"fraction": 0.5, "per": "h"}, xw.LayoutError),
        ({"fraction": 0.5, "block": {"h": 2}}, xw.LayoutError),
        ({"fraction": 0.5, "block": {"out": 2}}, xw.ShapeError),
        ({"fraction": 0.5, "block": {}}, xw.LayoutError),
    ],
)
def test_axes_that_are_not_there_or_do_not_divide_are_refused(arguments, kind) -> None:
    target = xw.Params({"kernel": np.ones((2, 3))}, axes={"kernel": ("in", "out")})
    with pytest.raises(kind):
        xw.prune(target, **arguments)
    assert target["kernel"].all()


@pytest.mark.parametrize("scope", ["each", "global"])
@pytest.mark.parametrize(
    "prune",
    [xw.prune, lambda target, **words: xw.apply(target, xw.Prune(**words), where=...)],
    ids=["verb", "rule"],
)
def test_nan_is_refused_and_nothing_is_written(scope: str, prune) -> None:
    target = {"a/kernel": np.ones(3), "b/kernel": np.array([1.0, np.nan, 1.0])}
    with pytest.raises(xw.NonfiniteError, match="'b/kernel' has NaN"):
        prune(target, fraction=0.5, scope=scope)
    assert target["a/kernel"].all()


def test_the_rule_applied_is_the_verb() -> None:
    by_verb = {"a/kernel": np.arange(-5.0, 5.0), "b/kernel": np.arange(7.0)}
    by_rule = {name: array.copy() for name, array in by_verb.items()}
    xw.prune(by_verb, fraction=0.4, scope="global")
    xw.apply(by_rule, xw.Prune(fraction=0.4, scope="global"), where=...)
    assert xw.equal(by_verb, by_rule)


# The traced way, made of ops, decides as the host does.

SCORES = np.arange(32.0).reshape(2, 4, 4) % 5
VARIANTS = {
    "fraction": {"fraction": 0.4},
    "count": {"count": 5},
    "global": {"fraction": 0.6, "scope": "global"},
    "global count": {"count": 9, "scope": "global"},
    "threshold": {"threshold": 0.5},
    "threshold that rounds": {"threshold": 0.1},
    "per out": {"fraction": 0.5, "per": "out"},
    "per two": {"count": 3, "per": ("h", "out")},
    "per global": {"fraction": 0.5, "per": "in", "scope": "global"},
    "per threshold": {"threshold": 2.0, "per": "out"},
    "block": {"fraction": 0.5, "block": {"in": 2}},
    "block global": {"count": 3, "block": {"in": 2, "out": 4}, "scope": "global"},
    "pattern": {"pattern": (1, 2, "in")},
    "pattern out": {"pattern": (2, 4, "out")},
    "score": {"fraction": 0.4, "score": lambda w: w * w},
    "score global": {"fraction": 0.4, "score": lambda w: w * w, "scope": "global"},
    "score threshold": {"threshold": 1.0, "score": lambda w: w * w},
    "score per": {"fraction": 0.5, "per": "out", "score": lambda w: w * w},
    "score pattern": {"pattern": (1, 2, "in"), "score": lambda w: w * w},
    "scores by name": {"fraction": 0.4, "score": {"a/kernel": SCORES, "b/kernel": SCORES}},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", FLOATS)
@given(one=arrays(np.float64, (2, 4, 4), elements=MANY_TIES), two=arrays(np.float64, (2, 4, 4), elements=MANY_TIES))
def test_the_traced_implementation_gives_the_masks_of_the_host(variant: str, dtype, one, two) -> None:
    rule = xw.Prune(**VARIANTS[variant])
    arrays = {"b/kernel": one.astype(dtype), "a/kernel": two.astype(dtype)}
    chosen = open_target(xw.Params(arrays, axes=dict.fromkeys(arrays, AXES)))
    with np.errstate(all="ignore"):
        traced = rule.measure([p.handle for p in chosen], NumpyOps(), chosen, [rule.operands(p) for p in chosen])
        on_host = host_masks(rule, chosen)
    assert [mask.tolist() for mask in traced] == [mask.tolist() for mask in on_host]
