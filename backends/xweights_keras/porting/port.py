"""Read the layers of Keras models for a port, and run models under watch."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import PortError
from xweights.porting.matching.outputs import named_outputs
from xweights.porting.protocol import LayerRecord, Watcher
from xweights_keras.activations import name_of
from xweights_keras.adapter import KerasAdapter
from xweights_keras.porting.double import copy_in_float64
from xweights_keras.porting.frames import ClassPatches, keep_signature, patch_attribute
from xweights_keras.porting.layers import (
    RECURRENT,
    as_array,
    attributes_of,
    inputs_of,
    is_a,
    is_stack,
    kind_of,
    outputs_of,
    plain_of,
    refusal,
    restore_output,
    to_host,
)
from xweights_keras.porting.observing import SuperCall, observe_calls, watch_operations
from xweights_keras.porting.operations import Operation
from xweights_keras.porting.probing import list_eps
from xweights_keras.walk import is_graph, is_keras

_ADAPTER = KerasAdapter()


class KerasPorting:
    """The Keras side of ``xweights.porting`` (see ``xweights.porting.protocol.Porting``)."""

    name = "keras"

    @property
    def channels_first(self) -> bool:
        """Return Keras' setting; a layer may have another one, and its arrays are returned in the same form."""
        return bool(keras.config.image_data_format() == "channels_first")

    def records(self, model: Any) -> list[LayerRecord]:
        by_variable = {id(p.handle): p for p in _ADAPTER.parameters(model)}
        layers = list(model._flatten_layers(include_self=True, recursive=True))
        # A wrapper may hold the arrays of its inner layer: they belong to the layer for which there is a recipe.
        claimed = {
            id(v) for layer in layers if kind_of(layer) != "other" for v in _own_variables(layer, kind_of(layer))
        }
        records: list[LayerRecord] = []
        inside: set[int] = set()  # layers that only another layer calls, in its own way
        for layer in layers:
            if id(layer) in inside:
                continue
            worker = layer
            if is_a(layer, "TimeDistributed"):
                worker = layer.layer
                if kind_of(worker) == "other":
                    continue  # an inner model: its layers are seen step by step
                inside.add(id(worker))
            kind = kind_of(worker)
            own = [v for v in _own_variables(worker, kind) if kind != "other" or id(v) not in claimed]
            if kind in RECURRENT or is_a(worker, "RNN"):
                inside.update(id(inner) for inner in worker._flatten_layers(include_self=False, recursive=True))
            arrays = _arrays(worker, kind, [by_variable[id(v)] for v in own if id(v) in by_variable])
            if arrays:
                path = _path(next(iter(arrays.items())))
                settings = attributes_of(worker, kind)
                records.append(LayerRecord(kind, path, arrays, settings, layer, refusal(worker, kind)))
            elif is_keras(type(layer)) and not layer._layers and not is_a(layer, "InputLayer"):
                records.append(LayerRecord("plain", layer.name, {}, plain_of(layer), layer))
        return records

    def observe(self, model: Any, records: Sequence[LayerRecord], sample: Any) -> list[LayerRecord]:
        with contextlib.ExitStack() as stack:
            _call_both_directions(model, stack)
            return observe_calls(model, records, lambda: _call_model(model, sample))

    def chain(self, model: Any, records: Sequence[LayerRecord]) -> list[LayerRecord] | None:
        by_layer = {id(record.layer): record for record in records}
        layers = _list_chain(model)
        if layers is None or len({id(layer) for layer in layers}) != len(layers):
            return None
        matches = [by_layer.get(id(layer)) for layer in layers]
        chained = [record for record in matches if record is not None]
        return chained if len(chained) == len(layers) else None

    def run(self, model: Any, records: Sequence[LayerRecord], sample: Any, watcher: Watcher) -> dict[str, Array]:
        with contextlib.ExitStack() as stack:
            _call_both_directions(model, stack)
            patches = ClassPatches(stack)
            for record in records:
                if not isinstance(record.layer, Operation):
                    _watch(record, watcher, stack, patches)
            watch_operations(model, records, watcher, stack)
            output = _call_model(model, sample)
            return {name: np.array(array) for name, array in named_outputs(output, to_host)}

    def double(self, model: Any) -> Any:
        return copy_in_float64(model)

    def set_attribute(self, record: LayerRecord, name: str, value: Any) -> None:
        layer = record.layer.layer if isinstance(record.layer, (Operation, SuperCall)) else record.layer
        settings = list_eps(layer)
        named_eps = [native for native, eps in settings.items() if eps == record.attributes.get("eps")]
        named_eps += list(settings)[:1]  # it was changed since the layer was recorded, and is set back
        if name == "eps" and named_eps:
            setattr(layer, named_eps[0], value)
        elif name == "momentum" and hasattr(layer, "momentum") and value is not None:
            layer.momentum = value
        elif name == "slope" and hasattr(layer, "negative_slope"):
            layer.negative_slope = value
        elif name == "alpha" and hasattr(layer, "alpha"):
            layer.alpha = value
        elif name == "strides" and hasattr(layer, "strides"):
            layer.strides = value
        elif name == "dilation" and hasattr(layer, "dilation_rate"):
            layer.dilation_rate = value
        elif name in ("activation", "recurrent_activation") and record.kind in RECURRENT and not is_stack(layer):
            setattr(getattr(layer, "cell", layer), name, keras.activations.get(value))
        else:
            raise PortError(f"{name} of {record.path!r} can't be changed on a layer that exists")


def _call_both_directions(model: Any, stack: contextlib.ExitStack) -> None:
    """Let Bidirectional call its two layers: a fused kernel computes both directions without a call of either."""
    for layer in model._flatten_layers(include_self=True, recursive=True):
        if is_a(layer, "Bidirectional"):
            patch_attribute(layer, "_can_attempt_fused_lstm", lambda *_: False, stack)
            patch_attribute(layer, "_can_attempt_fused_gru", lambda *_: False, stack)


