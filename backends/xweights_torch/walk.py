"""Walk of a module: its tensors, where they are, and everything that their names depend on.

The names, roles and layouts of a model's parameters are a pure function of its *facts*: types, attribute names, shapes,
dtypes, which places share one array, and the settings that layer tables read. Facts are gathered again at every call
and hold no tensor, so whatever is cached for equal facts can't be stale, and keeps no model alive.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from xweights_torch.layers import Config, spec_of
from xweights_torch.overlaid import iter_overlaid, iter_parts
from xweights_torch.parametrized import ComputedParameter, find_computed
from xweights_torch.storage import Table, TensorHandle, address_of, identity

PARAMETER: Table = "parameter"
TRANSIENT = "transient"


# Plain tuples and lists, since they are made and compared at every call.
# A tensor of a module: its attribute, its kind, the number of its array, its shape (None: not built yet) and its dtype.
TensorFacts = tuple[str, str, int, tuple[int, ...] | None, torch.dtype]
# A module: its type and settings, tensors, computed parameters, and children by position among the facts.
ModuleFacts = tuple[Any, Config | None, list[TensorFacts], list[TensorFacts], list[tuple[str, int]]]


class ModuleWalk(NamedTuple):
    """Result of :func:`walk`: facts, and, in the order of their numbers, the arrays and the computed parameters."""

    facts: list[ModuleFacts]
    arrays: list[TensorHandle]
    computed: list[ComputedParameter]


def walk(root: nn.Module) -> ModuleWalk:
    """Visit a module and all its children, each once, in definition order."""
    walker = _Walker()
    walker.visit(root)
    if walker.overlaid:
        for handle in walker.arrays:
            for place in handle.places:
                place.wrappers = walker.overlaid.get(id(place.owner), ())
                place.is_part = id(place.owner) in walker.parts
    return ModuleWalk(walker.facts, walker.arrays, walker.computed)


class _Walker:
    def __init__(self) -> None:
        self.facts: list[Any] = []
        self.arrays: list[TensorHandle] = []
        self.computed: list[ComputedParameter] = []
        self.modules: dict[int, int] = {}
        self.known: dict[int, int] = {}
        self.overlaid: dict[int, list[nn.Module]] = {}
        self.parts: set[int] = set()

    def visit(self, module: nn.Module) -> int:
        """Record a module, and return its position among the facts. Called for every module at every call, so fast."""
        facts, arrays, known = self.facts, self.arrays, self.known
        position = self.modules.setdefault(id(module), len(facts))
        if position != len(facts):
            return position
        facts.append(None)
        tensors: list[TensorFacts] = []
        tensor: Any
        for key, tensor in module._parameters.items():
            # The common case first, and without a call: an array that wasn't seen before.
            try:
                new = type(tensor) is nn.Parameter and (address := tensor.data_ptr()) and address not in known
            except RuntimeError:
                new = False
            if new:
                number = known[address] = len(arrays)
                arrays.append(TensorHandle(tensor, module, PARAMETER, key))
                tensors.append((key, PARAMETER, number, tensor.shape, tensor.dtype))
            elif tensor is not None:
                tensors.append(self.record(tensor, module, PARAMETER, key))
        for key, tensor in module._buffers.items():
            if tensor is not None:
                buffer = self.record(tensor, module, "buffer", key)
                tensors.append((key, TRANSIENT, *buffer[2:]) if key in module._non_persistent_buffers_set else buffer)
        computed_facts: list[TensorFacts] = []
        submodules = module._modules
        if module._forward_pre_hooks or "parametrizations" in submodules:
            for computed in find_computed(module):
                computed_facts.append((computed.name, PARAMETER, len(self.computed), *computed.shape_and_dtype()))
                self.computed.append(computed)
        children = (
            [(name, self.visit(child)) for name, child in submodules.items() if child is not None] if submodules else []
        )
        if "base_layer" in submodules or "original_module" in submodules:
            for below in iter_overlaid(module):
                self.overlaid.setdefault(id(below), []).append(module)
            self.parts.update(map(id, iter_parts(module)))
        kind: Any = _scripted_type(module) if isinstance(module, torch.jit.ScriptModule) else type(module)
        layer = spec_of(kind)
        facts[position] = (kind, None if layer is None else layer.config(module), tensors, computed_facts, children)
        return position

    def record(self, tensor: torch.Tensor, module: nn.Module, table: Table, key: str) -> TensorFacts:
        """Record a tensor, and return its facts."""
        if type(tensor) is not nn.Parameter and is_lazy(tensor):
            return (key, table, -1, None, tensor.dtype)
        shape, dtype, arrays = tensor.shape, tensor.dtype, self.arrays
        # Two objects may be one array: tied by sharing the memory.
        address = address_of(tensor) or -id(tensor)
        number = self.known.setdefault(address, len(arrays))
        if number == len(arrays):
            arrays.append(TensorHandle(tensor, module, table, key))
            return (key, table, number, shape, dtype)
        first = arrays[number]
        if first.tensor is not tensor and identity(first.tensor) != identity(tensor):
            # A different view of the same memory, such as a transpose.
            number = self.known.setdefault(-id(tensor), len(arrays))
            if number == len(arrays):
                arrays.append(TensorHandle(tensor, module, table, key))
                return (key, table, number, shape, dtype)
            first = arrays[number]
        first.tied += (TensorHandle(tensor, module, table, key),)
        return (key, table, number, shape, dtype)


def _scripted_type(module: torch.jit.ScriptModule) -> type[Any]:
    # The class it was scripted from, which the layer table has.
    return _nn_class(module._c._type().qualified_name()) or type(module)


@lru_cache(maxsize=1024)
def _nn_class(qualified: str) -> type[Any] | None:
    # Such as "__torch__.torch.nn.modules.linear.___torch_mangle_3.Linear".
    parts = [part for part in qualified.split(".") if part != "__torch__" and "torch_mangle" not in part]
    cls = getattr(nn, parts[-1], None) if parts[:2] == ["torch", "nn"] else None
    return cls if isinstance(cls, type) else None
