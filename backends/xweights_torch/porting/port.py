"""Porting support of PyTorch: a module's layers, and runs that record them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from xweights.core.dtypes import Array
from xweights.core.layer_table import Entry
from xweights.core.layout import plain_layout
from xweights.core.parameter import Parameter
from xweights.errors import PortError
from xweights.porting.matching.outputs import named_outputs
from xweights.porting.protocol import LayerRecord, Watcher
from xweights_torch.adapter import ModuleAdapter, wrapped_child
from xweights_torch.layers import rows_of, spec_of
from xweights_torch.parametrized import ComputedParameter
from xweights_torch.porting.calls import call_arguments, experts_one_by_one, inference_mode, to_mapping
from xweights_torch.porting.layers import (
    attributes_of,
    host,
    inputs_of,
    is_known,
    kind_of,
    outputs_of,
    refusal_reason,
    to_native_output,
    weightless_attributes,
)
from xweights_torch.porting.observed import Operation, make_records
from xweights_torch.porting.observing import Observer
from xweights_torch.porting.running import Runner
from xweights_torch.porting.views import Root
from xweights_torch.porting.watching import watch_modules
from xweights_torch.storage import TensorHandle

_ADAPTER = ModuleAdapter()
# The arrays of a batch norm that is written by hand.
FROZEN = {"weight", "bias", "running_mean", "running_var"}
# Layers with a single output tensor that can be replaced.
_REPLACEABLE = (
    "dense",
    "conv",
    "conv_transpose",
    "embedding",
    "batch_norm",
    "group_norm",
    "layer_norm",
    "rms_norm",
    "prelu",
)


class TorchPorting:
    """Porting support of PyTorch (``xweights.porting.protocol.Porting``)."""

    name = "torch"
    channels_first = True

    def records(self, model: Any) -> list[LayerRecord]:
        by_place = _parameters_by_place(model)
        model = unwrap_module(model)
        records: list[LayerRecord] = []
        inside: set[int] = set()  # modules that a composite never calls, or whose arrays belong to it
        for native, module in model.named_modules():
            if id(module) in inside:
                continue
            path = native.replace(".", "/")
            kind = kind_of(module)
            arrays = _arrays(module, kind, by_place)
            if kind == "attention":
                inside.update(id(child) for child in module.modules())
            if getattr(module, "parametrizations", None) is not None:
                inside.update(id(child) for child in module.parametrizations.modules())
            if arrays:
                settings = attributes_of(module, kind)
                records.append(LayerRecord(kind, path, arrays, settings, module, refusal_reason(module, kind)))
            elif kind == "other" and type(module).__module__.startswith("torch.nn.") and not list(module.children()):
                records.append(LayerRecord("plain", path, {}, weightless_attributes(module), module))
        return records

    def chain(self, model: Any, records: Sequence[LayerRecord]) -> list[LayerRecord] | None:
        if any(isinstance(record.layer, Operation) for record in records):
            return None
        by_layer = {id(record.layer): record for record in records}
        ordered: list[LayerRecord] = []

        def visit(module: nn.Module) -> bool:
            record = by_layer.get(id(module))
            if type(module) is nn.Sequential:
                return all(visit(child) for child in module)
            if record is None or record in ordered:
                return record is None and not list(module.children())
            ordered.append(record)
            return True

        return ordered if visit(unwrap_module(model)) else None

    def observe(self, model: Any, records: Sequence[LayerRecord], sample: Any) -> list[LayerRecord]:
        module = unwrap_module(model)
        args, named = call_arguments(sample, module)
        observer = Observer(_list_roots(model))
        with contextlib.ExitStack() as stack:
            stack.enter_context(inference_mode(module))
            stack.enter_context(experts_one_by_one(module))
            known = {id(record.layer) for record in records if record.parameters and is_known(record)}
            for record in records:
                if record.kind == "other" and set(record.parameters) == FROZEN and not list(record.layer.children()):
                    observer.watch_batch_norm(record.layer, stack)
            for layer in {id(record.layer): record.layer for record in records}.values():
                observer.watch_layer(layer, stack, known=id(layer) in known)
            stack.enter_context(watch_modules(module, observer, known))
            stack.enter_context(observer)
            module(*args, **named)
        return make_records(module, observer, records)

    def run(self, model: Any, records: Sequence[LayerRecord], sample: Any, watcher: Watcher) -> dict[str, Array]:
        module = unwrap_module(model)
        args, named = call_arguments(sample, module)
        layers = [record for record in records if not isinstance(record.layer, Operation)]
        runner = None if len(layers) == len(records) else Runner(_list_roots(model), records, watcher)
        with contextlib.ExitStack() as stack:
            stack.enter_context(inference_mode(module, written=True))
            known = {id(record.layer) for record in layers if record.parameters}
            if runner is not None:
                stack.enter_context(experts_one_by_one(module))
                stack.enter_context(watch_modules(module, runner, known))
            for record in layers:
                _watch(record, watcher, stack, runner)
            if runner is not None:
                stack.enter_context(runner)
            output = to_mapping(module(*args, **named))
            if runner is not None:
                runner.close()
        return {name: np.array(array) for name, array in named_outputs(output, host)}

    def double(self, model: Any) -> Any:
        try:
            return copy.deepcopy(unwrap_module(model)).double()
        except Exception as error:
            raise PortError(f"this module can't be copied: {type(error).__name__}: {error}") from error

    def set_attribute(self, record: LayerRecord, name: str, value: Any) -> None:
        module = record.layer
        if isinstance(module, Operation):
            if name == "eps" and module.eps is not None:
                owner, setting = module.eps
                setattr(owner, setting, value)
                return
            module = module.module
        if name == "eps" and hasattr(module, "eps"):
            module.eps = value
        elif name == "momentum" and hasattr(module, "momentum"):
            module.momentum = None if value is None else 1.0 - value
        elif name == "slope" and hasattr(module, "negative_slope"):
            module.negative_slope = value
        elif name == "alpha" and isinstance(module, nn.ELU):
            module.alpha = value
        elif name == "strides" and hasattr(module, "stride"):
            module.stride = tuple(value)
        elif name == "dilation" and hasattr(module, "dilation"):
            module.dilation = tuple(value)
        elif name == "activation" and isinstance(module, nn.RNN) and value in ("tanh", "relu"):
            module.nonlinearity, module.mode = value, f"RNN_{value.upper()}"
        elif name == "activation" and isinstance(module, nn.RNNCell) and value in ("tanh", "relu"):
            module.nonlinearity = value
        elif name == "approximate" and isinstance(module, nn.GELU):
            module.approximate = value
        else:
            raise PortError(f"{name} of {record.path!r} can't be changed on a module that exists")


def _class_of(value: Any) -> Any:
    return type(value)


def unwrap_module(model: Any) -> Any:
    """Return the module inside of its wrappers."""
    while (inner := wrapped_child(_class_of(model))) is not None:
        model = getattr(model, inner)
    return model


def _parameters_by_place(model: Any) -> dict[tuple[int, str], Parameter]:
    """Return the parameters by module and attribute, a tied one at each place."""
    by_place: dict[tuple[int, str], Parameter] = {}
    for parameter in _ADAPTER.parameters(model):
        handle = parameter.handle
        if isinstance(handle, ComputedParameter):
            by_place[id(handle.module), handle.name] = parameter
        elif isinstance(handle, TensorHandle) and not parameter.hidden:
            for place in handle.places:
                by_place[id(place.owner), place.key] = parameter
    return by_place


def _arrays(module: nn.Module, kind: str, by_place: Mapping[tuple[int, str], Parameter]) -> dict[str, Parameter]:
    table = spec_of(_class_of(module))
    config = None if table is None else table.config(module)
    parameters = {}
    if kind != "other" and config is not None:
        for row in rows_of(_class_of(module), config).values():
            owner, _, key = row.native.rpartition(".")
            parameter = by_place.get((id(module.get_submodule(owner) if owner else module), key))
            if parameter is not None and row.name != "num_batches_tracked":
                parameters[row.name] = _with_own_layout(parameter, row)
        return parameters
    keys = [*module._parameters, *(key for key in module._buffers if key not in module._non_persistent_buffers_set)]
    parameters = {key: by_place[id(module), key] for key in keys if (id(module), key) in by_place}
    # Counters and positions aren't weights. What other layers hold is matched as it is stored, whatever a table says.
    return {key: _as_stored(parameter) for key, parameter in parameters.items() if parameter.floating}


def _as_stored(parameter: Parameter) -> Parameter:
    layout = plain_layout(parameter.layout.stored)
    return parameter if layout == parameter.layout else parameter.replace(layout=layout)


def _with_own_layout(parameter: Parameter, row: Entry) -> Parameter:
    """Return a tied parameter with this layer's layout; its name is that of its first place."""
    layout = row.layout(parameter.layout.stored)
    if layout == parameter.layout:
        return parameter
    copied = copy.copy(parameter)
    copied.layout, copied.gates = layout, row.gates
    return copied


