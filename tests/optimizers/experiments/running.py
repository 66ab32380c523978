"""Experiments trained by hand: 20 steps here, a hand-off, 20 steps there, against 40 steps here.

Nothing here uses verify_handoff: this is an independent way to the same numbers.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import keras
import numpy as np
import torch

import xweights as xw
from experiments.models import data, for_torch, twins
from experiments.optimizers import KERAS, MUON, TORCH


@contextmanager
def floats(dtype):
    former = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(former)


def keras_steps(model, optimizer, batches, dtype="float32", compiled=False):
    """Train, and return the losses."""
    with floats(dtype):
        if getattr(model, "optimizer", None) is not optimizer:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)
            jit = compiled and keras.backend.backend() != "torch"
            model.compile(optimizer, loss, run_eagerly=not compiled, jit_compile=jit)
        losses = []
        for inputs, labels in batches:
            model.reset_metrics()
            losses.append(float(model.train_on_batch(inputs.astype(dtype), labels)))
    return losses


def torch_steps(model, optimizer, batches, dtype="float32", every=1, done=0, scheduler=None, clip=None, each=None):
    model.train()
    losses = []
    for inputs, labels in batches:
        x = torch.from_numpy(np.ascontiguousarray(for_torch(inputs))).to(getattr(torch, dtype))
        loss = torch.nn.functional.cross_entropy(model(x), torch.from_numpy(labels).long())
        loss.backward()
        losses.append(float(loss.detach()))
        done += 1
        if done == every:
            _clip(model, clip)
            optimizer.step()
            optimizer.zero_grad()
            done = 0
            if scheduler is not None:
                scheduler.step()
            if each is not None:
                each()
    return losses


def _clip(model, clip):
    """Clip the gradients as a loop by hand does: ("global_norm", limit), ("norm", limit) or None."""
    if clip is not None and clip[0] == "global_norm":
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip[1])
    elif clip is not None:
        for p in model.parameters():
            torch.nn.utils.clip_grad_norm_([p], clip[1])


def keras_optimizer(name, model, dtype="float32"):
    """Return a built optimizer; its learning rate is a float32 number, as it is in Keras by default."""
    optimizer = KERAS[name]()
    optimizer.build(model.trainable_variables)
    return optimizer


def torch_optimizer(name, model):
    return (TORCH | MUON)[name]([p for p in model.parameters() if p.requires_grad])


def distance(got, expected):
    """Return the largest difference of a weight, relative to the largest entry of its array; biases are added up."""
    got, expected = _add_biases(got), _add_biases(expected)
    worst = 0.0
    for name, value in expected.items():
        if value.dtype.kind == "f":
            worst = max(worst, float(np.abs(got[name] - value).max() / (np.abs(value).max() or 1.0)))
    return worst


def _add_biases(values):
    """Add up the two biases of a layer wherever they were trained as one."""
    sums = dict(values)
    for name in values:
        if name.endswith("recurrent_bias") and "gru" not in name:
            sums[name.replace("recurrent_bias", "bias")] = sums[name.replace("recurrent_bias", "bias")] + sums.pop(name)
    return sums


def back(model, like, sample):
    """Return the weights of a model as its twin would have them, by a port into a copy of the twin."""
    xw.port(model, like, sample=sample, attributes="ignore")
    return dict(xw.get_params(like))


def shuffle_rows(batches):
    shuffled = []
    for index, (inputs, labels) in enumerate(batches):
        order = np.random.default_rng(index).permutation(len(labels))
        shuffled.append((inputs[order], labels[order]))
    return shuffled


@dataclass
class Result:
    difference: float
    floor: float
    loss: float
    loss_floor: float
    report: object

    def on_floor(self, dtype):
        least = 4.4e-16 if dtype == "float64" else 2.4e-7
        return self.difference <= 10 * max(self.floor, least) and (dtype != "float64" or self.difference <= 1e-12)


def to_torch(model, optimizer, dtype="float32", compiled=False, steps=(20, 20), grade="exact"):
    """Train half in Keras and half in PyTorch, against all of it in Keras."""
    batches = data(model, steps=sum(steps))
    first, rest = batches[: steps[0]], batches[steps[0] :]
    runs = []
    for shuffled in (False, True):
        k, t = twins(model, dtype)
        o = keras_optimizer(optimizer, k)
        keras_steps(k, o, first, dtype, compiled)
        if not shuffled:
            report = xw.handoff((k, o), (t, None), sample=batches[0][0].astype(dtype), grade=grade)
            side = report.training
            losses = torch_steps(t, side.optimizer, rest, dtype, side.micro_steps, side.micro_done)
            other = twins(model, dtype, seed=5)[0]
            handed = back(t, other, for_torch(batches[0][0]).astype(dtype))
        remaining = shuffle_rows(rest) if shuffled else rest
        runs.append((keras_steps(k, o, remaining, dtype, compiled), dict(xw.get_params(k))))
    return _result(handed, losses, runs, report)


def to_keras(model, optimizer, dtype="float32", compiled=False, steps=(20, 20), grade="exact"):
    """Train half in PyTorch and half in Keras, against all of it in PyTorch."""
    batches = data(model, steps=sum(steps))
    first, rest = batches[: steps[0]], batches[steps[0] :]
    runs = []
    for shuffled in (False, True):
        k, t = twins(model, dtype)
        o = torch_optimizer(optimizer, t)
        torch_steps(t, o, first, dtype)
        if not shuffled:
            sample = for_torch(batches[0][0]).astype(dtype)
            report = xw.handoff((t, o), (k, None), sample=sample, grade=grade, step=steps[0])
            losses = keras_steps(k, report.optimizer, rest, dtype, compiled)
            handed = back(k, twins(model, dtype, seed=5)[1], batches[0][0].astype(dtype))
        remaining = shuffle_rows(rest) if shuffled else rest
        runs.append((torch_steps(t, o, remaining, dtype), dict(xw.get_params(t))))
    return _result(handed, losses, runs, report)


def _result(weights, handed_losses, runs, report):
    (losses, expected), (other_losses, floor) = runs
    base = np.abs(losses)
    return Result(
        distance(weights, expected),
        distance(floor, expected),
        float((np.abs(np.subtract(handed_losses, losses)) / base).max()),
        float((np.abs(np.subtract(other_losses, losses)) / base).max()),
        report,
    )
