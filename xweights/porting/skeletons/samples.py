"""Samples: an array, or a tuple, list or mapping of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import ArgumentError


def map_arrays(sample: Any, change: Callable[[Array], Array]) -> Any:
    """Return a sample in which each array is changed; lists become tuples."""
    if isinstance(sample, Mapping):
        return {key: map_arrays(value, change) for key, value in sample.items()}
    if isinstance(sample, (tuple, list)):
        return tuple(map_arrays(value, change) for value in sample)
    return change(np.asarray(sample.detach().cpu() if hasattr(sample, "detach") else sample))


def resize(sample: Any, batch: int) -> Any:
    """Return a sample with another number of examples: its own, again and again."""

    def repeat(array: Array) -> Array:
        if array.ndim and not array.shape[0]:
            raise ArgumentError(
                f"the sample has no examples\ngot:      an array of {array.shape}\nFix: give one with some examples"
            )
        return array[np.arange(batch) % array.shape[0]] if array.ndim else array

    return map_arrays(sample, repeat)
