"""Names of the parameters of NumPy targets, and selection by `where=`."""

from __future__ import annotations

import fnmatch
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xweights as xw
from xweights.core.layout import plain_layout
from xweights.core.names import glob_matcher
from xweights.core.numpy_backend import NumpyStorage
from xweights.core.parameter import Parameter
from xweights.core.selection import DEFAULT_EDITED, DEFAULT_KERNELS, select


def model() -> dict[str, np.ndarray]:
    return {
        "encoder/0/kernel": np.ones((2, 2), np.float32),
        "encoder/0/bias": np.ones(2, np.float32),
        "encoder/1/recurrent_kernel": np.ones((2, 2), np.float32),
        "norm/gamma": np.ones(2, np.float32),
        "table/embeddings": np.ones((3, 2), np.float32),
        "count": np.array([1, 2]),
    }


def select_names(where, target=None) -> list[str]:
    return [p.name for p in xw.parameters(model() if target is None else target, where=where)]


class Frozen(NumpyStorage):
    """An array that a framework would not train."""

    def trainable(self, handle) -> bool:
        return False


def parameter(name: str, native: str = "", *, hidden: bool = False, frozen: bool = False, aliases=()) -> Parameter:
    array = np.ones(2, np.float32)
    return Parameter(
        name=name, native_name=native or name, layout=plain_layout((2,)), dtype=array.dtype, aliases=aliases,
        storage=Frozen() if frozen else NumpyStorage(), handle=array, hidden=hidden,
    )  # fmt: skip


def select_from(parameters: list[Parameter], where) -> list[str]:
    return [p.name for p in select(parameters, where)]


# Names.


def test_nested_mappings_flatten_and_the_last_part_is_the_role() -> None:
    (p,) = xw.parameters({"a": {"b": {"kernel": np.ones(1)}}})
    assert (p.name, p.role, p.layer) == ("a/b/kernel", "kernel", "a/b")


def test_dotted_names_have_a_role_and_a_layer_too() -> None:
    (p,) = xw.parameters({"encoder.0.weight": np.ones(1)})
    assert (p.name, p.role, p.layer) == ("encoder.0.weight", "weight", "encoder.0")


def test_the_same_array_under_two_names_is_one_parameter_with_an_alias() -> None:
    shared = np.ones(2)
    (p,) = xw.parameters({"a/kernel": shared, "b/kernel": shared})
    assert (p.name, p.aliases) == ("a/kernel", ("b/kernel",))


def test_two_views_of_the_same_memory_are_one_parameter_and_edited_once() -> None:
    shared = np.ones(2)
    target = {"a": shared, "b": shared[:]}
    xw.scale(target, 2.0)
    assert shared.tolist() == [2.0, 2.0]


def test_a_list_of_targets_prefixes_names_with_positions() -> None:
    assert select_names(..., [{"a": np.ones(1)}, {"a": np.ones(1)}]) == ["0/a", "1/a"]


def test_an_array_in_two_targets_of_a_list_is_one_parameter() -> None:
    shared = np.ones(2)
    (p,) = xw.parameters([{"a": shared}, {"b": shared}])
    assert (p.name, p.aliases) == ("0/a", ("1/b",))


def test_a_parameter_is_a_target_and_so_is_a_list_of_them() -> None:
    target = {"a": np.ones(1), "b": np.ones(1)}
    parameters = xw.parameters(target)
    xw.scale(parameters[0], 2.0)
    xw.scale([*parameters, parameters[1]], 3.0)
    assert (target["a"][0], target["b"][0]) == (6.0, 3.0)


def test_parameters_of_two_models_with_equal_names_are_refused_as_one_list() -> None:
    with pytest.raises(xw.TargetError, match="0/ and 1/"):
        xw.parameters([*xw.parameters({"a": np.ones(1)}), *xw.parameters({"a": np.ones(1)})])


def test_two_keys_that_flatten_to_one_name_are_refused() -> None:
    with pytest.raises(xw.ArgumentError, match="'a/b'"):
        xw.parameters({"a/b": np.ones(1), "a": {"b": np.ones(1)}})


