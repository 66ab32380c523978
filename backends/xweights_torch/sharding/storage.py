"""Storage of parameters that several ranks hold: blocks of DTensors, and replicas.

Every write goes into this rank's block, because of all ways to write to a DTensor that is the one that loses nothing:
an assignment by index, a view or ``.data`` changes nothing and says nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from xweights.core.dtypes import Array
from xweights.core.groups import Group
from xweights.core.layout import Layout, plain_layout
from xweights.core.shards import Shard
from xweights.errors import WriteError
from xweights_torch.checks import packed_reason, refusal_reason
from xweights_torch.dtypes import from_host, host_view
from xweights_torch.sharding.beside import cut_as
from xweights_torch.sharding.life_cycle import reshard
from xweights_torch.sharding.placements import local_of, placement_reason, read_shard
from xweights_torch.storage import (
    TensorBackup,
    TensorHandle,
    TensorStorage,
    back_up,
    restore_tensor,
    storage_of,
    tensor_of,
    write_tensor,
)

Handle = TensorHandle | torch.Tensor


class ReplicaStorage(TensorStorage):
    """Storage of tensors of which every rank of a group has a copy, under DistributedDataParallel."""

    def __init__(self, group: Group, *, fallible: bool) -> None:
        super().__init__(fallible=fallible)
        self.group = group

    def opened(self) -> ReplicaStorage:
        return self

    def shard(self, handle: Handle, layout: Layout) -> Shard:
        return Shard(layout, tuple((0, length) for length in layout.stored), self.group, label="a copy")

    def local(self, handle: Handle) -> tuple[TensorStorage, Handle]:
        return storage_of(tensor_of(handle)), handle

    def whole(self, handle: Handle, value: Array) -> tuple[TensorStorage, Handle]:
        return _copied(value, tensor_of(handle))

    def group_key(self, handle: Handle) -> Hashable | None:
        return None  # its ranks vote first


class ShardStorage(TensorStorage):
    """Storage of DTensors on one group of ranks. A handle is that of :class:`TensorStorage`.

    The one that adapters hand out is closed: it refuses whatever doesn't vote first, because an array is read by a
    collective that all ranks must take part in. :meth:`opened` is for calls whose ranks agreed.
    """

    fresh = True
    # No value of the global shape shares the memory of a block, and to read one to find out would be a collective.
    replaces = True

    def __init__(self, group: Group | None, *, is_open: bool, fallible: bool) -> None:
        super().__init__(fallible=fallible)
        self.group = group
        self.is_open = is_open

    def opened(self) -> ShardStorage:
        return shard_storage(self.group, True, self.fallible)

    def identity(self, handle: Handle) -> Hashable:
        return id(tensor_of(handle))

    def group_key(self, handle: Handle) -> Hashable | None:
        return None

    def shard(self, handle: Handle, layout: Layout) -> Shard:
        tensor = tensor_of(handle)
        if self.group is None:
            raise WriteError(_NO_GROUP)
        reason = placement_reason(tensor)
        if reason is None:
            return read_shard(tensor, layout, self.group)
        # Refused by name, once the ranks vote.
        return Shard(layout, tuple((0, 0) for _ in layout.stored), self.group, label=reason)

    def refusal(self, handle: Handle, *, writing: bool) -> str | None:
        tensor = tensor_of(handle)
        reason = placement_reason(tensor) or (_NO_GROUP if self.group is None else None)
        if reason is None and not self.is_open:
            return _CLOSED
        return reason or refusal_reason(local_of(tensor), writing=writing)

    def edit_refusal(self, handle: Handle) -> str | None:
        return packed_reason(_block(handle))

    def effective(self, handle: Handle) -> Array | None:
        return None

    def local(self, handle: Handle) -> tuple[TensorStorage, Handle]:
        return (DEVICE_BLOCKS if self.fallible else CPU_BLOCKS), handle

    def whole(self, handle: Handle, value: Array) -> tuple[TensorStorage, Handle]:
        return _copied(value, _block(handle))

    def read(self, handle: Handle) -> Array:
        shard, block = self._open_shard(handle), host_view(_block(handle))
        return block.copy(order="K") if shard.is_whole else shard.gather(block)

    def write(self, handle: Handle, value: Array) -> None:
        write_tensor(_block(handle), self._open_shard(handle).cut_stored(value))

    def _open_shard(self, handle: Handle) -> Shard:
        if not self.is_open:
            raise WriteError(_CLOSED)
        return self.shard(handle, plain_layout(tuple(tensor_of(handle).shape)))

    def native_array(self, handle: Handle, *, tensor: bool = False) -> Any:
        raise WriteError(_CLOSED)

    def tracked(self, handle: Handle) -> torch.Tensor:
        if not self.is_open:
            raise WriteError(_CLOSED)
        return tensor_of(handle)

    def beside(self, handle: Handle, block: torch.Tensor) -> torch.Tensor:
        return cut_as(block, tensor_of(handle))

    def commit(self, handle: Handle, native: Any, value: Any) -> None:
        raise WriteError(_CLOSED)

    def backup(self, handle: Handle) -> Any:
        block = _block(handle)
        return [(block, back_up(block))]

    def restore(self, handle: Handle, kept: list[tuple[torch.Tensor, TensorBackup]]) -> None:
        if isinstance(handle, TensorHandle):
            for place in handle.places:
                reshard(place.owner)  # a gathered copy is no replacement
        for block, tensor_backup in kept:
            restore_tensor(block, tensor_backup)
        if isinstance(handle, TensorHandle):
            for place in handle.places:
                place.reregister()


class UnviewedStorage(TensorStorage):
    """Storage of whole tensors that FSDP1 takes back by resizing their memory: a NumPy view of it would forbid that."""

    fresh = True

    def group_key(self, handle: Handle) -> Hashable | None:
        return None

    def read(self, handle: Handle) -> Array:
        return host_view(tensor_of(handle).detach().clone())

    def write(self, handle: Handle, value: Array) -> None:
        with torch.no_grad():
            tensor_of(handle).copy_(from_host(np.ascontiguousarray(value)))

    def native_array(self, handle: Handle, *, tensor: bool = False) -> Any:
        return tensor_of(handle).detach()

    def commit(self, handle: Handle, native: Any, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            super().commit(handle, native, value)
        else:
            self.write(handle, value)


class BlockStorage(TensorStorage):
    """Storage of this rank's block of a DTensor, as an array of its own; the handle is still that of the parameter."""

    def identity(self, handle: Handle) -> Hashable:
        return id(tensor_of(handle))

    def group_key(self, handle: Handle) -> Hashable | None:
        return None

    def refusal(self, handle: Handle, *, writing: bool) -> str | None:
        return refusal_reason(_block(handle), writing=writing)

    def edit_refusal(self, handle: Handle) -> str | None:
        return packed_reason(_block(handle))

    def effective(self, handle: Handle) -> Array | None:
        return None

    def read(self, handle: Handle) -> Array:
        return host_view(_block(handle))

    def write(self, handle: Handle, value: Array) -> None:
        write_tensor(_block(handle), value)

    def native_array(self, handle: Handle, *, tensor: bool = False) -> Any:
        return super().native_array(_block(handle), tensor=tensor)

    def tracked(self, handle: Handle) -> torch.Tensor:
        raise WriteError(_CLOSED)

    def commit(self, handle: Handle, native: Any, value: Any) -> None:
        super().commit(_block(handle), native, value)

    def backup(self, handle: Handle) -> Any:
        return super().backup(_block(handle))

    def restore(self, handle: Handle, kept: list[tuple[torch.Tensor, TensorBackup]]) -> None:
        super().restore(_block(handle), kept)


