"""One experiment in two frameworks: train in Keras, port, train on in PyTorch, port back. Run it: nox -s port.

Each port is proved on a batch before it happens, and the accuracies of both sides have to be equal. Then the script
makes a mistake that is common by hand, an image flattened in another order, and `verify` names it.
"""

from __future__ import annotations

import os

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
            L.Conv2D(16, 3, padding="same", activation="relu"),
            L.BatchNormalization(epsilon=1e-5, momentum=0.9),
            L.MaxPooling2D(2),
            L.Flatten(),
            L.Dense(64, activation="gelu"),
            L.Dense(10),
        ]
    )


def torch_classifier() -> nn.Module:
    """Return its twin in PyTorch: channels first, so that it flattens in another order."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(16), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 10)),
    )


def train_keras(model: keras.Model, images: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)


def train_torch(model: nn.Module, images: np.ndarray, labels: np.ndarray, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    data = torch.utils.data.TensorDataset(torch.from_numpy(channels_first(images)), torch.from_numpy(labels))
    model.train()
    for _ in range(epochs):
        for batch, truth in torch.utils.data.DataLoader(data, 64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), truth).backward()
            optimizer.step()


def channels_first(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))


def accuracy(model: object, images: np.ndarray, labels: np.ndarray) -> float:
    if isinstance(model, keras.Model):
        scores = keras.ops.convert_to_numpy(model(images, training=False))
    else:
        model.eval()
        with torch.no_grad():
            scores = model(torch.from_numpy(channels_first(images))).numpy()
    return float((scores.argmax(1) == labels).mean())


def main() -> None:
    keras.utils.set_random_seed(0)
    torch.manual_seed(0)
    train, test, labels, truth = digits.data()
    k, t = keras_classifier(), torch_classifier()

    print("1. The plan: what the structure settles, and what only a sample can\n")
    print(xw.plan_port(k, t))

    train_keras(k, train, labels, 3)
    print("\n2. Trained in Keras, ported to PyTorch\n")
    print(xw.port(k, t, sample=train[:32]))
    show("Keras", k, "PyTorch", t, test, truth)

    train_torch(t, train, labels, 3)
    print("\n3. Trained on in PyTorch, ported back\n")
    print(xw.port(t, k, sample=channels_first(train[:32])))
    show("PyTorch", t, "Keras", k, test, truth)

    print("\n4. A fault that is easily made by hand\n")
    with torch.no_grad():
        weight = t[5].weight
        weight.copy_(weight.reshape(64, 16, 16).transpose(1, 2).reshape(64, 256))
    print(xw.verify(k, t, sample=train[:32]).first_divergence)


def show(name: str, model: object, twin_name: str, twin: object, images: np.ndarray, labels: np.ndarray) -> None:
    before, after = accuracy(model, images, labels), accuracy(twin, images, labels)
    print(f"\naccuracy in {name}: {before:.4f}, in {twin_name}: {after:.4f}")
    if before != after:
        raise SystemExit("the two are not the same experiment")


if __name__ == "__main__":
    main()
