"""Find which arrays of a module other ranks hold, too, and give each its storage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from xweights.core.groups import Group
from xweights_torch.sharding.life_cycle import FLATTENED, gathered_copies, has_full_parameters, is_flattened
from xweights_torch.sharding.placements import group_of_meshes, group_of_parts, is_dtensor
from xweights_torch.sharding.storage import UNVIEWED, replica_storage, shard_storage
from xweights_torch.storage import RefusedStorage, TensorStorage, address_of

# Wrappers that DistributedDataParallel may be inside of.
_OUTER = ("_orig_mod", "_forward_module")
_FLATTENED = RefusedStorage(FLATTENED)


def are_ranks_running() -> bool:
    """Return whether torch.distributed runs in this process: without it nothing is shared."""
    return dist.is_available() and dist.is_initialized()


def find_storages(target: nn.Module | None, tensors: Sequence[torch.Tensor]) -> list[TensorStorage | None]:
    """Return the storage of each tensor that other ranks hold, too; None for those of this process alone."""
    if not are_ranks_running():
        return [None] * len(tensors)
    meshes = [tensor.device_mesh for tensor in tensors if is_dtensor(tensor)]  # type: ignore[attr-defined]
    replicas = None if target is None else _replica_group(target)
    copies = gathered_copies()
    full = target is not None and has_full_parameters(target)
    flattened = [full or is_flattened(tensor) for tensor in tensors]
    if not meshes and replicas is None and not copies and not any(flattened):
        return [None] * len(tensors)
    group = group_of_meshes(meshes) if meshes else None
    refused = {reason: RefusedStorage(reason) for reason in copies.values()}
    found: list[TensorStorage | None] = []
    for tensor, flat in zip(tensors, flattened, strict=True):
        if is_dtensor(tensor):
            found.append(shard_storage(group, False, tensor.device.type != "cpu"))
        elif copies and (reason := copies.get(id(tensor)) or copies.get(address_of(tensor))):
            found.append(refused[reason])
        elif flat:
            found.append(UNVIEWED if full else _FLATTENED)
        elif replicas is not None:
            found.append(replica_storage(replicas, not tensor.is_cpu))
        else:
            found.append(None)
    return found


def copy_reason(tensor: torch.Tensor) -> str | None:
    """Return why a tensor outside of its module is no array to read: FSDP2 takes its memory back."""
    copies = gathered_copies() if are_ranks_running() else {}
    return copies.get(id(tensor)) or copies.get(address_of(tensor)) if copies else None


def _replica_group(target: nn.Module) -> Group | None:
    """Return the group of a DistributedDataParallel, also inside of compiled and Fabric's modules."""
    for _ in range(8):
        if type(target).__name__ == "DistributedDataParallel" and isinstance(
            target, nn.parallel.DistributedDataParallel
        ):
            group = group_of_parts((target.process_group,))
            return group if group.size > 1 else None
        inner = next((target._modules[name] for name in _OUTER if target._modules.get(name) is not None), None)
        if inner is None:
            return None
        target = inner
    return None
