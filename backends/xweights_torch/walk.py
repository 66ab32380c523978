"""A module seen once: which tensors it has, where, and everything that their names depend on.

The names, roles and layouts of a model's parameters are a pure function of its *facts*: types, attribute names, shapes,
dtypes, which places share one array, and the settings that layer tables read. Facts are gathered anew at every call and
hold no tensor, so whatever is remembered for equal facts can't be stale, and keeps no model alive.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from xweights_torch.layers import Config, kind_of
from xweights_torch.parametrized import Computed, computed_in
from xweights_torch.storage import Slot, Table, address_of, identity

PARAMETER: Table = "parameter"
TRANSIENT = "transient"


# Plain tuples and lists, since they are made and compared at every call.
# A tensor of a module: its attribute, what it is, the number of its array, and its form (None: not built yet).
Held = tuple[str, str, int, tuple[int, ...] | None, torch.dtype]
# A module: its type and settings, tensors, computed parameters, and children by position among the nodes.
Node = tuple[Any, Config | None, list[Held], list[Held], list[tuple[str, int]]]


class Walk(NamedTuple):
    """What :func:`walk` found: facts, and, in the order of their numbers, the arrays and the computed parameters."""

    facts: list[Node]
    arrays: list[Slot]
    computed: list[Computed]


def walk(root: nn.Module) -> Walk:
    """Look at a module and all its children, each once, in definition order."""
    walker = _Walker()
    walker.visit(root)
    return Walk(walker.facts, walker.arrays, walker.computed)


class _Walker:
    def __init__(self) -> None:
        self.facts: list[Any] = []
        self.arrays: list[Slot] = []
        self.computed: list[Computed] = []
        self.modules: dict[int, int] = {}
        self.known: dict[int, int] = {}

    def visit(self, module: nn.Module) -> int:
        """Note a module, and return its position among the nodes. Called for every module at every call: kept quick."""
        facts, arrays, known = self.facts, self.arrays, self.known
        position = self.modules.setdefault(id(module), len(facts))
        if position != len(facts):
            return position
        facts.append(None)
        held: list[Held] = []
        tensor: Any
        for key, tensor in module._parameters.items():
            # The common case first, and without a call: an array that wasn't met before.
            try:
                new = type(tensor) is nn.Parameter and (address := tensor.data_ptr()) and address not in known
            except RuntimeError:
                new = False
            if new:
                number = known[address] = len(arrays)
                arrays.append(Slot(tensor, module, PARAMETER, key))
                held.append((key, PARAMETER, number, tensor.shape, tensor.dtype))
            elif tensor is not None:
                held.append(self.note(tensor, module, PARAMETER, key))
        for key, tensor in module._buffers.items():
            if tensor is not None:
                one = self.note(tensor, module, "buffer", key)
                held.append((key, TRANSIENT, *one[2:]) if key in module._non_persistent_buffers_set else one)
        made: list[Held] = []
        inner = module._modules
        if module._forward_pre_hooks or "parametrizations" in inner:
            for computed in computed_in(module):
                made.append((computed.name, PARAMETER, len(self.computed), *computed.form()))
                self.computed.append(computed)
        children = [(name, self.visit(child)) for name, child in inner.items() if child is not None] if inner else []
        kind: Any = _scripted_type(module) if isinstance(module, torch.jit.ScriptModule) else type(module)
        layer = kind_of(kind)
        facts[position] = (kind, None if layer is None else layer.config(module), held, made, children)
        return position

    def note(self, tensor: torch.Tensor, module: nn.Module, table: Table, key: str) -> Held:
        """Note a tensor, and return its facts."""
        if type(tensor) is not nn.Parameter and is_lazy(tensor):
            return (key, table, -1, None, tensor.dtype)
        shape, dtype, arrays = tensor.shape, tensor.dtype, self.arrays
        # Two objects may be one array: tied by sharing the memory.
        address = address_of(tensor) or -id(tensor)
        number = self.known.setdefault(address, len(arrays))
        if number == len(arrays):
            arrays.append(Slot(tensor, module, table, key))
            return (key, table, number, shape, dtype)
        first = arrays[number]
        if first.tensor is not tensor and identity(first.tensor) != identity(tensor):
            # The same memory seen another way, such as transposed.
            number = self.known.setdefault(-id(tensor), len(arrays))
            if number == len(arrays):
                arrays.append(Slot(tensor, module, table, key))
                return (key, table, number, shape, dtype)
            first = arrays[number]
        first.twins += (Slot(tensor, module, table, key),)
        return (key, table, number, shape, dtype)


def _scripted_type(module: torch.jit.ScriptModule) -> type[Any]:
    # The class it was made from, which the layer table knows.
    return _scripted(module._c._type().qualified_name()) or type(module)


@lru_cache(maxsize=1024)
def _scripted(qualified: str) -> type[Any] | None:
    # Such as "__torch__.torch.nn.modules.linear.___torch_mangle_3.Linear".
    parts = [part for part in qualified.split(".") if part != "__torch__" and "torch_mangle" not in part]
    found = getattr(nn, parts[-1], None) if parts[:2] == ["torch", "nn"] else None
    return found if isinstance(found, type) else None
