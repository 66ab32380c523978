"""Recipes as pure functions on NumPy arrays: the destination of each entry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xweights.core.layout import layout_of, plain_layout
from xweights.core.mappings import NUMPY
from xweights.core.parameter import Parameter
from xweights.errors import PortError
from xweights.porting.matching.similarity import (
    cropped_distance,
    distance,
    find_permutation,
    grid_order,
    input_distance,
)
from xweights.porting.matching.trace import read_arrays
from xweights.porting.protocol import LayerRecord
from xweights.porting.recipes import make_units
from xweights.porting.units import FeaturePermutation, ParamSlice, can_pair, translate


def parameter(name, array, pattern=None, gates=None, **sizes):
    """Build a parameter stored as ``array``, whose neutral axes follow from a pattern."""
    layout = plain_layout(array.shape) if pattern is None else layout_of(pattern, array.shape, **sizes)
    return Parameter(
        name=name, native_name=name, layout=layout, dtype=array.dtype, storage=NUMPY, handle=array, gates=gates
    )


def record(kind, arrays, **attributes):
    return LayerRecord(kind, "layer", arrays, attributes)


def numbers(*shape):
    return np.arange(1, 1 + np.prod(shape), dtype="float32").reshape(shape)


def canonical(kind, arrays, **attributes):
    return [read_arrays(unit) for unit in make_units(record(kind, arrays, **attributes))]


def test_a_dense_kernel_is_the_transpose_of_a_linear_weight():
    weight = numbers(3, 2)
    (unit,) = canonical("dense", {"kernel": parameter("kernel", weight, "out in -> in out")})
    assert np.array_equal(unit["kernel"], weight.T)


def test_an_einsum_over_two_axes_is_a_matrix_over_both_of_them():
    kernel, bias = numbers(2, 3, 5), numbers(5)
    arrays = {"kernel": parameter("kernel", kernel), "bias": parameter("bias", bias)}
    (unit,) = canonical("einsum", arrays, equation="bthk,hkd->btd")
    assert np.array_equal(unit["kernel"], kernel.reshape(6, 5))


def test_an_einsum_stored_output_first_is_transposed():
    kernel = numbers(3, 2)
    (unit,) = canonical("einsum", {"kernel": parameter("kernel", kernel)}, equation="btd,od->bto")
    assert np.array_equal(unit["kernel"], kernel.T)


def test_an_einsum_that_is_no_matrix_product_is_refused():
    with pytest.raises(PortError, match="no product of two matrices"):
        make_units(record("einsum", {"kernel": parameter("kernel", numbers(2, 3, 4))}, equation="abc,bcd->abd"))


def test_a_depthwise_kernel_has_its_channels_and_their_multiples_together():
    kernel = numbers(3, 3, 2, 4)
    (unit,) = canonical("conv", {"kernel": parameter("kernel", kernel, "h w in mult")}, groups=2)
    assert unit["kernel"].shape == (3, 3, 1, 8)
    assert np.array_equal(unit["kernel"][:, :, 0, 4 * 1 + 3], kernel[:, :, 1, 3])


def test_a_depthwise_weight_of_torch_comes_to_the_same():
    kernel = numbers(3, 3, 2, 4)
    weight = np.ascontiguousarray(kernel.transpose(2, 3, 0, 1).reshape(8, 1, 3, 3))
    mine = {"kernel": parameter("kernel", kernel, "h w in mult")}
    theirs = {"kernel": parameter("kernel", weight, "(in mult) 1 h w -> h w in mult", mult=4)}
    first, other = canonical("conv", mine, groups=2), canonical("conv", theirs, groups=2)
    assert np.array_equal(first[0]["kernel"], other[0]["kernel"])


def test_groups_of_a_transposed_convolution_are_layers_of_their_own():
    weight, bias = numbers(4, 3, 2, 2), numbers(6)
    arrays = {
        "kernel": parameter("kernel", weight, "(group in) out h w -> h w group out in", group=2),
        "bias": parameter("bias", bias, "out"),
    }
    first, second = canonical("conv_transpose", arrays, groups=2)
    assert np.array_equal(second["kernel"], weight[2:].transpose(2, 3, 1, 0))
    assert np.array_equal(first["bias"], bias[:3])


@pytest.mark.parametrize(
    ("kind", "mine", "theirs"),
    [("gru", ("z", "r", "h"), ("r", "z", "h")), ("lstm", ("i", "f", "c", "o"), ("o", "c", "f", "i"))],
)
def test_gates_come_into_one_order(kind, mine, theirs):
    kernel = numbers(3, len(mine) * 2)
    blocks = dict(zip(mine, np.split(kernel, len(mine), axis=1), strict=True))
    turned = np.concatenate([blocks[gate] for gate in theirs], axis=1)
    arrays = [parameter("kernel", array, "in gate*unit", gates) for array, gates in ((kernel, mine), (turned, theirs))]
    first, other = (canonical(kind, {"kernel": array})[0]["kernel"] for array in arrays)
    assert np.array_equal(first, other)


def test_the_two_rows_of_a_bias_are_two_biases():
    bias = numbers(2, 6)
    arrays = {
        "kernel": parameter("kernel", numbers(3, 6), "in gate*unit", ("z", "r", "h")),
        "bias": parameter("bias", bias, "side gate*unit", ("z", "r", "h")),
    }
    (unit,) = canonical("gru", arrays)
    assert np.array_equal(unit["bias"], [[3, 4], [1, 2], [5, 6]])
    assert np.array_equal(unit["recurrent_bias"], [[9, 10], [7, 8], [11, 12]])


def lstm(*roles):
    pieces = {"kernel": parameter("kernel", numbers(2, 8), "in gate*unit")}
    for place, role in enumerate(roles):
        pieces[role] = parameter(role, numbers(8) * 10**place, "gate*unit")
    return make_units(record("lstm", pieces))[0]


def test_two_biases_become_one_by_adding_them():
    source, target = lstm("bias", "recurrent_bias"), lstm("bias")
    made, lost = translate(source, read_arrays(source), target)
    assert lost == []
    assert np.array_equal(made["bias"].ravel(), 11 * numbers(8))


def test_one_bias_becomes_two_of_which_the_second_is_zero():
    source, target = lstm("bias"), lstm("bias", "recurrent_bias")
    made, _ = translate(source, read_arrays(source), target)
    assert np.array_equal(made["bias"].ravel(), numbers(8))
    assert not made["recurrent_bias"].any()


def test_a_minus_zero_survives_the_sum_of_two_biases():
    source, target = lstm("bias", "recurrent_bias"), lstm("bias")
    arrays = read_arrays(source) | {
        "bias": np.full((4, 2), -0.0, "float32"),
        "recurrent_bias": np.zeros((4, 2), "float32"),
    }
    arrays["bias"], arrays["recurrent_bias"] = arrays["recurrent_bias"], arrays["bias"]
    made, _ = translate(source, arrays, target)
    assert np.signbit(made["bias"]).all()


def test_a_packed_projection_is_three_dense_layers():
    weight, bias = numbers(12, 4), numbers(12)
    sizes = {"qkv": 3, "head": 2}
    arrays = {
        "qkv/kernel": parameter("qkv/kernel", weight, "(qkv head key) in -> in qkv head key", **sizes),
        "qkv/bias": parameter("qkv/bias", bias, "(qkv head key)", **sizes),
        "attention_output/kernel": parameter(
            "attention_output/kernel", numbers(4, 4), "out (head value) -> head value out", head=2
        ),
    }
    query, key, value, out = canonical("attention", arrays)
    for place, unit in enumerate((query, key, value)):
        assert np.array_equal(unit["kernel"], weight[4 * place : 4 * place + 4].T)
        assert np.array_equal(unit["bias"], bias[4 * place : 4 * place + 4])
    assert np.array_equal(out["kernel"], numbers(4, 4).T)


def test_missing_arrays_of_a_norm_mean_one_and_zero():
    full = {"gamma": parameter("gamma", numbers(3)), "beta": parameter("beta", numbers(3))}
    bare = {"moving_mean": parameter("moving_mean", numbers(3))}
    both = make_units(record("batch_norm", full | bare))[0]
    none = make_units(record("batch_norm", bare))[0]
    made, _ = translate(none, read_arrays(none), both)
    assert np.array_equal(made["gamma"], np.ones(3))
    assert np.array_equal(made["beta"], np.zeros(3))
    _, lost = translate(both, read_arrays(both), none)
    assert lost == [
        "'layer' has a gamma that 'layer' has no place for",
        "'layer' has a beta that 'layer' has no place for",
    ]


def test_rows_and_columns_are_permuted():
    unit = make_units(record("dense", {"kernel": parameter("kernel", numbers(3, 2))}))[0]
    made, _ = translate(unit, read_arrays(unit), unit, FeaturePermutation(np.array([2, 0, 1]), np.array([1, 0])))
    assert np.array_equal(made["kernel"], numbers(3, 2)[[2, 0, 1]][:, [1, 0]])


def test_groups_tell_kernels_of_one_shape_apart():
    first, other = (
        make_units(record("conv", {"kernel": parameter("kernel", numbers(3, 2, 4))}, groups=n))[0] for n in (1, 2)
    )
    assert can_pair(first, first)
    assert not can_pair(first, other)


@given(st.permutations(range(3)), st.permutations(range(3)))
def test_a_param_slice_writes_back_the_entries_it_reads(order, gates):
    array = numbers(4, 3, 2)
    shape = [array.shape[axis] for axis in order]
    place = shape.index(3)
    p = parameter("w", array)
    piece = ParamSlice(p, tuple(shape), order=tuple(order), gates=(place, tuple(gates)))
    out = np.zeros_like(array)
    piece.write(piece.read(array), out)
    assert np.array_equal(out, array)


# Comparing


@given(st.integers(2, 5), st.integers(2, 5), st.booleans())
def test_an_image_flattened_the_other_way_is_recognized(positions, channels, first):
    expected = np.random.default_rng(0).normal(size=(3, positions * channels)).astype("float32")
    order = grid_order((positions, channels), channels_first=first)
    found = find_permutation(expected[:, order], expected, {(positions, channels)}, channels_first=first, limit=1e-6)
    assert np.array_equal(found, order)


def test_one_block_of_features_is_recognized_as_an_image():
    expected = np.random.default_rng(0).normal(size=(3, 5 + 12 + 2)).astype("float32")
    order = np.arange(19)
    order[5:17] = 5 + grid_order((4, 3), channels_first=True)
    found = find_permutation(expected[:, order], expected, {(4, 3), (2, 9)}, channels_first=True, limit=1e-6)
    assert np.array_equal(found, order)


def test_features_in_no_known_order_are_not_recognized():
    expected = np.random.default_rng(0).normal(size=(3, 12)).astype("float32")
    assert find_permutation(expected[:, ::-1], expected, {(4, 3)}, channels_first=True, limit=1e-6) is None


def test_an_image_with_zeros_around_it_is_the_same_input():
    image = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    padded = np.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0)))
    assert input_distance(padded, image, 1e-6) == 0.0
    assert input_distance(padded + 1, image, 1e-6) is None


def test_a_border_that_is_cut_off_later_is_no_error():
    image = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype("float32")
    assert cropped_distance(image, image[:, :-1, :-1], 1e-6) == 0.0
    assert cropped_distance(image, image[:, :-1, :-1] + 1, 1e-6) > 0.1


def test_errors_are_relative_to_the_largest_entry_and_nan_is_infinitely_far():
    first = np.array([[100.0, 1.0]], "float32")
    assert distance(first + np.float32(1.0), first) == pytest.approx(0.01)
    assert distance(first * np.float32("nan"), first) == float("inf")
    assert distance(np.array([[-np.inf, 1.0]]), np.array([[-np.inf, 1.0]])) == 0.0
