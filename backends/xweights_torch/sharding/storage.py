"""Storage of parameters that several ranks hold: blocks of DTensors, and replicas.

Every write goes into this rank's block, because of all ways to write to a DTensor that is the one that loses nothing:
an assignment by index, a view or ``.data`` changes nothing and says nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import torch

from xweights.core.dtypes import Array
from xweights.core.groups import Group
from xweights.core.layout import Layout
from xweights.core.shards import Shard
from xweights.errors import WriteError
from xweights_torch.checks import packed_reason, refusal_reason
from xweights_torch.dtypes import from_host, host_view
from xweights_torch.sharding.placements import is_dtensor, local_of, placement_reason, read_shard
from xweights_torch.storage import (
    TensorBackup,
    TensorHandle,
    TensorStorage,
    back_up,
    identity,
    restore_tensor,
    storage_of,
    tensor_of,
    write_tensor,
)

Handle = TensorHandle | torch.Tensor


class ShardStorage(TensorStorage):
    """Storage of the tensors of one group of ranks: DTensors, or replicas.

    The one that adapters hand out is closed: it refuses whatever doesn't vote first, because an array is read by a
    collective that all ranks must take part in. :meth:`opened` is for calls whose ranks agreed.
    """

    fresh = True

    def __init__(self, group: Group | None, *, is_open: bool, fallible: bool) -> None:
        super().__init__(fallible=fallible)
        self.group = group
        self.is_open = is_open

    def opened(self) -> ShardStorage:
        return shard_storage(self.group, True, self.fallible)

    def identity(self, handle: Handle) -> Hashable:
        tensor = tensor_of(handle)
        return id(tensor) if is_dtensor(tensor) else identity(tensor)

    def shard(self, handle: Handle, layout: Layout) -> Shard:
        tensor = tensor_of(handle)
        if self.group is None:
            raise WriteError(_NO_GROUP)
        if is_dtensor(tensor) and placement_reason(tensor) is None:
            return read_shard(tensor, layout, self.group)
        return Shard(layout, tuple((0, length) for length in layout.stored), self.group)

    def refusal(self, handle: Handle, *, writing: bool) -> str | None:
        tensor = tensor_of(handle)
        if is_dtensor(tensor):
            reason = placement_reason(tensor) or (None if self.group is not None else _NO_GROUP)
            if reason is None and not self.is_open:
                return _CLOSED
            return reason or refusal_reason(local_of(tensor), writing=writing)
        # Every rank has all of a replica.
        return refusal_reason(tensor, writing=writing)

    def group_key(self, handle: Handle) -> Hashable | None:
        return None  # its ranks vote first

    def edit_refusal(self, handle: Handle) -> str | None:
        tensor = tensor_of(handle)
        return packed_reason(local_of(tensor)) if is_dtensor(tensor) else super().edit_refusal(handle)

    def effective(self, handle: Handle) -> Array | None:
        return None if is_dtensor(tensor_of(handle)) else super().effective(handle)

    def local(self, handle: Handle) -> tuple[TensorStorage, torch.Tensor]:
        tensor = tensor_of(handle)
        block = local_of(tensor) if is_dtensor(tensor) else tensor.detach()
        return storage_of(block), block

    def whole(self, handle: Handle, value: Array) -> tuple[TensorStorage, torch.Tensor]:
        """Return the storage and the handle of a whole array of its own, on the device of this rank's block."""
        block = self.local(handle)[1]
        tensor = from_host(value).to(block.device)
        return storage_of(tensor), tensor

    def read(self, handle: Handle) -> Array:
        tensor = tensor_of(handle)
        if not is_dtensor(tensor):
            return host_view(tensor).copy(order="K")
        self._need_open(tensor)
        assert self.group is not None
        return read_shard(tensor, _stored_layout(tensor), self.group).gather(host_view(local_of(tensor)))

    def write(self, handle: Handle, value: Array) -> None:
        self._need_open(tensor_of(handle))
        block = self.local(handle)[1]
        if is_dtensor(tensor_of(handle)):
            value = self.shard(handle, _stored_layout(tensor_of(handle))).cut_stored(value)
        write_tensor(block, value)

    def native_array(self, handle: Handle, *, tensor: bool = False) -> Any:
        if is_dtensor(tensor_of(handle)):
            raise WriteError(_CLOSED)
        return super().native_array(handle, tensor=tensor)

    def tracked(self, handle: Handle) -> torch.Tensor:
        if is_dtensor(tensor_of(handle)):
            raise WriteError(_CLOSED)
        return super().tracked(handle)

    def commit(self, handle: Handle, native: Any, value: Any) -> None:
        if is_dtensor(tensor_of(handle)):
            raise WriteError(_CLOSED)
        super().commit(handle, native, value)

    def backup(self, handle: Handle) -> Any:
        if not is_dtensor(tensor_of(handle)):
            return super().backup(handle)
        block = local_of(tensor_of(handle))
        return [(block, back_up(block))]

    def restore(self, handle: Handle, kept: list[tuple[torch.Tensor, TensorBackup]]) -> None:
        if not is_dtensor(tensor_of(handle)):
            super().restore(handle, kept)
            return
        for block, tensor_backup in kept:
            restore_tensor(block, tensor_backup)
        if isinstance(handle, TensorHandle):
            for place in handle.places:
                place.reregister()

    def _need_open(self, tensor: torch.Tensor) -> None:
        if is_dtensor(tensor) and not self.is_open:
            raise WriteError(_CLOSED)


_CLOSED = (
    "it is sharded over several ranks, and this call doesn't work on shards yet\n"
    "Fix: edit it by a verb, set_params or set_entries, read it by get_params; or call this on the model before it\n"
    "     is sharded, or on xweights.get_params(model), which has whole arrays on every rank"
)
_NO_GROUP = (
    "its model lies on meshes that have nothing in common, so that nobody knows which ranks a call concerns\n"
    "Fix: slice them from one mesh: mesh = init_device_mesh(...); mesh['dp'], mesh['tp']"
)


def _stored_layout(tensor: torch.Tensor) -> Layout:
    shape = tuple(int(n) for n in tensor.shape)
    return Layout(shape, shape, tuple(range(len(shape))), None)


@lru_cache(maxsize=256)
def shard_storage(group: Group | None, is_open: bool, fallible: bool) -> ShardStorage:
    """Return the storage of a group's parameters; the same object for the same group."""
    return ShardStorage(group, is_open=is_open, fallible=fallible)
