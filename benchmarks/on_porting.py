"""Time ports from Keras on TensorFlow to torch against a hand-written loop of transposed copies.

The loop reads TensorFlow's memory without a copy; it pairs layers by position, and checks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
from timing import Memory, Timing, compare, extra_memory
from torch import nn

import xweights as xw


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    for name, width in (("2M", 160),) if quick else (("21M", 512), ("100M", 1111)):
        source, target = _twins(width)

        def by_hand(source: Any = source, target: Any = target) -> None:
            with torch.no_grad():
                for layer, module in zip(source.layers, target, strict=True):
                    module.weight.copy_(_shared(layer.kernel).permute(3, 2, 0, 1))
                    module.bias.copy_(_shared(layer.bias))

        ours = lambda source=source, target=target: xw.port(source, target)  # noqa: E731
        peers = {"copy_(from_dlpack(v).permute(...))": by_hand}
        yield compare("port(), no sample", "keras-tensorflow", name, ours, peers, 1.1)
        largest = max(p.numel() for p in target.parameters()) * 4 / 2**20
        yield extra_memory("port(), no sample: one tensor", "keras-tensorflow", name, ours, largest)
    source, target = _twins(256)
    sample = np.random.default_rng(0).normal(size=(1, 4, 4, 256)).astype("float32")
    channels_first = torch.from_numpy(np.ascontiguousarray(np.moveaxis(sample, -1, 1)))
    checked = lambda: xw.port(source, target, sample=sample)  # noqa: E731
    forwards = {"both forwards": lambda: (source(sample, training=False), target(channels_first))}
    yield compare("port(sample=...)", "keras-tensorflow", "5M", checked, forwards, None)


def _twins(width: int) -> tuple[Any, Any]:
    layers = [keras.layers.Conv2D(width, 3, padding="same") for _ in range(9)]
    modules = [nn.Conv2d(width, width, 3, padding=1) for _ in range(9)]
    return keras.Sequential([keras.Input((4, 4, width)), *layers]), nn.Sequential(*modules)


def _shared(variable: Any) -> torch.Tensor:
    return torch.from_dlpack(tf.experimental.dlpack.to_dlpack(variable.value.value()))
