"""Random numbers depend on seed, name and step alone, and are the same bytes everywhere."""

from __future__ import annotations

import hashlib
import math

import ml_dtypes
import numpy as np
import pytest

import xweights as xw
from xweights.core.blocks import BLOCK
from xweights.core.layout import layout_of
from xweights.core.parameter import Parameter
from xweights.rules.noise import generator

BIG = (3, BLOCK + 17)

PINNED = {
    "raw": ["0x3a2e63bc0bd3a7e", "0x304e0e85280b960e", "0xd25e3c4eaa1f1f3b", "0x6150572a17224381"],
    "normal float32": "95ab28b84f88f9fe",
    "normal float64": "092611ec069a1480",
    "uniform float32": "1a897fd20cebc8a1",
    "uniform float64": "1e7f53a85a3a628c",
    "noise": ["0x1.79ac980000000p-3", "-0x1.e9ff7a0000000p-5", "-0x1.27394a0000000p-3"],
    "uniform noise": ["0x1.8e3a4c0000000p-4", "0x1.8ee0c00000000p-6", "0x1.d1ac540000000p-5"],
    "glorot_uniform": ["-0x1.d7c08a0000000p-2", "-0x1.391b800000000p-2", "0x1.3dad3a0000000p-2"],
    "he_normal": ["0x1.07b13e0000000p-3", "0x1.3a76980000000p-2", "0x1.1da7080000000p-1"],
    "orthogonal": ["0x1.0996860000000p-2", "0x1.22b7200000000p-3", "0x1.6eb5540000000p-2"],
}


def noise_of(name: str, shape, dtype=np.float32, **words) -> np.ndarray:
    target = {name: np.zeros(shape, dtype)}
    xw.noise(target, **{"std": 1.0, "seed": 0} | words)
    return target[name]


# Known answers: if these change, NumPy's streams have changed, and with them every seeded result of a user.


