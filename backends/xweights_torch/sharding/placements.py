"""Read the placements of a DTensor as global index ranges.

Placements are looked at here and nowhere else. Of two splits of one axis the plain one (tensor parallelism) comes first
and the strided one (FSDP) divides what it left, whatever the order of their mesh dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from xweights.core.groups import SINGLE, Group, split_rank
from xweights.core.layout import Layout
from xweights.core.shards import Ranges, Shard
from xweights_torch.sharding.groups import TorchGroup

# How each mesh dimension splits: the axis, and whether the split is strided; None where all have the same.
Splits = tuple[tuple[int, bool] | None, ...]


def is_dtensor(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor, without importing what defines it."""
    kind = type(tensor)
    return any(base.__name__ == "DTensor" and base.__module__.startswith("torch.") for base in kind.__mro__)


def local_of(tensor: Any) -> torch.Tensor:
    """Return this rank's block of a DTensor, detached: ``to_local()`` is tracked, and fails when kept over a step."""
    local: torch.Tensor = tensor._local_tensor
    return local.detach()


def placement_reason(tensor: Any) -> str | None:
    """Return why the placements of a DTensor can't be understood, or None."""
    mesh, placements = tensor.device_mesh, tensor.placements
    reason, expected = _understand(mesh, placements, tuple(tensor.shape))
    if reason is not None or tuple(tensor._local_tensor.shape) == expected:
        return reason
    return (
        f"its block isn't what its placements say\n{placements} on a mesh of {tuple(mesh.shape)}\n"
        f"got:      {tuple(tensor._local_tensor.shape)}\nexpected: {expected}\n"
        "Fix: shard it with distribute_tensor, fully_shard or parallelize_module"
    )


# Kept, as the shards are: a call on one small parameter took 0.1 ms to understand it anew, three times over.
@lru_cache(maxsize=4096)
def _understand(
    mesh: Any, placements: tuple[Any, ...], shape: tuple[int, ...]
) -> tuple[str | None, tuple[int, ...] | None]:
    """Return why placements can't be understood, or the shape of this rank's block."""
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        reason = (
            "this rank isn't in its mesh, and holds no part of it\n"
            "Fix: make the call on the ranks that have this stage of the model"
        )
        return reason, None
    for placement in placements:
        kind = type(placement).__name__
        if kind not in ("Shard", "_StridedShard", "Replicate"):
            if not kind.endswith("Partial"):
                reason = f"it has the placement {placement}, an unknown one\nFix: Shard or Replicate placements"
                return reason, None
            reason = (
                f"it has the placement {placement}: each rank has a summand, and no entry by itself\n"
                "Fix: p.redistribute(placements=[Replicate()]) before the call"
            )
            return reason, None
    splits = _splits_of(placements)
    if any(dist.get_rank(mesh.get_group(i)) != coordinate[i] for i in _cutting(mesh, splits)):
        # torch 2.13 cuts by the place in the sorted group, and tells another: of a mesh [[0, 3], [2, 1]] it makes a
        # DTensor whose full_tensor() has two of four blocks twice.
        reason = (
            "its mesh has the ranks in another order than their groups, so that torch itself takes one block for\n"
            f"another: {str(mesh.mesh.tolist())[:200]}\n"
            "Fix: a mesh whose ranks rise along each dimension, as init_device_mesh makes it"
        )
        return reason, None
    ranges = ranges_at(shape, tuple(mesh.shape), splits, tuple(coordinate))
    return None, tuple(last - first for first, last in ranges)


def _splits_of(placements: Sequence[Any]) -> Splits:
    return tuple(
        (placement.dim, type(placement).__name__ == "_StridedShard") if hasattr(placement, "dim") else None
        for placement in placements
    )


def _cutting(mesh: Any, splits: Splits) -> tuple[int, ...]:
    """Return the mesh dimensions along which entries lie on several ranks."""
    return tuple(i for i, split in enumerate(splits) if split is not None and mesh.shape[i] > 1)


