"""Adapters that list the parameters of torch modules and name them.

Names come from attribute paths, roles and axes from the layer table.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from torch import nn

from xweights.core.layer_rows import on_change
from xweights.core.layer_table import Entry
from xweights.core.layout import Layout, plain_layout
from xweights.core.parameter import Parameter
from xweights.core.plan import Plan
from xweights.errors import LayoutError, NotBuiltError, Problems, TargetError
from xweights_torch.dtypes import numpy_dtype
from xweights_torch.layers import rows_of
from xweights_torch.outline import ModuleOutline, outline_module, watch_places
from xweights_torch.parametrized import COMPUTED
from xweights_torch.sharding.find import are_ranks_running, find_storages
from xweights_torch.sharding.life_cycle import reshard
from xweights_torch.storage import CPU, DEVICE, RefusedStorage, TensorStorage, storage_of
from xweights_torch.tables import free_row_of
from xweights_torch.walk import TRANSIENT, ModuleFacts, TensorFacts, walk

# Modules that only wrap another one: their names get no part of their own. Fabric's keeps two of them, the one that it
# calls (which may be wrapped once more) and the one that the user gave.
_FABRIC = ("_forward_module", "_original_module")
_WRAPPERS = {
    "torch._dynamo.eval_frame.OptimizedModule": ("_orig_mod",),
    "torch.nn.parallel.data_parallel.DataParallel": ("module",),
    "torch.nn.parallel.distributed.DistributedDataParallel": ("module",),
    "torch.optim.swa_utils.AveragedModel": ("module",),
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": ("_fsdp_wrapped_module",),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": ("_checkpoint_wrapped_module",),
    "lightning.fabric.wrappers._FabricModule": _FABRIC,
    "lightning_fabric.wrappers._FabricModule": _FABRIC,
    "lightning.pytorch.plugins.precision.double.LightningDoublePrecisionModule": ("module",),
    "pytorch_lightning.plugins.precision.double.LightningDoublePrecisionModule": ("module",),
}
_SHARDED = ("FullyShardedDataParallel",)
_HOLDERS = (nn.ParameterList, nn.ParameterDict)
_NO_ENTRIES: Mapping[str, Entry] = {}


class PlannedParameter(NamedTuple):
    """One parameter of a plan: the number of its array or computed parameter, and a Parameter without a tensor."""

    number: int
    computed: bool
    refused: RefusedStorage | None
    like: Parameter


class ModuleAdapter:
    """Adapter of an ``nn.Module`` of any kind: layers, models, compiled and wrapped ones, ScriptModules."""

    def __init__(self) -> None:
        self._plans: weakref.WeakKeyDictionary[nn.Module, tuple[list[ModuleFacts], tuple[PlannedParameter, ...]]]
        self._plans = weakref.WeakKeyDictionary()
        self._outlines: weakref.WeakKeyDictionary[nn.Module, ModuleOutline] = weakref.WeakKeyDictionary()
        on_change(self._plans.clear)
        on_change(self._outlines.clear)

    def parameters(self, target: nn.Module) -> Sequence[Parameter]:
        """Return the parameters in the order of ``state_dict``, a tied one once; persistent buffers included."""
        return self.plan(target).everything

    def plan(self, target: nn.Module) -> Plan:
        """Return the plan of a module; what is kept of it is checked, and made again if it isn't true any more."""
        if are_ranks_running():
            # Which of its arrays are shards may change with each forward pass.
            reshard(target)
            shared = self._walk(target)
            return Plan(lambda: shared)
        try:
            outline = self._outlines.get(target)
        except TypeError:  # a module that defines its own equality and no hash
            parameters = self._walk(target)
            return Plan(lambda: parameters)
        plan = None if outline is None else outline.open()
        if plan is not None:
            return plan
        parameters = self._walk(target)
        outline = outline_module(target, parameters)
        if outline is None:
            self._outlines.pop(target, None)
        else:
            self._outlines[target] = outline
        return Plan(lambda: parameters, outline, [p.handle for p in parameters])

    def watch_places(self, target: nn.Module, parameters: Sequence[Parameter]) -> Callable[[], list[str]]:
        """Return a function that names the parameters that were replaced, by themselves or with their layer."""
        return watch_places(target, parameters)

    def _walk(self, target: nn.Module) -> list[Parameter]:
        facts, arrays, computed = walk(target)
        shared = find_storages(target, [slot.tensor for slot in arrays]) if are_ranks_running() else None
        parameters = []
        for number, is_computed, refusing, like in self._plan(target, facts):
            refused = refusing
            if is_computed:
                parameters.append(like.with_handle(computed[number], refused or COMPUTED))
                continue
            slot = arrays[number]
            own: TensorStorage = CPU if slot.tensor.is_cpu else DEVICE
            if shared is not None:
                # What is whole inside of FSDP1's context isn't refused.
                own, refused = shared[number] or own, None
            parameters.append(like.with_handle(slot, refused or own))
        return parameters

    def _plan(self, target: nn.Module, facts: list[ModuleFacts]) -> tuple[PlannedParameter, ...]:
        try:
            cached = self._plans.get(target)
            if cached is None or cached[0] != facts:
                cached = self._plans[target] = (facts, plan_parameters(facts))
        except TypeError:
            # A module that defines its own equality and no hash.
            return plan_parameters(facts)
        return cached[1]


