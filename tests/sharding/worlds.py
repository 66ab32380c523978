"""Small models, and the worlds that shard them: FSDP2, tensor parallelism, both, hybrid sharding and DDP."""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo
from torch import nn

# Imported before the fork, or each rank would import them again.
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor  # noqa: F401
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

# name: number of ranks
WORLDS = {"fsdp2-2": 2, "fsdp2-4": 4, "tp-2": 2, "2d-4": 4, "hsdp-4": 4, "ddp-2": 2}


class Small(nn.Module):
    """Rows that no number of ranks divides, a layer with fewer rows than ranks, a convolution, statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(22, 8)
        self.up = nn.Linear(8, 18)
        self.down = nn.Linear(18, 8)
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv1d(8, 6, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.down(torch.relu(self.up(self.emb(x)))))
        return self.head(h).sum() + self.conv(h.transpose(-1, -2)).sum()


def small(seed: int = 0, dtype: torch.dtype = torch.float32) -> Small:
    torch.manual_seed(seed)
    return Small().to(dtype)


def shard(model: nn.Module, world: str) -> Any:
    """Return the model as a world shards it, with the same weights."""
    if world.startswith("fsdp2"):
        mesh = init_device_mesh("cpu", (WORLDS[world],), mesh_dim_names=("dp",))
        return _fully_shard(model, mesh)
    if world == "hsdp-4":
        return _fully_shard(model, init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "dp")))
    if world == "tp-2":
        return _tensor_parallel(model, init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)))
    if world == "2d-4":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        _tensor_parallel(model, mesh["tp"])
        return _fully_shard(model, mesh["dp"])
    assert world == "ddp-2"
    return nn.parallel.DistributedDataParallel(model)


def _fully_shard(model: nn.Module, mesh: Any) -> nn.Module:
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _tensor_parallel(model: nn.Module, mesh: Any) -> nn.Module:
    return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def blocks(model: nn.Module) -> list[torch.Tensor]:
    """Return this rank's memory of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return [getattr(tensor, "_local_tensor", tensor).detach() for tensor in tensors]
