"""Optimizer state: unchanged by a round trip, saved, compared, and described by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xweights as xw

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

from experiments import running  # noqa: E402
from experiments.beginning import start_training  # noqa: E402
from experiments.models import data, twins  # noqa: E402


@pytest.mark.parametrize(
    "optimizer", ["sgd, momentum, exponential", "rmsprop, centered", "adamax", "adagrad", "adafactor", "nadam", "muon"]
)
def test_the_state_comes_back_to_the_bit_if_nothing_was_trained_in_between(optimizer):
    k, o, t, sample = start_training(optimizer=optimizer)
    before = xw.get_optimizer(k, o)
    report = xw.handoff((k, o), (t, None), sample=sample)
    k2 = twins("mlp", seed=9)[0]
    again = xw.handoff((t, report.optimizer), (k2, None), sample=sample)
    assert before.diff(xw.get_optimizer(k2, again.optimizer)) == []
    assert xw.equal(k, k2)


@pytest.mark.parametrize(
    "name", ["s.safetensors", "s.npz", "s.pt", "s.weights.h5", "s.safetensors.index.json"]
)  # fmt: skip
@pytest.mark.parametrize("optimizer", ["adam, accumulation, ema", "nadam", "adafactor"])
def test_a_state_is_saved_and_loaded_to_the_bit_in_every_format(tmp_path, name, optimizer):
    k, o, _, _ = start_training(optimizer=optimizer, steps=4)
    state = xw.get_optimizer(k, o)
    state.save(tmp_path / name)
    loaded = xw.OptimizerState.load(tmp_path / name)
    assert state.diff(loaded) == []
    assert (loaded.updates, loaded.micro_done) == (state.updates, state.micro_done)
    if state.schedule is not None:
        assert loaded.schedule.at(7) == state.schedule.at(7)
    momentum = xw.get_params(tmp_path / name, where="momentum/*") if optimizer == "nadam" else {}
    assert all(np.array_equal(value, state.slots[key.partition("/")[2]]["momentum"]) for key, value in momentum.items())
    assert len(momentum) == (6 if optimizer == "nadam" else 0)


def test_a_state_is_arrays_and_json():
    k, o, _, _ = start_training(optimizer="adam, accumulation, ema", steps=4)
    state = xw.get_optimizer(k, o)
    arrays, meta = state.to_flat()
    assert state.diff(xw.OptimizerState.from_flat(arrays, json.loads(json.dumps(meta)))) == []


def test_a_state_in_bfloat16_is_saved_and_loaded_to_the_bit(tmp_path):
    t = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    o = torch.optim.Adam(t.parameters())
    t(torch.ones(4, 3, dtype=torch.bfloat16)).sum().backward()
    o.step()
    state = xw.get_optimizer(t, o)
    state.save(tmp_path / "s.safetensors")
    assert state.diff(xw.OptimizerState.load(tmp_path / "s.safetensors")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("optimizer_state"), "there is no optimizer state in"),
        (lambda arrays: arrays.update(optimizer_state=np.frombuffer(b"{", np.uint8)), "is damaged"),
        (lambda arrays: arrays.update(optimizer_state=np.frombuffer(b"[]", np.uint8)), "is damaged"),
        (lambda arrays: arrays.update(optimizer_state=np.frombuffer(b'{"version": 1}', np.uint8)), "is damaged"),
        (lambda arrays: arrays.update(optimizer_state=np.frombuffer(b'{"version": 9}', np.uint8)), "version 1"),
        (lambda arrays: arrays.update({"momentum/stranger": np.ones(2)}), "is damaged: KeyError: 'stranger'"),
    ],
)
def test_a_file_that_holds_no_state_or_a_damaged_one_is_refused(tmp_path, change, message):
    k, o, _, _ = start_training()
    xw.get_optimizer(k, o).save(tmp_path / "s.npz")
    arrays = dict(xw.get_params(tmp_path / "s.npz"))
    change(arrays)
    xw.save(arrays, tmp_path / "s.npz")
    with pytest.raises(xw.HandoffError, match=message):
        xw.OptimizerState.load(tmp_path / "s.npz")


def test_a_state_lists_its_differences_from_another():
    k, o, _, _ = start_training(steps=1)
    one = xw.get_optimizer(k, o)
    running.keras_steps(k, o, data("mlp", steps=2)[1:])
    found = xw.get_optimizer(k, o).diff(one)
    assert any("updates" in text for text in found)
    assert any(text.startswith("momentum of ") and "differs by up to" in text for text in found)


@pytest.mark.keras_backend
@pytest.mark.parametrize("rule", ["lion", "adamw", "ftrl", "muon"])
def test_one_description_is_the_same_optimizer_in_both_frameworks(rule):
    k, t = twins("mlp")
    batches = data("mlp", steps=4)
    xw.port(k, t, sample=batches[0][0])
    rule, options = ("adam", {"weight_decay": 0.02}) if rule == "adamw" else (rule, {})
    rate = xw.schedule("piecewise", boundaries=[1], values=[0.01, 0.005])
    made = []
    for model in (k, t):
        state = xw.optimizer_state(model, rule, learning_rate=rate, clip=("global_norm", 1.0), **options)
        made.append(xw.set_optimizer(model, None, state).optimizer)
    running.keras_steps(k, made[0], batches)
    running.torch_steps(t, made[1], batches)
    handed = running.back(t, twins("mlp", seed=5)[0], batches[0][0])
    assert running.distance(handed, dict(xw.get_params(k))) < 3e-6