class TensorAdapter:
    """Adapter of a lone ``nn.Parameter``, whose axes are unknown."""

    def parameters(self, target: nn.Parameter) -> Sequence[Parameter]:
        """Return the one parameter, called ``parameter``."""
        if nn.parameter.is_lazy(target):
            raise _not_built(["parameter"])
        return [
            Parameter(
                name="parameter",
                native_name="parameter",
                layer="",
                layout=plain_layout(target.shape),
                dtype=numpy_dtype(target.dtype),
                storage=find_storages(None, [target])[0] or storage_of(target),
                handle=target,
            )
        ]


def plan_parameters(facts: list[ModuleFacts]) -> tuple[PlannedParameter, ...]:
    """Return the names, roles and layouts that follow from the facts of a model."""
    planner = _Planner(facts)
    planner.visit(0, "", "", (), _NO_ENTRIES, None, False, None)
    planner.misfits.check()
    if planner.missing:
        raise _not_built(planner.missing)
    rows = planner.rows
    names = [row.like.name for row in rows]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        natives = [row.like.native_name for row in rows if row.like.name == twice]
        raise TargetError(
            f"two parameters would both be called {twice!r}: {', '.join(natives)}\nFix: rename one of them"
        )
    return tuple(rows)


class _Planner:
    def __init__(self, facts: list[ModuleFacts]) -> None:
        self.facts = facts
        self.rows: list[PlannedParameter] = []
        self.seen: dict[tuple[bool, int], int] = {}
        self.missing: list[str] = []
        self.misfits = Problems("declared rows don't fit the arrays of their layers")

    def visit(
        self,
        number: int,
        path: str,
        native: str,
        above: tuple[int, ...],
        inherited: Mapping[str, Entry],
        owner: str | None,
        hidden: bool,
        refused: RefusedStorage | None,
        holder: tuple[Any, str] | None = None,
    ) -> None:
        """Name the arrays of one module.

        ``owner``: the layer above; ``inherited``: its rows for the arrays of this child. ``holder``: the type of the
        module above and the name there, for a list or dict of parameters.
        """
        kind, config, tensors, computed_tensors, children = self.facts[number]
        if number in above:
            return
        if _is_sharded(kind):
            refused = _SHARDED_STORAGE
        own = _NO_ENTRIES if config is None else rows_of(kind, config)
        order = list(own)
        arrays = [(tensor, False) for tensor in tensors] + [(tensor, True) for tensor in computed_tensors]
        if own:
            # In the table's order: a parametrization, or its removal, moves a parameter to the end of torch's registry.
            arrays.sort(key=lambda pair: order.index(pair[0][0]) if pair[0][0] in own else len(order))
        inputs = {f"{tensor[0]}{end}" for tensor in computed_tensors for end in ("_g", "_v", "_u", "_orig", "_mask")}
        taken = {tensor[0] for tensor, _ in arrays if tensor[0] not in own}
        for tensor, computed in arrays:
            attribute = tensor[0]
            entry, base = own.get(attribute), path
            if attribute in inherited:
                entry, base = inherited[attribute], owner or ""
            elif entry is not None and entry.name in taken:
                entry = None
            elif entry is None:
                entry = free_row_of(kind, attribute) if holder is None else free_row_of(*holder)
            if entry is not None and _is_packed(kind, tensor):
                entry = replace(entry, pattern=None)
            # The inputs of a computed parameter form no layer of their own.
            layer = owner if hidden and owner is not None else base
            self.add(tensor, computed, entry, base, layer, native, hidden or attribute in inputs, refused)
        stripped = wrapped_children(kind)
        for name, child in children:
            child_path = path if name in stripped else _join(path, name, "/")
            child_rows = {key.partition(".")[2]: row for key, row in own.items() if key.startswith(f"{name}.")}
            held = issubclass(self.facts[child][0], _HOLDERS)
            child_hidden = hidden or (bool(computed_tensors) and name == "parametrizations")
            child_owner = owner if hidden else path
            self.visit(
                child,
                child_path,
                _join(native, name, "."),
                (*above, number),
                child_rows,
                child_owner,
                child_hidden,
                refused,
                (kind, name) if held else None,
            )

    def add(
        self,
        facts: TensorFacts,
        computed: bool,
        entry: Entry | None,
        base: str,
        layer: str,
        native: str,
        hidden: bool,
        refused: RefusedStorage | None,
    ) -> None:
        """Record one array under the name of its row, or as an alias of the row it has."""
        attribute, table, number, shape, dtype = facts
        name = _join(base, attribute if entry is None else entry.name, "/")
        if shape is None:
            self.missing.append(name)
            return
        key = (computed, number)
        hidden = hidden or table == TRANSIENT
        native_name = _join(native, attribute, ".")
        previous = self.rows[self.seen[key]].like if key in self.seen else None
        if previous is not None and (hidden or not previous.hidden):
            previous.native_aliases += (native_name,)
            if name != previous.name and name not in previous.aliases:
                previous.aliases += (name,)
            return
        layout = self.layout(facts, entry, native)
        like = Parameter(
            name=name,
            role=None if entry is None else entry.role,
            native_name=native_name,
            layer=layer,
            gates=None if entry is None or layout.axes is None else entry.gates,
            aliases=() if previous is None else (previous.name, *previous.aliases),
            native_aliases=() if previous is None else (previous.native_name, *previous.native_aliases),
            layout=layout,
            dtype=numpy_dtype(dtype),
            hidden=hidden,
            storage=CPU,
            handle=None,
        )
        row = PlannedParameter(number, computed, refused, like)
        if previous is None:
            self.seen[key] = len(self.rows)
            self.rows.append(row)
        else:
            # It was seen first in a hidden place (tied, and parametrized there): the plain place gives the name.
            self.rows[self.seen[key]] = row

    def layout(self, facts: TensorFacts, entry: Entry | None, native: str) -> Layout:
        """Return the layout of an array, and note a declared row that doesn't fit it."""
        shape = tuple(facts[3] or ())
        if entry is None:
            return plain_layout(shape)
        try:
            return entry.layout(shape)
        except LayoutError as misfit:
            where = _join(native, facts[0], ".")
            text = f"{where} has the shape {shape}\nrow: {entry.declared}\n{misfit}"
            self.misfits.add(LayoutError, text, fix="xweights.register_layer(..., replace=True) with axes that fit")
            return plain_layout(shape)


