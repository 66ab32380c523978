"""Samples with which the target may be called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.trace import TracedModel
from xweights.porting.protocol import Arrays, LayerRecord

Sample = Any


class SilentWatcher:
    """A watcher that does nothing."""

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        """Do nothing."""

    def leave(self, record: LayerRecord, outputs: Arrays) -> None:
        """Do nothing."""


def target_samples(source: TracedModel, target: TracedModel, sample: Sample, sample_target: Any) -> Iterator[Sample]:
    """Yield the samples that the target may take, the likeliest first.

    Where the two frameworks have channels on different axes, those of images are moved; whether an array is a sequence,
    and whether a recurrent layer takes time first, is found out by trying.
    """
    if sample_target is not None:
        yield sample_target(sample) if callable(sample_target) else sample_target
        return
    moves: list[Callable[[Any], Any]] = [lambda array: array]
    if source.porting.channels_first != target.porting.channels_first:
        first = target.porting.channels_first
        if _largest_rank(sample) > 2:
            moves.insert(0, lambda array: _move_channels(array, first, 4))
        if _has_rank(sample, 3):
            moves.append(lambda array: _move_channels(array, first, 3))
    if _has_rank(sample, 3):
        moves.append(lambda array: array.swapaxes(0, 1) if array.ndim == 3 else array)
    seen: list[Sample] = []
    for move in moves:
        moved = _map_arrays(sample, move)
        if not any(_are_equal(moved, earlier) for earlier in seen):
            seen.append(moved)
            yield moved


def list_arrays(sample: Sample) -> list[Any]:
    """Return the arrays of a sample."""
    if isinstance(sample, Mapping):
        return [array for value in sample.values() for array in list_arrays(value)]
    if isinstance(sample, (tuple, list)):
        return [array for value in sample for array in list_arrays(value)]
    return [sample] if hasattr(sample, "ndim") else []


def _largest_rank(sample: Sample) -> int:
    return max((array.ndim for array in list_arrays(sample)), default=0)


def _has_rank(sample: Sample, rank: int) -> bool:
    return any(array.ndim == rank for array in list_arrays(sample))


def _map_arrays(sample: Sample, move: Callable[[Any], Any]) -> Sample:
    if isinstance(sample, Mapping):
        return {name: _map_arrays(value, move) for name, value in sample.items()}
    if isinstance(sample, (tuple, list)):
        return type(sample)(_map_arrays(value, move) for value in sample)
    return move(sample) if hasattr(sample, "ndim") else sample


def _move_channels(array: Any, first: bool, rank: int) -> Any:
    if array.ndim < rank:
        return array
    host = np.asarray(array)
    return np.moveaxis(host, -1, 1) if first else np.moveaxis(host, 1, -1)


def _are_equal(first: Sample, second: Sample) -> bool:
    first_arrays, second_arrays = list_arrays(first), list_arrays(second)
    return all(
        a is b or (a.shape == b.shape and np.array_equal(a, b))
        for a, b in zip(first_arrays, second_arrays, strict=True)
    )


def is_even(sample: Sample) -> bool:
    """Return True if each array of a sample has the same numbers all along an axis, as ``np.ones`` has along all."""
    if isinstance(sample, Mapping):
        sample = tuple(sample.values())
    if isinstance(sample, (tuple, list)):
        return bool(sample) and all(is_even(part) for part in sample)  # a mask of ones is no reason
    try:
        array = np.asarray(sample)
    except (TypeError, ValueError, RuntimeError):  # a tensor of a framework that NumPy can't read
        return False
    axes = [axis for axis in range(1, array.ndim) if array.shape[axis] > 1]
    return any(np.array_equal(array, np.broadcast_to(array.take([0], axis), array.shape)) for axis in axes)


def is_nowhere_negative(array: Array) -> bool:
    """Return True for outputs of a layer that look the same with a rectifier behind it and without."""
    return array.size > 0 and array.dtype.kind == "f" and not (array < 0).any()