def test_the_repr_of_a_parameter_shows_its_main_facts() -> None:
    shared = np.ones((3, 2))
    target = xw.Params({"a/kernel": shared, "b/kernel": shared}, axes={"a/kernel": ("in", "out")})
    assert repr(xw.parameters(target)[0]) == "<Parameter 'a/kernel' (in, out) = (3, 2) float64, also b/kernel>"


# Globs.


def test_a_star_matches_slashes_too() -> None:
    assert select_names("encoder*") == ["encoder/0/kernel", "encoder/0/bias", "encoder/1/recurrent_kernel"]


def test_a_question_mark_matches_one_character() -> None:
    assert select_names("encoder/?/*kernel") == ["encoder/0/kernel", "encoder/1/recurrent_kernel"]


def test_a_leading_star_slash_matches_at_the_root_too() -> None:
    assert select_names("*/kernel", {"kernel": np.ones(1), "a/kernel": np.ones(1), "akernel": np.ones(1)}) == [
        "kernel",
        "a/kernel",
    ]


def test_nothing_but_star_and_question_mark_is_special() -> None:
    target = {"a[0]": np.ones(1), "a0": np.ones(1), "a.b": np.ones(1), "axb": np.ones(1), "a{1}": np.ones(1)}
    assert select_names("a[0]", target) == ["a[0]"]
    assert select_names("*[0]", target) == ["a[0]"]
    assert select_names("*a.b", target) == ["a.b"]
    assert select_names("a{?}", target) == ["a{1}"]


@given(st.text("ab/.*?", max_size=6), st.text("ab/.", max_size=6))
def test_globs_agree_with_fnmatch_where_no_leading_star_slash_is_involved(pattern: str, name: str) -> None:
    if not pattern.startswith("*/"):
        by_hand = re.fullmatch(fnmatch.translate(pattern), name)
        assert bool(glob_matcher(pattern)(name)) == bool(by_hand)


def test_a_glob_matches_neutral_names_only() -> None:
    parameters = [parameter("norm/beta", "norm.bias"), parameter("dense/bias", "dense.bias")]
    assert select_from(parameters, "*bias") == ["dense/bias"]
    assert select_from(parameters, xw.native("*bias")) == ["norm/beta", "dense/bias"]


def test_a_glob_that_matches_native_names_only_says_so() -> None:
    with pytest.raises(xw.SelectionError, match=r"native\('\*weight'\)"):
        select([parameter("dense/kernel", "dense.weight")], "*weight")


# Names without wildcards.


def test_an_exact_name_may_be_neutral_or_native_with_or_without_the_models_own_name() -> None:
    parameters = [parameter("dense/0/kernel", "model/dense_2/kernel"), parameter("dense/1/kernel", "0.weight")]
    assert select_from(parameters, "dense/0/kernel") == ["dense/0/kernel"]
    assert select_from(parameters, "model/dense_2/kernel") == ["dense/0/kernel"]
    assert select_from(parameters, "dense_2/kernel") == ["dense/0/kernel"]
    assert select_from(parameters, "0.weight") == ["dense/1/kernel"]


def test_a_name_that_is_neutral_for_one_and_native_for_another_is_refused_naming_both() -> None:
    parameters = [parameter("dense/kernel", "first"), parameter("other/kernel", "dense/kernel")]
    with pytest.raises(xw.SelectionError) as caught:
        select(parameters, "dense/kernel")
    assert "'dense/kernel'" in str(caught.value)
    assert "'other/kernel'" in str(caught.value)
    assert "native" in str(caught.value)


def test_an_alias_selects_its_parameter() -> None:
    parameters = [parameter("a/kernel", aliases=("b/kernel",))]
    assert select_from(parameters, "b/kernel") == ["a/kernel"]
    assert select_from(parameters, "b/*") == ["a/kernel"]


def test_hidden_parameters_are_selected_by_explicit_name_only() -> None:
    parameters = [parameter("a/kernel"), parameter("a/cache", "a.cache", hidden=True)]
    by_rule = [..., "*", "a/*", xw.layer("a"), xw.trainable(), lambda p: True, ["a/*"], ~xw.role("none")]
    assert [select_from(parameters, where) for where in by_rule] == [["a/kernel"]] * len(by_rule)
    assert select_from(parameters, "a/cache") == ["a/cache"]
    assert select_from(parameters, "a.cache") == ["a/cache"]
    assert select_from(parameters, xw.native("a.cache")) == ["a/cache"]
    assert select_from(parameters, parameters[1]) == ["a/cache"]


