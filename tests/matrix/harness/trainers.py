"""One network with a layer for each rule, trained by hand in every framework, without xweights.

Kernels go in and out by hand, transposed where the framework stores them so. No framework is imported before it is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from harness.held import LAYERS, SIZE, Array, Arrays

# Several batches, and more of them than the network can memorise: there is a gradient at every step.
_SOURCE = np.random.Generator(np.random.PCG64(12))
X = _SOURCE.normal(size=(6, 32, SIZE)).astype(np.float32)
Y = (2 * _SOURCE.normal(size=(6, 32, SIZE))).astype(np.float32)


class Trainer:
    """A model in training. ``steps_per_update``: more than 1 where gradients are collected over several steps."""

    target: Any
    optimizer: Any
    steps_per_update = 1

    def step(self, number: int) -> None:
        """Train on one batch."""
        raise NotImplementedError

    def held(self, holds: Sequence[Any]) -> None:
        """Take the holds that apply from now on; only a step without an optimizer uses them."""

    def kernel(self, layer: str) -> Any:
        """Return the native array of a layer."""
        raise NotImplementedError

    def read(self) -> Arrays:
        """Return copies of all kernels, in neutral order."""
        raise NotImplementedError

    def load(self, arrays: Arrays) -> None:
        """Write kernels, in neutral order."""
        raise NotImplementedError


# torch


class TorchTrainer(Trainer):
    """A module, trained eagerly or by one compiled step with the optimizer's own inside."""

    def __init__(self, name: str, compiler: str | None = None) -> None:
        import torch

        class Net(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for layer in LAYERS:
                    setattr(self, layer, torch.nn.Linear(SIZE, SIZE, bias=False))

            def forward(self, x: Any) -> Any:
                return sum(torch.tanh(getattr(self, layer)(x)) for layer in LAYERS)

        self.target = Net()
        weights, o = list(self.target.parameters()), torch.optim
        make: dict[str, Callable[[], Any]] = {
            "SGD": lambda: o.SGD(weights, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
            "Adam": lambda: o.Adam(weights, lr=0.02),
            "AdamW": lambda: o.AdamW(weights, lr=0.02, weight_decay=0.1),
            "RMSprop": lambda: o.RMSprop(weights, lr=0.005, momentum=0.9),
            "Adagrad": lambda: o.Adagrad(weights, lr=0.05),
            "Muon": lambda: o.Muon(weights, lr=0.02, weight_decay=0.1),
            "LBFGS": lambda: o.LBFGS(weights, lr=0.1, max_iter=3),
        }
        base = {"accumulation": "AdamW", "loss scaling": "SGD"}.get(name, name)
        self.optimizer = optimizer = make[base]()
        self._x, self._y = torch.from_numpy(X), torch.from_numpy(Y)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, enabled=name == "loss scaling")
        parts = 2 if name == "accumulation" else 1

        def loss(x: Any, y: Any) -> Any:
            value = ((self.target(x) - y) ** 2).mean()
            scaler.scale(value).backward()
            return value

        def by_closure(x: Any, y: Any) -> None:
            def closure() -> Any:
                optimizer.zero_grad()
                return loss(x, y)

            optimizer.step(closure)

        def by_gradients(x: Any, y: Any) -> None:
            optimizer.zero_grad()
            for _ in range(parts):
                loss(x, y)
            scaler.step(optimizer)
            scaler.update()

        step = by_closure if name == "LBFGS" else by_gradients
        if compiler is not None:
            torch.compiler.reset()
            step = torch.compile(step, backend=compiler)
        self._step = step

    def step(self, number: int) -> None:
        at = number % len(X)
        self._step(self._x[at], self._y[at])

    def kernel(self, layer: str) -> Any:
        return getattr(self.target, layer).weight

    def read(self) -> Arrays:
        return {layer: self.kernel(layer).detach().numpy().T.copy() for layer in LAYERS}

    def load(self, arrays: Arrays) -> None:
        import torch

        with torch.no_grad():
            for layer, value in arrays.items():
                self.kernel(layer).copy_(torch.from_numpy(value.T.copy()))


# Keras


class KerasTrainer(Trainer):
    """A functional model, trained by its own train function, which is compiled as the backend does it."""

    def __init__(self, name: str, jit: bool | str) -> None:
        import keras

        layers, o = keras.layers, keras.optimizers
        inputs = keras.Input((SIZE,))
        branches = [layers.Dense(SIZE, use_bias=False, activation="tanh", name=layer)(inputs) for layer in LAYERS]
        self.target = keras.Model(inputs, layers.Add()(branches))
        make: dict[str, Callable[[], Any]] = {
            "SGD": lambda: o.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
            "Adam": lambda: o.Adam(0.02),
            "AdamW": lambda: o.AdamW(0.02, weight_decay=0.1),
            "RMSprop": lambda: o.RMSprop(0.005, momentum=0.9),
            "Adagrad": lambda: o.Adagrad(0.05),
            "Lion": lambda: o.Lion(0.005, weight_decay=0.1),
            "Muon": lambda: o.Muon(0.02, weight_decay=0.1, adam_weight_decay=0.1),
            "EMA": lambda: o.Adam(0.02, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3),
            "accumulation": lambda: o.AdamW(0.02, weight_decay=0.1, gradient_accumulation_steps=2),
            "loss scaling": lambda: o.LossScaleOptimizer(
                o.SGD(0.05, momentum=0.9, weight_decay=0.01), initial_scale=16.0
            ),
        }
        self.optimizer = make[name]()
        if name == "accumulation":
            self.steps_per_update = 2
        self.target.compile(self.optimizer, "mse", jit_compile=jit)

    def step(self, number: int) -> None:
        at = number % len(X)
        self.target.train_on_batch(X[at], Y[at])

    def kernel(self, layer: str) -> Any:
        return self.target.get_layer(layer).kernel

    def read(self) -> Arrays:
        import keras

        return {layer: np.array(keras.ops.convert_to_numpy(self.kernel(layer))) for layer in LAYERS}

    def load(self, arrays: Arrays) -> None:
        for layer, value in arrays.items():
            self.kernel(layer).assign(value)


# tf.Module


class TfModuleTrainer(Trainer):
    """Variables and a step of the user's own: a tf.function that updates, then calls ``held.apply()``."""

    optimizer = None

    def __init__(self, name: str) -> None:
        import tensorflow as tf

        self.target = tf.Module()
        for layer in LAYERS:
            part = tf.Module()
            part.kernel = tf.Variable(tf.zeros((SIZE, SIZE)))
            setattr(self.target, layer, part)
        self._momentum = {"SGD": 0.9, "plain SGD": 0.0}[name]
        self._velocity = [tf.Variable(tf.zeros((SIZE, SIZE))) for _ in LAYERS]
        self._holds: list[Any] = []
        self._step = self._trace()

    def _trace(self) -> Callable[[Array, Array], None]:
        import tensorflow as tf

        kernels, lr, decay = [self.kernel(layer) for layer in LAYERS], 0.05, 0.01
        holds = [held for held in self._holds if not hasattr(held, "masks")]

        @tf.function
        def step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                branches = [tf.tanh(x @ kernel) for kernel in kernels]
                loss = tf.reduce_mean((tf.add_n(branches) - y) ** 2)
            for kernel, velocity, slope in zip(kernels, self._velocity, tape.gradient(loss, kernels), strict=True):
                decayed = slope + decay * kernel
                velocity.assign(self._momentum * velocity + decayed)
                kernel.assign_sub(lr * (decayed + self._momentum * velocity))
            for held in holds:
                held.apply()

        typed: Callable[[Array, Array], None] = step
        return typed

    def held(self, holds: Sequence[Any]) -> None:
        self._holds = list(holds)
        self._step = self._trace()

    def step(self, number: int) -> None:
        at = number % len(X)
        self._step(X[at], Y[at])
        for held in self._holds:
            if hasattr(held, "masks"):  # a schedule selects its masks on the host: between steps
                held.apply()

    def kernel(self, layer: str) -> Any:
        return getattr(self.target, layer).kernel

    def read(self) -> Arrays:
        return {layer: self.kernel(layer).numpy().copy() for layer in LAYERS}

    def load(self, arrays: Arrays) -> None:
        for layer, value in arrays.items():
            self.kernel(layer).assign(value)
