"""Every merge method against its published definition, written out naively on whole arrays."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest

import xweights as xw
from xweights.merging.methods import METHODS
from xweights.merging.ranks import order_statistics

Array = np.ndarray[Any, Any]
NAME = "dense/kernel"
WEIGHTS = (0.7, 0.2, 0.4)
KEPT = (0.6, 0.35, 0.9)


def arrays(count: int, dtype: Any = np.float32, shape: tuple[int, ...] = (23, 17), seed: int = 0) -> list[Array]:
    """Return a base and arrays trained from it: most task vectors are small, some entries didn't move."""
    source = np.random.Generator(np.random.PCG64(seed))
    base = source.normal(size=shape)
    moved = [base + source.normal(size=shape) * 0.1 * (source.random(shape) < 0.9) for _ in range(count)]
    return [base.astype(dtype), *(array.astype(dtype) for array in moved)]


def vectors(base: Array, xs: list[Array]) -> list[Array]:
    return [x.astype(np.float64) - base.astype(np.float64) for x in xs]


def merge_arrays(xs: list[Array], method: str, base: Array | None = None, **options: Any) -> Array:
    axes = {NAME: ("in", "out")}
    given = [xw.Params({NAME: x}, axes=axes) for x in xs]
    origin = None if base is None else xw.Params({NAME: base}, axes=axes)
    return xw.merge(given, method, base=origin, **options)[NAME]


def close(got: Array, expected: Array, dtype: Any) -> None:
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)


def _each(function: Callable[..., Array], xs: list[Array], *more: tuple[Any, ...]) -> list[Array]:
    return [function(x, *(values[i] for values in more)) for i, x in enumerate(xs)]


def _dared(base: Array, xs: list[Array]) -> list[Array]:
    return [naive.dare(v, KEPT[i], 7, NAME, i) for i, v in enumerate(vectors(base, xs))]


def _magpruned(base: Array, xs: list[Array]) -> list[Array]:
    given = enumerate(vectors(base, xs))
    return [naive.magprune(v, KEPT[i], 0.1, 7, NAME, i, unit_axis=1) for i, v in given]


def _crumbs(base: Array, xs: list[Array]) -> list[Array]:
    return [naive.drop_outliers(v, KEPT[i], 0.05) for i, v in enumerate(vectors(base, xs))]


# Each method once: its options, and the same by definition. A new method is one more row.
ROWS: dict[str, tuple[dict[str, Any], Callable[[Array, list[Array]], Array]]] = {
    "average": ({"weights": WEIGHTS}, lambda base, xs: naive.average(xs, WEIGHTS)),
    "lerp": ({"t": 0.3}, lambda base, xs: naive.lerp(*xs, 0.3)),
    "slerp": ({"t": 0.3}, lambda base, xs: naive.slerp(*xs, 0.3)),
    "ema": ({"decay": 0.8}, lambda base, xs: naive.ema(xs, 0.8)),
    "model_stock": ({}, naive.model_stock),
    "task_arithmetic": (
        {"weights": WEIGHTS, "scale": 0.5},
        lambda base, xs: base + 0.5 * naive.weighted_sum(vectors(base, xs), WEIGHTS),
    ),
    "ties": (
        {"weights": WEIGHTS, "density": KEPT, "scale": 0.9},
        lambda base, xs: base + 0.9 * naive.elect(_each(naive.trim, vectors(base, xs), KEPT), WEIGHTS, normalize=True),
    ),
    "dare_linear": (
        {"weights": WEIGHTS, "density": KEPT, "seed": 7},
        lambda base, xs: base + naive.weighted_sum(_dared(base, xs), WEIGHTS),
    ),
    "dare_ties": (
        {"weights": WEIGHTS, "density": KEPT, "seed": 7},
        lambda base, xs: base + naive.elect(_dared(base, xs), WEIGHTS, normalize=False),
    ),
    "della": (
        {"weights": WEIGHTS, "density": KEPT, "epsilon": 0.1, "seed": 7},
        lambda base, xs: base + naive.elect(_magpruned(base, xs), WEIGHTS, normalize=True),
    ),
    "della_linear": (
        {"weights": WEIGHTS, "density": KEPT, "epsilon": 0.1, "seed": 7},
        lambda base, xs: base + naive.weighted_sum(_magpruned(base, xs), WEIGHTS),
    ),
    "breadcrumbs": (
        {"weights": WEIGHTS, "density": KEPT, "gamma": 0.05},
        lambda base, xs: base + naive.weighted_sum(_crumbs(base, xs), WEIGHTS),
    ),
    "breadcrumbs_ties": (
        {"weights": WEIGHTS, "density": KEPT, "gamma": 0.05},
        lambda base, xs: base + naive.elect(_crumbs(base, xs), WEIGHTS, normalize=False),
    ),
}


