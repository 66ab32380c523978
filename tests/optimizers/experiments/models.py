"""Twins in Keras and PyTorch, with data: small, and without a bias before a batch normalization."""

from __future__ import annotations

import keras
import numpy as np
import torch

L, nn = keras.layers, torch.nn
CLASSES = 5


def _keras(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def mlp():
    k = _keras((12,), L.Dense(16, activation="tanh"), L.Dense(10, activation="relu"), L.Dense(CLASSES))
    t = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, CLASSES))
    return k, t


def norms():
    k = _keras(
        *((12,), L.Dense(16), L.LayerNormalization(epsilon=1e-5), L.Activation("tanh")),
        *(L.Dense(10, use_bias=False), L.BatchNormalization(epsilon=1e-5), L.ReLU(), L.Dense(CLASSES)),
    )
    t = nn.Sequential(
        *(nn.Linear(12, 16), nn.LayerNorm(16), nn.Tanh()),
        *(nn.Linear(16, 10, bias=False), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, CLASSES)),
    )
    return k, t


def cnn():
    k = _keras(
        *((8, 8, 2), L.Conv2D(6, 3, activation="relu"), L.MaxPooling2D(2), L.Flatten(), L.Dense(CLASSES)),
    )
    t = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, CLASSES))
    return k, t


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.lstm.bias_hh_l0.requires_grad_(False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def lstm():
    return _keras((7, 6), L.LSTM(8), L.Dense(CLASSES)), Last()


def two_biases():
    """Build an LSTM as PyTorch has it: both biases are trained and add up to one."""
    k, t = lstm()
    t.lstm.bias_hh_l0.requires_grad_(True)
    return k, t


def matrices():
    """Build a model whose weights all have two axes, which PyTorch's Muon asks for."""
    k = _keras((12,), L.Dense(16, activation="tanh", use_bias=False), L.Dense(CLASSES, use_bias=False))
    return k, nn.Sequential(nn.Linear(12, 16, bias=False), nn.Tanh(), nn.Linear(16, CLASSES, bias=False))


class LastOfGru(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 8, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.gru(x)[0][:, -1])


def gru():
    """Build a GRU: both frameworks have two biases; the gates have another order."""
    return _keras((7, 6), L.GRU(8, reset_after=True), L.Dense(CLASSES)), LastOfGru()


class Attending(nn.Module):
    def __init__(self, heads=2):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, heads, batch_first=True, bias=False)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def attention():
    """Build attention, packed in PyTorch and three arrays in Keras; without bias: that of keys has no gradient."""
    inputs = keras.Input((7, 8))
    middle = L.MultiHeadAttention(2, 4, use_bias=False)(inputs, inputs)
    outputs = L.Dense(CLASSES)(L.GlobalAveragePooling1D()(middle))
    return keras.Model(inputs, outputs), Attending()


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.head = nn.Linear(42, CLASSES)

    def forward(self, x):
        return self.head(self.words(x.long()).flatten(1))


def embedding():
    return _keras((7,), L.Embedding(20, 6), L.Flatten(), L.Dense(CLASSES)), Words()


MODELS = {"mlp": mlp, "norms": norms, "cnn": cnn, "lstm": lstm, "matrices": matrices}
MODELS |= {"two_biases": two_biases, "gru": gru, "attention": attention, "embedding": embedding}
SHAPES = {"mlp": (12,), "norms": (12,), "cnn": (8, 8, 2), "lstm": (7, 6), "matrices": (12,)}
SHAPES |= {"two_biases": (7, 6), "gru": (7, 6), "attention": (7, 8), "embedding": (7,)}


def data(name, count=16, steps=40):
    """Return batches as Keras is called with."""
    source = np.random.default_rng(7)
    centres = source.normal(size=(CLASSES, *SHAPES[name]))
    batches = []
    for _ in range(steps):
        labels = source.integers(0, CLASSES, count)
        inputs = centres[labels] + source.normal(size=(count, *SHAPES[name]))
        if name == "embedding":
            inputs = np.floor(np.abs(inputs) * 5) % 20
        batches.append((inputs.astype("float32"), labels.astype("int32")))
    return batches


def for_torch(inputs):
    """Return a batch as PyTorch is called with: images have their channels first."""
    return np.moveaxis(inputs, -1, 1) if inputs.ndim == 4 else inputs


def twins(name, dtype="float32", seed=0):
    """Return both models with weights of their own; b_hh of a torch LSTM is 0, because Keras has one bias."""
    former = keras.config.dtype_policy(), torch.get_default_dtype()
    keras.config.set_dtype_policy(dtype)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        keras.utils.set_random_seed(seed)
        torch.manual_seed(seed + 1)
        k, t = MODELS[name]()
    finally:
        keras.config.set_dtype_policy(former[0])
        torch.set_default_dtype(former[1])
    if name == "lstm":
        with torch.no_grad():
            t.lstm.bias_hh_l0.zero_()
    return k, t
