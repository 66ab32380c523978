"""Observe Keras models, and prove what was observed: every output follows from the views and the recorded input."""

from __future__ import annotations

import keras
import numpy as np

import xweights as xw
from xweights.edit.read import neutral_view
from xweights.porting.protocol import porting_for


def randomise(model, seed=0):
    """Give every floating weight its own random values, so that none is 0 or 1 by chance."""
    random = np.random.default_rng(seed)
    for p in xw.parameters(model):
        if p.floating and p.trainable:
            p.assign(random.uniform(0.2, 1.0, p.shape).astype(p.dtype))
    return model


class Proof:
    """A watcher that computes every operation by itself."""

    def __init__(self) -> None:
        self.entered = []
        self.proved = []

    def enter(self, record, inputs):
        self.entered.append((record, {name: None if x is None else np.array(x) for name, x in inputs.items()}))

    def leave(self, record, outputs):
        inputs = next(given for entered, given in reversed(self.entered) if entered is record)
        if record.views and record.kind != "rows":
            compute(record, inputs[""], outputs[""])
            self.proved.append(record)


def compute(record, x, got):
    arrays = {role: record.views[role](neutral_view(p)).astype(np.float64) for role, p in record.parameters.items()}
    x = x if x.dtype.kind in "iu" else x.astype(np.float64)
    if record.kind == "dense":
        wanted = x @ arrays["kernel"] + arrays.get("bias", 0)
    elif record.kind == "embedding":
        wanted = arrays["embeddings"][x]
    elif record.kind == "conv":
        settings = record.attributes
        kernel = arrays["kernel"].astype(np.float32)
        wanted = keras.ops.conv(
            x.astype(np.float32),
            kernel,
            settings["strides"],
            settings["padding"],
            "channels_last",
            settings["dilation"],
        )
        wanted = np.asarray(keras.ops.convert_to_numpy(wanted)) + arrays.get("bias", 0)
    elif record.kind == "prelu":
        wanted = np.maximum(x, 0) + arrays["alpha"] * np.minimum(x, 0)
    elif record.kind == "batch_norm":
        spread = np.sqrt(arrays["moving_variance"] + record.attributes["eps"])
        wanted = (x - arrays["moving_mean"]) / spread * arrays["gamma"] + arrays["beta"]
    else:
        if record.kind == "layer_norm":
            x = x - x.mean(-1, keepdims=True)
        if record.kind != "multiply":
            x = x / np.sqrt((x**2).mean(-1, keepdims=True) + record.attributes["eps"])
        wanted = x * (record.attributes["offset"] + arrays["gamma"]) + arrays.get("beta", 0)
    assert got.shape == wanted.shape, record.path
    scale = np.abs(wanted).max()
    assert np.abs(got - wanted).max() <= 1e-4 * scale, (record.path, record.kind)


def observe(model, sample):
    """Return the observed records of a model, after they were proved and nothing was changed."""
    before = [np.array(v) for v in xw.get_params(model).values()]
    porting = porting_for(model, "model")
    static = porting.records(model)
    plain = porting.run(model, static, sample, Silent())  # a layer may have attributes from its first call on
    attributes = [set(vars(layer)) for layer in model._flatten_layers()]
    records = porting.observe(model, static, sample)
    proof = Proof()
    got = porting.run(model, records, sample, proof)
    assert [set(vars(layer)) for layer in model._flatten_layers()] == attributes
    for one, other in zip(before, xw.get_params(model).values(), strict=True):
        assert np.array_equal(one, other)
    for name, array in plain.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)
    described = {id(p.handle) for record in records for p in record.parameters.values()}
    assert described >= {id(p.handle) for p in xw.parameters(model) if p.floating and p.role != "vector_u"}
    assert len({record.path for record in records if record.views}) == sum(bool(record.views) for record in records)
    return records


class Silent:
    def enter(self, record, inputs):
        pass

    def leave(self, record, outputs):
        pass


def describe(records):
    """Return path, kind and attributes of every record with weights."""
    return [
        (record.path, record.kind, {role: p.name for role, p in record.parameters.items()}, dict(record.attributes))
        for record in records
        if record.parameters
    ]
