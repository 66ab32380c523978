"""Input numbers of the matrix.

``plain``   normals, magnitudes from 0.05 to 2, many of them equal: ties are what pruning trips over
``special`` the same with both zeros, both infinities and NaN among them
``bits``    any bit pattern at all: subnormals, NaN of every payload, signalling ones too
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.twins import SPECS, Arrays


def make(kind: str, dtype: np.dtype[Any], seed: int = 1) -> Arrays:
    """Draw arrays by name, in neutral order."""
    return {spec.name: _array(kind, spec.shape, dtype, [seed, i]) for i, spec in enumerate(SPECS)}


def _array(kind: str, shape: tuple[int, ...], dtype: np.dtype[Any], seed: list[int]) -> np.ndarray[Any, Any]:
    source = np.random.Generator(np.random.PCG64(seed))
    size = int(np.prod(shape))
    if kind == "bits":
        raw = source.integers(0, 256, size * dtype.itemsize, dtype=np.uint8).view(dtype)
        small = source.integers(1, 8, size).astype(f"u{dtype.itemsize}").view(dtype)  # the smallest subnormals
        array = np.where(source.random(size) < 0.3, small, raw)
        extra: list[float] = [-0.0, 0.0, np.inf]
    else:
        wide = source.choice([-1, 1], size) * source.uniform(0.05, 2.0, size)
        ties = source.random(size) < 0.3
        wide[ties] = source.choice([-0.25, 0.25, 0.5], int(ties.sum()))
        array = wide.astype(dtype)
        extra = [] if kind == "plain" else [-0.0, 0.0, np.inf, -np.inf, np.nan]
    places = source.permutation(size)[: len(extra)]
    array[places] = np.array(extra[: len(places)]).astype(dtype)
    return array.reshape(shape)
