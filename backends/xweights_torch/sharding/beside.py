"""Arrays beside a parameter that are cut as it is: optimizer slots, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from xweights.errors import HandoffError
from xweights_torch.sharding.placements import is_dtensor, local_of


def block_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's block of a DTensor; any other tensor itself."""
    return local_of(tensor) if is_dtensor(tensor) else tensor


def is_cut(tensor: Any) -> bool:
    """Return whether entries of a tensor lie on several ranks."""
    return is_dtensor(tensor) and bool(_cutting_groups(tensor))


def block_beside(value: torch.Tensor, parameter: torch.Tensor, what: str) -> torch.Tensor:
    """Return this rank's block of a value; raise HandoffError for one that isn't cut as its parameter is."""
    if not value.ndim or not (is_dtensor(value) or is_dtensor(parameter)):
        return block_of(value)
    own, other = _placement_of(parameter), _placement_of(value)
    if own != other:
        raise HandoffError(
            f"{what} is placed in another way than its parameter\ngot:      {other[1]}\nexpected: {own[1]}\n"
            "Fix: load it with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict"
        )
    return block_of(value)


def put_beside(block: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return the block of a slot as a tensor that is cut as its parameter is; a single number as it is."""
    return cut_as(block, parameter) if block.ndim and is_dtensor(parameter) else block.to(parameter.device)


def cut_as(block: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return a block as a DTensor that is cut as a parameter is."""
    beside = torch.empty_like(parameter.detach(), dtype=block.dtype)
    with torch.no_grad():
        local_of(beside).copy_(block)
    return beside


def whole_norms(norms: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the norms of whole tensors from those of this rank's blocks; one collective for each dimension that cuts.

    All ranks must make this call.
    """
    found = list(norms)
    cut: dict[tuple[Any, ...], list[int]] = {}
    for position, tensor in enumerate(tensors):
        groups = _cutting_groups(tensor) if is_dtensor(tensor) else ()
        if groups:
            cut.setdefault(groups, []).append(position)
    for groups, positions in cut.items():
        squares = torch.stack([norms[position].double() for position in positions]).square_()
        for group in groups:
            dist.all_reduce(squares, group=group)
        for position, norm in zip(positions, squares.sqrt_(), strict=True):
            found[position] = norm.to(norms[position].dtype)
    return found


def _cutting_groups(tensor: Any) -> tuple[Any, ...]:
    mesh = tensor.device_mesh
    return tuple(
        mesh.get_group(i)
        for i, placement in enumerate(tensor.placements)
        if hasattr(placement, "dim") and mesh.shape[i] > 1
    )


def _placement_of(tensor: Any) -> tuple[Any, str]:
    if not is_dtensor(tensor):
        return None, f"a whole tensor of shape {tuple(tensor.shape)}"
    shown = f"{', '.join(map(str, tensor.placements))} on {tuple(tensor.device_mesh.shape)}"
    return (tensor.device_mesh, tensor.placements), f"{shown}, shape {tuple(tensor.shape)}"
