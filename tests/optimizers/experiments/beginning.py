"""Starting points of hand-offs: a half-trained Keras model and its twin, and a check that a refusal changed nothing."""

from __future__ import annotations

import hashlib

import keras
import numpy as np
import pytest
import torch

import xweights as xw
from experiments import running
from experiments.models import data, twins

DOUBLE = "float64"


def widest_dtype():
    """Return the widest dtype that Keras computes in on this backend."""
    return DOUBLE if keras.backend.backend() == "tensorflow" else "float32"


def start_training(name="mlp", optimizer="adam", steps=3, dtype="float32"):
    """Return a half-trained Keras model with its optimizer, a torch twin, and a batch."""
    k, t = twins(name, dtype)
    o = running.keras_optimizer(optimizer, k)
    batches = data(name, steps=max(steps, 1))
    if steps:
        running.keras_steps(k, o, batches[:steps], dtype)
    return k, o, t, batches[0][0].astype(dtype)


def bits_of(value):
    if value is None or isinstance(value, (str, int, float, bool, tuple)):
        return repr(value).encode()
    return np.ascontiguousarray(keras.ops.convert_to_numpy(value)).tobytes()


def fingerprint(model, optimizer):
    """Return a hash of all weights and of an optimizer's state."""
    digest = hashlib.blake2b(xw.checksum(model).encode())
    if isinstance(optimizer, torch.optim.Optimizer):
        for group in optimizer.param_groups:
            digest.update(repr({k: v for k, v in group.items() if k != "params"}).encode())
            for p in group["params"]:
                for key, value in sorted(optimizer.state.get(p, {}).items()):
                    digest.update(key.encode() + value.detach().numpy().tobytes())
    elif optimizer is not None:
        for variable in optimizer.variables:
            digest.update(bits_of(variable))
    return digest.hexdigest()


def assert_refused(source, target, text, kind=xw.HandoffError, **options):
    sides = [(side.model, side.optimizer) if isinstance(side, xw.Training) else side for side in (source, target)]
    before = [fingerprint(*side) for side in sides]
    with pytest.raises(kind, match=text):
        xw.handoff(source, target, **options)
    assert [fingerprint(*side) for side in sides] == before
