"""What the two models are called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from xweights.porting.matching.trace import TracedModel
from xweights.porting.protocol import Arrays, LayerRecord

Sample = Any


class Silent:
    """A watcher that does nothing."""

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        """Nothing."""

    def leave(self, record: LayerRecord, outputs: Arrays) -> None:
        """Nothing."""


def target_samples(source: TracedModel, target: TracedModel, sample: Sample, given: Any) -> Iterator[Sample]:
    """Yield what the target may be called with, the likeliest first.

    Where the two frameworks put channels elsewhere, an image has them moved; whether a sequence is one, and whether
    a recurrent layer wants time first, is found out by trying.
    """
    if given is not None:
        yield given(sample) if callable(given) else given
        return
    moves: list[Callable[[Any], Any]] = [lambda array: array]
    if source.porting.channels_first != target.porting.channels_first:
        first = target.porting.channels_first
        if _largest_rank(sample) > 2:
            moves.insert(0, lambda array: _moved(array, first, 4))
        if _has_rank(sample, 3):
            moves.append(lambda array: _moved(array, first, 3))
    if _has_rank(sample, 3):
        moves.append(lambda array: array.swapaxes(0, 1) if array.ndim == 3 else array)
    seen: list[Sample] = []
    for move in moves:
        made = _each(sample, move)
        if not any(_equal(made, one) for one in seen):
            seen.append(made)
            yield made


def _arrays(sample: Sample) -> list[Any]:
    if isinstance(sample, Mapping):
        return [one for value in sample.values() for one in _arrays(value)]
    if isinstance(sample, (tuple, list)):
        return [one for value in sample for one in _arrays(value)]
    return [sample] if hasattr(sample, "ndim") else []


def _largest_rank(sample: Sample) -> int:
    return max((one.ndim for one in _arrays(sample)), default=0)


def _has_rank(sample: Sample, rank: int) -> bool:
    return any(one.ndim == rank for one in _arrays(sample))


def _each(sample: Sample, move: Callable[[Any], Any]) -> Sample:
    if isinstance(sample, Mapping):
        return {name: _each(value, move) for name, value in sample.items()}
    if isinstance(sample, (tuple, list)):
        return type(sample)(_each(value, move) for value in sample)
    return move(sample) if hasattr(sample, "ndim") else sample


def _moved(array: Any, first: bool, rank: int) -> Any:
    if array.ndim < rank:
        return array
    host = np.asarray(array)
    return np.moveaxis(host, -1, 1) if first else np.moveaxis(host, 1, -1)


def _equal(one: Sample, other: Sample) -> bool:
    mine, theirs = _arrays(one), _arrays(other)
    return all(a is b or (a.shape == b.shape and np.array_equal(a, b)) for a, b in zip(mine, theirs, strict=True))
