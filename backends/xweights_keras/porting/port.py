"""Keras models as sides of a port: their layers, and a run of them under watch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import PortError
from xweights.porting.protocol import LayerRecord, Watcher
from xweights_keras.adapter import KerasAdapter
from xweights_keras.porting.double import doubled
from xweights_keras.porting.layers import (
    RECURRENT,
    as_array,
    attributes_of,
    host,
    inputs_of,
    is_a,
    is_stack,
    kind_of,
    outputs_of,
    plain_of,
    put_back,
    refusal,
    word_of,
)
from xweights_keras.walk import is_graph, is_keras

_ADAPTER = KerasAdapter()


class KerasPorting:
    """What ``xweights.porting`` needs to know of Keras."""

    name = "keras"

    @property
    def channels_first(self) -> bool:
        """As Keras is configured; a layer may say otherwise, and its arrays come out the same."""
        return bool(keras.config.image_data_format() == "channels_first")

    def records(self, model: Any) -> list[LayerRecord]:
        by_variable = {id(one.handle): one for one in _ADAPTER.parameters(model)}
        layers = list(model._flatten_layers(include_self=True, recursive=True))
        # A wrapper may keep the arrays of the layer inside: those belong to the layer that a recipe knows.
        claimed = {id(one) for layer in layers if kind_of(layer) != "other" for one in _own(layer, kind_of(layer))}
        found: list[LayerRecord] = []
        inside: set[int] = set()  # layers that only another one calls, in its own way
        for layer in layers:
            if id(layer) in inside:
                continue
            worker = layer
            if is_a(layer, "TimeDistributed"):
                worker = layer.layer
                if kind_of(worker) == "other":
                    continue  # a model inside: its layers are seen step by step
                inside.add(id(worker))
            kind = kind_of(worker)
            own = [one for one in _own(worker, kind) if kind != "other" or id(one) not in claimed]
            if kind in RECURRENT or is_a(worker, "RNN"):
                inside.update(id(one) for one in worker._flatten_layers(include_self=False, recursive=True))
            arrays = _arrays(worker, kind, [by_variable[id(one)] for one in own if id(one) in by_variable])
            if arrays:
                path = _path(next(iter(arrays.items())))
                settings = attributes_of(worker, kind)
                found.append(LayerRecord(kind, path, arrays, settings, layer, refusal(worker, kind)))
            elif is_keras(type(layer)) and not layer._layers and not is_a(layer, "InputLayer"):
                found.append(LayerRecord("plain", layer.name, {}, plain_of(layer), layer))
        return found

    def chain(self, model: Any, records: Sequence[LayerRecord]) -> list[LayerRecord] | None:
        by_layer = {id(record.layer): record for record in records}
        layers = _chain(model)
        if layers is None or len({id(one) for one in layers}) != len(layers):
            return None
        known = [by_layer.get(id(one)) for one in layers]
        found = [one for one in known if one is not None]
        return found if len(found) == len(layers) else None

    def run(self, model: Any, records: Sequence[LayerRecord], sample: Any, watcher: Watcher) -> dict[str, Array]:
        with contextlib.ExitStack() as stack:
            for layer in model._flatten_layers(include_self=True, recursive=True):
                if is_a(layer, "Bidirectional"):
                    # A fused kernel computes both directions without calling either layer.
                    _put(layer, "_can_attempt_fused_lstm", lambda *_: False, stack)
                    _put(layer, "_can_attempt_fused_gru", lambda *_: False, stack)
            for record in records:
                _watch(record, watcher, stack)
            output = _call(model, sample)
            return {name: np.array(array) for name, array in named_outputs(output)}

    def double(self, model: Any) -> Any:
        return doubled(model)

    def set_attribute(self, record: LayerRecord, name: str, value: Any) -> None:
        layer = record.layer
        if name == "eps" and hasattr(layer, "epsilon"):
            layer.epsilon = value
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


def _own(layer: Any, kind: str) -> list[Any]:
    if kind in RECURRENT or kind == "conv_lstm":
        return list(layer.weights)
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _arrays(layer: Any, kind: str, parameters: Sequence[Parameter]) -> dict[str, Parameter]:
    """Return the arrays by their path inside the layer; counters and the like are no weights."""
    if not parameters:
        return {}
    if kind in RECURRENT and is_stack(layer):
        return {"/".join(one.name.split("/")[-2:]): one for one in parameters}
    ignored = {"count", "vector_u"}
    return {one.role: one for one in parameters if one.role not in ignored and one.floating}


def _path(pair: tuple[str, Parameter]) -> str:
    inside, parameter = pair
    return parameter.name.removesuffix(inside).rstrip("/")


def _chain(model: Any) -> list[Any] | None:
    """Return the layers if each feeds the next and nothing else."""
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
    found: list[Any] = []
    for layer in layers:
        if not isinstance(layer, keras.Layer):
            return None
        if is_a(layer, "InputLayer"):
            continue
        inner = _chain(layer) if is_graph(layer) else [layer]
        if inner is None:
            return None
        found += inner
    return found


def _put(layer: Any, name: str, value: Any, stack: contextlib.ExitStack) -> None:
    """Set an attribute of a layer behind its tracker's back, until the stack is left."""
    space = layer.__dict__
    stack.callback(space.__setitem__, name, space[name]) if name in space else stack.callback(space.pop, name, None)
    space[name] = value


