"""Initializers by name: bounds and deviations by Keras' and torch's formulas, computed by hand."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

import xweights as xw
from xweights.rules.initializers import OPTIONS, VARIANCE_SCALING, fans


def initial(name, shape, axes=None, dtype=np.float32, seed: int = 0, **options) -> np.ndarray:
    target = xw.Params({"k/kernel": np.full(shape, 9, dtype)}, axes={"k/kernel": axes})
    xw.init(target, name, seed=seed, where=..., **options)
    return target["k/kernel"]


# Fans.


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("in", "out"), (30, 20), (30, 20)),  # Dense
        (("h", "w", "in", "out"), (3, 5, 4, 8), (3 * 5 * 4, 3 * 5 * 8)),  # Conv2D
        (("t", "in", "out"), (3, 4, 8), (3 * 4, 3 * 8)),  # Conv1D
        (("d", "h", "w", "in", "out"), (2, 3, 4, 5, 6), (24 * 5, 24 * 6)),  # Conv3D
        # Keras' compute_fans takes shape[-2] for the inputs, and torch's size(1): both the layer's outputs.
        (("h", "w", "out", "in"), (3, 3, 8, 4), (9 * 8, 9 * 4)),  # Conv2DTranspose
        (("h", "w", "in", "mult"), (3, 3, 4, 2), (9 * 4, 9 * 2)),  # DepthwiseConv2D
        (("vocab", "dim"), (100, 16), (100, 16)),  # Embedding
        (("in", "gate*unit"), (6, 4 * 5), (6, 20)),  # LSTM kernel
        (("unit", "gate*unit"), (5, 4 * 5), (5, 20)),  # LSTM recurrent kernel
        (("in", "head", "key"), (12, 3, 4), (12, 12)),  # attention, query
        (("head", "value", "out"), (3, 4, 12), (12, 12)),  # attention, output
        (("in", "qkv", "head", "key"), (12, 3, 3, 4), (12, 12)),  # attention, packed: as three separate ones
    ],
    ids=str,
)
def test_fans_are_counted_by_axis_names(axes, shape, expected) -> None:
    (p,) = xw.parameters(xw.Params({"kernel": np.zeros(shape)}, axes={"kernel": axes}))
    assert fans(p) == expected


def test_fans_of_vectors_and_unknown_layers_are_refused() -> None:
    with pytest.raises(xw.LayoutError, match="needs inputs and outputs"):
        initial("he_normal", (4,), ("out",))
    with pytest.raises(xw.LayoutError, match="axes are unknown"):
        initial("he_normal", (4, 4))


# Limits and deviations for 300 inputs and 200 outputs.

UNIFORM = {
    "glorot_uniform": math.sqrt(6 / (300 + 200)),
    "xavier_uniform": math.sqrt(6 / (300 + 200)),
    "he_uniform": math.sqrt(6 / 300),
    "kaiming_uniform": math.sqrt(6 / 300),
    "lecun_uniform": math.sqrt(3 / 300),
}
TRUNCATED = {
    "glorot_normal": math.sqrt(2 / (300 + 200)),
    "he_normal": math.sqrt(2 / 300),
    "lecun_normal": math.sqrt(1 / 300),
}
NORMAL = {"xavier_normal": math.sqrt(2 / (300 + 200)), "kaiming_normal": math.sqrt(2 / 300)}


def test_every_name_of_the_family_is_tested() -> None:
    assert {*UNIFORM, *TRUNCATED, *NORMAL} == set(VARIANCE_SCALING)


@pytest.mark.parametrize("name", UNIFORM)
def test_a_uniform_initializer_fills_its_limits(name: str) -> None:
    array, limit = initial(name, (300, 200), ("in", "out")).astype(np.float64), UNIFORM[name]
    assert np.abs(array).max() <= limit
    assert np.abs(array).max() > 0.999 * limit
    assert abs(array.mean()) < 5 * limit / math.sqrt(3 * array.size)
    assert math.isclose(array.std(), limit / math.sqrt(3), rel_tol=0.01)


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_truncated_normal_initializer_has_its_deviation_and_is_cut_at_two_sigma(name: str) -> None:
    array, std = initial(name, (300, 200), ("in", "out")).astype(np.float64), TRUNCATED[name]
    cut = 2 * std / 0.87962566103423978
    assert np.abs(array).max() <= cut * (1 + 1e-6)
    assert np.abs(array).max() > 0.99 * cut
    assert math.isclose(array.std(), std, rel_tol=0.01)


@pytest.mark.parametrize("name", NORMAL)
def test_torchs_normal_initializers_are_not_truncated(name: str) -> None:
    array, std = initial(name, (300, 200), ("in", "out")).astype(np.float64), NORMAL[name]
    assert np.abs(array).max() > 3 * std
    assert math.isclose(array.std(), std, rel_tol=0.01)


@pytest.mark.parametrize(
    ("options", "std"),
    [
        ({}, math.sqrt(1 / 300)),
        ({"scale": 3.0, "mode": "fan_out", "distribution": "normal"}, math.sqrt(3 / 200)),
        ({"scale": 2.0, "mode": "fan_avg", "distribution": "uniform"}, math.sqrt(2 / 250)),
    ],
    ids=str,
)
def test_variance_scaling_takes_scale_mode_and_distribution(options, std: float) -> None:
    array = initial("variance_scaling", (300, 200), ("in", "out"), **options).astype(np.float64)
    assert math.isclose(array.std(), std, rel_tol=0.01)


def test_plain_distributions_have_their_parameters() -> None:
    array = initial("uniform", (300, 200), low=1.0, high=3.0)
    assert (array.min() >= 1.0, array.max() <= 3.0, abs(float(array.mean()) - 2) < 0.02) == (True, True, True)
    array = initial("normal", (300, 200), mean=5.0, std=0.1).astype(np.float64)
    assert (round(array.mean(), 2), round(array.std(), 2)) == (5.0, 0.1)
    array = initial("truncated_normal", (300, 200), mean=1.0, std=0.5).astype(np.float64)
    assert (array.min() >= 0.0, array.max() <= 2.0) == (True, True)
    assert math.isclose(array.std(), 0.5 * 0.87962566, rel_tol=0.01)


def test_constants_are_constant() -> None:
    assert (initial("zeros", 3) == 0).all()
    assert (initial("ones", 3) == 1).all()
    assert (initial("constant", 3, value=0.1) == np.float32(0.1)).all()
    assert initial("ones", 3, dtype=np.int32).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("shape", "axes", "columns"),
    [
        ((8, 5), None, 5),
        ((5, 8), None, 8),
        ((3, 3, 4, 6), ("h", "w", "in", "out"), 6),
        ((10, 2, 3), ("in", "head", "key"), 6),
    ],
)
def test_orthogonal_weights_are_orthonormal_across_the_smaller_side(shape, axes, columns: int) -> None:
    matrix = initial("orthogonal", shape, axes, np.float64, gain=3.0).reshape(-1, columns) / 3.0
    small = matrix.T @ matrix if matrix.shape[0] >= columns else matrix @ matrix.T
    assert np.allclose(small, np.eye(min(matrix.shape)), atol=1e-12)


def test_identity_is_the_identity_times_its_gain() -> None:
    assert np.array_equal(initial("identity", (2, 3), gain=0.5), np.eye(2, 3, dtype=np.float32) * 0.5)


# Whatever the dtype.


@pytest.mark.parametrize("name", [*VARIANCE_SCALING, "normal", "truncated_normal", "uniform"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_types_get_the_numbers_of_float32_rounded(name: str, dtype) -> None:
    half, single = initial(name, (8, 4), ("in", "out"), dtype), initial(name, (8, 4), ("in", "out"))
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert np.allclose(half.astype(np.float64), single.astype(np.float64), rtol=eps, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in OPTIONS if n not in ("constant", "identity")])
def test_the_same_seed_gives_the_same_bytes_and_another_others(name: str) -> None:
    array = initial(name, (6, 4), ("in", "out"))
    assert array.tobytes() == initial(name, (6, 4), ("in", "out")).tobytes()
    if name not in ("zeros", "ones"):
        assert array.tobytes() != initial(name, (6, 4), ("in", "out"), seed=1).tobytes()


def test_an_array_is_filled_in_place() -> None:
    target = {"kernel": np.ones((2, 2))}
    home = target["kernel"]
    xw.init(target, "zeros", seed=0)
    assert target["kernel"] is home
    assert not home.any()


# Functions.


def test_a_function_gets_shape_generator_and_options() -> None:
    def drawn(shape, generator, scale):
        return generator.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    array = initial(drawn, (3, 2), scale=2.0)
    assert array.shape == (3, 2)
    assert np.array_equal(array, initial(drawn, (3, 2), scale=2.0))
    assert not np.array_equal(array, initial(drawn, (3, 2), seed=1, scale=2.0))


def test_float64_numbers_of_a_function_are_rounded_once() -> None:
    drawn = np.random.default_rng(0).normal(size=(3,))
    assert initial(lambda shape, generator: drawn, (3,)).tobytes() == drawn.astype(np.float32).tobytes()


def test_the_result_of_a_function_may_broadcast() -> None:
    assert initial(lambda shape, generator: 0.5, (2, 2)).tolist() == [[0.5, 0.5]] * 2
    assert initial(lambda shape, generator: [1.0, 2.0], (2, 2)).tolist() == [[1.0, 2.0]] * 2


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda shape, generator: np.ones(7), xw.ShapeError),
        (lambda shape, generator: np.full(shape, 2**24 + 1), xw.DtypeError),
        (lambda shape, generator: np.full(shape, np.nan, np.float32), xw.NonfiniteError),
        (lambda shape, generator: None, xw.ArgumentError),
        (lambda shape, generator: 1 / 0, ZeroDivisionError),
    ],
)
def test_a_function_that_fails_leaves_everything_as_it_was(function, kind) -> None:
    target = {"a/kernel": np.ones(2, np.float32), "b/kernel": np.ones(3, np.float32)}

    def only_b(shape, generator):
        return function(shape, generator) if shape == (3,) else np.zeros(shape, np.float32)

    with pytest.raises(kind):
        xw.init(target, only_b, seed=0)
    assert target["a/kernel"].all()


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("glorot_unifrom", {}, "Near names: 'glorot_uniform'"),
        (None, {}, "no initializer is named None"),
        (["normal"], {}, "no initializer is named"),
        ("normal", {"scale": 1.0}, "it takes: mean, std"),
        ("he_normal", {"mode": "fan_in"}, "no options"),
        ("constant", {}, "value="),
        ("uniform", {"low": 1.0, "high": 0.0}, "smaller than high"),
        ("normal", {"std": -1.0}, ">= 0"),
        ("truncated_normal", {"std": -1.0}, ">= 0"),
        ("variance_scaling", {"mode": "fan"}, "mode="),
        ("variance_scaling", {"scale": 0.0}, "positive"),
        ("variance_scaling", {"distribution": "cauchy"}, "distribution="),
    ],
)
def test_names_and_options_that_are_wrong_are_refused(name, options, text: str) -> None:
    with pytest.raises(xw.ArgumentError, match=text):
        initial(name, (4, 4), ("in", "out"), **options)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "kind"),
    [
        ("identity", (4,), np.float32, xw.ShapeError),
        ("orthogonal", (4,), np.float32, xw.ShapeError),
        ("normal", (4,), np.int32, xw.DtypeError),
    ],
)
def test_parameters_an_initializer_can_not_fill_are_refused(name, shape, dtype, kind) -> None:
    with pytest.raises(kind):
        initial(name, shape, dtype=dtype)


def test_a_seed_is_required() -> None:
    with pytest.raises(TypeError):
        xw.init({"kernel": np.ones((2, 2))}, "zeros")


@pytest.mark.parametrize(
    ("initializer", "options"),
    [
        ("normal", {"std": 1e5}),
        ("truncated_normal", {"std": 6e4}),
        ("uniform", {"low": -1e5, "high": 1e5}),
        ("orthogonal", {"gain": 1e6}),
        ("variance_scaling", {"scale": 1e12}),
    ],
)
def test_numbers_that_the_dtype_cannot_hold_are_refused_and_nothing_is_written(initializer, options) -> None:
    weights = xw.Params({"a/kernel": np.ones((30, 40), np.float16)}, axes={"a/kernel": ("in", "out")})
    with pytest.raises(xw.DtypeError, match="overflows float16"):
        xw.init(weights, initializer, seed=0, where=..., **options)
    assert (weights["a/kernel"] == 1).all()
