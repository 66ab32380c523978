"""torch modules as sides of a port: their layers, and a run of them under watch."""

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
from xweights.core.parameter import Parameter
from xweights.errors import PortError
from xweights.porting.protocol import LayerRecord, Watcher
from xweights_torch.adapter import ModuleAdapter, wrapped_child
from xweights_torch.layers import kind_of as table_of
from xweights_torch.layers import rows_of
from xweights_torch.parametrized import Computed
from xweights_torch.porting.layers import (
    attributes_of,
    host,
    inputs_of,
    kind_of,
    outputs_of,
    plain_of,
    put_back,
    refusal,
)
from xweights_torch.storage import Slot

_ADAPTER = ModuleAdapter()
# Layers that put out one tensor, whose value can be replaced by another.
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
    """What ``xweights.porting`` needs to know of torch."""

    name = "torch"
    channels_first = True

    def records(self, model: Any) -> list[LayerRecord]:
        places = _places(model)
        model = unwrapped(model)
        found: list[LayerRecord] = []
        inside: set[int] = set()  # modules that a composite one never calls, or whose arrays are its own
        for native, module in model.named_modules():
            if id(module) in inside:
                continue
            path = native.replace(".", "/")
            kind = kind_of(module)
            arrays = _arrays(module, kind, places)
            if kind == "attention":
                inside.update(id(one) for one in module.modules())
            if getattr(module, "parametrizations", None) is not None:
                inside.update(id(one) for one in module.parametrizations.modules())
            if arrays:
                settings = attributes_of(module, kind)
                found.append(LayerRecord(kind, path, arrays, settings, module, refusal(module, kind)))
            elif kind == "other" and type(module).__module__.startswith("torch.nn.") and not list(module.children()):
                found.append(LayerRecord("plain", path, {}, plain_of(module), module))
        return found

    def chain(self, model: Any, records: Sequence[LayerRecord]) -> list[LayerRecord] | None:
        by_layer = {id(record.layer): record for record in records}
        found: list[LayerRecord] = []

        def visit(module: nn.Module) -> bool:
            record = by_layer.get(id(module))
            if type(module) is nn.Sequential:
                return all(visit(one) for one in module)
            if record is None or record in found:
                return record is None and not list(module.children())
            found.append(record)
            return True

        return found if visit(unwrapped(model)) else None

    def run(self, model: Any, records: Sequence[LayerRecord], sample: Any, watcher: Watcher) -> dict[str, Array]:
        module = unwrapped(model)
        args, named = _arguments(sample, module)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(inference(module))
            for record in records:
                _watch(record, watcher, stack)
            output = module(*args, **named)
            return {name: np.array(array) for name, array in named_outputs(output)}

    def double(self, model: Any) -> Any:
        try:
            return copy.deepcopy(unwrapped(model)).double()
        except Exception as wrong:
            raise PortError(f"this module can't be copied: {type(wrong).__name__}: {wrong}") from wrong

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


def unwrapped(model: Any) -> Any:
    """Return the module inside of wrappers that only wrap."""
    while (inner := wrapped_child(_class_of(model))) is not None:
        model = getattr(model, inner)
    return model


def _places(model: Any) -> dict[tuple[int, str], Parameter]:
    """Return the parameters by the module and the attribute that hold them, tied ones at each place."""
    found: dict[tuple[int, str], Parameter] = {}
    for parameter in _ADAPTER.parameters(model):
        handle = parameter.handle
        if isinstance(handle, Computed):
            found[id(handle.module), handle.name] = parameter
        elif isinstance(handle, Slot) and not parameter.hidden:
            for place in handle.places:
                found[id(place.owner), place.key] = parameter
    return found


def _arrays(module: nn.Module, kind: str, places: Mapping[tuple[int, str], Parameter]) -> dict[str, Parameter]:
    table = table_of(_class_of(module))
    config = None if table is None else table.config(module)
    found = {}
    if kind != "other" and config is not None:
        for row in rows_of(_class_of(module), config).values():
            owner, _, key = row.native.rpartition(".")
            parameter = places.get((id(module.get_submodule(owner) if owner else module), key))
            if parameter is not None and row.name != "num_batches_tracked":
                found[row.name] = _as_here(parameter, row)
        return found
    held = [*module._parameters, *(one for one in module._buffers if one not in module._non_persistent_buffers_set)]
    found = {key: places[id(module), key] for key in held if (id(module), key) in places}
    # Counters and positions are no weights.
    return {key: one for key, one in found.items() if one.floating}


def _as_here(parameter: Parameter, row: Entry) -> Parameter:
    """Return a tied parameter as this layer has it; it is named after the first place that it is in."""
    layout = row.layout(parameter.layout.stored)
    if layout == parameter.layout:
        return parameter
    turned = copy.copy(parameter)
    turned.layout, turned.gates = layout, row.gates
    return turned


@contextlib.contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Have every module in eval mode, and afterwards as it was."""
    modes = [(one, one.training) for one in module.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fast path computes whole blocks without calling the layers in them.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        module.eval()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for one, mode in modes:
            one.training = mode


def _watch(record: LayerRecord, watcher: Watcher, stack: contextlib.ExitStack) -> None:
    module, kind = record.layer, record.kind

    def before(one: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        watcher.enter(record, inputs_of(one, kind, args, named))

    def after(one: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        value = watcher.leave(record, outputs_of(one, kind, output))
        if value is None or kind not in _REPLACEABLE or not isinstance(output, torch.Tensor):
            return None
        return put_back(one, kind, value, output)

    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)


def _arguments(sample: Any, module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    like = next((one for one in module.parameters() if one.is_floating_point()), None)

    def tensor(value: Any) -> Any:
        if not isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
            return value
        made = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        if like is None:
            return made
        return made.to(like.device, like.dtype) if made.is_floating_point() else made.to(like.device)

    if isinstance(sample, Mapping):
        return (), {name: tensor(value) for name, value in sample.items()}
    if isinstance(sample, (tuple, list)):
        return tuple(tensor(one) for one in sample), {}
    return (tensor(sample),), {}


def named_outputs(output: Any, name: str = "") -> Iterator[tuple[str, Array]]:
    """Yield every tensor that a model puts out, with its place."""
    if isinstance(output, Mapping):
        for key, one in output.items():
            yield from named_outputs(one, f"{name}/{key}".strip("/"))
    elif isinstance(output, (tuple, list)):
        for key, one in enumerate(output):
            yield from named_outputs(one, f"{name}/{key}".strip("/"))
    else:
        array = host(output)
        if array is not None:
            yield name or "output", array