def test_the_bits_of_philox_are_pinned() -> None:
    bits = generator(0, "dense/kernel").bit_generator.random_raw(4)
    assert [hex(x) for x in bits.tolist()] == PINNED["raw"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_numbers_are_pinned(dtype: str) -> None:
    drawn = generator(0, "dense/kernel").standard_normal(1000, dtype=dtype)
    assert hashlib.sha256(drawn.astype(f"<f{drawn.itemsize}").tobytes()).hexdigest()[:16] == PINNED[f"normal {dtype}"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_numbers_are_pinned(dtype: str) -> None:
    drawn = generator(0, "dense/kernel").random(1000, dtype=dtype)
    assert hashlib.sha256(drawn.astype(f"<f{drawn.itemsize}").tobytes()).hexdigest()[:16] == PINNED[f"uniform {dtype}"]


@pytest.mark.parametrize("kind", ["noise", "uniform noise", "glorot_uniform", "he_normal", "orthogonal"])
def test_the_public_results_are_pinned(kind: str) -> None:
    target = xw.Params({"dense/kernel": np.zeros((6, 5), np.float32)}, axes={"dense/kernel": ("in", "out")})
    if kind == "noise":
        xw.noise(target, 0.1, seed=7, step=3)
    elif kind == "uniform noise":
        xw.noise(target, low=-0.1, high=0.1, seed=7, step=3)
    else:
        xw.init(target, kind, seed=7)
    first = [float(x).hex() for x in target["dense/kernel"].ravel()[:3]]
    if kind == "orthogonal":  # which LAPACK decides in the last bits
        assert np.allclose([float.fromhex(x) for x in first], [float.fromhex(x) for x in PINNED[kind]], rtol=1e-5)
    else:
        assert first == PINNED[kind]


# What the numbers depend on, and what not.


def test_the_key_is_seed_name_and_step() -> None:
    base = noise_of("a", 5)
    assert np.array_equal(base, noise_of("a", 5))
    for other in (noise_of("b", 5), noise_of("a", 5, seed=1), noise_of("a", 5, step=1), noise_of("a", 5, seed=-1)):
        assert not np.isin(other, base).any()


def test_seed_and_step_are_not_confused() -> None:
    assert not np.array_equal(noise_of("a", 5, seed=1, step=2), noise_of("a", 5, seed=2, step=1))
    assert not np.array_equal(noise_of("2", 5, seed=1, step=0), noise_of("", 5, seed=1, step=0))


def test_other_parameters_and_their_order_change_nothing() -> None:
    alone = noise_of("b", 5)
    target = {"c": np.zeros(9, np.float32), "b": np.zeros(5, np.float32), "a": np.zeros(2, np.float32)}
    xw.noise(target, 1.0, seed=0)
    assert np.array_equal(target["b"], alone)
    assert np.array_equal(target["a"], noise_of("a", 2))


def test_numbers_are_drawn_in_neutral_order_however_they_are_stored() -> None:
    stored = np.zeros((4, 3), np.float32)
    p = Parameter(name="a", native_name="a", layout=layout_of("out in -> in out", (4, 3)), dtype=stored.dtype,
                  storage=xw.parameters({"a": stored})[0].storage, handle=stored)  # fmt: skip
    xw.noise(p, 1.0, seed=0)
    assert np.array_equal(stored.T, noise_of("a", (3, 4)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drawing_in_blocks_gives_the_numbers_of_one_draw(dtype) -> None:
    whole = generator(0, "a").standard_normal(math.prod(BIG), dtype=dtype).reshape(BIG)
    assert np.array_equal(noise_of("a", BIG, dtype), whole)
    assert np.array_equal(xw.Noise(1.0).delta(xw.parameters({"a": np.zeros(BIG, dtype)})[0]), whole)
    whole = generator(0, "a").random(math.prod(BIG), dtype=dtype).reshape(BIG)
    assert np.array_equal(noise_of("a", BIG, dtype, std=None, low=0.0, high=1.0), whole)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_types_get_the_rounded_numbers_of_float32(dtype) -> None:
    assert np.array_equal(noise_of("a", 99, dtype), noise_of("a", 99, np.float32).astype(dtype))


def test_noise_is_scaled_and_added_in_the_parameters_dtype() -> None:
    start = np.linspace(-1, 1, 50, dtype=np.float32)
    target = {"a": start.copy()}
    xw.noise(target, 0.1, seed=0)
    assert np.array_equal(target["a"], start + noise_of("a", 50) * np.float32(0.1))


def test_a_scalar_gets_noise_too() -> None:
    assert noise_of("a", ()) == noise_of("a", 1)[0]
    assert noise_of("a", (), std=None, low=1.0, high=2.0) >= 1


def test_names_of_a_twin_give_the_twins_numbers() -> None:
    assert np.array_equal(noise_of("0/kernel", 5, names={"0/*": "dense/0/*"}), noise_of("dense/0/kernel", 5))
    mine, twin = {"0/kernel": np.zeros((2, 2))}, {"dense/0/kernel": np.zeros((2, 2))}
    xw.init(mine, "normal", seed=0, names={"0/*": "dense/0/*"})
    xw.init(twin, "normal", seed=0)
    assert np.array_equal(mine["0/kernel"], twin["dense/0/kernel"])


# What they look like.


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_uniform_noise_stays_within_its_rounded_bounds(dtype) -> None:
    drawn = noise_of("a", 100_000, dtype, std=None, low=0.1, high=0.3)
    low, high = np.float64(0.1).astype(dtype), np.float64(0.3).astype(dtype)
    assert low <= drawn.min()
    assert drawn.max() <= high
    assert abs(drawn.astype(np.float64).mean() - 0.2) < 0.001


def test_normal_noise_has_its_mean_and_deviation() -> None:
    drawn = noise_of("a", 1_000_000, std=0.5).astype(np.float64)
    assert abs(drawn.mean()) < 5 * 0.5 / 1000
    assert abs(drawn.std() - 0.5) < 5 * 0.5 / math.sqrt(2e6)
    assert abs((np.abs(drawn) < 0.5).mean() - 0.682689) < 0.002


def test_no_noise_is_added_with_a_deviation_of_zero() -> None:
    assert not noise_of("a", 9, std=0.0).any()


@pytest.mark.parametrize(
    "words",
    [
        {"std": -1.0, "seed": 0},
        {"std": math.inf, "seed": 0},
        {"std": math.nan, "seed": 0},
        {"std": "1", "seed": 0},
        {"std": 1.0, "low": 0.0, "high": 1.0, "seed": 0},
        {"seed": 0},
        {"low": 0.0, "seed": 0},
        {"low": 1.0, "high": 1.0, "seed": 0},
        {"low": 1.0, "high": 0.0, "seed": 0},
        {"low": -math.inf, "high": 0.0, "seed": 0},
        {"low": math.nan, "high": 1.0, "seed": 0},
        {"std": 1.0, "seed": None},
        {"std": 1.0, "seed": 1.0},
        {"std": 1.0, "seed": True},
        {"std": 1.0, "seed": 0, "step": 1.0},
        {"std": 1.0, "seed": 0, "step": None},
        {"std": 1.0, "seed": 0, "names": {"a/*": "b"}},
    ],
)
def test_arguments_of_noise_out_of_range_are_refused(words) -> None:
    target = {"w": np.zeros(3)}
    with pytest.raises(xw.ArgumentError):
        xw.noise(target, **words)
    assert not target["w"].any()


def test_noise_beyond_the_dtype_is_refused_before_anything_is_written() -> None:
    target = {"a": np.zeros(3), "b": np.zeros(3, np.float16)}
    with pytest.raises(xw.DtypeError, match="overflows float16"):
        xw.noise(target, 1e6, seed=0)
    assert not target["a"].any()


def test_noise_across_the_order_of_storage_ends_its_blocks_along_any_axis(monkeypatch) -> None:
    """A block that was shorter along its second axis raised, when those before it had been written."""
    from xweights.rules import noise

    monkeypatch.setattr(noise, "ACROSS", 2 * 40)
    shape = (2, 3, 40)
    stored = {"w": np.zeros(shape[::-1], np.float32).transpose()}
    xw.noise(stored, std=1.0, seed=0)
    np.testing.assert_array_equal(stored["w"], noise_of("w", shape))
