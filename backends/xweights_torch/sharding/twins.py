"""Copy a model that lies on several ranks as a plain one of this process: whole arrays, no hooks of the sharding."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from xweights.core.dtypes import Array
from xweights_torch.dtypes import from_host
from xweights_torch.sharding.life_cycle import reshard
from xweights_torch.sharding.placements import is_dtensor, local_of
from xweights_torch.storage import tensor_of

_SHARDING = "torch.distributed"
# Under such names a module keeps what fully_shard and its like know of it; what has one of these can't be copied.
_STATE = "__composable_api_"


def copy_plain(model: nn.Module, arrays: Mapping[int, Array]) -> nn.Module:
    """Return a plain copy of a model; ``arrays`` has the whole array of each tensor that is cut, by its identity."""
    reshard(model)
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = _copy_tensor(tensor, arrays.get(id(tensor)))
    modules = list(model.modules())
    for module in modules:
        kind = _plain_class(type(module))
        memo[id(module)] = kind.__new__(kind)
    for module in modules:
        kept = {name: value for name, value in vars(module).items() if not name.startswith(_STATE)}
        memo[id(module)].__dict__.update({name: _copy_value(name, value, memo) for name, value in kept.items()})
    twin: nn.Module = memo[id(model)]
    return twin


def identity_of(handle: Any) -> int:
    """Return the identity of the tensor behind a parameter's handle: the key of its array for :func:`copy_plain`."""
    return id(tensor_of(handle))


def _copy_tensor(tensor: torch.Tensor, whole: Array | None) -> torch.Tensor:
    if whole is not None:
        device = local_of(tensor).device if is_dtensor(tensor) else tensor.device
        plain = from_host(whole.copy()).to(device)
    else:
        plain = tensor.detach().clone()
    return nn.Parameter(plain, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else plain


def _plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a module had before ``fully_shard`` made it one of its own."""
    while any(base.__name__ == "FSDPModule" and base.__module__.startswith(_SHARDING) for base in kind.__bases__):
        kind = next(base for base in kind.__bases__ if base.__name__ != "FSDPModule")
    return kind


def _copy_value(name: str, value: Any, memo: dict[int, Any]) -> Any:
    if name.endswith("_hooks") and isinstance(value, dict):
        value = type(value)((key, hook) for key, hook in value.items() if not _is_of_sharding(hook))
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001 - what can't be copied (a mesh, a stream) is no weight, and is shared
        return value


def _is_of_sharding(hook: Any) -> bool:
    owner = getattr(hook, "__self__", None)
    inner = getattr(hook, "func", hook)
    modules = (type(owner).__module__ if owner is not None else "", getattr(inner, "__module__", None) or "")
    return any(module.startswith(_SHARDING) for module in modules)
