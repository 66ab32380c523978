"""Porting support of PyTorch: a module's layers, and runs that record them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
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
from xweights_torch.porting.layers import (
    attributes_of,
    host,
    inputs_of,
    kind_of,
    outputs_of,
    refusal_reason,
    to_native_output,
    weightless_attributes,
)
from xweights_torch.storage import TensorHandle

_ADAPTER = ModuleAdapter()
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

    def run(self, model: Any, records: Sequence[LayerRecord], sample: Any, watcher: Watcher) -> dict[str, Array]:
        module = unwrap_module(model)
        args, named = _call_arguments(sample, module)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(inference_mode(module))
            for record in records:
                _watch(record, watcher, stack)
            output = module(*args, **named)
            return {name: np.array(array) for name, array in named_outputs(output, host)}

    def double(self, model: Any) -> Any:
        try:
            return copy.deepcopy(unwrap_module(model)).double()
        except Exception as error:
            raise PortError(f"this module can't be copied: {type(error).__name__}: {error}") from error

    def set_attribute(self, record: LayerRecord, name: str, value: Any) -> None:
        module = record.layer
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


@contextlib.contextmanager
def inference_mode(module: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and restore the modes afterwards."""
    modes = [(child, child.training) for child in module.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fast path computes whole blocks without calling the layers in them.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        module.eval()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for child, mode in modes:
            child.training = mode


def _watch(record: LayerRecord, watcher: Watcher, stack: contextlib.ExitStack) -> None:
    module, kind = record.layer, record.kind

    def before(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        watcher.enter(record, inputs_of(layer, kind, args, named))

    def after(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        value = watcher.leave(record, outputs_of(layer, kind, output))
        if value is None or kind not in _REPLACEABLE or not isinstance(output, torch.Tensor):
            return None
        return to_native_output(layer, kind, value, output)

    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)


def _call_arguments(sample: Any, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    like = next((p for p in module.parameters() if p.is_floating_point()), None)

    def convert(value: Any) -> Any:
        if not isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
            return value
        converted = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        if like is None:
            return converted
        return converted.to(like.device, like.dtype) if converted.is_floating_point() else converted.to(like.device)

    if isinstance(sample, Mapping):
        return (), {name: convert(value) for name, value in sample.items()}
    if isinstance(sample, (tuple, list)):
        return tuple(convert(value) for value in sample), {}
    return (convert(sample),), {}