def test_every_method_of_the_table_has_a_row_here() -> None:
    assert ROWS.keys() == METHODS.keys()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ROWS)
def test_a_method_agrees_with_the_definition_in_its_source(method: str, dtype: Any) -> None:
    options, definition = ROWS[method]
    base, *xs = arrays(METHODS[method].max_targets or 3, dtype)
    got = merge_arrays(xs, method, base if METHODS[method].base else None, **options)
    close(got, definition(base, xs), dtype)
    assert not np.array_equal(got, xs[0])  # that something was merged at all


@pytest.mark.parametrize("method", ROWS)
def test_a_method_gives_the_same_however_many_blocks_there_are(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from xweights.merging import streams

    options, _ = ROWS[method]
    base, *xs = arrays(METHODS[method].max_targets or 3)
    whole = merge_arrays(xs, method, base if METHODS[method].base else None, **options)
    monkeypatch.setattr(streams, "ENTRIES", 50)
    pieces = merge_arrays(xs, method, base if METHODS[method].base else None, **options)
    if method in ("slerp", "model_stock"):  # sums are taken in another order
        np.testing.assert_allclose(pieces, whole, rtol=1e-6)
    else:
        assert np.array_equal(pieces, whole)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "della", "breadcrumbs"])
def test_rescaling_by_l1_keeps_the_sum_of_magnitudes_of_each_task_vector(method: str) -> None:
    base, x = arrays(1, np.float64)
    options, _ = ROWS[method]
    options = {name: value[:1] if isinstance(value, tuple) else value for name, value in options.items()}
    options |= {"weights": 1.0, "rescale": "l1"}
    options.pop("scale", None)
    left = merge_arrays([x], method, base, **options) - base
    assert np.abs(left).sum() == pytest.approx(np.abs(x - base).sum())
    assert np.count_nonzero(left) < np.count_nonzero(x - base)


def test_a_task_vector_can_be_taken_away_by_a_negative_weight() -> None:
    base, x = arrays(1, np.float64)
    np.testing.assert_allclose(merge_arrays([x], "task_arithmetic", base, weights=-1.0), base - (x - base), atol=1e-12)


def test_slerp_goes_along_a_line_where_there_is_no_angle() -> None:
    a = np.array([[1.0, 2.0], [3.0, 4.0]])
    for b in (2 * a, -a, np.zeros_like(a)):
        np.testing.assert_allclose(merge_arrays([a, b], "slerp", t=0.25), 0.75 * a + 0.25 * b, rtol=1e-15)


def test_slerp_keeps_the_length_of_vectors_of_one_length() -> None:
    a, b = (vector / np.linalg.norm(vector) for vector in arrays(2, np.float64)[:2])
    b = np.roll(b, 1)
    assert np.linalg.norm(merge_arrays([a, b], "slerp", t=0.4)) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["lerp", "slerp"])
def test_the_ends_of_an_interpolation_are_the_targets_bit_for_bit(method: str) -> None:
    _, a, b = arrays(2)
    assert merge_arrays([a, b], method, t=0.0).tobytes() == a.tobytes()
    assert merge_arrays([a, b], method, t=1.0).tobytes() == b.tobytes()


