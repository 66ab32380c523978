"""What a call takes beside the weights, at its peak.

Owns its rows. Imports shapes and timing; torch and TensorFlow where their models are made. Runs in a process of its
own, in which every allocation of 64 KiB or more is returned when it is freed (``MALLOC_MMAP_THRESHOLD_``): with memory
that an earlier call left to the allocator, the temporaries of the next one would be served unseen. TensorFlow keeps
what it has freed all the same: of its rows the first is the one that shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from shapes import MANY, MID, QUICK, Shape, by_name, keras_model, masks, torch_model
from timing import Memory, Timing, can_measure_memory, extra_memory

import xweights as xw


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    if not can_measure_memory():
        return
    many, mid = QUICK if quick else (MANY, MID)
    for shape in (many, mid):
        yield from _verbs("torch", torch_model, shape, 2.0)
        model = torch_model(shape)
        prune_goal = 0.02 * shape.mib + 2.0
        yield extra_memory(
            "prune 90 % global, beside the masks", "torch", shape.name, lambda model=model: _Pruned(model), prune_goal
        )
        yield extra_memory(
            "the same again, on what was pruned", "torch", shape.name, lambda model=model: _Pruned(model), prune_goal
        )
    yield from _verbs("keras-tensorflow", keras_model, mid, mid.mib / mid.count)


def _verbs(backend: str, make: Callable[[Shape], Any], shape: Shape, goal: float) -> Iterator[Memory]:
    model, small = make(shape), make(Shape("small", 2, 64))
    keep = by_name(model, masks(shape))
    for operation, call in (
        ("clip", lambda one, keep: xw.clip(one, -0.05, 0.05)),
        ("scale", lambda one, keep: xw.scale(one, 0.999)),
        ("mask", xw.mask),
        ("noise", lambda one, keep: xw.noise(one, 1e-9, seed=0)),
    ):
        call(small, by_name(small, masks(Shape("small", 2, 64))))  # what is loaded and cached once is not counted
        yield extra_memory(operation, backend, shape.name, lambda call=call: call(model, keep), goal)


class _Pruned:
    """The masks of a call, and their size."""

    def __init__(self, model: Any) -> None:
        self.masks = xw.prune(model, fraction=0.9, scope="global")
        self.nbytes = sum(one.nbytes for one in self.masks.values())
