"""Measure the peak memory of calls beyond the weights.

It runs in a process of its own, in which every allocation of 64 KiB or more is returned when it is freed
(``MALLOC_MMAP_THRESHOLD_``): otherwise the temporaries of a call could reuse memory that an earlier call left to the
allocator, and not be seen. TensorFlow keeps freed memory all the same, so only its first row shows temporaries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from shapes import MANY, MID, QUICK, Shape, keras_model, masks, name_values, torch_model
from timing import Memory, Timing, can_measure_memory, extra_memory

import xweights as xw


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    if not can_measure_memory():
        return
    many, mid = QUICK if quick else (MANY, MID)
    for shape in (many, mid):
        yield from _measure_verbs("torch", torch_model, shape, 2.0)
        model = torch_model(shape)
        prune_goal = 0.02 * shape.mib + 2.0
        yield extra_memory(
            "prune 90 % global, beside the masks", "torch", shape.name, lambda model=model: _Pruned(model), prune_goal
        )
        yield extra_memory(
            "the same again, on what was pruned", "torch", shape.name, lambda model=model: _Pruned(model), prune_goal
        )
    yield from _measure_verbs("keras-tensorflow", keras_model, mid, mid.mib / mid.count)


def _measure_verbs(backend: str, make: Callable[[Shape], Any], shape: Shape, goal: float) -> Iterator[Memory]:
    model, small = make(shape), make(Shape("small", 2, 64))
    keep = name_values(model, masks(shape))
    for operation, call in (
        ("clip", lambda model, keep: xw.clip(model, -0.05, 0.05)),
        ("scale", lambda model, keep: xw.scale(model, 0.999)),
        ("mask", xw.mask),
        ("noise", lambda model, keep: xw.noise(model, 1e-9, seed=0)),
    ):
        call(small, name_values(small, masks(Shape("small", 2, 64))))  # one-time imports and caches don't count
        yield extra_memory(operation, backend, shape.name, lambda call=call: call(model, keep), goal)


class _Pruned:
    """The masks of a prune call, and their size."""

    def __init__(self, model: Any) -> None:
        self.masks = xw.prune(model, fraction=0.9, scope="global")
        self.nbytes = sum(mask.nbytes for mask in self.masks.values())