def _own_variables(layer: Any, kind: str) -> list[Any]:
    if kind in RECURRENT or kind == "conv_lstm":
        return list(layer.weights)
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _arrays(layer: Any, kind: str, parameters: Sequence[Parameter]) -> dict[str, Parameter]:
    """Return the arrays by their paths inside the layer, without counters and the like, which are no weights."""
    if not parameters:
        return {}
    if kind in RECURRENT and is_stack(layer):
        return {"/".join(p.name.split("/")[-2:]): p for p in parameters}
    ignored = {"count", "vector_u"}
    used = [p for p in parameters if p.role not in ignored and p.floating]
    if kind != "other":
        return {p.role: p for p in used}
    # Roles say what an array is for: two arrays of a layer in no table may have the same.
    path = _common_path([p.name for p in used])
    return {p.name[len(path) :].lstrip("/"): p for p in used}


def _common_path(names: Sequence[str]) -> str:
    """Return the path that all names begin with, without their last parts."""
    paths = [name.split("/")[:-1] for name in names]
    equal = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return "/".join(parts[0] for parts in equal)


def _path(pair: tuple[str, Parameter]) -> str:
    inside, parameter = pair
    if f"/{parameter.name}".endswith(f"/{inside}"):
        return parameter.name.removesuffix(inside).rstrip("/")
    return parameter.name.rpartition("/")[0]


def _list_chain(model: Any) -> list[Any] | None:
    """Return the layers if each feeds only the next; else None."""
    if not is_graph(model):
        return None if model._layers else [model]
    if type(model).__name__ != "Sequential":
        nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes if not node.is_input]
        sources = [id(tensor) for node in nodes for tensor in node.input_tensors]
        straight = all(len(node.input_tensors) == 1 and len(node.outputs) == 1 for node in nodes)
        if not straight or len(set(sources)) != len(sources) or len(model.inputs) != 1:
            return None
        layers = [node.operation for _, row in sorted(model._nodes_by_depth.items(), reverse=True) for node in row]
    else:
        layers = list(model.layers)
    chained: list[Any] = []
    for layer in layers:
        if not isinstance(layer, keras.Layer):
            return None
        if is_a(layer, "InputLayer"):
            continue
        inner = _list_chain(layer) if is_graph(layer) else [layer]
        if inner is None:
            return None
        chained += inner
    return chained


def _watch(record: LayerRecord, watcher: Watcher, stack: contextlib.ExitStack, patches: ClassPatches) -> None:
    inner = record.layer if isinstance(record.layer, SuperCall) else None
    layer = record.layer if inner is None else inner.layer
    worker = layer.layer if is_a(layer, "TimeDistributed") else layer
    original = layer.call if inner is None else patches.get_original(inner.definer, layer)
    seen: list[dict[str, Array | None]] = []  # the inputs of calls that have no output yet

    def leave(value: Any) -> Any:
        inputs = seen.pop()
        # The output before the activation can't be seen outside a wrapper that calls the layer step by step.
        hidden = worker is not layer and name_of(getattr(worker, "activation", None)) != "linear"
        replacement = watcher.leave(record, {} if hidden else outputs_of(worker, record.kind, inputs, value))
        if replacement is None or worker is not layer or isinstance(value, (tuple, list)):
            return value
        back = restore_output(worker, record.kind, replacement, value)
        return value if back is None else back

    activation: Any = getattr(layer, "activation", None) if worker is layer else None
    fused = activation is not None and record.kind not in ("plain", "other", *RECURRENT)
    if fused:

        def activate(value: Any, *args: Any, **named: Any) -> Any:
            return activation(leave(value) if seen else value, *args, **named)

        activate.__name__ = getattr(activation, "__name__", "activation")
        patch_attribute(layer, "activation", activate, stack)

    def call(*args: Any, **named: Any) -> Any:
        depth = len(seen)
        inputs = inputs_of(worker, record.kind, args, named)
        watcher.enter(record, inputs)
        seen.append(inputs)
        output = original(*args, **named)
        return leave(output) if len(seen) > depth else output

    keep_signature(call, original)
    if inner is None:
        patch_attribute(layer, "call", call, stack)
    else:
        patches.add(inner.definer, layer, call)


def _call_model(model: Any, sample: Any) -> Any:
    policy = getattr(model, "compute_dtype", None) or "float32"

    def tensor(value: Any) -> Any:
        if isinstance(value, (dict, list, tuple)):
            return keras.tree.map_structure(tensor, value)
        array = as_array(value) if hasattr(value, "dtype") else None
        if array is None:
            return value
        array = np.ascontiguousarray(array)
        return keras.ops.convert_to_tensor(array, dtype=policy if array.dtype.kind == "f" else None)

    if isinstance(sample, Mapping):
        tensors = {name: tensor(value) for name, value in sample.items()}
        # A dict is either the arguments by name, or the one input of a model that looks its parts up.
        if is_graph(model) or not set(tensors) <= set(_list_inputs(model)):
            return model(tensors, training=False)
        return model(**tensors, training=False)
    if isinstance(sample, (tuple, list)):
        values = [tensor(value) for value in sample]
        if is_graph(model):
            return model(values if len(values) > 1 else values[0], training=False)
        several = len(_list_inputs(model)) >= len(values)
        return model(*values, training=False) if several else model(values, training=False)
    return model(tensor(sample), training=False)


def _list_inputs(model: Any) -> list[str]:
    """Return the names of the inputs that the call of a model takes."""
    parameters = inspect.signature(model.call).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in kinds and p.name != "training"]
