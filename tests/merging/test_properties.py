"""Properties that merges have for any arrays, tested by hypothesis."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xweights as xw

Array = np.ndarray[Any, Any]
DTYPES = [np.dtype(kind) for kind in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]
# 0-d and empty arrays among them.
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@st.composite
def several_arrays(draw: Any, least: int = 1, most: int = 4) -> list[Array]:
    """Draw finite arrays of one shape and dtype, zeros of both signs, subnormals and near extremes among them."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(SHAPES)
    large = {"float16": 6e4, "float32": 1e38, "bfloat16": 1e38}.get(dtype.name, 1e300) / most
    numbers = st.floats(-large, large) | st.sampled_from([0.0, -0.0, 1.0, 1e-45, -1.1754942e-38])
    count = draw(st.integers(least, most))
    return [draw(hnp.arrays(np.float64, shape, elements=numbers)).astype(dtype) for _ in range(count)]


def bits(array: Array) -> bytes:
    return array.dtype.name.encode() + str(array.shape).encode() + array.tobytes()


def merge_arrays(xs: list[Array], method: str = "average", base: Array | None = None, **options: Any) -> Array:
    return xw.merge([{"w": x} for x in xs], method, base=None if base is None else {"w": base}, **options)["w"]


@given(several_arrays(most=1), st.lists(st.floats(0.001, 1000), min_size=1, max_size=6))
def test_the_average_of_equal_targets_has_exactly_their_bits(one: list[Array], weights: list[float]) -> None:
    equal = [one[0].copy() for _ in weights]
    assert bits(merge_arrays(equal)) == bits(one[0])
    assert bits(merge_arrays(equal, weights=weights)) == bits(one[0])
    assert bits(merge_arrays(equal, "ema", decay=min(0.9, weights[0]))) == bits(one[0])


@given(several_arrays(), st.data())
def test_weights_that_are_one_hot_return_that_target(xs: list[Array], data: Any) -> None:
    chosen = data.draw(st.integers(0, len(xs) - 1))
    weights = [float(i == chosen) * data.draw(st.sampled_from([1.0, 3.0, -2.0, 0.1])) for i in range(len(xs))]
    assert bits(merge_arrays(xs, weights=weights)) == bits(xs[chosen])


@given(several_arrays(least=2, most=2))
def test_the_average_of_two_does_not_depend_on_their_order(xs: list[Array]) -> None:
    assert bits(merge_arrays(xs)) == bits(merge_arrays(xs[::-1]))


@given(several_arrays(least=3), st.randoms(use_true_random=False))
def test_the_average_of_many_depends_on_their_order_by_rounding_only(xs: list[Array], chance: Any) -> None:
    mixed = xs.copy()
    chance.shuffle(mixed)
    kind = xs[0].dtype
    scale = max((float(np.max(np.abs(x.astype(np.float64)), initial=0.0)) for x in xs), default=0.0)
    eps = float(ml_dtypes.finfo(kind).eps)
    gap = np.abs(merge_arrays(xs).astype(np.float64) - merge_arrays(mixed).astype(np.float64))
    assert np.all(gap <= 4 * eps * scale + float(ml_dtypes.finfo(kind).smallest_subnormal))


@given(several_arrays(least=2), st.lists(st.floats(0, 10), min_size=4, max_size=4))
def test_the_average_is_that_of_numpy(xs: list[Array], weights: list[float]) -> None:
    weights = [weight + 0.1 for weight in weights[: len(xs)]]
    kind = xs[0].dtype
    wide = np.average(np.stack([x.astype(np.float64) for x in xs]), axis=0, weights=weights)
    scale = float(max(np.max(np.abs(x.astype(np.float64)), initial=0.0) for x in xs))
    eps = float(ml_dtypes.finfo(kind).eps)
    gap = np.abs(merge_arrays(xs, weights=weights).astype(np.float64) - wide)
    assert np.all(gap <= 8 * eps * scale + float(ml_dtypes.finfo(kind).smallest_subnormal))


@given(several_arrays(least=2, most=3), st.integers(0, 2**32))
def test_task_vectors_that_are_all_zeros_leave_the_base(xs: list[Array], seed: int) -> None:
    base = xs[0]
    for method, options in (
        ("task_arithmetic", {}),
        ("ties", {"density": 0.5}),
        ("dare_ties", {"density": 0.5, "seed": seed}),
        ("breadcrumbs", {"density": 0.5}),
    ):
        got = merge_arrays([base.copy() for _ in xs], method, base, **options)
        assert np.array_equal(got, base)  # a zero may change its sign


@pytest.mark.parametrize(
    "method", ["average", "slerp", "ties", "dare_ties", "della", "breadcrumbs_ties", "model_stock"]
)
def test_a_parameter_is_merged_alike_whatever_order_the_parameters_are_in(method: str) -> None:
    options: dict[str, Any] = {"slerp": {"t": 0.3}, "average": {}, "model_stock": {}}.get(method, {"density": 0.5})
    options |= {"seed": 1} if method in ("dare_ties", "della") else {}
    options |= {"per": 0} if method == "della" else {}
    source = np.random.Generator(np.random.PCG64(0))
    made = [{name: source.normal(size=(5, 4)) for name in "abc"} for _ in range(3)]
    base = None if method in ("average", "slerp") else made[2]
    forward = xw.merge(made[:2], method, base=base, **options)
    backward = xw.merge(
        [dict(reversed(mapping.items())) for mapping in made[:2]],
        method,
        base=None if base is None else dict(reversed(base.items())),
        **options,
    )
    assert list(backward) == ["c", "b", "a"]
    assert all(np.array_equal(forward[name], backward[name]) for name in "abc")
    assert not np.array_equal(forward["a"], forward["b"])


@given(several_arrays(least=2, most=2), st.integers(0, 5))
def test_random_methods_repeat_with_their_seed(xs: list[Array], seed: int) -> None:
    again = [
        bits(merge_arrays(xs[:1], "dare_linear", xs[1], density=0.5, seed=seed, allow_nonfinite=True)) for _ in range(2)
    ]
    assert again[0] == again[1]


def test_another_seed_drops_other_entries_and_so_does_another_target() -> None:
    base, x = np.zeros(1000), np.ones(1000)
    first = merge_arrays([x], "dare_linear", base, density=0.5, seed=0)
    assert not np.array_equal(first, merge_arrays([x], "dare_linear", base, density=0.5, seed=1))
    both = merge_arrays([x, x], "dare_linear", base, density=0.5, seed=0)
    assert set(np.unique(both)) == {0.0, 2.0, 4.0}
    assert np.count_nonzero(first) == pytest.approx(500, abs=80)
