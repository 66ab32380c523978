"""Keras layers with a call of their own are seen as the operations that they compute."""

from __future__ import annotations

import numpy as np
import pytest

from xweights.porting.protocol import porting_for

keras = pytest.importorskip("keras")
own = pytest.importorskip("own_keras_layers", reason="they need keras")
models = pytest.importorskip("observed_models", reason="they need keras")

pytestmark = pytest.mark.keras_backend

L = keras.layers
RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(3, 6)).astype("float32")
TOKENS = RANDOM.normal(size=(2, 5, 6)).astype("float32")
HEADS = RANDOM.normal(size=(2, 5, 2, 3)).astype("float32")
IMAGES = RANDOM.normal(size=(2, 8, 8, 3)).astype("float32")
IDS = RANDOM.integers(0, 20, (2, 5))


def build(layer, sample):
    inputs = keras.Input(sample.shape[1:], dtype="int32" if sample.dtype.kind == "i" else "float32")
    return models.randomise(keras.Model(inputs, layer(inputs)))


def see(layer, sample):
    """Return the one record of a layer."""
    (record,) = [record for record in models.observe(build(layer, sample), sample) if record.parameters]
    return record


@pytest.mark.parametrize(
    ("layer", "sample", "kind", "roles", "attributes"),
    [
        (own.OwnRMSNorm(), ROWS, "rms_norm", "gamma", {"eps": 1e-6, "offset": 0}),
        (own.OwnRMSNorm(1e-3, 1.0), TOKENS, "rms_norm", "gamma", {"eps": 1e-3, "offset": 1}),
        (own.OwnLayerNorm(), TOKENS, "layer_norm", "gamma beta", {"eps": 1e-3, "offset": 0}),
        (own.LayerScale(), TOKENS, "multiply", "gamma", {"offset": 0}),
        (own.OwnDense(4), ROWS, "dense", "kernel bias", {}),
        (own.OwnDense(6), ROWS, "dense", "kernel bias", {}),
        (own.OwnDense(4, rectify=True), TOKENS, "dense", "kernel bias", {}),
        (own.TurnedDense(), TOKENS, "dense", "kernel", {}),
        (own.Heads(), TOKENS, "dense", "kernel", {}),
        (own.Positions(), TOKENS, "rows", "rows", {"first": 2, "count": 5}),
        (own.OwnEmbedding(), IDS, "embedding", "embeddings", {}),
        (own.RelativeBias(), HEADS, "embedding", "embeddings", {}),
        (own.HiddenBias(), HEADS, "embedding", "embeddings", {}),
        (own.OwnPReLU(), TOKENS, "prelu", "alpha", {}),
        (own.OwnBatchNorm(), TOKENS, "batch_norm", "gamma beta moving_mean moving_variance", {"eps": 1e-3}),
        (own.Temperature(), TOKENS, "rows", "rows", {"first": 0, "count": 1}),
        (own.ScaledDense(4), ROWS, "dense", "kernel bias", {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, L.Layer) else "",
)
def test_a_layer_is_what_it_computes(layer, sample, kind, roles, attributes):
    record = see(layer, sample)
    assert (record.kind, " ".join(record.parameters), record.attributes) == (kind, roles, attributes)
    assert record.views.keys() == record.parameters.keys()


@pytest.mark.skipif(keras.config.image_data_format() == "channels_first", reason="the layer has channels last")
def test_a_convolution_by_hand_is_one():
    record = see(own.OwnConv(), IMAGES)
    assert record.kind == "conv"
    assert record.attributes == {"strides": (2, 2), "padding": "same", "dilation": (1, 1), "groups": 1}


@pytest.mark.parametrize(
    ("layer", "sample", "kind"),
    [
        (own.NormAndActivation(), TOKENS, "batch_norm"),
        (own.ScaledEmbedding(20, 6), IDS, "embedding"),
        (own.NamedDense(4, activation="relu"), ROWS, "dense"),
    ],
)
def test_a_subclass_that_calls_its_class_stays_a_layer_of_its_kind(layer, sample, kind):
    record = see(layer, sample)
    assert (record.kind, record.views) == (kind, {})


def test_the_output_of_a_subclass_is_that_of_its_class():
    model = build(own.NormAndActivation(), TOKENS)
    porting = porting_for(model, "model")
    seen = []

    class Watcher(models.Proof):
        def leave(self, record, outputs):
            seen.append(outputs.get(""))

    porting.run(model, porting.observe(model, porting.records(model), TOKENS), TOKENS, Watcher())
    assert min(array.min() for array in seen if array is not None) < 0


def test_the_parameters_of_a_model_of_its_own_are_found_in_the_order_of_their_use():
    model = own.VisionTransformer()
    model(IMAGES)
    records = [record for record in models.observe(models.randomise(model), IMAGES) if record.parameters]
    assert [(record.path, record.kind) for record in records] == [
        ("patch", "conv"),
        ("cls", "rows"),
        ("pos", "rows"),
        ("sine", "rows"),
        ("block/wide", "dense"),
        ("block/narrow", "dense"),
        ("block/gamma", "multiply"),
        ("norm", "layer_norm"),
        ("head", "dense"),
        ("mask_token", "rows"),
    ]
    by_path = {record.path: record.attributes for record in records}
    assert (by_path["cls"]["first"], by_path["cls"]["count"]) == (0, 1)
    assert (by_path["pos"]["first"], by_path["pos"]["count"]) == (0, 5)
    assert by_path["sine"]["constant"]
    assert by_path["mask_token"]["unused"]


def test_a_kernel_behind_one_that_is_zero_is_not_unused():
    layer = own.LowRank()
    model = build(layer, TOKENS)
    layer.second.assign(np.zeros((2, 6), "float32"))
    records = [record for record in models.observe(model, TOKENS) if record.parameters]
    assert [(record.path.rpartition("/")[2], record.attributes.get("unused")) for record in records] == [
        ("first", None),
        ("second", None),
    ]


def test_operations_come_in_the_order_in_which_the_variables_are_read():
    """The input of the scale has the shift in it, which is written before."""
    records = [record for record in models.observe(build(own.ActNorm(), TOKENS), TOKENS) if record.parameters]
    assert [record.path.rpartition("/")[2] for record in records] == ["shift", "scale"]


def test_layers_around_recurrent_ones_are_seen():
    inputs = keras.Input((5, 6))
    states = L.Bidirectional(L.LSTM(3, return_sequences=True))(own.OwnDense(6)(inputs))
    model = models.randomise(keras.Model(inputs, own.LayerScale()(states)))
    records = [record for record in models.observe(model, TOKENS) if record.parameters]
    assert [record.kind for record in records] == ["dense", "lstm", "lstm", "multiply"]


def test_a_layer_in_a_loop_of_the_framework_is_not_missed():
    model = build(L.TimeDistributed(own.LayerScale()), HEADS)
    (record,) = [record for record in models.observe(model, HEADS) if record.parameters]
    assert record.kind in ("rows", "multiply")


def test_weights_that_are_written_when_an_operation_begins_count():
    """A port writes them at that moment."""
    model = build(own.Block(), TOKENS)
    porting = porting_for(model, "model")
    records = porting.observe(model, porting.records(model), TOKENS)
    (scale,) = [record for record in records if record.kind == "multiply"]

    class Writer(models.Proof):
        def enter(self, record, inputs):
            super().enter(record, inputs)
            if record is scale:
                record.parameters["gamma"].assign(np.arange(6, dtype="float32"))

    proof = Writer()
    got = porting.run(model, records, TOKENS, proof)["output"]
    assert scale in proof.proved
    np.testing.assert_allclose(got, porting.run(model, records, TOKENS, models.Proof())["output"], rtol=1e-5, atol=1e-5)


def test_an_output_that_is_replaced_is_passed_on():
    model = build(own.Block(), TOKENS)
    porting = porting_for(model, "model")
    records = porting.observe(model, porting.records(model), TOKENS)

    class Replacer(models.Proof):
        def leave(self, record, outputs):
            super().leave(record, outputs)
            return np.zeros_like(outputs[""]) if record.kind == "multiply" else None

    np.testing.assert_allclose(porting.run(model, records, TOKENS, Replacer())["output"], TOKENS, rtol=1e-6, atol=1e-6)


def test_a_dict_is_passed_as_the_model_takes_it():
    sample = {"token_ids": IDS, "padding_mask": np.ones_like(IDS)}
    by_name, as_dict = own.Names(), own.OneDict()
    by_name(**sample)
    as_dict(sample)
    for model in (by_name, as_dict):
        kinds = [record.kind for record in models.observe(model, sample) if record.parameters]
        assert kinds == ["embedding", "dense"]