_SHARDED_STORAGE = RefusedStorage(
    "it belongs to a module that FSDP shards, where a write may be lost without an error\n"
    "Fix: edit the model before it is wrapped"
)


def _is_packed(kind: type[Any], tensor: TensorFacts) -> bool:
    # bitsandbytes packs the weights of Linear4bit and Embedding4bit into one column, whose rows are no outputs.
    shape = tensor[3]
    return shape is not None and shape[1:] == (1,) and kind.__module__ == "bitsandbytes.nn.modules"


def _is_sharded(kind: type[Any]) -> bool:
    return any(base.__name__ in _SHARDED and base.__module__.startswith("torch.") for base in kind.__mro__)


def wrapped_child(kind: Any) -> str | None:
    """Return the attribute of the module that a wrapper wraps, None for other modules."""
    return next(iter(wrapped_children(kind)), None)


@lru_cache(maxsize=1024)
def wrapped_children(kind: Any) -> tuple[str, ...]:
    """Return all attributes at which a wrapper has the module that it wraps; none for other modules."""
    names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
    return next((_WRAPPERS[name] for name in names if name in _WRAPPERS), ())


def _join(path: str, name: str, mark: str) -> str:
    return f"{path}{mark}{name}" if path else name


def _not_built(names: list[str]) -> NotBuiltError:
    shown = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
    return NotBuiltError(
        f"lazy layers have no weights yet: {shown}\n"
        "Fix: call the model once on a sample batch, so that they learn their shapes: model(sample)"
    )
