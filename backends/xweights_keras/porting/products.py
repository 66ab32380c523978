"""Products with a kernel: a variable as a matrix, and the settings with which a layer may convolve with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array


@dataclass(frozen=True)
class KernelShape:
    """A variable as a kernel (inputs, outputs). ``turned``: it is stored as (outputs, inputs)."""

    shape: tuple[int, ...]
    inputs: int
    outputs: int
    turned: bool

    def from_variable(self, value: Array) -> Array:
        """Return a value of the variable as the kernel; a view where strides allow."""
        return value.reshape(self.outputs, self.inputs).T if self.turned else value.reshape(self.inputs, self.outputs)

    def to_variable(self, kernel: Array) -> Array:
        """Return a kernel as the variable stores it."""
        return np.ascontiguousarray(kernel.T if self.turned else kernel).reshape(self.shape)


def recover_input(kernel: KernelShape, read: Callable[[Array], Array]) -> Array:
    """Return what a kernel is multiplied with, from the results for blocks of the identity, and for zero."""
    nothing = read(np.zeros(kernel.shape, np.float32)).reshape(-1, kernel.outputs)
    parts = []
    for first in range(0, kernel.inputs, kernel.outputs):
        block = np.zeros((kernel.inputs, kernel.outputs), np.float32)
        width = min(kernel.outputs, kernel.inputs - first)
        block[np.arange(first, first + width), np.arange(width)] = 1
        parts.append((read(kernel.to_variable(block)).reshape(-1, kernel.outputs) - nothing)[:, :width])
    return np.concatenate(parts, axis=1)


def list_conv_settings(
    layer: Any, given: tuple[int, ...], result: tuple[int, ...], kernel: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """Yield the settings with which a layer may convolve, those among its attributes first."""
    rank = len(kernel) - 2
    for first in (False, True):
        space = slice(2, None) if first else slice(1, -1)
        fits = result[1 if first else -1] == kernel[-1] and given[1 if first else -1] % kernel[-2] == 0
        if not fits:
            continue
        ratio = tuple(max(1, round(a / max(b, 1))) for a, b in zip(given[space], result[space], strict=True))
        strides = [_as_tuple(getattr(layer, name, None), rank) for name in ("strides", "stride")]
        dilations = [_as_tuple(getattr(layer, name, None), rank) for name in ("dilation_rate", "dilation")]
        for step in dict.fromkeys([*filter(None, strides), ratio, (1,) * rank]):
            for dilation in dict.fromkeys([*filter(None, dilations), (1,) * rank]):
                for padding in ("valid", "same"):
                    groups = given[1 if first else -1] // kernel[-2]
                    yield {
                        "strides": step,
                        "padding": padding,
                        "dilation": dilation,
                        "groups": groups,
                        "channels_first": first,
                    }


def _as_tuple(value: Any, rank: int) -> tuple[int, ...] | None:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) if isinstance(value, (tuple, list)) and len(value) == rank else None


def convolve(given: Array, kernel: Array, attributes: dict[str, Any]) -> Array | None:
    """Return a convolution; None for settings that don't fit."""
    first = attributes["channels_first"]
    try:
        result = keras.ops.conv(
            np.ascontiguousarray(np.moveaxis(given, 1, -1) if first else given),
            kernel.astype(given.dtype),
            strides=attributes["strides"],
            padding=attributes["padding"],
            dilation_rate=attributes["dilation"],
            data_format="channels_last",
        )
    except Exception:  # noqa: BLE001 - any error of the framework, each has its own
        return None
    array = np.asarray(keras.ops.convert_to_numpy(result)).astype(np.float64)
    return np.moveaxis(array, -1, 1) if first else array
