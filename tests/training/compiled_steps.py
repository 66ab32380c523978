"""One training step of a linear model, compiled as its framework compiles, for articles 2 and 4.

Each step runs two functions of the user's: ``before()`` ahead of the update, and ``after(result_of_before)`` after it.
Both are inside the compiled step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xweights as xw

KERAS_BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
RNG = np.random.default_rng(2)
X = RNG.normal(size=(32, 4)).astype(np.float32)
Y = RNG.normal(size=(32, 3)).astype(np.float32)
START = RNG.normal(size=(4, 3)).astype(np.float32)
KERNEL = "hidden/kernel"

KINDS = [
    pytest.param("torch", id="torch.compile"),
    pytest.param("keras", id="keras", marks=pytest.mark.keras_backend),
    pytest.param("keras jit", id="keras-jit", marks=pytest.mark.keras_backend),
]
KERAS_KINDS = KINDS[1:]

Step = Callable[[], None]


class Training:
    """A model with one dense layer, called ``hidden``, and SGD."""

    model: Any

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def step(self, after: Callable[..., None] | None = None, before: Callable[[], Any] | None = None) -> Step:
        raise NotImplementedError

    def kernel(self) -> np.ndarray:
        return xw.get_params(self.model)[KERNEL]

    def read(self) -> Any:
        """Return the kernel inside a step, as a native tensor that keeps its value."""
        raise NotImplementedError

    def assign(self, value: Any) -> None:
        """Write the kernel as users do by hand."""
        raise NotImplementedError


def training(kind: str, rate: float = 0.1) -> Training:
    pytest.importorskip(kind.removesuffix(" jit"))
    if kind == "keras jit" and KERAS_BACKEND == "torch":
        pytest.skip("Keras on torch compiles nothing unless told to")
    if kind == "keras" and KERAS_BACKEND == "jax":
        pytest.skip("on JAX the compiled step is the jitted one")
    trained = TorchTraining(rate) if kind == "torch" else KerasTraining(rate, kind == "keras jit")
    xw.set_params(trained.model, {KERNEL: START, "hidden/bias": np.zeros(3, np.float32)})
    return trained


def by_numpy(steps: int, rate: float, after: Callable[[dict[str, np.ndarray], int], None]) -> np.ndarray:
    """Train by hand: update, then edit. Every compiled step has to give the same."""
    w = {KERNEL: START.copy(), "hidden/bias": np.zeros(3, np.float32)}
    for step in range(steps):
        slope = 2 * (X @ w[KERNEL] + w["hidden/bias"] - Y) / Y.size
        w[KERNEL] -= np.float32(rate) * (X.T @ slope)
        w["hidden/bias"] -= np.float32(rate) * slope.sum(0)
        after(w, step)
    return w[KERNEL]


class TorchTraining(Training):
    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        import torch

        self.model = torch.nn.Sequential()
        self.model.add_module("hidden", torch.nn.Linear(4, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate)

    def step(self, after: Callable[..., None] | None = None, before: Callable[[], Any] | None = None) -> Step:
        import torch

        x, y = torch.from_numpy(X), torch.from_numpy(Y)

        @torch.compile(backend="aot_eager")
        def update() -> None:
            kept = before() if before is not None else None
            self.optimizer.step()
            if after is not None:
                after() if before is None else after(kept)

        def run() -> None:
            self.optimizer.zero_grad()
            torch.nn.functional.mse_loss(self.model(x), y).backward()
            update()

        return run

    def read(self) -> Any:
        return self.model.hidden.weight.detach().clone()

    def assign(self, value: Any) -> None:
        import torch

        with torch.no_grad():
            self.model.hidden.weight.copy_(value)


class KerasTraining(Training):
    def __init__(self, rate: float, jit: bool) -> None:
        super().__init__(rate)
        import keras

        self.jit = jit
        self.model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden")])
        self.optimizer = keras.optimizers.SGD(rate)
        self.optimizer.build(self.model.trainable_variables)

    def step(self, after: Callable[..., None] | None = None, before: Callable[[], Any] | None = None) -> Step:
        import keras

        model, optimizer = self.model, self.optimizer

        def change(update: Step) -> None:
            kept = before() if before is not None else None
            update()
            if after is not None:
                after() if before is None else after(kept)

        def loss() -> Any:
            return keras.ops.mean((model(X) - keras.ops.convert_to_tensor(Y)) ** 2)

        def apply(gradients: Any) -> None:
            change(lambda: optimizer.apply(gradients, model.trainable_variables))

        return {"tensorflow": self._tensorflow, "jax": self._jax, "torch": self._torch}[KERAS_BACKEND](loss, apply)

    def _tensorflow(self, loss: Callable[[], Any], apply: Callable[[Any], None]) -> Step:
        import tensorflow as tf

        @tf.function(jit_compile=self.jit)
        def step() -> None:
            with tf.GradientTape() as tape:
                value = loss()
            apply(tape.gradient(value, self.model.trainable_variables))

        return step

    def _jax(self, loss: Callable[[], Any], apply: Callable[[Any], None]) -> Step:
        import jax
        import keras

        trained = list(self.model.trainable_variables)
        state = [*trained, *self.optimizer.variables]

        def value(weights: Any) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(trained, weights, strict=True))):
                return loss()

        @jax.jit
        def step(values: Any) -> Any:
            gradients = jax.grad(value)(values[: len(trained)])
            with keras.StatelessScope(state_mapping=list(zip(state, values, strict=True))) as scope:
                apply(gradients)
            return [scope.get_current_value(variable) for variable in state]

        def run() -> None:
            for variable, new in zip(state, step([variable.value for variable in state]), strict=True):
                variable.assign(new)

        return run

    def _torch(self, loss: Callable[[], Any], apply: Callable[[Any], None]) -> Step:
        import torch

        def step() -> None:
            self.model.zero_grad()
            loss().backward()
            with torch.no_grad():
                apply([variable.value.grad for variable in self.model.trainable_variables])

        return step

    def read(self) -> Any:
        import keras

        return keras.ops.copy(keras.ops.convert_to_tensor(self.model.layers[0].kernel))

    def assign(self, value: Any) -> None:
        self.model.layers[0].kernel.assign(value)
