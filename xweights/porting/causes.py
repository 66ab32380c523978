"""Causes that are checked: a layer is computed again with the change, and named if the difference vanishes.

Everything here is pure. Arrays are in the neutral form of ``xweights.porting.protocol``, and of a batch the first entry
is computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.similarity import distance

Padding = tuple[tuple[int, int], ...]
# Rounding of a sum that another library makes in another order.
_LIMIT = 1e-4
# As many filters of a convolution are computed, and so many zeros tried on each side.
_FILTERS, _MOST_ZEROS = 4, 8


def find_padding(
    image: Array, kernel: Array, bias: Array | None, settings: Mapping[str, Any], output: Array
) -> Padding | None:
    """Return the zeros (before, after) on each axis with which a convolution puts out what it did; None if none do.

    Args:
        image: Its input (batch, *space, channels).
        kernel: (*space, channels / groups, filters).
        bias: (filters,).
        settings: Its strides, dilation and groups.
        output: (batch, *space, filters).
    """
    rank = image.ndim - 2
    if image.ndim != output.ndim or kernel.ndim != rank + 2 or not 1 <= rank <= 2:
        return None
    strides = settings.get("strides", (1,) * rank)
    dilation = settings.get("dilation", (1,) * rank)
    reach = [(length - 1) * step for length, step in zip(kernel.shape[:rank], dilation, strict=True)]
    options = []
    for axis in range(rank):
        wanted, length = output.shape[1 + axis], image.shape[1 + axis]
        fitting = [
            (before, after)
            for before, after in itertools.product(range(min(reach[axis], _MOST_ZEROS) + 1), repeat=2)
            if (length + before + after - reach[axis] - 1) // strides[axis] + 1 == wanted
        ]
        options.append(sorted(fitting, key=lambda zeros: (abs(zeros[1] - zeros[0]), sum(zeros))))
    filters = kernel.shape[-1]
    some = list(range(0, filters, max(1, filters // _FILTERS)))[:_FILTERS]
    expected = output[:1, ..., some].astype(np.float64)
    for padding in itertools.product(*options):
        got = convolve(image[:1], kernel, padding, strides, dilation, int(settings.get("groups", 1)), some)
        if bias is not None:
            got = got + bias[some]
        if distance(got, expected) <= _LIMIT:
            return padding
    return None


def convolve(
    image: Array,
    kernel: Array,
    padding: Padding,
    strides: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    filters: Sequence[int],
) -> Array:
    """Return some filters of a convolution, computed in float64."""
    rank = image.ndim - 2
    padded = np.pad(image.astype(np.float64), ((0, 0), *padding, (0, 0)))
    space, channels = kernel.shape[:rank], kernel.shape[-2]
    each = kernel.shape[-1] // groups
    reach = [(length - 1) * step + 1 for length, step in zip(space, dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(1, rank + 1)))
    steps = tuple(slice(None, None, step) for step in strides)
    taps = tuple(slice(None, None, step) for step in dilation)
    windows = windows[(slice(None), *steps, slice(None), *taps)]
    columns = []
    for number in filters:
        start = number // each * channels
        part = windows[(slice(None),) * (rank + 1) + (slice(start, start + channels),)]
        weights = np.moveaxis(kernel[..., number].astype(np.float64), -1, 0)
        columns.append((part * weights).sum(axis=tuple(range(rank + 1, 2 * rank + 2))))
    return np.stack(columns, axis=-1)


def describe_padding(padding: Padding) -> str:
    """Return zeros around an image in a few words."""
    if all(zeros == (0, 0) for zeros in padding):
        return "none"
    if len(set(padding)) == 1:
        padding = padding[:1]
    return ", ".join(
        f"{before}" if before == after else f"({before} before, {after} after)" for before, after in padding
    )


def find_activations(before: Array, after: Array, factor: Array | None = None) -> list[str]:
    """Return the names of the elementwise functions that lead from one array, multiplied by a factor, to the other."""
    if before.shape != after.shape:
        return []
    some = slice(None, None, max(1, before.size // 4096))
    got, expected = before.reshape(-1)[some].astype(np.float64), after.reshape(-1)[some].astype(np.float64)
    gate = 1.0 if factor is None else factor.reshape(-1)[some].astype(np.float64)
    errors = {name: distance(function(got) * gate, expected) for name, function in _iter_activations()}
    # Variants of gelu differ by 5e-4 at most: the nearest one is meant, if it is near.
    nearest = min(errors.values())
    return [name for name, error in errors.items() if error <= min(_LIMIT, 4 * nearest + 1e-7)]


def _iter_activations() -> Iterator[tuple[str, Callable[[Array], Array]]]:
    yield "no activation", lambda x: x
    yield "relu", lambda x: np.maximum(x, 0)
    yield "relu6", lambda x: np.clip(x, 0, 6)
    yield "gelu", lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2)))
    yield "gelu by tanh", lambda x: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    yield "quick gelu", lambda x: x * _sigmoid(1.702 * x)
    yield "silu", lambda x: x * _sigmoid(x)
    yield "sigmoid", _sigmoid
    yield "tanh", np.tanh
    yield "softplus", lambda x: np.logaddexp(x, 0)
    yield "mish", lambda x: x * np.tanh(np.logaddexp(x, 0))
    yield "elu", lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    yield "selu", lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0)))
    yield "squared relu", lambda x: np.square(np.maximum(x, 0))
    yield "hard_sigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1)
    yield "hard_silu", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)
    for slope in (0.01, 0.1, 0.2, 0.3):
        yield f"leaky_relu with a slope of {slope}", partial(_leak, slope=slope)


def _leak(x: Array, slope: float) -> Array:
    return np.where(x > 0, x, slope * x)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _erf(x: Array) -> Array:
    values: Array = np.vectorize(math.erf, otypes=[np.float64])(x)
    return values
