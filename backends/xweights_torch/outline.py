"""What is kept of a module from call to call, and the check that it is still true.

Kept are names, layouts and groups, with weak references to every module and tensor in order. At each call these are
compared with what the module has now, by identity, and so is everything that names, layouts, groups and selections
follow from. A loop over 1,000 layers would cost as much as editing them, so each fact is compared for all at once, in
C: that takes 2 ms, a walk 8.

Of modules that compute parameters from others, or overlay them (parametrizations, pruning, PEFT), of scripted and of
sharded ones nothing is kept: they are walked at each call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import nn

from xweights.core.parameter import Parameter
from xweights.core.plan import Outline, Plan, are_same, find_referred, group_key, refer_to
from xweights_torch.layers import spec_of
from xweights_torch.parametrized import find_computed
from xweights_torch.storage import PLACE_FACTS, TensorHandle, TensorStorage

_Tensor: Any = torch.Tensor

# What the state of a tensor is, beside which object it is: each is read for all tensors at once.
_FACTS: tuple[Callable[[Any], Any], ...] = (
    type,
    *PLACE_FACTS,
    _Tensor.device.__get__,
    _Tensor.requires_grad.__get__,
)
_REGISTRIES = tuple(
    map(itemgetter, ("_parameters", "_buffers", "_modules", "_forward_pre_hooks", "_non_persistent_buffers_set"))
)
_SAVERS = {name: vars(nn.Module)[name] for name in ("state_dict", "_save_to_state_dict", "get_extra_state")}
_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks")
_values: Any = dict.values  # half the time of methodcaller("values")
_type: Callable[[Any], Any] = type


class ModuleOutline(Outline):
    """The outline of a module, with the references that it is checked by."""

    def __init__(self, modules: list[nn.Module], now: Registries, parameters: Sequence[Parameter]) -> None:
        super().__init__([p.replace(handle=None) for p in parameters], [group_key(p) for p in parameters])
        self._modules = [weakref.ref(module) for module in modules]
        self._structure = now.structure
        self._children = [refer_to(child) for child in now.children]
        self._tensors = [refer_to(tensor) for tensor in now.tensors]
        # Most layers have no settings that their names or axes depend on.
        specs = [spec_of(kind) for kind in map(_type, modules)]
        self._specs = [(at, spec) for at, spec in enumerate(specs) if spec and getattr(spec, "reads", True)]
        self._settings = [spec.config(modules[at]) for at, spec in self._specs]
        live = [tensor for tensor in now.tensors if tensor is not None]
        self._facts = [list(map(fact, live)) for fact in _FACTS]
        position = {id(tensor): at for at, tensor in reversed(list(enumerate(live)))}
        number = {id(module): at for at, module in enumerate(modules)}
        self._places = [
            [(position[id(place.tensor)], number[id(place.owner)], place.table, place.key) for place in p.handle.places]
            for p in parameters
        ]
        self._first = [places[0][0] for places in self._places]

    def open(self) -> Plan | None:
        """Return a plan on the tensors that the module has now; None if anything is not as it was."""
        modules: list[Any] = find_referred(self._modules)
        now = None if None in modules else read_registries(modules)
        if now is None or now.structure != self._structure:
            return None
        if not are_same(self._children, now.children) or not are_same(self._tensors, now.tensors):
            return None
        live = [tensor for tensor in now.tensors if tensor is not None]
        try:
            if any(list(map(fact, live)) != kept for fact, kept in zip(_FACTS, self._facts, strict=True)):
                return None
        except RuntimeError:  # inside of a function transform tensors have no address
            return None
        if [spec.config(modules[at]) for at, spec in self._specs] != self._settings:
            return None
        return Plan(lambda: self._parameters(modules, live), self, [live[position] for position in self._first])

    def saves_by_name(self) -> bool:
        """Return whether ``state_dict()`` is torch's own, which no hook and no override changes."""
        modules: list[Any] = find_referred(self._modules)
        attributes = list(map(vars, modules))
        return (
            all(getattr(kind, name) is own for kind in set(map(_type, modules)) for name, own in _SAVERS.items())
            and all(_SAVERS.keys().isdisjoint(own) for own in attributes)
            and not any(own.get(hooks) for own in attributes for hooks in _STATE_HOOKS)
        )

    def _parameters(self, modules: list[Any], tensors: list[Any]) -> list[Parameter]:
        parameters = []
        for like, places in zip(self.likes, self._places, strict=True):
            handles = [TensorHandle(tensors[at], modules[owner], table, key) for at, owner, table, key in places]
            handles[0].tied = tuple(handles[1:])
            parameters.append(like.with_handle(handles[0]))
        return parameters


