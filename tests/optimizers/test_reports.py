"""The report of a hand-off: its entries, and the release of hooks."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xweights as xw

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch")

from experiments import running  # noqa: E402
from experiments.beginning import start_training  # noqa: E402
from experiments.models import data  # noqa: E402


def test_a_report_grades_every_part_with_a_reason():
    k, o, t, sample = start_training("norms", "adam, accumulation, ema", steps=4)
    report = xw.handoff((k, o), (t, None), sample=sample)
    grades = {part.name: part.grade for part in report.parts}
    assert grades["adam"] == "exact (hook)"
    assert grades["moving variances"] == "exact (hook)"
    assert grades["momentum of 4"] == "exact"
    assert (report.updates, report.training.micro_steps, report.training.micro_done) == (1, 3, 1)
    assert "epsilon" in str(report)
    assert json.loads(report.to_json())["exact"] is True
    assert "| adam | exact (hook) |" in report.to_markdown()


def test_releasing_removes_every_hook():
    k, o, t, sample = start_training("norms", "adam")
    hooks = len(t[4]._forward_hooks), len(t[4]._forward_pre_hooks)
    report = xw.handoff((k, o), (t, None), sample=sample)
    assert report.optimizer._optimizer_step_pre_hooks
    report.release()
    assert not report.optimizer._optimizer_step_pre_hooks
    assert not report.optimizer._optimizer_step_post_hooks
    assert (len(t[4]._forward_hooks), len(t[4]._forward_pre_hooks)) == hooks


def test_a_parameter_group_shows_the_true_numbers_between_steps():
    k, o, t, sample = start_training(optimizer="adam, decay")
    optimizer = xw.handoff((k, o), (t, None), sample=sample).optimizer
    running.torch_steps(t, optimizer, data("mlp", steps=1))
    group = optimizer.param_groups[0]
    assert (group["eps"], group["weight_decay"]) == (1e-7, 0.02)
    assert group["lr"] == pytest.approx(0.01, rel=1e-7)


def test_dropout_is_reported_as_impossible():
    k = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5)])
    t = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    o = keras.optimizers.SGD(0.1)
    o.build(k.trainable_variables)
    report = xw.handoff((k, o), (t, None), sample=np.ones((2, 4), "float32"))
    assert [part.grade for part in report.parts if part.name == "dropout"] == ["impossible"]
    assert not report.exact


L, nn = keras.layers, torch.nn


@pytest.mark.parametrize(
    ("layer", "drops"),
    [
        (lambda: L.Dropout(0.0), False), (lambda: L.SpatialDropout1D(0.2), True),
        (lambda: L.GaussianNoise(0.1), True), (lambda: L.LSTM(2, recurrent_dropout=0.1), True),
        (lambda: L.MultiHeadAttention(2, 2, dropout=0.1), True), (lambda: L.MultiHeadAttention(2, 2), False),
        (lambda: L.RandomFlip(), True), (lambda: L.Dense(2), False),
        (lambda: nn.Dropout(0.0), False), (lambda: nn.Dropout2d(0.1), True),
        (lambda: nn.MultiheadAttention(4, 2, dropout=0.1), True), (lambda: nn.LSTM(2, 2, 2, dropout=0.1), True),
        (lambda: nn.Linear(2, 2), False),
    ],
)  # fmt: skip
def test_a_layer_that_drops_at_random_is_distinguished_from_one_that_does_not(layer, drops):
    from xweights.optimizers.protocol import optimizing_for

    made = layer()
    assert optimizing_for(made, "source").drops(made) == drops
