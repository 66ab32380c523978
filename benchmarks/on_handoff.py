"""Time training steps of an optimizer that was handed over from another framework, against the framework's own.

The MLP is the one of the hold benchmarks: 669,000 parameters, 128 rows. Lion and Lamb, which PyTorch lacks, are
compared with a loop over the parameters as their authors write it.
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
L, O, T = keras.layers, keras.optimizers, torch.optim  # noqa: E741


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    limits: dict[str, Any] = {"seconds": 1.0, "most": 10} if quick else {"seconds": 30.0, "most": 300}
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((128, 784), np.float32), rng.integers(0, 10, 128)
    # A learning rate so small that the weights hardly change: a network that has learned its batch has gradients below
    # 1e-38, which take ten times as long.
    decaying = O.schedules.ExponentialDecay(1e-6, 9, 0.9)
    for name, source_optimizer, peer, peer_optimizer in (
        ("adam, hook", O.Adam(1e-6), "stock", lambda p: T.Adam(p, 1e-6)),
        (
            "sgd, momentum, decay, schedule, hook",
            O.SGD(decaying, 0.9, weight_decay=1e-3),
            "stock",
            lambda p: T.SGD(p, 1e-6, 0.9, weight_decay=1e-3),
        ),
        ("nadam, shim", O.Nadam(1e-6), "stock", lambda p: T.NAdam(p, 1e-6)),
        (
            "rmsprop, centered, momentum, schedule, shim",
            O.RMSprop(decaying, momentum=0.9, centered=True),
            "stock",
            lambda p: T.RMSprop(p, 1e-6, momentum=0.9, centered=True),
        ),
        ("adafactor, shim", O.Adafactor(1e-6), "stock", lambda p: T.Adafactor(p, 1e-6)),
        ("lion, shim", O.Lion(1e-6), "by hand", Lion),
        ("lamb, shim", O.Lamb(1e-6), "by hand", Lamb),
    ):
        ours = _torch_step(x, y, lambda net, source_optimizer=source_optimizer: _hand_over(net, source_optimizer, x))
        theirs = _torch_step(x, y, lambda net, peer_optimizer=peer_optimizer: peer_optimizer(net.parameters()))
        yield from compare_each(f"training step, {name}", "torch", "mlp", ours, {peer: (theirs, GOAL)}, **limits)
    net = _torch_net()
    adamw = torch.optim.AdamW(net.parameters(), 1e-4)
    model = _keras_net()
    shim = xw.handoff((net, adamw), (model, None), sample=x[:4]).optimizer
    peers: dict[str, Any] = {"stock": (_keras_step(_keras_net(), keras.optimizers.AdamW(1e-4), x, y), GOAL)}
    yield from compare_each(
        "training step, adamw, shim", f"keras-{keras.backend.backend()}", "mlp", _keras_step(model, shim, x, y), peers,
        **limits,
    )  # fmt: skip


class Lion(T.Optimizer):
    """Lion alone, without options (Chen et al., arXiv:2302.06675)."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-6})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Make one update."""
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("m", torch.zeros_like(p))
                p.add_(momentum.mul(0.9).add_(p.grad, alpha=0.1).sign_(), alpha=-group["lr"])
                momentum.mul_(0.99).add_(p.grad, alpha=0.01)


class Lamb(T.Optimizer):
    """Lamb alone, without options (You et al., arXiv:1904.00962)."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-6})
        self.t = 0

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Make one update."""
        self.t += 1
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                v = self.state[p].setdefault("v", torch.zeros_like(p))
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                step = m / (1 - 0.9**self.t) / (v / (1 - 0.999**self.t)).sqrt().add_(1e-7)
                weight, length = p.norm(), step.norm()
                ratio = torch.where((weight > 0) & (length > 0), weight / length, torch.ones_like(weight))
                p.sub_(step * (ratio * group["lr"]))


def _torch_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )  # fmt: skip


def _keras_net() -> Any:
    return keras.Sequential(
        [keras.Input((784,)), L.Dense(512, activation="relu"), L.Dense(512, activation="relu"), L.Dense(10)]
    )


def _hand_over(net: nn.Module, optimizer: Any, x: np.ndarray) -> torch.optim.Optimizer:
    model = _keras_net()
    optimizer.build(model.trainable_variables)
    handed_over: torch.optim.Optimizer = xw.handoff((model, optimizer), (net, None), sample=x[:4]).optimizer
    return handed_over


def _torch_step(x: np.ndarray, y: np.ndarray, prepare: Any) -> Call:
    net = _torch_net()
    optimizer = prepare(net)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()

    return step


def _keras_step(model: Any, optimizer: Any, x: np.ndarray, y: np.ndarray) -> Call:
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    return lambda: model.train_on_batch(x, y)
