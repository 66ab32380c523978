"""LoRA-enabled Keras layers: the weight in use, merging, files of the plain model."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

import xweights as xw

L = keras.layers
to_numpy = keras.ops.convert_to_numpy

LAYERS = {
    "Dense": (lambda: L.Dense(4), (None, 6), "kernel"),
    "EinsumDense": (lambda: L.EinsumDense("ab,bcd->acd", output_shape=(4, 3)), (None, 6), "kernel"),
    "Conv2D": (lambda: L.Conv2D(4, 2), (None, 5, 5, 3), "kernel"),
    "Embedding": (lambda: L.Embedding(6, 4), None, "embeddings"),
    "ReversibleEmbedding": (lambda: L.ReversibleEmbedding(6, 4), None, "embeddings"),
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


def make_model(*, lora: bool, seed: int = 0) -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), L.Dense(5), L.Dense(3, use_bias=False)])
    for layer in model.layers if lora else ():
        layer.enable_lora(2, lora_alpha=3)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape))
    return model


def reset(model: keras.Model) -> None:
    """Make the factors of a model add nothing, as new ones do."""
    xw.fill(model, 0.0, where=xw.role("lora_kernel_b"))


X = np.random.default_rng(5).normal(size=(4, 6)).astype("float32")


@pytest.mark.parametrize("kind", LAYERS)
def test_the_effective_weight_has_the_bits_of_the_layers_own_property(kind):
    layer, role = make(kind)
    effective = xw.effective_params(layer)
    assert not [name for name in effective if "lora" in name]
    np.testing.assert_array_equal(effective[role], to_numpy(getattr(layer, role)))
    assert not np.array_equal(effective[role], xw.get_params(layer)[role])


def test_under_mixed_precision_it_is_what_the_property_is_rounded_to():
    layer = L.Dense(4, dtype="mixed_bfloat16")
    layer.build((None, 6))
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.full((2, 4), 0.3))
    effective = xw.effective_params(layer)["kernel"]
    assert effective.dtype == np.float32
    np.testing.assert_array_equal(effective, np.asarray(to_numpy(layer.kernel)).astype("float32"))


@pytest.mark.parametrize("kind", LAYERS)
def test_merging_makes_a_plain_layer_of_the_same_weight_that_obeys(kind):
    layer, role = make(kind)
    effective = to_numpy(getattr(layer, role)).copy()
    report = xw.merge_lora(layer)
    assert list(report.merged) == [role]
    np.testing.assert_array_equal(to_numpy(getattr(layer, role)), effective)
    assert not [p.name for p in xw.parameters(layer) if "lora" in p.name]
    xw.fill(layer, 0.5, where=role)
    np.testing.assert_array_equal(to_numpy(getattr(layer, role)), 0.5)
    layer.enable_lora(3)
    assert [p.shape[-1] for p in xw.parameters(layer, where=xw.role(f"lora_{role}_a"))] == [3]


def test_a_model_that_was_compiled_computes_the_same_before_and_after_merging():
    model = make_model(lora=True)
    model.compile("sgd", "mse")
    before = model.predict(X, verbose=0)
    model.fit(X, np.zeros((4, 3)), epochs=1, verbose=0)
    trained = model.predict(X, verbose=0)
    assert not np.allclose(before, trained)
    xw.merge_lora(model)
    np.testing.assert_allclose(model.predict(X, verbose=0), trained, rtol=1e-5, atol=1e-5)
    model.compile("sgd", "mse")
    kernel = to_numpy(model.layers[0].kernel).copy()
    model.fit(X, np.zeros((4, 3)), epochs=1, verbose=0)
    assert not np.array_equal(to_numpy(model.layers[0].kernel), kernel)


def test_values_that_are_not_finite_merge_nothing():
    model = make_model(lora=True)
    model.layers[1].lora_kernel_a.assign(np.full((5, 2), np.nan))
    before = xw.get_params(model)
    with pytest.raises(xw.NonfiniteError, match="'dense/1/kernel'"):
        xw.merge_lora(model)
    for name, value in xw.get_params(model).items():
        np.testing.assert_array_equal(value, before[name])


def test_quantised_layers_are_refused_by_name():
    layer, _ = make("Dense")
    layer.quantize("int8")
    with pytest.raises(xw.WriteError, match="'kernel': it holds integers"):
        xw.merge_lora(layer)
    with pytest.raises(xw.WriteError, match="'kernel': it holds integers"):
        xw.effective_params(layer)


@pytest.mark.parametrize("ending", ["weights.h5", "keras"])
def test_keras_own_file_of_the_plain_model_goes_into_the_lora_model_and_back(tmp_path, ending):
    plain, lora = make_model(lora=False, seed=3), make_model(lora=True)
    plain.save_weights(tmp_path / "plain.weights.h5")
    plain.save(tmp_path / "plain.keras")
    reset(lora)
    xw.set_params(lora, tmp_path / f"plain.{ending}")
    np.testing.assert_array_equal(to_numpy(lora.layers[0].kernel), to_numpy(plain.layers[0].kernel))
    lora.layers[0].lora_kernel_b.assign(np.full((2, 5), 0.3))
    xw.save(lora, tmp_path / f"back.{ending}")
    xw.set_params(plain, tmp_path / f"back.{ending}")
    np.testing.assert_array_equal(to_numpy(plain.layers[0].kernel), to_numpy(lora.layers[0].kernel))
    if ending == "weights.h5":
        other = make_model(lora=False, seed=4)
        other.load_weights(tmp_path / f"back.{ending}")
        assert xw.equal(other, plain)


def test_factors_in_use_make_a_plain_file_incomplete_and_strict_false_keeps_them(tmp_path):
    plain, lora = make_model(lora=False, seed=3), make_model(lora=True)
    plain.save_weights(tmp_path / "plain.weights.h5")
    before = xw.get_params(lora)
    with pytest.raises(xw.SelectionError, match="the layers wouldn't compute with the values that were passed"):
        xw.set_params(lora, tmp_path / "plain.weights.h5")
    assert xw.equal(lora, before)
    xw.set_params(lora, tmp_path / "plain.weights.h5", strict=False)
    np.testing.assert_array_equal(to_numpy(lora.layers[0]._kernel), to_numpy(plain.layers[0].kernel))
    np.testing.assert_array_equal(to_numpy(lora.layers[0].lora_kernel_a), before["dense/0/lora_kernel_a"])


def test_extracted_factors_go_into_a_lora_model_and_merge_into_a_plain_one():
    before, after = make_model(lora=False, seed=1), make_model(lora=False, seed=1)
    rng = np.random.default_rng(2)
    after.layers[0].kernel.assign_add(rng.normal(size=(6, 2)) @ rng.normal(size=(2, 5)))
    lora = xw.extract_lora(after, before, rank=2)
    assert list(lora.errors) == ["dense/0/kernel"]
    assert lora.errors["dense/0/kernel"] < 1e-5
    model = make_model(lora=False, seed=1)
    model.layers[0].enable_lora(2)
    xw.set_params(model, lora.params, strict=False)
    np.testing.assert_allclose(to_numpy(model.layers[0].kernel), to_numpy(after.layers[0].kernel), atol=1e-5)
    xw.merge_lora(before, lora)
    np.testing.assert_array_equal(to_numpy(before.layers[0].kernel), to_numpy(model.layers[0].kernel))


def test_penalties_and_averages_of_a_base_under_factors_are_refused():
    model = make_model(lora=True)
    for call in (
        lambda: xw.penalty(model, l2=0.1),
        lambda: xw.add_penalty(model, l2=0.1),
        lambda: xw.average(model, decay=0.9, where="*/kernel"),
    ):
        with pytest.raises(xw.WriteError, match=r"xweights\.merge_lora\(model\)"):
            call()
    assert float(xw.penalty(model, l2=0.1, where=xw.role("lora_*"))) > 0


def adapter_with_a_whole_head(folder, head, **config):
    """Write PEFT's folder: factors for one layer, and another that was trained as a whole, in torch's order."""
    ones = np.ones((2, 6), np.float32)
    arrays = {"fc.lora_A.weight": ones, "fc.lora_B.weight": ones.T.copy(), "head.weight": head}
    xw.save({f"base_model.model.{name}": array for name, array in arrays.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2, **config}))
    return folder


@pytest.mark.parametrize("units", [6, 3])
def test_a_kernel_that_peft_trained_as_a_whole_is_turned_also_if_it_is_square(units, tmp_path):
    head = np.random.default_rng(3).normal(size=(units, 6)).astype(np.float32)
    model = keras.Sequential([keras.Input((6,)), L.Dense(6, name="fc"), L.Dense(units, name="head")])
    report = xw.merge_lora(model, adapter_with_a_whole_head(tmp_path, head))
    assert report.replaced == ("head/kernel",)
    np.testing.assert_array_equal(xw.get_params(model)["head/kernel"], head.T)


def test_a_whole_kernel_of_which_nothing_tells_the_order_is_refused_and_nothing_changes(tmp_path):
    model = keras.Sequential([keras.Input((6,)), L.Dense(6, name="fc"), L.Dense(6, name="head")])
    before = xw.get_params(model)
    adapter = adapter_with_a_whole_head(tmp_path, np.ones((6, 6), np.float32), fan_in_fan_out=True)
    with pytest.raises(xw.LayoutError, match="nothing tells the order"):
        xw.merge_lora(model, adapter)
    assert xw.equal(xw.get_params(model), before)
