"""A target of three kernels, values for it, and parameters that are stored in another order than the neutral one."""

from __future__ import annotations

import numpy as np

import xweights as xw
from xweights.core.layout import layout_of
from xweights.core.numpy_backend import NumpyStorage
from xweights.core.parameter import Parameter

KEYS = ("first/kernel", "middle/kernel", "last/kernel")


def target() -> xw.Params:
    rng = np.random.default_rng(0)
    arrays = {key: rng.normal(size=(2, 3)).astype(np.float32) for key in KEYS}
    return xw.Params(arrays, axes=dict.fromkeys(KEYS, ("in", "out")))


def values() -> dict[str, np.ndarray]:
    return {key: np.full((2, 3), i, np.float32) for i, key in enumerate(KEYS, 1)}


def bits(mapping) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in mapping.items()}


class Torchlike(NumpyStorage):
    """Storage in another order than the neutral one."""


def stored(name: str, pattern: str, array: np.ndarray, storage=None, **facts) -> Parameter:
    return Parameter(
        name=name, native_name=facts.pop("native_name", name), layout=layout_of(pattern, array.shape),
        dtype=array.dtype, storage=storage or Torchlike(), handle=array, **facts,
    )  # fmt: skip
