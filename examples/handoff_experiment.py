"""One training run in two frameworks: 200 steps in Keras, 200 in PyTorch, 200 in Keras. Run it: nox -s handoff.

For comparison it trains 600 steps in Keras alone, and the same with the rows of each batch in another order, which is
the rounding floor. It draws both loss curves, which look the same, into handoff_experiment.png, and prints the
differences.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import digits
import keras
import numpy as np
import torch
from torch import nn

import xweights as xw

L = keras.layers


def keras_classifier() -> keras.Model:
    """Return the classifier in Keras: channels last."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(16, 3, padding="same", use_bias=False),
            L.BatchNormalization(epsilon=1e-5),
            L.ReLU(),
            L.MaxPooling2D(2),
            L.Flatten(),
            L.Dense(64, activation="tanh"),
            L.Dense(10),
        ]
    )


def torch_classifier() -> nn.Module:
    """Return its twin in PyTorch: channels first, so that it flattens in another order."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 64), nn.Tanh(), nn.Linear(64, 10)),
    )


def optimizer() -> keras.optimizers.Optimizer:
    """Return momentum SGD with a schedule, clipping and decay, which is easily ported wrong by hand."""
    schedule = keras.optimizers.schedules.ExponentialDecay(0.02, 100, 0.7)
    return keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=1e-3, global_clipnorm=1.0)


class Run:
    """A training run in Keras, and its losses."""

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def train(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        losses = []
        for images, labels in batches:
            self.model.reset_metrics()
            losses.append(float(self.model.train_on_batch(images, labels)))
        return losses


def train_torch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list) -> list[float]:
    model.train()
    losses = []
    for images, labels in batches:
        loss = nn.functional.cross_entropy(model(torch.from_numpy(channels_first(images))), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))


def begin() -> Run:
    """Return a new run, with the same initial weights each time."""
    model = keras_classifier()
    xw.init(model, "glorot_uniform", seed=0)
    return Run(model, optimizer())


def relative_distance(model: keras.Model, reference: keras.Model) -> float:
    weights, expected = xw.get_params(model), xw.get_params(reference)
    return max(
        float(np.abs(weights[n] - w).max() / np.abs(w).max())
        for n, w in expected.items()
        if w.dtype.kind == "f" and w.any()
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--plot", type=Path, default=Path("handoff_experiment.png"))
    options = parser.parse_args()
    steps = options.steps
    train, test, labels, truth = digits.data()
    rows = [rows for rows, _ in zip(xw.batches(len(train), 64, seed=0), range(3 * steps), strict=False)]
    batches = [(train[chosen], labels[chosen].astype("int64")) for chosen in rows]
    sample = train[:32]

    alone = begin()
    expected = alone.train(batches)
    floor_run = begin()
    reversed_batches = [(images[::-1], labels[::-1]) for images, labels in batches]
    floor = floor_run.train(reversed_batches)

    first = begin()
    losses = first.train(batches[:steps])
    module = torch_classifier()
    report = xw.handoff((first.model, first.optimizer), (module, None), sample=sample)
    print("1. From Keras to PyTorch\n")
    print(report)
    losses += train_torch(module, report.optimizer, batches[steps : 2 * steps])
    model = keras_classifier()
    back = xw.handoff((module, report.optimizer), (model, None), sample=channels_first(sample))
    print("\n2. And back\n")
    print(back)
    losses += Run(model, back.optimizer).train(batches[2 * steps :])

    print("\n3. Against Keras alone\n")
    print("                       handed over   rounding floor")
    curve = [float(np.abs(np.subtract(run_losses, expected)).max()) for run_losses in (losses, floor)]
    weights = [relative_distance(trained, alone.model) for trained in (model, floor_run.model)]
    print(f"loss, at most          {curve[0]:11.1e}   {curve[1]:14.1e}")
    print(f"weights, relative      {weights[0]:11.1e}   {weights[1]:14.1e}")
    scores = [float((trained.predict(test, verbose=0).argmax(1) == truth).mean()) for trained in (model, alone.model)]
    print(f"accuracy               {scores[0]:11.4f}   {scores[1]:14.4f} (Keras alone)")
    plot(options.plot, expected, losses, steps)
    if curve[0] > 10 * curve[1] or weights[0] > 10 * weights[1]:
        raise SystemExit("this is not the same experiment")


def plot(path: Path, expected: list[float], losses: list[float], steps: int) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    axes.plot(expected, color="#bbbbbb", linewidth=5, label="Keras alone")
    parts = ((0, "Keras", "#d62728"), (1, "PyTorch", "#1f77b4"), (2, "Keras again", "#d62728"))
    for part, name, colour in parts:
        part_steps = range(part * steps, (part + 1) * steps)
        axes.plot(part_steps, losses[part * steps : (part + 1) * steps], color=colour, linewidth=1, label=name)
        axes.axvline(part * steps, color="#888888", linewidth=0.5)
    axes.set(xlabel="step", ylabel="training loss", yscale="log", title="A digits classifier, handed over twice")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"\nboth curves: {path}")


if __name__ == "__main__":
    main()