def test_a_hidden_parameter_that_is_passed_itself_can_be_read_written_and_edited() -> None:
    hidden = parameter("cache", hidden=True)
    hidden.assign([2.0, 3.0])
    assert hidden.numpy().tolist() == [2.0, 3.0]
    xw.scale(hidden, 2.0, where=...)
    assert hidden.handle.tolist() == [4.0, 6.0]


# The other words.


def test_roles_select_by_name_or_glob() -> None:
    assert select_names(xw.role("kernel", "embeddings")) == ["encoder/0/kernel", "table/embeddings"]
    assert select_names(xw.role("*kernel")) == ["encoder/0/kernel", "encoder/1/recurrent_kernel"]


def test_layers_select_by_position_from_either_end_or_by_glob() -> None:
    assert select_names(xw.layer(0)) == ["encoder/0/kernel", "encoder/0/bias"]
    assert select_names(xw.layer(1)) == ["encoder/1/recurrent_kernel"]
    assert select_names(xw.layer(-2)) == ["table/embeddings"]
    assert select_names(xw.layer("encoder/*")) == ["encoder/0/kernel", "encoder/0/bias", "encoder/1/recurrent_kernel"]


@pytest.mark.parametrize("which", [5, -6, "decoder/*"])
def test_a_layer_that_is_not_there_is_refused_with_the_layers_that_are(which: int | str) -> None:
    with pytest.raises(xw.SelectionError, match="5 layers with weights"):
        select_names(xw.layer(which))


@pytest.mark.parametrize("which", [True, 1.0, None])
def test_layer_takes_an_index_or_a_glob(which) -> None:
    with pytest.raises(xw.ArgumentError, match="layer"):
        xw.layer(which)


def test_role_needs_names() -> None:
    with pytest.raises(xw.ArgumentError, match="role"):
        xw.role()


def test_trainable_leaves_out_frozen_parameters() -> None:
    assert select_from([parameter("a"), parameter("b", frozen=True)], xw.trainable()) == ["a"]


def test_a_predicate_sees_each_parameter() -> None:
    assert select_names(lambda p: p.size == 6) == ["table/embeddings"]


def test_a_list_selects_the_union_in_the_targets_order() -> None:
    assert select_names(["table/*", xw.role("bias"), lambda p: p.name == "count"]) == [
        "encoder/0/bias",
        "table/embeddings",
        "count",
    ]


def test_an_ellipsis_selects_all() -> None:
    assert select_names(...) == list(model())


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (xw.role("kernel") & "encoder/*", ["encoder/0/kernel"]),
        ("encoder/*" & xw.role("kernel"), ["encoder/0/kernel"]),
        (xw.role("gamma") | "count", ["norm/gamma", "count"]),
        ("count" | xw.role("gamma"), ["norm/gamma", "count"]),
        (~xw.layer("encoder/*") & xw.trainable(), ["norm/gamma", "table/embeddings"]),
        (~(xw.role("kernel") | "*bias" | "*recurrent*") & "encoder/*" | "count", ["count"]),
        (... & xw.role("gamma"), ["norm/gamma"]),
        (["count"] | xw.role("gamma"), ["norm/gamma", "count"]),
        ((lambda p: p.role == "bias") | xw.role("gamma"), ["encoder/0/bias", "norm/gamma"]),
    ],
    ids=repr,
)
def test_selections_combine_with_strings_and_others_on_both_sides(where, expected: list[str]) -> None:
    if expected == ["count"]:
        with pytest.raises(xw.SelectionError):  # one side of | selects nothing
            select_names(where)
        return
    assert select_names(where) == expected


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        (xw.role("kernel") & "a/*", "(role('kernel') & 'a/*')"),
        ("a" | xw.layer(0) | xw.trainable(), "(('a' | layer(0)) | trainable())"),
        (~xw.native("x.*"), "~native('x.*')"),
        (... & xw.role("a", "b"), "(... & role('a', 'b'))"),
    ],
)
def test_a_selection_prints_as_it_was_written(where: xw.Where, shown: str) -> None:
    assert repr(where) == shown