@lru_cache(maxsize=65536)
def ranges_at(shape: tuple[int, ...], mesh: tuple[int, ...], splits: Splits, coordinate: Sequence[int]) -> Ranges:
    """Return the global index range along each stored axis that the rank at a coordinate of the mesh has."""
    ranges = []
    for axis, length in enumerate(shape):
        plain = [i for i, split in enumerate(splits) if split == (axis, False)]
        strided = [i for i, split in enumerate(splits) if split == (axis, True)]
        first, last = 0, length
        for position in (*plain, *reversed(strided)):
            step = -(-(last - first) // mesh[position])
            begin = min(first + coordinate[position] * step, last)
            first, last = begin, min(begin + step, last)
        ranges.append((first, last))
    return tuple(ranges)


@lru_cache(maxsize=4096)
def group_of_parts(parts: tuple[Any, ...]) -> Group:
    """Return the group of the ranks that these process groups span."""
    parts = tuple(part for part in parts if dist.get_world_size(part) > 1)
    return TorchGroup(parts) if parts else SINGLE


def read_shard(tensor: Any, layout: Layout, group: Group) -> Shard:
    """Return the shard of a DTensor whose placements have been understood."""
    return _shard_at(tensor.device_mesh, tensor.placements, tuple(tensor.shape), layout, group)


@lru_cache(maxsize=4096)
def _shard_at(mesh: Any, placements: tuple[Any, ...], shape: tuple[int, ...], layout: Layout, group: Group) -> Shard:
    # Meshes are equal by their ranks; the group is another object once there are new process groups.
    sizes, splits = tuple(mesh.shape), _splits_of(placements)
    cutting = _cutting(mesh, splits)
    groups = tuple(
        group_of_parts(tuple(mesh.get_group(i) for i in cutting if splits[i][0] == axis))  # type: ignore[index]
        for axis in range(len(shape))
    )
    coordinate = tuple(mesh.get_coordinate())
    return Shard(
        layout=layout,
        stored=ranges_at(shape, sizes, splits, coordinate),
        group=group,
        holders=group_of_parts(tuple(mesh.get_group(i) for i in cutting)),
        groups=groups,
        ranges_of=partial(_ranges_of_holder, shape, sizes, splits, cutting),
        label=f"{', '.join(map(str, placements))} on {sizes}",
    )


def _ranges_of_holder(
    shape: tuple[int, ...], sizes: tuple[int, ...], splits: Splits, cutting: tuple[int, ...], holder: int
) -> Ranges:
    coordinate = [0] * len(sizes)
    for position, place in zip(cutting, split_rank(holder, [sizes[i] for i in cutting]), strict=True):
        coordinate[position] = place
    return ranges_at(shape, sizes, splits, tuple(coordinate))


def group_of_meshes(meshes: Sequence[Any]) -> Group | None:
    """Return the ranks that all these meshes span together; None where that can't be told.

    FSDP with tensor parallelism places some parameters on a part of the mesh alone, and the other ranks hold them, too.
    """
    distinct = list({id(mesh): mesh for mesh in meshes}.values())
    world = dist.get_world_size()
    roots = {id(mesh._get_root_mesh()): mesh._get_root_mesh() for mesh in distinct}
    if any(np.prod(tuple(mesh.shape)) == world for mesh in distinct):
        return group_of_parts((dist.group.WORLD,))
    if len(distinct) == 1:
        return group_of_parts(tuple(distinct[0].get_all_groups()))
    if len(roots) > 1:
        return None
    (root,) = roots.values()
    used = {name for mesh in distinct for name in mesh.mesh_dim_names or ()}
    names = [name for name in root.mesh_dim_names or () if name in used]
    parts = tuple(root.get_group(name) for name in names)
    if np.prod([dist.get_world_size(part) for part in parts]) == world:
        return group_of_parts((dist.group.WORLD,))
    return group_of_parts(parts)