def _block(handle: Handle) -> torch.Tensor:
    return local_of(tensor_of(handle))


UNVIEWED = UnviewedStorage(fallible=True)
CPU_BLOCKS = BlockStorage(fallible=False)
DEVICE_BLOCKS = BlockStorage(fallible=True)


def _copied(value: Array, like: torch.Tensor) -> tuple[TensorStorage, Handle]:
    """Return the storage and the handle of an array of its own, on the device of a tensor."""
    tensor = from_host(value).to(like.device)
    return storage_of(tensor), tensor


_CLOSED = (
    "it is sharded over several ranks, and this call doesn't work on shards yet\n"
    "Fix: make the call before the model is sharded, or on xweights.get_params(model): whole arrays on every rank"
)
_NO_GROUP = (
    "its model lies on meshes that have nothing in common, so that nobody knows which ranks a call concerns\n"
    "Fix: slice them from one mesh: mesh = init_device_mesh(...); mesh['dp'], mesh['tp']"
)


@lru_cache(maxsize=256)
def shard_storage(group: Group | None, is_open: bool, fallible: bool) -> ShardStorage:
    """Return the storage of a group's parameters; the same object for the same group."""
    return ShardStorage(group, is_open=is_open, fallible=fallible)


@lru_cache(maxsize=256)
def replica_storage(group: Group, fallible: bool) -> ReplicaStorage:
    """Return the storage of a group's copies; the same object for the same group."""
    return ReplicaStorage(group, fallible=fallible)