# Defaults.


@pytest.mark.parametrize(
    "verb",
    [
        lambda t: xw.fill(t, 0.5),
        lambda t: xw.scale(t, 0.5),
        lambda t: xw.add(t, 0.5),
        lambda t: xw.noise(t, 0.5, seed=0),
        lambda t: xw.clip(t, -0.5, 0.5),
        lambda t: xw.clip_norm(t, 0.5),
    ],
)
def test_elementwise_verbs_edit_all_floating_parameters_by_default(verb) -> None:
    target, before = model(), model()
    verb(target)
    assert [name for name in target if not np.array_equal(target[name], before[name])] == list(target)[:-1]


@pytest.mark.parametrize(
    "verb",
    [
        lambda t: xw.prune(t, fraction=0.5),
        lambda t: xw.mask(t, np.array(False)),
        lambda t: xw.max_norm(t, 0.5, per="a"),
        lambda t: xw.unit_norm(t, per="a"),
        lambda t: xw.init(t, "zeros", seed=0),
    ],
)
def test_verbs_on_kernels_edit_kernels_and_embeddings_by_default(verb) -> None:
    axes = {name: ("a", "b")[: array.ndim] for name, array in model().items()}
    target, before = xw.Params(model(), axes=axes), model()
    verb(target)
    kernels = ["encoder/0/kernel", "encoder/1/recurrent_kernel", "table/embeddings"]
    assert [name for name in target if not np.array_equal(target[name], before[name])] == kernels


def test_a_parameter_that_its_framework_does_not_train_is_in_no_default_but_the_kernels() -> None:
    parameters = [parameter("a/kernel"), parameter("a/moving_mean", frozen=True), parameter("b/kernel", frozen=True)]
    assert select_from(parameters, DEFAULT_EDITED) == ["a/kernel"]
    assert select_from(parameters, DEFAULT_KERNELS) == ["a/kernel", "b/kernel"]


def test_a_mapping_of_values_selects_the_names_in_it() -> None:
    target = model()
    xw.fill(target, {"norm/gamma": 0.0})
    assert [name for name in target if not target[name].all()] == ["norm/gamma"]


@pytest.mark.parametrize(
    "verb",
    [
        lambda t, w: xw.apply(t, xw.Clip(-1, 1), where=w),
        lambda t, w: xw.bind(t, xw.Clip(-1, 1), where=w),
        lambda t, w: xw.set_entries(t, (0,), 0.0, where=w),
        lambda t, w: xw.get_params(t, where=w),
    ],
)
def test_where_that_is_required_can_not_be_none(verb) -> None:
    with pytest.raises(xw.ArgumentError, match="where="):
        verb(model(), None)


# Empty ones.


def test_a_selection_of_nothing_suggests_near_names() -> None:
    with pytest.raises(xw.SelectionError, match="Near names: 'encoder/0/kernel'"):
        select_names("encoder/0/kernal")
    with pytest.raises(xw.SelectionError, match="Roles here: bias, count, embeddings, gamma"):
        select_names(xw.role("kernels"))


def test_each_part_of_a_list_must_select_something_and_all_that_do_not_are_named() -> None:
    with pytest.raises(xw.SelectionError) as caught:
        select_names(["nothing/*", "count", xw.role("nope")])
    assert "nothing/*" in str(caught.value)
    assert "role('nope')" in str(caught.value)


def test_an_empty_list_selects_nothing_and_is_refused() -> None:
    with pytest.raises(xw.SelectionError, match="empty list"):
        select_names([])


def test_an_edit_of_a_target_without_parameters_is_refused() -> None:
    assert xw.parameters({}) == []
    with pytest.raises(xw.SelectionError, match="no parameters at all"):
        xw.apply({}, xw.Clip(-1, 1), where=...)


def test_a_class_is_no_predicate() -> None:
    with pytest.raises(xw.ArgumentError, match="can't be understood"):
        select_names(xw.Clip)


def test_a_selection_error_is_a_lookup_error() -> None:
    with pytest.raises(LookupError):
        select_names("nothing")
