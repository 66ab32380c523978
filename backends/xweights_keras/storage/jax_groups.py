"""The processes of ``jax.distributed`` as a group, and the block of an array that one of them has.

Collectives are those of ``jax.experimental.multihost_utils``. They wait for a process that doesn't come until it ends,
so every one begins with a barrier of JAX's coordination service, which has a timeout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from xweights.core.dtypes import Array
from xweights.core.groups import How
from xweights.core.shards import Ranges
from xweights.errors import RankError, TraceError
from xweights_keras.storage.jax import tracing

SECONDS = 300.0
"""How long a process waits for the others to make the same call."""

_HOW: dict[How, Any] = {"sum": np.sum, "min": np.min, "max": np.max}
_barriers = itertools.count()


class ProcessGroup:
    """All processes of ``jax.distributed``; see :class:`xweights.core.groups.Group`."""

    def __init__(self) -> None:
        self.size = jax.process_count()
        self.rank = jax.process_index()
        self.ranks: Sequence[int] = tuple(range(self.size))

    def all_gather(self, array: Array) -> list[Array]:
        if not array.nbytes:
            return [array] * self.size
        if tracing():
            raise TraceError(
                "the processes of jax.distributed agree on the host, and JAX traces this call\n"
                "Fix: make the call outside of jax.jit and jax.grad"
            )
        # As bytes, since JAX has no 64-bit numbers unless that is switched on.
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        _wait_for_others()
        try:
            parts = np.asarray(multihost_utils.process_allgather(raw))
        except (RuntimeError, ValueError) as wrong:
            raise RankError(_UNREACHED.format(f"{type(wrong).__name__}: {str(wrong).splitlines()[0][:300]}")) from wrong
        return [part.copy().view(array.dtype).reshape(array.shape) for part in parts]

    def all_reduce(self, array: Array, how: How = "sum") -> Array:
        reduced: Array = _HOW[how](np.stack(self.all_gather(array)), axis=0)
        return reduced

    def gather(self, array: Array, root: int) -> list[Array] | None:
        parts = self.all_gather(array)
        return parts if self.rank == root else None

    def scatter(self, arrays: Sequence[Array] | None, like: Array, root: int) -> Array:
        # JAX has no scatter: all get everything, and each keeps its own.
        empty = np.zeros((self.size, *like.shape), like.dtype)
        mine = np.stack(list(arrays)) if arrays is not None else empty
        part: Array = self.all_gather(mine)[root][self.rank]
        return part


@lru_cache(maxsize=1)
def process_group() -> ProcessGroup:
    """Return the group of all processes."""
    return ProcessGroup()


def _wait_for_others() -> None:
    """Raise RankError unless every process comes here in time."""
    try:
        from jax._src.distributed import global_state

        client = global_state.client
    except ImportError:  # not public: without it, a process that doesn't come is waited for
        return
    if client is None:
        return
    try:
        client.wait_at_barrier(f"xweights/{next(_barriers)}", int(SECONDS * 1000))
    except RuntimeError as wrong:
        raise RankError(_UNREACHED.format(str(wrong).splitlines()[0][:300])) from wrong


_UNREACHED = (
    "the processes of this call could not reach each other: one of them didn't make the same call in time, or ended\n"
    "cause: {}\n"
    "Fix: make the call in every process of jax.distributed"
)


@lru_cache(maxsize=65536)
def ranges_of_processes(sharding: Any, shape: tuple[int, ...]) -> list[Ranges] | str:
    """Return the block of an array that each process has, by index ranges; or why it has no block.

    What the devices of one process have may be several blocks, which together are one.
    """
    boxes: list[set[Ranges]] = [set() for _ in range(jax.process_count())]
    for device, index in sharding.devices_indices_map(shape).items():
        box = tuple(part.indices(length)[:2] for part, length in zip(index, shape, strict=True))
        boxes[device.process_index].add(box)
    found: list[Ranges] = []
    for own in boxes:
        if not own:
            return "some processes have no device in its mesh"
        around = tuple((min(a for a, _ in axis), max(b for _, b in axis)) for axis in zip(*own, strict=True))
        if sum(map(_size, own)) != _size(around):
            return "the parts that the devices of one process have don't make up one block"
        found.append(around)
    if len(set(found)) not in (1, len(found)):
        return "some processes have copies of the same block, and others have other blocks"
    if len(set(found)) > 1 and len(cut_axes(found)) > 1:
        return "it is cut along several axes between processes"
    return found


def cut_axes(ranges: Sequence[Ranges]) -> list[int]:
    """Return the axes along which processes have different parts."""
    return [axis for axis, parts in enumerate(zip(*ranges, strict=True)) if len(set(parts)) > 1]


def _size(ranges: Ranges) -> int:
    return math.prod(last - first for first, last in ranges)
