"""Twins of unequal dtypes, and settings that a port sets or refuses."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

zoo = pytest.importorskip("zoo.all", reason="the twins are of Keras and of torch")
keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")
L, nn = keras.layers, torch.nn


def sample(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def classifier():
    layers = [L.Dense(5), L.BatchNormalization(epsilon=1e-5), L.Dense(3)]
    return keras.Sequential([keras.Input((4,)), *layers])


def twin():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_target_of_another_dtype_is_refused_before_anything_runs(dtype):
    t = twin().to(dtype)
    before = zoo.arrays(t)
    with pytest.raises(xw.PortError, match=r"(?s)casts nothing.*Fix: make the target in float32") as caught:
        xw.port(classifier(), t, sample=sample(6, 4))
    assert isinstance(caught.value, xw.DtypeError)
    assert zoo.arrays(t) == before


@pytest.mark.keras_backend
@pytest.mark.parametrize("way", ["to_torch", "to_keras"])
def test_a_model_of_mixed_precision_is_ported_as_far_as_its_rounding_shows(way):
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        k = classifier()
    finally:
        keras.config.set_dtype_policy(former)
    t = twin()
    zoo.fill(k, 0)
    zoo.fill(t, 1)
    one, other = (k, t) if way == "to_torch" else (t, k)
    xw.port(one, other, sample=sample(6, 4))
    assert np.array_equal(t[0].weight.detach().numpy().T, np.asarray(keras.ops.convert_to_numpy(k.layers[0].kernel)))


CONV = {"strides": {"strides": 2}, "dilation": {"dilation_rate": 2}}


@pytest.mark.parametrize("name", CONV)
def test_strides_and_dilation_are_refused_by_name_or_set(name):
    k = keras.Sequential([keras.Input((9, 9, 2)), L.Conv2D(3, 3, **CONV[name])])
    t = nn.Conv2d(2, 3, 3)
    with pytest.raises(xw.PortError, match=rf"(?s){name} differs.*'\(Conv2d\)': \(1, 1\).*attributes=\"fix\""):
        xw.port(k, t, sample=sample(2, 9, 9, 2))
    report = xw.port(k, t, sample=sample(2, 9, 9, 2), attributes="fix")
    assert report.ok
    assert [difference.fixed for difference in report.differences] == [True]
    back = keras.Sequential([keras.Input((9, 9, 2)), L.Conv2D(3, 3)])
    assert xw.port(t, back, sample=sample(2, 2, 9, 9), attributes="fix").ok


def test_the_activation_of_a_recurrent_layer_is_set():
    k = keras.Sequential([keras.Input((5, 4)), L.SimpleRNN(3, activation="relu", return_sequences=True)])
    t = nn.RNN(4, 3, batch_first=True)
    zoo.fill(k, 0)
    with pytest.raises(xw.PortError, match="activation differs"):
        xw.port(k, t, sample=sample(2, 5, 4), outputs={"0": "output"})
    assert xw.port(k, t, sample=sample(2, 5, 4), outputs={"0": "output"}, attributes="fix").ok
    assert t.nonlinearity == "relu"


def test_a_port_that_fails_puts_the_settings_back():
    k = keras.Sequential([keras.Input((9, 9, 2)), L.Conv2D(3, 3, strides=2), L.ReLU()])
    t = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh())
    with pytest.raises(xw.PortError):
        xw.port(k, t, sample=sample(2, 9, 9, 2), attributes="fix")
    assert t[0].stride == (1, 1)


def test_a_padding_that_only_the_end_of_the_model_shows_is_named():
    k = keras.Sequential([keras.Input((9, 9, 2)), L.Conv2D(3, 3, padding="same")])
    with pytest.raises(xw.PortError, match=r"\(2, 3, 7, 7\), its twin \(2, 9, 9, 3\): the padding of"):
        xw.port(k, nn.Conv2d(2, 3, 3), sample=sample(2, 9, 9, 2))