def _list_roots(model: Any) -> list[Root]:
    """Return the parameters and the buffers of numbers that a model computes with, each once."""
    roots: dict[Any, Root] = {}
    for parameter in _parameters_by_place(model).values():
        handle = parameter.handle
        if isinstance(handle, TensorHandle) and parameter.floating and parameter.identity() not in roots:
            places = [(place.owner, place.key) for place in handle.places]
            stored = _as_stored(parameter)
            roots[parameter.identity()] = Root(stored, handle.tensors, places, handle.table == "buffer")
    known = {id(tensor) for root in roots.values() for tensor in root.tensors}
    for module in unwrap_module(model).modules():
        for key, tensor in module._buffers.items():
            if tensor is not None and tensor.is_floating_point() and id(tensor) not in known:
                known.add(id(tensor))
                roots[id(tensor)] = Root(None, [tensor], [(module, key)], True)
    return list(roots.values())


def _watch(record: LayerRecord, watcher: Watcher, stack: contextlib.ExitStack, runner: Runner | None) -> None:
    module, kind = record.layer, record.kind
    opaque = bool(record.parameters)

    def before(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        given = None
        if runner is not None:
            runner.inside += 1  # what happens here, and in a known layer, is none of the model's operations
            if opaque and runner.inside == 1:
                given = runner.give(args, named)
        watcher.enter(record, inputs_of(layer, kind, args, named))
        if runner is not None and not opaque:
            runner.inside -= 1
        return given

    def after(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if runner is not None and not opaque:
            runner.inside += 1
        value = watcher.leave(record, outputs_of(layer, kind, output))
        replaced = None
        if value is not None and kind in _REPLACEABLE and isinstance(output, torch.Tensor):
            replaced = to_native_output(layer, kind, value, output)
        if runner is not None:
            runner.inside -= 1
        return replaced

    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
