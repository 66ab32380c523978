"""Properties that hold for arrays of any bits, tested by hypothesis on NumPy and each installed framework.

A target is one variable, filled by hand bit by bit; on Keras that of the Keras backend of this process.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xweights as xw

Array = np.ndarray[Any, Any]
DTYPES = [np.dtype(kind) for kind in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)]
TARGETS = ("numpy", "torch", "tensorflow", "keras")


class Made:
    """A target of one array, and the same array in NumPy."""

    def __init__(self, framework: str, array: Array) -> None:
        self.array = array.copy()
        self.target = _made(framework, array)
        (self.parameter,) = xw.parameters(self.target)
        self.name = self.parameter.name
        xw.set_params(self.target, {self.name: array}, allow_nonfinite=True)

    @property
    def bits(self) -> bytes:
        return xw.get_params(self.target)[self.name].tobytes()


def _made(framework: str, array: Array) -> Any:
    if framework == "numpy":
        return {"w": np.empty_like(array)}
    if framework == "torch":
        import torch

        return torch.nn.Parameter(torch.zeros(array.shape, dtype=getattr(torch, array.dtype.name)))
    if framework == "tensorflow":
        import tensorflow as tf

        return tf.Variable(tf.zeros(array.shape, getattr(tf, array.dtype.name)))
    import keras

    return keras.Variable(np.zeros(array.shape), dtype=array.dtype.name)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.keras_backend] if name == "keras" else []) for name in TARGETS]
)
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name != "numpy" and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} not installed")
    if name == "keras":
        below = os.environ.get("KERAS_BACKEND", "tensorflow")
        if importlib.util.find_spec(below) is None:
            pytest.skip(f"{below} not installed, which Keras runs on here")
    return name


@pytest.fixture(params=DTYPES, ids=[dtype.name for dtype in DTYPES])
def dtype(request: pytest.FixtureRequest, framework: str) -> np.dtype[Any]:
    kind: np.dtype[Any] = request.param
    if framework == "keras" and kind == np.float64 and os.environ.get("KERAS_BACKEND") == "jax":
        pytest.skip("float64 on JAX needs its 64-bit mode")
    return kind


def any_bits(dtype: np.dtype[Any]) -> st.SearchStrategy[Array]:
    """Draw arrays of any bit pattern: subnormals, both zeros, infinities, NaN of every payload."""
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return hnp.arrays(f"u{dtype.itemsize}", shapes).map(lambda raw: raw.view(dtype))


def some_bits(dtype: np.dtype[Any]) -> st.SearchStrategy[Array]:
    return any_bits(dtype).filter(lambda array: array.size > 0)


def numbers(dtype: np.dtype[Any]) -> st.SearchStrategy[Array]:
    """Draw arrays of any numbers but subnormals, for which arithmetic promises nothing."""
    tiny = float(ml_dtypes.finfo(dtype).tiny)
    return some_bits(dtype).map(lambda array: np.where(np.abs(array) < dtype.type(tiny), dtype.type(0), array))


@given(data=st.data())
def test_written_values_are_read_back_bit_by_bit(framework: str, dtype: np.dtype[Any], data: st.DataObject) -> None:
    made = Made(framework, data.draw(any_bits(dtype)))
    assert made.bits == made.array.tobytes()
    assert made.bits == xw.get_params(made.target, copy=False)[made.name].tobytes()


@given(data=st.data())
def test_a_target_does_not_differ_from_itself(framework: str, dtype: np.dtype[Any], data: st.DataObject) -> None:
    made = Made(framework, data.draw(any_bits(dtype)))
    assert not xw.diff(made.target, made.target)
    assert not xw.diff(made.target, {made.name: made.array})
    assert xw.equal(made.target, {made.name: made.array})


@given(data=st.data())
def test_one_flipped_bit_is_a_difference(framework: str, dtype: np.dtype[Any], data: st.DataObject) -> None:
    made = Made(framework, data.draw(some_bits(dtype)))
    other = made.array.copy()
    raw = other.reshape(-1).view(np.uint8)
    raw[data.draw(st.integers(0, raw.size - 1))] ^= np.uint8(1 << data.draw(st.integers(0, 7)))
    assert not xw.equal(made.target, {made.name: other})
    assert xw.diff(made.target, {made.name: other}).changes[0].changed == 1


@given(data=st.data())
def test_undo_brings_back_exactly_the_same_bits(framework: str, dtype: np.dtype[Any], data: st.DataObject) -> None:
    made = Made(framework, data.draw(some_bits(dtype)))
    before = xw.snapshot(made.target)
    xw.fill(made.target, 0.5, where=...)
    before.restore()
    assert made.bits == made.array.tobytes()
    with xw.transaction(made.target) as tx:
        xw.set_entries(made.target, ..., -0.0, where=...)
        tx.rollback()
    assert made.bits == made.array.tobytes()


@given(data=st.data())
def test_mask_keeps_bits_and_does_nothing_more_the_second_time(
    framework: str, dtype: np.dtype[Any], data: st.DataObject
) -> None:
    made = Made(framework, data.draw(some_bits(dtype)))
    keep = data.draw(hnp.arrays(np.bool_, made.array.shape))
    xw.mask(made.target, keep, where=...)
    once = made.bits
    assert once == np.where(keep, made.array.view(f"u{dtype.itemsize}"), 0).astype(f"u{dtype.itemsize}").tobytes()
    xw.mask(made.target, keep, where=...)
    assert made.bits == once


@given(data=st.data(), low=st.floats(-2, 2, width=16), high=st.floats(-2, 2, width=16))
def test_clip_stays_between_the_bounds_and_does_nothing_more_the_second_time(
    framework: str, dtype: np.dtype[Any], data: st.DataObject, low: float, high: float
) -> None:
    low, high = min(low, high), max(low, high)
    made = Made(framework, data.draw(numbers(dtype)))
    xw.clip(made.target, low, high, where=...)
    once, values = made.bits, xw.get_params(made.target)[made.name].astype(np.float64)
    assert np.array_equal(np.isnan(values), np.isnan(made.array.astype(np.float64)))
    rounded_low, rounded_high = (float(np.asarray(bound).astype(dtype)) for bound in (low, high))
    assert np.all(np.isnan(values) | ((values >= rounded_low) & (values <= rounded_high)))
    xw.clip(made.target, low, high, where=...)
    assert made.bits == once


@given(data=st.data())
def test_a_refused_write_leaves_every_bit(framework: str, dtype: np.dtype[Any], data: st.DataObject) -> None:
    made = Made(framework, data.draw(any_bits(dtype)))
    with pytest.raises(xw.ShapeError):
        xw.set_params(made.target, {made.name: np.zeros((*made.array.shape, 2), dtype)})
    assert made.bits == made.array.tobytes()


@given(data=st.data(), fraction=st.floats(0, 1))
def test_prune_drops_exactly_as_many_as_were_asked_for_and_never_a_larger_one(
    framework: str, dtype: np.dtype[Any], data: st.DataObject, fraction: float
) -> None:
    array = data.draw(some_bits(dtype).map(lambda one: np.where(np.isnan(one), dtype.type(1), one)))
    made = Made(framework, array)
    masks = xw.prune(made.target, fraction=fraction, where=...)
    assert masks is not None
    keep, size = masks[made.name], np.abs(array).astype(np.float64)
    assert np.count_nonzero(~keep) == int(np.floor(fraction * array.size + 0.5))
    if keep.any() and not keep.all():
        assert size[~keep].max() <= size[keep].min()
