"""Quantised layers: what is a weight there, and what only makes weights together with others."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import xweights as xw

L = keras.layers
to_numpy = keras.ops.convert_to_numpy

LAYERS = {
    "Dense": (lambda: L.Dense(4), (None, 6)),
    "EinsumDense": (lambda: L.EinsumDense("ab,bc->ac", output_shape=4), (None, 6)),
}
EDITS = {
    "scale": lambda layer: xw.scale(layer, 0.5),
    "noise": lambda layer: xw.noise(layer, std=0.1, seed=0),
    "fill": lambda layer: xw.fill(layer, 0.0),
    "add": lambda layer: xw.add(layer, 0.25),
    "clip": lambda layer: xw.clip(layer, -0.1, 0.1),
}


def quantize(kind: str, mode: str) -> keras.Layer:
    make, shape = LAYERS[kind]
    layer = make()
    layer.build(shape)
    layer.quantize(mode)
    return layer


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", LAYERS)
def test_scaling_factors_and_histories_of_float8_stay_out_of_defaults(kind, edit):
    layer = quantize(kind, "float8")
    book = [variable for variable in layer.weights if "scale" in variable.name or "amax" in variable.name]
    before = [to_numpy(variable).copy() for variable in book]
    EDITS[edit](layer)
    assert len(book) == 6
    for variable, value in zip(book, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_no_framework_trains_the_bookkeeping_of_float8_and_neither_do_we_say_so():
    layer = quantize("Dense", "float8")
    trained = [p.name for p in xw.parameters(layer, where=xw.trainable())]
    assert trained == ["kernel", "bias"]
    scale = xw.parameters(layer, where="kernel_scale")[0]
    with pytest.raises(xw.WriteError, match="each step overwrites it"):
        scale.set_trainable(True)
    assert "kernel_amax_history" in xw.get_params(layer)  # reading shows everything


def test_a_freeze_of_the_default_leaves_the_bookkeeping_of_float8_to_keras():
    layer = quantize("Dense", "float8")
    with xw.freeze(layer) as frozen:
        assert [p.name for p in frozen.parameters] == ["kernel", "bias"]


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("kind", [*LAYERS, "Embedding"])
def test_rules_on_integers_are_refused_by_name(kind, mode):
    if kind == "Embedding":
        layer = L.Embedding(6, 4)
        layer.build()
        layer.quantize(mode)
        role = "embeddings"
    else:
        layer, role = quantize(kind, mode), "kernel"
    stored = to_numpy(layer._embeddings if kind == "Embedding" else layer._kernel).copy()
    for edit in (
        lambda: xw.fill(layer, 1, where=role),
        lambda: xw.clip(layer, -1, 1, where=role),
        lambda: xw.apply(layer, xw.Mask({role: np.zeros(stored.shape, bool)}), where=role),
    ):
        with pytest.raises(xw.WriteError, match=f"'{role}'.*integers of the mode '{mode}'"):
            edit()
    np.testing.assert_array_equal(to_numpy(layer._embeddings if kind == "Embedding" else layer._kernel), stored)
    xw.set_params(layer, xw.get_params(layer))  # values come and go as they are


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_no_array_of_an_integer_layer_but_its_bias_is_trained(mode):
    layer = quantize("Dense", mode)
    assert {p.role for p in xw.parameters(layer, where=xw.trainable())} <= {"bias"}


def test_factors_over_integers_are_weights_and_the_integers_are_not():
    layer = quantize("Dense", "int8")
    layer.enable_lora(2)
    xw.fill(layer, 0.25, where=xw.role("lora_*"))
    np.testing.assert_array_equal(to_numpy(layer.lora_kernel_a), 0.25)
    with pytest.raises(xw.WriteError, match="integers"):
        xw.fill(layer, 1, where="kernel")
