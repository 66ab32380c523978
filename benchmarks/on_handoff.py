"""Training steps of an optimizer that goes on with a foreign experiment, against the framework's own.

Owns its rows. Imports torch, Keras, NumPy and timing. The MLP is the one of the holds: 669,000 parameters, 128 rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import torch
from timing import Call, Memory, Timing, compare_each
from torch import nn

import xweights as xw

GOAL = 1.10
L = keras.layers


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    limits: dict[str, Any] = {"seconds": 1.0, "most": 10} if quick else {"seconds": 30.0, "most": 300}
    source = np.random.default_rng(0)
    x, y = source.standard_normal((128, 784), np.float32), source.integers(0, 10, 128)
    for name, mine, own in (
        ("adam, hook", keras.optimizers.Adam(1e-4), lambda p: torch.optim.Adam(p, 1e-4)),
        (
            "sgd, momentum, decay, schedule, hook",
            keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(1e-3, 9, 0.9), 0.9, weight_decay=1e-3),
            lambda p: torch.optim.SGD(p, 1e-3, 0.9, weight_decay=1e-3),
        ),
        ("nadam, shim", keras.optimizers.Nadam(1e-4), lambda p: torch.optim.NAdam(p, 1e-4)),
    ):
        handed = _torch_step(x, y, lambda net, mine=mine: _handed(net, mine, x))
        stock = _torch_step(x, y, lambda net, own=own: own(net.parameters()))
        yield from compare_each(f"training step, {name}", "torch", "mlp", handed, {"stock": (stock, GOAL)}, **limits)
    net = _torch()
    adamw = torch.optim.AdamW(net.parameters(), 1e-4)
    model = _keras()
    shim = xw.handoff((net, adamw), (model, None), sample=x[:4]).optimizer
    peers: dict[str, Any] = {"stock": (_keras_step(_keras(), keras.optimizers.AdamW(1e-4), x, y), GOAL)}
    yield from compare_each(
        "training step, adamw, shim", f"keras-{keras.backend.backend()}", "mlp", _keras_step(model, shim, x, y), peers,
        **limits,
    )  # fmt: skip


def _torch() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )  # fmt: skip


def _keras() -> Any:
    return keras.Sequential(
        [keras.Input((784,)), L.Dense(512, activation="relu"), L.Dense(512, activation="relu"), L.Dense(10)]
    )


def _handed(net: nn.Module, optimizer: Any, x: np.ndarray) -> torch.optim.Optimizer:
    model = _keras()
    optimizer.build(model.trainable_variables)
    made: torch.optim.Optimizer = xw.handoff((model, optimizer), (net, None), sample=x[:4]).optimizer
    return made


def _torch_step(x: np.ndarray, y: np.ndarray, prepare: Any) -> Call:
    net = _torch()
    optimizer = prepare(net)
    inputs, wanted = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), wanted).backward()
        optimizer.step()

    return step


def _keras_step(model: Any, optimizer: Any, x: np.ndarray, y: np.ndarray) -> Call:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    return lambda: model.train_on_batch(x, y)
