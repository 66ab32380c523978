"""``adapt=`` brings values to another shape, as it is told, and refuses what it can't do."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from small_target import stored

import xweights as xw
from xweights.core.layout import layout_of
from xweights.edit.adapt.along_axis import sum_in_order
from xweights.edit.adapting import layout_of_neutral, layout_of_shape

A = xw.adapt
RNG = np.random.default_rng(0)


def adapt(value, shape, adapter, *, axes=None, name="kernel", dtype=np.float32, current=None, **options):
    """Return what a target of this shape has after it was given the value."""
    array = np.zeros(shape, dtype) if current is None else np.array(current, dtype)
    target = xw.Params({name: array}, axes={name: axes})
    xw.set_params(target, {name: np.asarray(value, dtype)}, adapt={name: adapter}, **options)
    return target[name]


# One axis.

RGB = RNG.normal(size=(3, 3, 3, 4)).astype(np.float32)  # h, w, in, out
CONV = ("h", "w", "in", "out")


@pytest.mark.parametrize("axis", ["in", 2, -2])
def test_a_sum_over_an_axis_makes_rgb_gray(axis) -> None:
    got = adapt(RGB, (3, 3, 1, 4), A.Sum(axis), axes=CONV)
    assert np.array_equal(got, RGB.astype(np.float64).sum(2, keepdims=True).astype(np.float32))


def test_a_mean_is_the_sum_divided() -> None:
    got = adapt(RGB, (3, 3, 1, 4), A.Mean("in"), axes=CONV)
    assert np.allclose(got, RGB.mean(2, keepdims=True), rtol=1e-6)
    assert np.array_equal(adapt([[1], [2], [6]], (1, 1), A.Mean(0)), [[3]])


def test_groups_sum_neighbours_as_for_stems_behind_space_to_depth() -> None:
    value = np.arange(12, dtype=np.float32).reshape(1, 12)
    assert np.array_equal(adapt(value, (1, 4), A.Sum(1, groups=4)), [[3, 12, 21, 30]])
    assert np.array_equal(adapt(value, (1, 4), A.Mean(1, groups=4)), [[1, 4, 7, 10]])


def test_a_repeat_takes_the_entries_in_turn_and_keeps_the_sum_if_told_to() -> None:
    value = [[1.0, 2.0]]
    assert np.array_equal(adapt(value, (3, 2), A.Repeat(0)), [[1, 2]] * 3)
    assert np.array_equal(adapt(value, (1, 5), A.Repeat(1)), [[1, 2, 1, 2, 1]])
    assert np.array_equal(adapt(value, (4, 2), A.Repeat(0, keep_sum=True)), np.full((4, 2), [0.25, 0.5]))


def test_rgb_as_gray_and_back_gives_a_third_of_the_sum_to_each_channel() -> None:
    got = adapt(RGB, RGB.shape, [A.Sum("in"), A.Repeat("in", keep_sum=True)], axes=CONV)
    assert np.allclose(got.sum(2), RGB.sum(2), atol=1e-5)
    assert np.array_equal(got[:, :, 0], got[:, :, 2])


def test_take_takes_positions_in_the_order_given() -> None:
    value = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert np.array_equal(adapt(value, (2, 3), A.Take(1, [3, 0, -1])), value[:, [3, 0, 3]])
    assert np.array_equal(adapt(value, (2, 2), A.Take(1, slice(0, None, 2))), value[:, ::2])
    assert np.array_equal(adapt(value, (2, 2), A.Take(1, np.array([1, 2]))), value[:, 1:3])


@pytest.mark.parametrize(("init", "expected"), [("zeros", 0), ("ones", 1), ("mean", 2), ("keep", 7)])
def test_pad_adds_entries_at_the_end_or_at_the_start(init, expected) -> None:
    assert np.array_equal(adapt([1, 3], (3,), A.Pad(0, init=init), current=[7, 7, 7]), [1, 3, expected])
    assert np.array_equal(adapt([1, 3], (3,), A.Pad(0, init=init, at="start"), current=[7, 7, 7]), [expected, 1, 3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.float16])
def test_a_random_pad_has_what_init_draws_there(dtype) -> None:
    drawn = {"dense/kernel": np.zeros((5, 4), dtype)}
    xw.init(drawn, "normal", seed=3, std=0.5)
    value = np.ones((3, 4), dtype)
    got = adapt(value, (5, 4), A.Pad(0, init="normal", seed=3, std=0.5), name="dense/kernel", dtype=dtype)
    assert np.array_equal(got[:3], value)
    assert np.array_equal(got[3:], drawn["dense/kernel"][3:])


def test_a_function_may_be_the_initializer() -> None:
    got = adapt([1, 1], (4,), A.Pad(0, init=lambda shape, source: np.arange(shape[0])))
    assert np.array_equal(got, [1, 1, 2, 3])


def test_a_list_of_adapters_is_applied_in_its_order() -> None:
    value = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(adapt(value, (1, 3), [A.Sum(0), A.Pad(1)]), [[6, 9, 0]])


def test_integers_and_bools_are_copied_and_never_summed() -> None:
    assert np.array_equal(adapt([1, 2], (3,), A.Take(0, [0, 1, 1]), dtype=np.int64), [1, 2, 2])
    assert np.array_equal(adapt([True], (2,), A.Pad(0), dtype=bool), [True, False])
    for adapter in (A.Sum(0), A.Mean(0), A.Pad(0, init="mean"), A.Repeat(0, keep_sum=True), A.Pad(0, init="normal")):
        with pytest.raises(xw.DtypeError):
            adapt([1, 2], (3,), adapter, dtype=np.int64)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 1023, 1025, 2500])
def test_a_sum_in_order_is_the_sum(length) -> None:
    rows = RNG.normal(size=(length, 3)).astype(np.float32)
    assert np.allclose(sum_in_order(rows, 0), rows.astype(np.float64).sum(0), rtol=1e-12, atol=1e-12)
    assert np.array_equal(sum_in_order(rows, 0), sum_in_order(np.asfortranarray(rows), 0))


# Vocabularies.

OLD = np.array([[1, 1], [2, 2], [6, 6]], np.float32)


def test_rows_go_where_their_tokens_are() -> None:
    rows = A.Rows(old=["a", "b", "c"], new=["c", "new", "a", "b"])
    assert np.array_equal(adapt(OLD, (4, 2), rows, name="embeddings"), [[6, 6], [3, 3], [1, 1], [2, 2]])


def test_vocabularies_may_be_mappings_and_shorter_than_the_padded_table() -> None:
    rows = A.Rows(old={"a": 0, "b": 2}, new={"b": 0}, init="zeros")
    assert np.array_equal(adapt(OLD, (3, 2), rows, name="embeddings"), [[6, 6], [0, 0], [0, 0]])


@pytest.mark.parametrize("rows", [{0: 2, 2: 1}, [2, None, 1]])
def test_rows_may_be_matched_by_their_numbers(rows) -> None:
    got = adapt(OLD, (3, 2), A.Rows(rows=rows, init="keep"), name="embeddings", current=[[9, 9]] * 3)
    assert np.array_equal(got, [[6, 6], [9, 9], [2, 2]])


def test_without_tokens_rows_match_by_position_and_none_is_dropped() -> None:
    assert np.array_equal(adapt(OLD, (4, 2), A.Rows(), name="embeddings"), [*OLD, [3, 3]])
    with pytest.raises(xw.ShapeError, match="would drop 1 rows"):
        adapt(OLD, (2, 2), A.Rows(), name="embeddings")


def test_a_head_has_its_vocabulary_at_another_axis() -> None:
    rows = A.Rows(old=["a", "b"], new=["b", "a", "c"], axis="out", init="zeros")
    assert np.array_equal(adapt([[1, 2]], (1, 3), rows, axes=("in", "out")), [[2, 1, 0]])
    with pytest.raises(xw.LayoutError, match="axis='out'"):
        adapt([[1, 2]], (1, 3), A.Rows(), axes=("in", "out"))


def test_all_rows_known_needs_no_initializer() -> None:
    assert np.array_equal(
        adapt([[1], [2]], (2, 1), A.Rows(["a", "b"], ["b", "a"]), name="embeddings", dtype=int), [[2], [1]]
    )


# What is refused, with nothing changed.

REFUSED = {
    "an axis that isn't there": (A.Sum("depth"), xw.LayoutError, "has no axis 'depth'"),
    "a number beyond the axes": (A.Sum(2), xw.LayoutError, "has no axis 2"),
    "another result": (A.Sum("in"), xw.ShapeError, "makes another shape"),
    "groups that don't divide": (A.Sum("in", groups=2), xw.ShapeError, "can't divide the 3"),
    "a repeat to fewer": (A.Repeat("in", 2), xw.ShapeError, "can't make 2 of the 3"),
    "a pad to fewer": (A.Pad("in", 2), xw.ShapeError, "can't make 2 of the 3"),
    "a position beyond": (A.Take("in", [0, 3]), xw.ShapeError, "wants the position 3"),
    "a slice beyond": (A.Take("in", slice(5, 9)), xw.ShapeError, "takes none of the 3 entries"),
    "another grid": (A.Resample((2, 2), (3, 3)), xw.ShapeError, "isn't for 'kernel'"),
    "no vocabulary": (A.Rows(), xw.LayoutError, "none that is a vocabulary's"),
    "a class": (A.Sum, xw.ArgumentError, "the class Sum"),
    "no adapter": ("mean", xw.ArgumentError, "needs an adapter for 'kernel'"),
    "an empty list": ([], xw.ArgumentError, "needs an adapter"),
    "Leave among others": ([A.Sum(0), A.Leave()], xw.ArgumentError, "without Leave"),
    "tokens of other models": (A.Rows(["a"], ["b"], axis="in"), xw.SelectionError, "no token in common"),
    "more tokens than rows": (A.Rows(list("abcd"), ["a"], axis="in"), xw.ShapeError, "'d' in row 3"),
    "more new tokens than rows": (A.Rows(["a"], list("abcde"), axis="in"), xw.ShapeError, "'e' in row 4"),
    "rows beyond": (A.Rows(rows={0: 3}, axis="in"), xw.ShapeError, "new row 0 of old row 3"),
}


@pytest.mark.parametrize(("adapter", "kind", "text"), REFUSED.values(), ids=REFUSED)
def test_what_an_adapter_cannot_do_is_refused_by_name(adapter, kind, text) -> None:
    target = xw.Params({"kernel": np.zeros((4, 2)), "bias": np.zeros(2)}, axes={"kernel": ("in", "out")})
    with pytest.raises(kind, match=text):
        xw.set_params(target, {"kernel": np.ones((3, 2)), "bias": np.ones(2)}, adapt={"kernel": adapter})
    assert not any(array.any() for array in target.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: A.Sum(""), lambda: A.Sum(True), lambda: A.Sum(1.0), lambda: A.Sum("in", groups=0),
        lambda: A.Repeat("in", 0), lambda: A.Repeat("in", keep_sum=1), lambda: A.Take(0, 3), lambda: A.Take(0, "ab"),
        lambda: A.Take(0, [True, False]), lambda: A.Take(0, [0.5]), lambda: A.Pad(0, -1), lambda: A.Pad(0, at="middle"),
        lambda: A.Pad(0, init="zeroes"), lambda: A.Pad(0, init="mean", std=1.0),
        lambda: A.Pad(0, init="zeros", std=1.0),
        lambda: A.Pad(0, init="normal", seed=0.5), lambda: A.Rows(["a"]), lambda: A.Rows(new=["a"]),
        lambda: A.Rows(["a", "a"], ["a"]), lambda: A.Rows("ab", "ab"), lambda: A.Rows({"a": -1}, ["a"]),
        lambda: A.Rows(["a"], {"a": 0, "b": 0}), lambda: A.Rows([["a"]], ["a"]),
        lambda: A.Rows(["a"], ["a"], rows={0: 0}),
        lambda: A.Rows(rows={}), lambda: A.Rows(rows="ab"), lambda: A.Rows(rows={0: 1.5}), lambda: A.Rows(rows=[-1]),
        lambda: A.Resample((2, 2), (2,)), lambda: A.Resample((0, 2), (2, 2)),
        lambda: A.Resample((1, 1, 1, 1), (1, 1, 1, 1)),
        lambda: A.Resample((2, 2), (3, 3), skip=-1), lambda: A.Resample((2, 2), (3, 3), mode="cubic"),
        lambda: A.Resample((2, 2), (3, 3), antialias=1), lambda: A.Resample(("a", 2), (3, 3)),
    ],
)  # fmt: skip
def test_an_adapter_with_wrong_arguments_is_refused_when_it_is_made(make) -> None:
    with pytest.raises(xw.ArgumentError):
        make()


def test_a_key_that_matches_nothing_is_refused_with_near_names() -> None:
    target = {"stem/kernel": np.zeros((1, 2))}
    with pytest.raises(xw.SelectionError, match=r"'stem/kernl'[\s\S]*Near names: 'stem/kernel'"):
        xw.set_params(target, {"stem/kernel": np.ones((3, 2))}, adapt={"stem/kernl": A.Sum(0)})
    with pytest.raises(xw.ArgumentError, match="adapt= is a mapping"):
        xw.set_params(target, {"stem/kernel": np.ones((3, 2))}, adapt=A.Sum(0))
    with pytest.raises(xw.ArgumentError, match="keys of adapt="):
        xw.set_params(target, {"stem/kernel": np.ones((3, 2))}, adapt={0: A.Sum(0)})
    assert not target["stem/kernel"].any()


@pytest.mark.parametrize("adapter", [A.Pad("gate*unit"), A.Pad(1), A.Take(-1, range(8)), A.Repeat("gate*unit")])
def test_an_axis_that_packs_gates_is_not_adapted(adapter) -> None:
    axes = {"lstm/kernel": ("in", "gate*unit")}
    target = xw.Params({"lstm/kernel": np.zeros((3, 16))}, axes=axes)
    with pytest.raises(xw.LayoutError, match="packs several"):
        xw.set_params(target, {"lstm/kernel": np.ones((3, 8))}, adapt={"lstm/kernel": adapter})
    xw.set_params(target, {"lstm/kernel": np.ones((2, 16))}, adapt={"lstm/kernel": A.Pad("in")})
    assert target["lstm/kernel"].sum() == 32


def test_two_keys_for_one_parameter_are_refused() -> None:
    target = {"a/kernel": np.zeros((1, 2))}
    values = {"a/kernel": np.ones((3, 2))}
    with pytest.raises(xw.ArgumentError, match="two keys of adapt= match 'a/kernel'"):
        xw.set_params(target, values, adapt={"a/*": A.Sum(0), "a/kernel": A.Mean(0)})
    xw.set_params(target, values, adapt={"a/*": A.Sum(0), "*/kernel": A.Sum(0)})
    assert np.array_equal(target["a/kernel"], [[3, 3]])


def test_an_adapter_without_a_value_is_refused() -> None:
    target = {"a": np.zeros(2), "b": np.zeros(1)}
    with pytest.raises(xw.SelectionError, match="no value for what it matches"):
        xw.set_params(target, {"a": np.ones(2)}, strict=False, adapt={"b": A.Sum(0)})
    assert not target["a"].any()


def test_mismatched_skip_does_not_skip_an_adapter_that_fails() -> None:
    target = {"a": np.zeros(2), "b": np.zeros(1)}
    with pytest.raises(xw.ShapeError, match="makes another shape"):
        xw.set_params(target, {"a": np.ones(3), "b": np.ones(1)}, mismatched="skip", adapt={"a": A.Sum(0)})


def test_an_adapted_value_is_checked_as_any_other() -> None:
    value = np.array([1e38, 3e38], np.float32)
    with pytest.raises(xw.NonfiniteError):
        adapt(value, (1,), A.Sum(0))
    assert np.isinf(adapt(value, (1,), A.Sum(0), allow_nonfinite=True)).all()
    target = {"b": np.zeros(1, np.float16)}
    value = {"b": np.array([0.1, 0.2], np.float32)}
    with pytest.raises(xw.DtypeError):
        xw.set_params(target, value, adapt={"b": A.Sum(0)})
    xw.set_params(target, value, adapt={"b": A.Sum(0)}, cast=True)
    assert target["b"][0] == np.float16(0.3)


# An adapter from outside.


class Halve(A.Adapter):
    def check(self, shape, wanted):
        return (shape[0] // 2, *shape[1:])

    def __call__(self, array, wanted):
        return array[::2]


class Wrong(Halve):
    def __call__(self, array, wanted):
        return array


class Wide(Halve):
    def __call__(self, array, wanted):
        return array[::2].astype(np.float64)


def test_an_adapter_from_outside_is_taken_at_its_word_and_checked() -> None:
    assert np.array_equal(adapt([1, 2, 3, 4], (2,), Halve()), [1, 3])
    for wrong, kind in ((Wrong(), xw.ShapeError), (Wide(), xw.DtypeError)):
        with pytest.raises(kind, match="of 'kernel'"):
            adapt([1, 2, 3, 4], (2,), wrong)


class InPlace(Halve):
    def __call__(self, array, wanted):
        array *= 2
        return array[::2]


class Listed(Halve):
    def __call__(self, array, wanted):
        return array[::2].tolist()


def test_an_adapter_from_outside_can_not_change_the_values_that_it_is_given() -> None:
    target, values = {"kernel": np.zeros(2)}, {"kernel": np.arange(4.0)}
    for source in (values, xw.Params(dict(values))):
        with pytest.raises(ValueError, match="read-only"):
            xw.set_params(target, source, adapt={"kernel": InPlace()})
    assert np.array_equal(values["kernel"], np.arange(4.0))
    assert not target["kernel"].any()


def test_an_adapter_from_outside_that_returns_no_array_is_refused() -> None:
    with pytest.raises(xw.ArgumentError, match="of 'kernel' returns no NumPy array"):
        adapt([1, 2, 3, 4], (2,), Listed())


# Leave.


def test_leave_keeps_what_the_target_has_with_and_without_a_value() -> None:
    target = {"head/kernel": np.ones((2, 3)), "a": np.zeros(1)}
    for values in ({"a": [1.0]}, {"a": [1.0], "head/kernel": np.zeros((2, 9))}):
        report = xw.set_params(target, values, adapt={"head/*": A.Leave()})
        assert target["head/kernel"].all()
        assert report.left_in_model == {"head/kernel": "Leave()"}
        assert "head/kernel" not in report.taken
    assert list(report.left_in_file) == ["head/kernel"]


# The report, and what errors suggest.


def test_the_report_lists_what_was_adapted_and_how() -> None:
    target = {"embeddings": np.zeros((4, 2)), "b": np.zeros(1)}
    report = xw.set_params(target, {"embeddings": np.ones((3, 2)), "b": [1.0]}, adapt={"emb*": A.Rows()})
    assert report.adapted == {"embeddings": ("Rows(init='mean'): 3 rows matched, 1 new", (3, 2), (4, 2))}
    assert "adapted:         'embeddings': (3, 2) -> (4, 2) by Rows(init='mean')" in str(report)
    assert report.as_dict()["adapted"] == {"embeddings": ["Rows(init='mean'): 3 rows matched, 1 new", [3, 2], [4, 2]]}
    assert list(report.taken) == ["embeddings", "b"]


SUGGESTED = {
    "rgb to gray": ("kernel", CONV, (3, 3, 3, 8), (3, 3, 1, 8), "Sum('in')"),
    "gray to rgb": ("kernel", CONV, (3, 3, 1, 8), (3, 3, 3, 8), "Repeat('in', keep_sum=True)"),
    "a longer vocabulary": ("embeddings", ("vocab", "dim"), (5, 2), (7, 2), "Rows(init='mean')"),
    "positions": ("pos_embed", None, (1, 197, 4), (1, 257, 4), "Resample((14, 14), (16, 16), skip=1)"),
    "relative positions": (
        "relative_position_bias_table", None, (169, 3), (529, 3), "Resample((13, 13), (23, 23), antialias=False)",
    ),
    "relative positions with three more": (
        "relative_position_bias_table", None, (732, 3), (2212, 3),
        "Resample((27, 27), (47, 47), skip_last=3, antialias=False)",
    ),
    "another width": ("kernel", CONV, (3, 3, 64, 8), (3, 3, 128, 8), None),
    "four channels": ("kernel", CONV, (3, 3, 3, 8), (3, 3, 4, 8), None),
    "a shorter vocabulary": ("embeddings", ("vocab", "dim"), (7, 2), (5, 2), None),
    "another head": ("kernel", ("in", "out"), (4, 1000), (4, 10), None),
    "two axes": ("pos_embed", None, (1, 197, 4), (1, 257, 8), None),
    "no squares": ("pos_embed", None, (1, 200, 4), (1, 257, 4), None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "axes", "old", "new", "line"), SUGGESTED.values(), ids=SUGGESTED)
def test_an_error_suggests_the_adapter_where_one_clearly_fits(name, axes, old, new, line) -> None:
    target = xw.Params({name: np.zeros(new)}, axes={name: axes})
    with pytest.raises(xw.ShapeError) as caught:
        xw.set_params(target, {name: np.zeros(old)})
    text = str(caught.value)
    assert "adapt=" not in text if line is None else f"Fix: adapt={{{name!r}: xweights.adapt.{line}}}" in text
    if line is not None:
        suggested = eval(line, vars(A))
        xw.set_params(target, {name: np.zeros(old)}, adapt={name: suggested})


def test_parameters_of_one_kind_share_the_glob_that_is_suggested() -> None:
    names = ["a/pos_embed", "b/pos_embed"]
    old = {name: np.zeros((4, 2)) for name in names}
    with pytest.raises(xw.ShapeError) as caught:
        xw.set_params({name: np.zeros((9, 2)) for name in names}, old)
    assert "Fix: adapt={'*/pos_embed': xweights.adapt.Resample((2, 2), (3, 3))}" in str(caught.value)
    other = {"c/pos_embed": np.zeros((9, 2))}
    with pytest.raises(xw.ShapeError) as caught:
        xw.set_params({name: np.zeros((9, 2)) for name in names} | other, old | other)
    assert "adapt={'a/pos_embed': xweights.adapt.Resample((2, 2), (3, 3)), 'b/pos_embed'" in str(caught.value)


# The order that values are in.


def test_values_in_native_order_are_adapted_by_the_names_of_neutral_axes() -> None:
    array = np.zeros((4, 1, 3, 3), np.float32)
    p = stored("stem/kernel", "out in h w -> h w in out", array)
    value = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)
    xw.set_params([p], [value], layout="native", adapt={"stem/kernel": A.Sum("in")})
    assert np.array_equal(array, value.astype(np.float64).sum(1, keepdims=True).astype(np.float32))


def test_params_of_another_order_are_turned_by_their_axes_first() -> None:
    value = RNG.normal(size=(3, 4)).astype(np.float32)
    target = xw.Params({"kernel": np.zeros((2, 3), np.float32)}, axes={"kernel": ("out", "in")})
    params = xw.Params({"kernel": value}, axes={"kernel": ("in", "out")})
    xw.set_params(target, params, adapt={"kernel": A.Take("out", [3, 1])})
    assert np.array_equal(target["kernel"], value.T[[3, 1]])


def packed(pattern: str, shape: tuple[int, ...], **sizes: int):
    p = stored("kernel", "a -> a", np.zeros(1))
    return p.replace(layout=layout_of(pattern, shape, **sizes))


def test_a_packed_axis_of_another_length_is_refused_where_its_parts_are_not_told() -> None:
    p = packed("(head key) in -> in head key", (6, 4), head=2)
    assert layout_of_shape(p, (6, 8)).shape == (8, 2, 3)
    with pytest.raises(xw.LayoutError, match="packs or drops"):
        layout_of_shape(p, (12, 4))
    with pytest.raises(xw.ShapeError):
        layout_of_shape(p, (6, 4, 1))
    one = packed("(in mult) 1 h w -> h w in mult", (4, 1, 1, 1), mult=2)
    with pytest.raises(xw.LayoutError, match="doesn't tell"):
        layout_of_shape(one, (4, 1, 5, 1))
    with pytest.raises(xw.LayoutError, match="can be stored in"):
        layout_of_neutral(one, (5, 1, 2, 2))


@pytest.mark.parametrize(
    ("pattern", "shape", "sizes", "other", "neutral"),
    [
        ("out in h w -> h w in out", (8, 1, 3, 3), {}, (8, 3, 3, 3), (3, 3, 3, 8)),
        ("out in h w -> h w in out", (8, 3, 1, 1), {}, (8, 1, 2, 2), (2, 2, 1, 8)),
        ("(in mult) 1 h w -> h w in mult", (4, 1, 3, 3), {"mult": 1}, (6, 1, 3, 3), (3, 3, 6, 1)),
        ("(in mult) 1 h w -> h w in mult", (4, 1, 1, 1), {"mult": 2}, (4, 1, 5, 5), (5, 5, 2, 2)),
        ("(in mult) 1 h w -> h w in mult", (4, 1, 3, 3), {"mult": 2}, (4, 1, 5, 2), (5, 2, 2, 2)),
        ("1 position dim", (1, 5, 4), {}, (1, 9, 4), (9, 4)),
        ("dim position -> position dim", (4, 5), {}, (4, 9), (9, 4)),
    ],
)
def test_the_layout_of_another_shape_is_found_from_either_side(pattern, shape, sizes, other, neutral) -> None:
    p = packed(pattern, shape, **sizes)
    found = layout_of_shape(p, other)
    assert found.shape == neutral
    if 1 not in p.layout.split[2:]:
        assert layout_of_neutral(p, neutral) == found
    value = RNG.normal(size=other)
    assert np.array_equal(found.to_stored(found.to_neutral(value)), value)
    assert found.axes == p.axes
