"""One small network and one way to train it, in PyTorch and in Keras: the same seeds, the same numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xweights as xw

KERAS_BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
RNG = np.random.default_rng(7)
X = RNG.normal(size=(8, 4)).astype("float32")
Y = RNG.normal(size=(8, 3)).astype("float32")
# A rule that is true after each of 20 steps, under momentum and accumulation, is proved as well as after 50.
STEPS = [
    pytest.param(20, id="20 steps"),
    pytest.param(50, id="50 steps", marks=pytest.mark.thorough),
    pytest.param(1000, id="1000 steps", marks=pytest.mark.slow),
]

_both = ("sgd", "adam", "adamw", "rmsprop", "adagrad", "muon", "accumulation", "loss scaling")
_torch = (*_both, "lbfgs")
_keras = (*_both, "lion", "ema")


def every(*kinds: str, only: tuple[str, ...] = (), slow: tuple[str, ...] = ()) -> list[Any]:
    """Return every way to train: (kind, optimizer). Kinds: torch, keras (as Keras runs by default), jit (by XLA).

    ``slow`` ones of Keras, which takes seconds to compile each, are for ``nox -s slow``: the test matrix runs all rules
    under all optimizers, with one compilation for each.
    """
    cells = []
    for kind in kinds:
        for name in _torch if kind == "torch" else _keras:
            if name in (only or (name,)):
                marks = [] if kind == "torch" else [pytest.mark.keras_backend]
                marks += [pytest.mark.slow] if kind != "torch" and name in slow else []
                cells.append(pytest.param(kind, name, marks=marks, id=f"{kind}-{name}"))
    return cells


class Learner:
    """A model in training: ``target``, ``optimizer``, and ``step()``."""

    target: Any
    optimizer: Any
    step: Callable[[], None]

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    @property
    def bits(self) -> dict[str, bytes]:
        return {name: value.tobytes() for name, value in xw.get_params(self.target).items()}

    @property
    def first(self) -> str:
        """Return the name of the first kernel."""
        return xw.parameters(self.target, where="*/kernel")[0].name

    @property
    def second(self) -> str:
        return xw.parameters(self.target, where="*/kernel")[1].name

    def set_raw(self, name: str, value: np.ndarray) -> None:
        """Write past every hold, as a loop written by hand would."""
        (p,) = xw.parameters(self.target, where=name)
        p.write(np.ascontiguousarray(p.layout.to_stored(value)))


def learner(kind: str, optimizer: str = "sgd", *, norm: bool = False, learning_rate: float | None = None) -> Learner:
    model: Learner
    if kind == "torch":
        pytest.importorskip("torch")
        model = TorchLearner(optimizer, norm, learning_rate)
    else:
        pytest.importorskip("keras")
        if kind == "jit" and KERAS_BACKEND != "tensorflow":
            pytest.skip({"torch": "Keras on torch doesn't compile", "jax": "Keras on JAX always does"}[KERAS_BACKEND])
        model = KerasLearner(optimizer, norm, kind == "jit", learning_rate)
    values = np.random.default_rng(3)
    for p in xw.parameters(model.target, where=xw.trainable()):
        p.assign(values.normal(size=p.shape).astype("float32") * 0.5)
    return model


class TorchLearner(Learner):
    def __init__(self, name: str, norm: bool, learning_rate: float | None) -> None:
        import torch

        bias = name != "muon"  # which is for matrices
        middle = [torch.nn.BatchNorm1d(5)] if norm else [torch.nn.Tanh()]
        self.target = torch.nn.Sequential(torch.nn.Linear(4, 5, bias=bias), *middle, torch.nn.Linear(5, 3, bias=bias))
        weights, o = list(self.target.parameters()), torch.optim
        lr = learning_rate
        self.optimizer = {
            "sgd": lambda: o.SGD(weights, lr=lr or 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
            "plain sgd": lambda: o.SGD(weights, lr=lr or 0.05),
            "adam": lambda: o.Adam(weights, lr=lr or 0.01),
            "adamw": lambda: o.AdamW(weights, lr=lr or 0.01, weight_decay=0.1),
            "rmsprop": lambda: o.RMSprop(weights, lr=lr or 0.01, momentum=0.9),
            "adagrad": lambda: o.Adagrad(weights, lr=lr or 0.05),
            "muon": lambda: o.Muon(weights, lr=lr or 0.01, weight_decay=0.1),
            "lbfgs": lambda: o.LBFGS(weights, lr=lr or 0.1, max_iter=3),
            "accumulation": lambda: o.AdamW(weights, lr=lr or 0.01, weight_decay=0.1),
            "loss scaling": lambda: o.SGD(weights, lr=lr or 0.05, momentum=0.9, weight_decay=0.01),
        }[name]()
        x, y = torch.from_numpy(X), torch.from_numpy(Y)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, enabled=name == "loss scaling")
        parts = 2 if name == "accumulation" else 1

        def loss() -> Any:
            return ((self.target(x) - y) ** 2).mean()

        def closure() -> Any:
            self.optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        def step() -> None:
            if name == "lbfgs":
                self.optimizer.step(closure)
                return
            self.optimizer.zero_grad()
            for _ in range(parts):
                scaler.scale(loss()).backward()
            scaler.step(self.optimizer)
            scaler.update()

        self.step = step


class KerasLearner(Learner):
    def __init__(self, name: str, norm: bool, jit: bool, learning_rate: float | None) -> None:
        import keras

        layers, o = keras.layers, keras.optimizers
        middle = layers.BatchNormalization() if norm else layers.Activation("tanh")
        self.target = keras.Sequential([keras.Input((4,)), layers.Dense(5), middle, layers.Dense(3)])
        lr = learning_rate
        self.optimizer = {
            "sgd": lambda: o.SGD(lr or 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
            "plain sgd": lambda: o.SGD(lr or 0.05),
            "adam": lambda: o.Adam(lr or 0.01),
            "adamw": lambda: o.AdamW(lr or 0.01, weight_decay=0.1),
            "rmsprop": lambda: o.RMSprop(lr or 0.01, momentum=0.9),
            "adagrad": lambda: o.Adagrad(lr or 0.05),
            "lion": lambda: o.Lion(lr or 0.005, weight_decay=0.1),
            "muon": lambda: o.Muon(lr or 0.01, weight_decay=0.1, adam_weight_decay=0.1),
            "ema": lambda: o.Adam(lr or 0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
            "accumulation": lambda: o.AdamW(lr or 0.01, weight_decay=0.1, gradient_accumulation_steps=2),
            "loss scaling": lambda: o.LossScaleOptimizer(o.SGD(lr or 0.05, momentum=0.9, weight_decay=0.01)),
        }[name]()
        compiled = "auto" if KERAS_BACKEND == "jax" else jit
        self.target.compile(self.optimizer, "mse", jit_compile=compiled)
        self.step = lambda: self.target.train_on_batch(X, Y)
