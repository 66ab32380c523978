"""FSDP's life cycle: give modules back the shards that a forward pass replaced, and find what FSDP1 has flattened.

After a forward pass FSDP2 leaves gathered copies in the place of the root's shards, plain parameters like any other. A
write to them is lost at the next reshard, and a mere view of their memory breaks it: "Trying to resize storage that is
not resizable". Whoever holds a submodule can't see it, so the states of all sharded modules are asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

IN_STEP = (
    "FSDP has gathered it for the step that is going on, and takes the copy back at its end\n"
    "Fix: make the call before the forward pass, or after the optimizer's step"
)
GATHERED_COPY = (
    "it is the copy that FSDP2 gathered for a forward pass, and takes back: a write would be lost, and a read breaks\n"
    "the next step\nFix: pass the module that has it, or call module.reshard() first"
)
FLATTENED = (
    "it is a part of a flat parameter of FullyShardedDataParallel (FSDP1), of which this rank has some entries\n"
    "Fix: with FullyShardedDataParallel.summon_full_params(model): and pass the wrapped model itself;\n"
    "     or shard the model with torch.distributed.fsdp.fully_shard instead"
)


def _states() -> Iterator[Any]:
    """Yield the state of every module that ``fully_shard`` was called on. Private to torch, and nothing else has it."""
    composable = sys.modules.get("torch.distributed._composable_state")
    mapping = getattr(composable, "_module_state_mapping", None)
    for reference in list(mapping.values()) if mapping else ():
        state = reference()
        if state is not None:
            yield state


def _gathered_groups() -> Iterator[Any]:
    """Yield the parameter groups of FSDP2 whose modules have gathered copies now."""
    for state in _states():
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            if group is not None and group._sharded_state.name != "SHARDED":
                yield group


def reshard(target: nn.Module) -> None:
    """Give the modules below ``target`` their shards back, where no step is going on: 2 us a group."""
    groups = list(_gathered_groups())
    if not groups:
        return
    modules = {id(module) for module in target.modules()}
    for group in groups:
        if group._training_state.name == "IDLE" and not modules.isdisjoint(_modules_of(group)):
            group.reshard()


def _modules_of(group: Any) -> Iterator[int]:
    for parameter in group.fsdp_params:
        info = parameter._module_info
        yield id(info.module)
        yield from map(id, info.shared_modules)


def gathered_copies() -> dict[int, str]:
    """Return why each gathered copy of now, by identity and by address, is no parameter to work on."""
    found: dict[int, str] = {}
    for group in _gathered_groups():
        reason = GATHERED_COPY if group._training_state.name == "IDLE" else IN_STEP
        for parameter in group.fsdp_params:
            copy = getattr(parameter, "_unsharded_param", None)
            if copy is not None and copy.untyped_storage().size():
                found[id(copy)] = found[copy.data_ptr()] = reason
    return found


def is_flattened(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a part of a flat parameter of FSDP1, or such a parameter itself."""
    return "_fsdp_flattened" in getattr(tensor, "__dict__", ())


def has_full_parameters(target: nn.Module) -> bool:
    """Return whether all parameters of FSDP1 below a target are whole, inside of ``summon_full_params``."""
    flat: list[Any] = [
        module for module in target.modules() if hasattr(module, "_handle") and hasattr(module, "training_state")
    ]
    return bool(flat) and all(module.training_state.name == "SUMMON_FULL_PARAMS" for module in flat)
