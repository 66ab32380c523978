"""A small convolutional classifier of handwritten digits, written twice: in Keras and in PyTorch.

The twins have equal attribute names, so their weights have equal neutral names. Data: scikit-learn's bundled digits.
"""

from __future__ import annotations

import keras
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (train images, test images, train labels, test labels); images are (n, 8, 8, 1) in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype("float32").reshape(-1, 8, 8, 1)
    return train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)


class KerasDigits(keras.Model):
    """The classifier in Keras; channels last."""

    def __init__(self, filters: int = 128) -> None:
        super().__init__()
        self.conv1 = keras.layers.Conv2D(32, 3, padding="same", activation="relu")
        self.norm = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)  # as in torch
        self.conv2 = keras.layers.Conv2D(filters, 5, padding="valid", activation="relu")
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.hidden = keras.layers.Dense(256, activation="relu")
        self.logits = keras.layers.Dense(10)

    def call(self, images, training=False):
        features = self.conv2(self.norm(self.conv1(images), training=training))
        return self.logits(self.hidden(self.pool(features)))


class TorchDigits(torch.nn.Module):
    """The classifier in PyTorch; it takes the same channels-last images."""

    def __init__(self, filters: int = 128) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 32, 3, padding="same")
        self.norm = torch.nn.BatchNorm2d(32, eps=1e-5)
        self.conv2 = torch.nn.Conv2d(32, filters, 5)
        self.hidden = torch.nn.Linear(filters, 256)
        self.logits = torch.nn.Linear(256, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv1(images.permute(0, 3, 1, 2)).relu())
        return self.logits(self.hidden(self.conv2(x).relu().mean((2, 3))).relu())


def trained_keras(epochs: int = 10) -> KerasDigits:
    """Train the Keras classifier, which takes a few seconds."""
    train, _, labels, _ = data()
    keras.utils.set_random_seed(0)
    model = KerasDigits()
    model(train[:1])  # builds the layers
    model.compile(
        optimizer=keras.optimizers.AdamW(2e-3, weight_decay=0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(train, labels, batch_size=64, epochs=epochs, verbose=0)
    return model


def accuracy(model: object) -> float:
    """Return the fraction of the test images that a twin classifies correctly."""
    _, test, _, labels = data()
    if isinstance(model, torch.nn.Module) and not isinstance(model, keras.Model):
        model.eval()
        with torch.no_grad():
            scores = model(torch.from_numpy(test)).numpy()
    else:
        scores = keras.ops.convert_to_numpy(model(test))
    return float((scores.argmax(1) == labels).mean())