def outline_module(target: nn.Module, parameters: Sequence[Parameter]) -> ModuleOutline | None:
    """Return the outline of a module with these parameters; None where only a walk can tell what it has."""
    try:
        modules = list(target.modules())
        now = read_registries(modules)
        if now is None or not _is_plain(modules, now, parameters):
            return None
        return ModuleOutline(modules, now, parameters)
    except (TypeError, RuntimeError):  # modules without a hash, tensors without an address
        return None


class Registries(NamedTuple):
    """What modules have: names, types and counts, which are compared by value; children and tensors by identity."""

    structure: tuple[Any, ...]
    children: list[Any]
    tensors: list[Any]


def read_registries(modules: list[Any]) -> Registries | None:
    """Return the registries of modules; None where parameters are computed from others."""
    try:
        attributes = list(map(vars, modules))
        parameters, buffers, children, hooks, transient = (list(map(read, attributes)) for read in _REGISTRIES)
    except (KeyError, TypeError):
        return None
    if any(hooks) and any(find_computed(module) for module, own in zip(modules, hooks, strict=True) if own):
        return None
    tables = (parameters, buffers, children)
    structure = (
        list(map(_type, modules)),
        *(list(map(len, table)) for table in tables),
        *(list(chain.from_iterable(table)) for table in tables),
        [(at, sorted(names)) for at, names in enumerate(transient) if names],
    )
    tensors = [*chain.from_iterable(map(_values, parameters)), *chain.from_iterable(map(_values, buffers))]
    return Registries(structure, list(chain.from_iterable(map(_values, children))), tensors)


def _is_plain(modules: list[Any], now: Registries, parameters: Sequence[Parameter]) -> bool:
    """Return whether all that is known of the parameters follows from what an outline compares."""
    names = now.structure[6]
    return (
        not any(isinstance(module, torch.jit.ScriptModule) for module in modules)
        and {"base_layer", "original_module", "parametrizations"}.isdisjoint(names)
        and {nn.Parameter, torch.Tensor}.issuperset(type(tensor) for tensor in now.tensors if tensor is not None)
        and all(type(p.storage) is TensorStorage and type(p.handle) is TensorHandle for p in parameters)
    )


def watch_places(target: nn.Module, parameters: Sequence[Parameter]) -> Callable[[], list[str]]:
    """Return a function that names those parameters whose tensor is no longer reached from the target as it was.

    After ``model[0] = nn.Linear(...)`` the tensor is still where it was in the former layer, which nobody calls.
    """
    parents: dict[int, list[tuple[nn.Module, str, nn.Module]]] = {}
    for module in target.modules():
        for key, child in module._modules.items():
            if child is not None:
                parents.setdefault(id(child), []).append((module, key, child))
    # Each link once, and without keeping a module alive; with the parameters beneath it, for the message.
    links: dict[tuple[int, str], tuple[Any, str, Any, list[str]]] = {}
    places: list[tuple[dict[str, Any], str, str, torch.Tensor, str]] = []
    for p in parameters:
        if not isinstance(p.handle, TensorHandle):
            continue
        places += [(vars(one.owner), f"_{one.table}s", one.key, one.tensor, p.name) for one in p.handle.places]
        above = [link for place in p.handle.places for link in parents.get(id(place.owner), ())]
        seen = set()
        while above:
            module, key, child = above.pop()
            if (id(module), key) in seen:
                continue
            seen.add((id(module), key))
            link = (weakref.ref(module), key, weakref.ref(child), list[str]())
            links.setdefault((id(module), key), link)[3].append(p.name)
            above += parents.get(id(module), ())
    watched = list(links.values())

    def find_replaced() -> list[str]:
        # A loop, 0.5 microseconds a parameter: reading all places at once in C was no faster, as memory is what it
        # waits for.
        replaced = [name for owner, table, key, tensor, name in places if owner[table].get(key) is not tensor]
        for parent, key, child, names in watched:
            module = parent()
            # A model that is gone altogether has no other layer in its place.
            if module is not None and module._modules.get(key) is not child():
                replaced += names
        return list(dict.fromkeys(replaced))

    return find_replaced
