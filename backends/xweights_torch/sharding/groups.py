"""Groups of ranks by torch.distributed: the collectives of `xweights.core.groups.Group`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from xweights.core.dtypes import Array
from xweights.core.groups import How, join_rank, split_rank
from xweights.errors import RankError

_HOW = {"sum": "SUM", "min": "MIN", "max": "MAX"}


class TorchGroup:
    """The ranks of several process groups that are the dimensions of a mesh; the last one counts fastest.

    One collective is made for each dimension, so a group of one process group makes one.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)
        self.sizes = tuple(dist.get_world_size(part) for part in parts)
        self.size = int(np.prod(self.sizes, dtype=np.int64))
        self.rank = join_rank([dist.get_rank(part) for part in parts], self.sizes)

    @cached_property
    def ranks(self) -> Sequence[int]:
        """The global ranks."""
        if len(self.parts) == 1:
            return tuple(dist.get_process_group_ranks(self.parts[0]))
        own = np.array([dist.get_rank()], np.int64)
        return tuple(int(rank[0]) for rank in self.all_gather(own))

    def all_gather(self, array: Array) -> list[Array]:
        raw = _as_bytes(array)
        for part, size in reversed(list(zip(self.parts, self.sizes, strict=True))):
            raw = _gather_bytes(raw, part, size)
        return _split_bytes(raw, array, self.size)

    def all_reduce(self, array: Array, how: How = "sum") -> Array:
        value = torch.from_numpy(np.array(array, copy=True, order="C"))
        for part in self.parts:
            with _named(part):
                value = value.to(_device_of(part))
                dist.all_reduce(value, getattr(dist.ReduceOp, _HOW[how]), group=part)
        reduced: Array = value.cpu().numpy()
        return reduced

    def gather(self, array: Array, root: int) -> list[Array] | None:
        raw = _as_bytes(array)
        here, there = split_rank(self.rank, self.sizes), split_rank(root, self.sizes)
        for position in reversed(range(len(self.parts))):
            part, size, goal = self.parts[position], self.sizes[position], there[position]
            is_goal = here[position] == goal
            with _named(part):
                sent = raw.to(_device_of(part))
                received = [torch.empty_like(sent) for _ in range(size)] if is_goal else None
                dist.gather(sent, received, dst=dist.get_global_rank(part, goal), group=part)
            if received is None:
                return None
            raw = torch.cat(received)
        return _split_bytes(raw, array, self.size)

    def scatter(self, arrays: Sequence[Array] | None, like: Array, root: int) -> Array:
        here, there = split_rank(self.rank, self.sizes), split_rank(root, self.sizes)
        raw = None if arrays is None else torch.cat([_as_bytes(array) for array in arrays])
        unit = like.nbytes
        for position, (part, size, goal) in enumerate(zip(self.parts, self.sizes, there, strict=True)):
            # Those that share the coordinates of the root in the dimensions still to come have something to send.
            if here[position + 1 :] != there[position + 1 :]:
                continue
            below = int(np.prod(self.sizes[position + 1 :], dtype=np.int64))
            with _named(part):
                received = torch.empty(below * unit, dtype=torch.uint8, device=_device_of(part))
                chunks = None
                if here[position] == goal:
                    assert raw is not None
                    chunks = list(raw.to(received.device).chunk(size)) if unit else [received] * size
                dist.scatter(received, chunks, src=dist.get_global_rank(part, goal), group=part)
            raw = received
        assert raw is not None
        return raw.cpu().numpy().view(like.dtype).reshape(like.shape)


@contextmanager
def _named(part: Any) -> Iterator[None]:
    """Raise RankError where a collective fails: its group is gone, or a rank doesn't come."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as wrong:
        raise RankError(
            "the ranks of this call could not reach each other: one of them didn't make the same call in time, or its\n"
            "process group is gone\n"
            f"cause: {type(wrong).__name__}: {str(wrong).splitlines()[0][:300] if str(wrong) else ''}\n"
            "Fix: make the call on every rank of the model's mesh, between init_process_group and destroy_process_group"
        ) from wrong


def _device_of(part: Any) -> torch.device:
    """Return the device of a group's collectives: the host's memory where its backend takes that (gloo)."""
    if "gloo" in str(dist.get_backend_config(part)):
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator() or "cpu")


def _as_bytes(array: Array) -> torch.Tensor:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return torch.from_numpy(flat if flat.flags.writeable else flat.copy())


def _gather_bytes(raw: torch.Tensor, part: Any, size: int) -> torch.Tensor:
    with _named(part):
        sent = raw.to(_device_of(part))
        whole = torch.empty(size * sent.numel(), dtype=torch.uint8, device=sent.device)
        dist.all_gather(list(whole.chunk(size)) if sent.numel() else [sent] * size, sent, group=part)
    return whole


def _split_bytes(raw: torch.Tensor, like: Array, size: int) -> list[Array]:
    parts = raw.cpu().numpy().reshape(size, -1)
    return [part.view(like.dtype).reshape(like.shape) for part in parts]
