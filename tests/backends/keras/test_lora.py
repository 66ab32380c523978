"""LoRA-enabled layers: what rules do to a kernel that factors add to."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import xweights as xw

L = keras.layers
to_numpy = keras.ops.convert_to_numpy

LAYERS = {
    "Dense": (lambda: L.Dense(4), (None, 6), "kernel"),
    "EinsumDense": (lambda: L.EinsumDense("ab,bc->ac", output_shape=4), (None, 6), "kernel"),
    "Conv1D": (lambda: L.Conv1D(4, 2), (None, 5, 3), "kernel"),
    "Conv2D": (lambda: L.Conv2D(4, 2), (None, 5, 5, 3), "kernel"),
    "Conv3D": (lambda: L.Conv3D(4, 2), (None, 3, 3, 3, 2), "kernel"),
    "Embedding": (lambda: L.Embedding(6, 4), None, "embeddings"),
    "ReversibleEmbedding": (lambda: L.ReversibleEmbedding(6, 4), None, "embeddings"),
}

EDITS = {
    "fill": lambda layer, where: xw.fill(layer, 0.0, where=where),
    "scale": lambda layer, where: xw.scale(layer, 0.5, where=where),
    "clip": lambda layer, where: xw.clip(layer, -0.1, 0.1, where=where),
    "prune": lambda layer, where: xw.prune(layer, fraction=0.5, where=where),
    "prune by default": lambda layer, where: xw.prune(layer, fraction=0.5),
    "prune and hold": lambda layer, where: xw.prune(layer, fraction=0.5, where=where, hold=True),
    "max_norm": lambda layer, where: xw.max_norm(layer, 0.5, per="out" if where == "kernel" else "vocab", where=where),
    "noise": lambda layer, where: xw.noise(layer, std=0.1, seed=0, where=where),
    "set_entries": lambda layer, where: xw.set_entries(layer, (0,), 0.0, where=where),
    "hold": lambda layer, where: xw.hold(layer, xw.Clip(-0.1, 0.1), where=where),
    "freeze of entries": lambda layer, where: xw.freeze(layer, where=where, entries=(0,)),
    "bind": lambda layer, where: xw.bind(layer, xw.Clip(-0.1, 0.1), where=where),
}


def make(kind: str) -> tuple[keras.Layer, str]:
    build, shape, role = LAYERS[kind]
    layer = build()
    layer.build(*([] if shape is None else [shape]))
    layer.enable_lora(2)
    rng = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(rng.normal(size=variable.shape))
    return layer, role


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_rule_on_a_kernel_under_factors_is_refused_and_changes_nothing(kind, edit):
    layer, role = make(kind)
    before = [to_numpy(variable).copy() for variable in layer.weights]
    with pytest.raises(xw.WriteError, match="LoRA is enabled") as caught:
        EDITS[edit](layer, role)
    assert f"layer.{role}.assign(merged)" in str(caught.value)
    assert f"*lora_{role}_*" in str(caught.value)
    for variable, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_lines_of_the_refusal_merge_the_factors_and_the_layer_then_obeys(kind):
    layer, role = make(kind)
    effective = to_numpy(getattr(layer, role)).copy()
    with pytest.raises(xw.WriteError) as caught:
        xw.fill(layer, 0.0, where=role)
    line = next(line for line in str(caught.value).splitlines() if line.startswith("Fix: merged"))
    exec(line.removeprefix("Fix: "), {"layer": layer})
    np.testing.assert_array_equal(to_numpy(getattr(layer, role)), effective)
    xw.prune(layer, fraction=0.5)
    assert (to_numpy(getattr(layer, role)) == 0).mean() >= 0.5


def test_factors_are_edited_by_name_and_by_default():
    layer, _ = make("Dense")
    base = to_numpy(layer._kernel).copy()
    xw.fill(layer, 0.0, where="*lora_kernel_*")
    np.testing.assert_array_equal(to_numpy(layer.kernel), base)
    xw.fill(layer, 1.0)
    np.testing.assert_array_equal(to_numpy(layer._kernel), base)
    np.testing.assert_array_equal(to_numpy(layer.lora_kernel_a), 1.0)


def test_values_of_the_base_are_read_written_and_restored_as_they_are():
    layer, _ = make("Dense")
    values = xw.get_params(layer)
    assert list(values) == ["kernel", "bias", "lora_kernel_a", "lora_kernel_b"]
    kept = xw.snapshot(layer)
    xw.set_params(layer, {"kernel": np.ones((6, 4), "float32")}, strict=False)
    np.testing.assert_array_equal(to_numpy(layer._kernel), 1.0)
    kept.restore()
    np.testing.assert_array_equal(to_numpy(layer._kernel), values["kernel"])


def test_a_base_may_be_frozen_whole_with_everything_but_the_factors():
    layer, _ = make("Dense")
    with xw.freeze(layer, where=~xw.role("lora_*")) as frozen:
        assert [p.name for p in frozen.parameters] == ["kernel", "bias"]


def test_biases_and_layers_without_factors_are_edited_as_ever():
    layer, _ = make("Dense")
    xw.fill(layer, 2.0, where="bias")
    np.testing.assert_array_equal(to_numpy(layer.bias), 2.0)


def test_factors_that_are_enabled_after_the_first_look_count():
    layer = L.Dense(4)
    layer.build((None, 6))
    xw.scale(layer, 0.5, where="kernel")
    layer.enable_lora(2)
    with pytest.raises(xw.WriteError, match="LoRA is enabled"):
        xw.scale(layer, 0.5, where="kernel")


def test_an_inner_layer_of_a_composite_is_known_too():
    layer = L.MultiHeadAttention(2, 3)
    layer.build((None, 5, 4), (None, 5, 4))
    layer._query_dense.enable_lora(2)
    with pytest.raises(xw.WriteError, match="'query/kernel'"):
        xw.prune(layer, fraction=0.5)
