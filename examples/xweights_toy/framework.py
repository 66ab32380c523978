"""A framework in thirty lines: a network has layers, a layer holds a list of arrays. It knows nothing of xweights."""

from __future__ import annotations

from typing import Any

import numpy as np


class Layer:
    """``arrays`` are positional, as in many small frameworks: weight (out, in), bias; ``frozen`` stops training."""

    def __init__(self, kind: str, arrays: list[np.ndarray[Any, Any]]) -> None:
        self.kind, self.arrays, self.frozen = kind, arrays, False


class Network:
    """Layers by name, in order."""

    def __init__(self, **layers: Layer) -> None:
        self.layers = layers


def linear(inputs: int, outputs: int, dtype: Any = np.float32) -> Layer:
    """A layer that stores its weight as (out, in)."""
    return Layer("linear", [np.zeros((outputs, inputs), dtype), np.zeros(outputs, dtype)])


def lookup(rows: int, width: int, dtype: Any = np.float32) -> Layer:
    """A table of vectors."""
    return Layer("lookup", [np.zeros((rows, width), dtype)])
