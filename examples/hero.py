"""Draw the picture at the top of the README: an experiment handed over, and the same with its weights copied alone.

    python examples/hero.py docs/assets/hero.svg

A classifier of digits is trained in Keras, and goes on in PyTorch after half of the steps: once with `xw.handoff`, once
with a port of the weights and a new optimizer with the same settings. Keras' own second half lies under both.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import xweights as xw

STEPS = 60
RATE = 0.03


def in_keras() -> keras.Model:
    layers = [keras.Input((64,)), keras.layers.Dense(64, "relu", name="hidden"), keras.layers.Dense(10, name="head")]
    model = keras.Sequential(layers)
    xw.init(model, "he_normal", seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss)
    return model


def in_torch() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def train_torch(model: nn.Module, optimizer: torch.optim.Optimizer, x: np.ndarray, y: np.ndarray) -> list[float]:
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main(path: Path) -> None:
    digits = load_digits()
    x, y = (digits.data[:512] / 16).astype("float32"), digits.target[:512]
    model = in_keras()

    def train_keras() -> list[float]:
        return [float(model.train_on_batch(x, y)) for _ in range(STEPS)]

    first = train_keras()
    handed, copied = in_torch(), in_torch()
    report = xw.handoff((model, model.optimizer), (handed, None), sample=x)
    xw.port(model, copied, sample=x)
    rest = train_keras()
    with_handoff = train_torch(handed, report.optimizer, x, y)
    weights_alone = train_torch(copied, torch.optim.Adam(copied.parameters(), RATE), x, y)
    draw(path, first + rest, with_handoff, weights_alone)
    for name, losses in (("handed over", with_handoff), ("weights alone", weights_alone)):
        print(f"{name}: {max(abs(a / b - 1) for a, b in zip(losses, rest, strict=True)):.1e} off")


def draw(path: Path, reference: list[float], with_handoff: list[float], weights_alone: list[float]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "xweights"  # the same bytes each time
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.6))
    later = range(STEPS, 2 * STEPS)
    axes.plot(reference, color="#9aa3ad", linewidth=6, solid_capstyle="round", label="Keras alone")
    axes.plot(later, weights_alone, color="#c8501e", linewidth=1.8, linestyle="--", label="PyTorch, weights copied")
    axes.plot(later, with_handoff, color="#1f5fbf", linewidth=1.8, label="PyTorch, handed over")
    axes.axvline(STEPS, color="#9aa3ad", linewidth=0.8)
    axes.set(yscale="log", xlabel="step", ylabel="training loss", xlim=(20, 2 * STEPS))
    seen = [*reference[20:], *weights_alone]
    axes.set_ylim(min(seen) * 0.8, max(seen) * 1.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "hero.svg"))