def test_model_stock_stays_at_the_base_where_targets_moved_apart() -> None:
    base, x = arrays(1, np.float64)
    np.testing.assert_allclose(merge_arrays([x, 2 * base - x], "model_stock", base), base, atol=1e-9)
    np.testing.assert_allclose(
        merge_arrays([base, x], "model_stock", base), base, atol=1e-12
    )  # one that didn't move at all


def test_half_and_half_is_rounded_once_and_the_same_in_either_order() -> None:
    _, a, b = arrays(2)
    exact = ((a.astype(np.float64) + b.astype(np.float64)) / 2).astype(np.float32)
    assert np.array_equal(merge_arrays([a, b], "average"), exact)
    assert np.array_equal(merge_arrays([b, a], "average"), exact)


@pytest.mark.parametrize("density", [0.0, 0.004, 1.0])
@pytest.mark.parametrize("method", ["ties", "dare_linear", "della_linear", "breadcrumbs"])
def test_densities_at_the_ends_keep_nothing_or_all(method: str, density: float) -> None:
    base, x = arrays(1, np.float64)
    options = {"epsilon": 0.0} if method == "della_linear" else {"gamma": 0.0} if method == "breadcrumbs" else {}
    options |= {} if method in ("ties", "breadcrumbs") else {"seed": 0}
    moved = np.count_nonzero(merge_arrays([x], method, base, density=density, **options) != base)
    if density == 1.0:
        assert moved == np.count_nonzero(x != base)
    elif density == 0.0:
        assert moved == 0
    elif method == "ties":  # of 391 entries 1.6: one
        assert moved == 1


def test_equal_magnitudes_fall_in_flat_order_as_in_prune() -> None:
    base, x = np.zeros((2, 3)), np.array([[1.0, -1.0, 1.0], [1.0, 2.0, -1.0]])
    kept = merge_arrays([x], "ties", base, density=0.5)
    assert kept.tolist() == [[0.0, 0.0, 0.0], [1.0, 2.0, -1.0]]
    pruned = {"d/kernel": x.copy()}
    xw.prune(pruned, fraction=0.5)
    assert np.array_equal(pruned["d/kernel"], kept)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_statistics_are_those_of_a_sort_also_among_ties_and_special_values(dtype: Any) -> None:
    source = np.random.Generator(np.random.PCG64(3))
    values = source.normal(size=5000).astype(dtype).round(2)
    values[:4] = [0.0, -0.0, np.inf, np.finfo(dtype).smallest_subnormal]
    ordered = np.sort(np.abs(values))
    ranks = [1, 2, 3, 777, 2500, 4999, 5000]
    found = order_statistics([values[:1234], values[1234:]], ranks)
    assert [edge for edge, _ in found] == [ordered[k - 1] for k in ranks]
    assert [below for _, below in found] == [int(np.count_nonzero(ordered < ordered[k - 1])) for k in ranks]


def test_della_ranks_within_the_units_given_by_per() -> None:
    base, x = arrays(1, np.float64)
    options = {"density": 0.5, "epsilon": 0.4, "seed": 1, "rescale": None}
    by_axes, by_name, by_place = (
        merge_arrays([x], "della", base, **options, **more) for more in ({}, {"per": "out"}, {"per": -1})
    )
    assert np.array_equal(by_axes, by_name)
    assert np.array_equal(by_axes, by_place)
    assert not np.array_equal(by_axes, merge_arrays([x], "della", base, **options, per="in"))


def test_the_documentation_has_a_row_for_each_method_with_its_source() -> None:
    page = Path(__file__).parents[2] / "docs" / "merging.md"
    if not page.exists():
        pytest.skip("the documentation isn't here: only the wheel is")
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert rows.keys() == METHODS.keys()
    for name, row in rows.items():
        sources = re.findall(r"arXiv:[\d.]+\d", METHODS[name].function.__doc__ or "")
        assert sources
        assert all(source in row for source in sources), name
