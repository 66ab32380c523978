"""A framework in thirty lines: a network has layers, and a layer has a list of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


class Layer:
    """A layer; its ``arrays`` are positional: weight (out, in), bias. ``frozen`` stops training."""

    def __init__(self, kind: str, arrays: list[np.ndarray[Any, Any]]) -> None:
        self.kind, self.arrays, self.frozen = kind, arrays, False


class Network:
    """A network: layers by name, in order."""

    def __init__(self, **layers: Layer) -> None:
        self.layers = layers


def linear(inputs: int, outputs: int, dtype: Any = np.float32) -> Layer:
    """Return a layer that stores its weight as (out, in)."""
    return Layer("linear", [np.zeros((outputs, inputs), dtype), np.zeros(outputs, dtype)])


def lookup(rows: int, width: int, dtype: Any = np.float32) -> Layer:
    """Return a layer that is a table of vectors."""
    return Layer("lookup", [np.zeros((rows, width), dtype)])