def _watch(record: LayerRecord, watcher: Watcher, stack: contextlib.ExitStack) -> None:
    layer = record.layer
    worker = layer.layer if is_a(layer, "TimeDistributed") else layer
    original = layer.call
    seen: list[dict[str, Array | None]] = []  # the inputs of calls that are under way and have no output yet

    def leave(value: Any) -> Any:
        given = seen.pop()
        # What a layer makes before its activation isn't seen from outside of a wrapper that calls it step by step.
        hidden = worker is not layer and word_of(getattr(worker, "activation", None)) != "linear"
        made = watcher.leave(record, {} if hidden else outputs_of(worker, record.kind, given, value))
        if made is None or worker is not layer or isinstance(value, (tuple, list)):
            return value
        back = put_back(worker, record.kind, made, value)
        return value if back is None else back

    activation: Any = getattr(layer, "activation", None) if worker is layer else None
    fused = activation is not None and record.kind not in ("plain", "other", *RECURRENT)
    if fused:

        def activated(value: Any, *args: Any, **named: Any) -> Any:
            return activation(leave(value) if seen else value, *args, **named)

        activated.__name__ = getattr(activation, "__name__", "activation")
        _put(layer, "activation", activated, stack)

    def call(*args: Any, **named: Any) -> Any:
        depth = len(seen)
        given = inputs_of(worker, record.kind, args, named)
        watcher.enter(record, given)
        seen.append(given)
        output = original(*args, **named)
        return leave(output) if len(seen) > depth else output

    _put(layer, "call", call, stack)


def _call(model: Any, sample: Any) -> Any:
    policy = getattr(model, "compute_dtype", None) or "float32"

    def tensor(value: Any) -> Any:
        if not hasattr(value, "dtype"):
            return value
        array = as_array(value)
        if array is None:
            return value
        return keras.ops.convert_to_tensor(array, dtype=policy if array.dtype.kind == "f" else None)

    if isinstance(sample, Mapping):
        made = {name: tensor(value) for name, value in sample.items()}
        if is_graph(model) or _places(model) == 1:
            return model(made, training=False)
        return model(**made, training=False)
    if isinstance(sample, (tuple, list)):
        several = [tensor(one) for one in sample]
        if is_graph(model):
            return model(several if len(several) > 1 else several[0], training=False)
        return model(*several, training=False) if _places(model) >= len(several) else model(several, training=False)
    return model(tensor(sample), training=False)


def _places(model: Any) -> int:
    """Return how many inputs the call of a model takes one by one."""
    import inspect

    names = inspect.signature(model.call).parameters.values()
    return sum(
        one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) and one.name not in ("training", "mask")
        for one in names
    )


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
