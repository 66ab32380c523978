"""Time training steps of a compiled Keras model on TensorFlow with a held rule, against a native constraint.

Each candidate trains a model of its own, from equal weights, with ``train_on_batch``. A native constraint is what an
expert writes who has the rule before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from timing import Call, Memory, Timing, compare_each

import xweights as xw

HOLD_GOAL = 1.03
KERNELS = "*/kernel"

Hold = Callable[[keras.Model], object]
Constrain = Callable[[tuple[int, ...]], Callable[[Any], Any]]


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    for net, optimizer in (("mlp", "sgd"), ("mlp", "adam"), ("cnn", "sgd")):
        yield from _time_masks(Setting(net, optimizer, quick))
    yield from _time_other_rules(Setting("mlp", "adam", quick))


class Setting:
    """A net, an optimizer and a batch; :meth:`step` makes one candidate."""

    def __init__(self, net: str, optimizer: str, quick: bool) -> None:
        self.net, self.optimizer = net, optimizer
        self.name = f"{net} {optimizer}"
        self.limits = {"seconds": 1.0, "most": 10} if quick else {"seconds": 45.0, "most": 400}
        rng = np.random.default_rng(0)
        size = (128, 784) if net == "mlp" else (32, 32, 32, 3)
        self.x = tf.constant(rng.standard_normal(size, np.float32))
        self.y = tf.constant(rng.integers(0, 10, size[0]))

    def model(self) -> keras.Model:
        """Return the net: 669,000 or 371,000 parameters."""
        keras.utils.set_random_seed(0)
        layers = keras.layers
        if self.net == "mlp":
            hidden = [layers.Dense(512, activation="relu") for _ in range(2)]
            return keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(10)])
        convs = [layers.Conv2D(width, 3, padding="same", activation="relu") for width in (64, 128, 256)]
        return keras.Sequential([
            keras.Input((32, 32, 3)), convs[0], layers.MaxPooling2D(4), convs[1], layers.MaxPooling2D(), convs[2],
            layers.GlobalAveragePooling2D(), layers.Dense(10),
        ])  # fmt: skip

    def step(self, hold: Hold | None = None, constrain: Constrain | None = None, *, ema: bool = False) -> Call:
        """Return a training step; ``hold`` comes after compile(), ``constrain`` before."""
        model = self.model()
        if constrain is not None:
            for kernel in _kernels(model):
                kernel.constraint = constrain(tuple(kernel.shape))
        average = {"use_ema": True, "ema_momentum": 0.999} if ema else {}
        if self.optimizer == "sgd":
            optimizer: Any = keras.optimizers.SGD(1e-3, momentum=0.9, **average)
        else:
            optimizer = keras.optimizers.Adam(1e-4, **average)
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        kept = None if hold is None else hold(model)

        def step(kept: object = kept) -> None:
            model.train_on_batch(self.x, self.y)

        step()
        return step


def _kernels(model: keras.Model) -> list[keras.Variable]:
    return [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]


def _mask(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).random(shape, np.float32) < 0.5


def _native_mask(shape: tuple[int, ...]) -> Callable[[Any], Any]:
    mask = tf.constant(_mask(shape), tf.float32)
    return lambda w: w * mask


def _native_clip(shape: tuple[int, ...]) -> Callable[[Any], Any]:
    return lambda w: tf.clip_by_value(w, -0.05, 0.05)


def _native_rows(shape: tuple[int, ...]) -> Callable[[Any], Any]:
    free = np.ones(shape, np.float32)
    free[..., :8] = 0.0
    free, kept = tf.constant(free), tf.constant(np.full(shape, 0.01, np.float32) * (1 - free))
    return lambda w: w * free + kept


def _time_masks(setting: Setting) -> Iterator[Timing]:
    def hold_mask(model: keras.Model) -> object:
        return xw.hold(model, xw.Mask({p.name: _mask(p.shape) for p in xw.parameters(model, where=KERNELS)}),
                       where=KERNELS)  # fmt: skip

    yield from compare_each(
        "training step, mask held", "keras-tensorflow", setting.name, setting.step(hold_mask),
        {
            "native constraint, w * mask": (setting.step(constrain=_native_mask), HOLD_GOAL),
            "plain step": (setting.step(), None),
        },
        **setting.limits,
    )  # fmt: skip


def _time_other_rules(setting: Setting) -> Iterator[Timing]:
    def each(name: str, ours: Hold, peer: str, call: Call, goal: float | None) -> Iterator[Timing]:
        peers = {peer: (call, goal), "plain step": (setting.step(), None)}
        yield from compare_each(f"training step, {name}", "keras-tensorflow", setting.name, setting.step(ours), peers,
                                **setting.limits)  # fmt: skip

    yield from each(
        "clip held", lambda m: xw.hold(m, xw.Clip(-0.05, 0.05), where=KERNELS),
        "native constraint, clip_by_value", setting.step(constrain=_native_clip), HOLD_GOAL,
    )  # fmt: skip
    yield from each(
        "pruned 50 %, held", lambda m: xw.prune(m, fraction=0.5, where=KERNELS, hold=True),
        "native constraint, w * mask", setting.step(constrain=_native_mask), HOLD_GOAL,
    )  # fmt: skip
    yield from each(
        "8 columns frozen", lambda m: xw.freeze(m, where=KERNELS, entries={"out": slice(8)}),
        "native constraint, w * free + kept", setting.step(constrain=_native_rows), HOLD_GOAL,
    )  # fmt: skip
    yield from each(
        "multiply_lr of kernels", lambda m: xw.multiply_lr(m, {KERNELS: 0.1}),
        "plain step again", setting.step(), None,
    )  # fmt: skip
    yield from each(
        "average, 0.999", lambda m: xw.average(m, decay=0.999),
        "use_ema=True", setting.step(ema=True), None,
    )  # fmt: skip
