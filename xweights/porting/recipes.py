"""Recipes that split every kind of layer into units of the canonical form.

Each recipe is a pure function of a record: it reads axes, gates and attributes, and knows no framework. Differences
between frameworks (gate order, packed projections, two biases) are resolved here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from xweights.core.parameter import Parameter
from xweights.errors import PortError
from xweights.porting.protocol import LayerRecord
from xweights.porting.units import Index, LayerUnit, ParamSlice

# The canonical order of gates. Simple recurrent layers have one unnamed gate.
GATES = {
    "lstm": ("i", "f", "c", "o"),
    "gru": ("r", "z", "h"),
    "gru_reset_before": ("r", "z", "h"),
    "simple_rnn": ("h",),
}


class NoCounterpartError(PortError):
    """A layer that can't be split into units; the message says why."""


def make_units(record: LayerRecord) -> list[LayerUnit]:
    """Return the units of a layer, none for a layer without weights; raise NoCounterpartError."""
    if not record.parameters or record.kind == "plain" or record.attributes.get("constant"):
        return []
    if record.refused is not None:
        raise NoCounterpartError(record.refused)
    if record.views:
        return _operation_units(record)
    return list(RECIPES[record.kind](record))


def _operation_units(record: LayerRecord) -> list[LayerUnit]:
    """Return an operation as one unit, whose arrays are what the operation saw of its parameters."""
    slices = {}
    for role, p in record.parameters.items():
        view = record.views[role]
        slices[role] = ParamSlice(p, view(np.empty(p.shape, p.dtype)).shape, view=view)
    return [_make_unit(record, record.kind, slices)]


def _whole_slice(parameter: Parameter) -> ParamSlice:
    return ParamSlice(parameter, parameter.shape)


def _flat_slice(parameter: Parameter) -> ParamSlice:
    return ParamSlice(parameter, (parameter.size,))


def _make_unit(
    record: LayerRecord, kind: str, slices: dict[str, ParamSlice], *, part: str = "", call: str = ""
) -> LayerUnit:
    return LayerUnit(kind, record, slices, part, call, attributes=record.attributes)


def _plain_recipe(kind: str) -> Callable[[LayerRecord], Iterator[LayerUnit]]:
    def recipe(record: LayerRecord) -> Iterator[LayerUnit]:
        yield _make_unit(record, kind, {role: _whole_slice(p) for role, p in record.parameters.items()})

    return recipe


def _vector_recipe(kind: str) -> Callable[[LayerRecord], Iterator[LayerUnit]]:
    """Return a recipe for layers whose arrays run along the features, flattened in neutral order."""

    def recipe(record: LayerRecord) -> Iterator[LayerUnit]:
        yield _make_unit(record, kind, {role: _flat_slice(p) for role, p in record.parameters.items()})

    return recipe


def _einsum_units(record: LayerRecord) -> Iterator[LayerUnit]:
    """Split an einsum into one dense unit over the summed letters, in the order of the input."""
    kernel = record.parameters["kernel"]
    equation = str(record.attributes["equation"])
    inputs, letters = equation.partition("->")[0].split(",")
    output = equation.partition("->")[2]
    summed = [letter for letter in inputs if letter in letters and letter not in output]
    produced = [letter for letter in output if letter in letters and letter not in inputs]
    if len(summed) + len(produced) != len(letters) or not summed:
        raise NoCounterpartError(f"the equation {equation!r} is no product of two matrices")
    order = tuple(letters.index(letter) for letter in [*summed, *produced])
    lengths = [kernel.shape[axis] for axis in order]
    width = math.prod(lengths[len(summed) :])
    shape = (math.prod(lengths[: len(summed)]), width)
    slices = {"kernel": ParamSlice(kernel, shape, order=order)}
    if "bias" in record.parameters:
        bias = record.parameters["bias"]
        if bias.size != width:
            raise NoCounterpartError(
                f"the bias of {equation!r} is shared along an axis: {bias.shape} for {tuple(lengths[len(summed) :])}"
            )
        slices["bias"] = ParamSlice(bias, (width,))
    yield _make_unit(record, "dense", slices)


def _additive_units(record: LayerRecord) -> Iterator[LayerUnit]:
    scale = record.parameters["scale"]
    yield _make_unit(record, "dense", {"kernel": ParamSlice(scale, (scale.size, 1))}, call="scores")


def _reversible_units(record: LayerRecord) -> Iterator[LayerUnit]:
    """Split a reversible embedding into an embedding and a dense unit with the transposed table."""
    table = record.parameters["embeddings"]
    yield _make_unit(record, "embedding", {"embeddings": _whole_slice(table)})
    reverse = record.parameters.get("reverse_embeddings")
    kernel = ParamSlice(table, table.shape[::-1], order=(1, 0)) if reverse is None else _whole_slice(reverse)
    yield _make_unit(record, "dense", {"kernel": kernel}, part="reverse", call="reverse")


def _conv_slice(kernel: Parameter) -> ParamSlice:
    *space, channels, filters = kernel.shape
    if kernel.axes is not None and kernel.axes[-1] == "mult":
        return ParamSlice(kernel, (*space, 1, channels * filters))
    return _whole_slice(kernel)


def _conv_units(record: LayerRecord) -> Iterator[LayerUnit]:
    """Return a convolution as one unit; a depthwise convolution has a group for each channel."""
    slices = {role: _conv_slice(p) if role == "kernel" else _whole_slice(p) for role, p in record.parameters.items()}
    yield _make_unit(record, "conv", slices)


def _separable_units(record: LayerRecord) -> Iterator[LayerUnit]:
    first, second = record.parameters["depthwise_kernel"], record.parameters["pointwise_kernel"]
    channels = first.shape[-2]
    deep = _make_unit(record, "conv", {"kernel": _conv_slice(first)}, part="depthwise", call="depthwise")
    yield replace(deep, attributes={**record.attributes, "groups": channels})
    slices = {"kernel": _whole_slice(second)}
    if "bias" in record.parameters:
        slices["bias"] = _whole_slice(record.parameters["bias"])
    yield replace(_make_unit(record, "conv", slices, part="pointwise", call="pointwise"), attributes={"groups": 1})


def _conv_transpose_units(record: LayerRecord) -> Iterator[LayerUnit]:
    """Split a transposed convolution into one unit per group, as frameworks without groups write it."""
    kernel = record.parameters["kernel"]
    bias = record.parameters.get("bias")
    groups = int(record.attributes.get("groups", 1))
    if groups == 1:
        yield from _plain_recipe("conv_transpose")(record)
        return
    *space, _, filters, channels = kernel.shape
    attributes = {**record.attributes, "groups": 1}
    for group in range(groups):
        own_filters = slice(group * filters, (group + 1) * filters)
        index: Index = (*(slice(None) for _ in space), group)
        param_slices = {"kernel": ParamSlice(kernel, (*space, filters, channels), index=index)}
        if bias is not None:
            param_slices["bias"] = ParamSlice(bias, (filters,), index=(own_filters,))
        channels_of_group = (slice(group * channels, (group + 1) * channels), own_filters)
        yield LayerUnit("conv_transpose", record, param_slices, f"group{group}", "", channels_of_group, attributes)


def _conv_lstm_units(record: LayerRecord) -> Iterator[LayerUnit]:
    """Split a convolutional LSTM into two convolutions: of the input, which has the bias, and of the state."""
    arrays = record.parameters
    first = {"kernel": _whole_slice(arrays["kernel"])}
    if "bias" in arrays:
        first["bias"] = _whole_slice(arrays["bias"])
    yield replace(_make_unit(record, "conv", first, part="input", call="input"), attributes={"groups": 1})
    second = {"kernel": _whole_slice(arrays["recurrent_kernel"])}
    yield replace(_make_unit(record, "conv", second, part="state", call="state"), attributes={"groups": 1})


def _recurrent_units(record: LayerRecord) -> Iterator[LayerUnit]:
    """Split a recurrent layer into one unit for each layer and direction in it."""
    parts: dict[str, dict[str, Parameter]] = {}
    for path, parameter in record.parameters.items():
        part, _, role = path.rpartition("/")
        parts.setdefault(part, {})[role] = parameter
    for part, arrays in parts.items():
        slices: dict[str, ParamSlice] = {}
        for role, parameter in arrays.items():
            slices |= _slice_gates(record.kind, role, parameter)
        yield _make_unit(record, record.kind, slices, part=part, call=part)


def _slice_gates(kind: str, role: str, parameter: Parameter) -> dict[str, ParamSlice]:
    canonical = GATES[kind]
    stored = parameter.gates or canonical
    gates = tuple(stored.index(gate) for gate in canonical)
    shape = parameter.shape
    split = (*shape[:-1], len(gates), shape[-1] // len(gates))
    if parameter.axes is not None and parameter.axes[0] == "side":
        # Two biases in one array: the input's and the recurrent one.
        each = split[1:]
        return {
            name: ParamSlice(parameter, each, index=(side,), split=each, gates=(0, gates))
            for side, name in enumerate(("bias", "recurrent_bias"))
        }
    return {role: ParamSlice(parameter, split, split=split, gates=(len(shape) - 1, gates))}


def _attention_units(record: LayerRecord) -> Iterator[LayerUnit]:
    """Split attention into four dense units, whether or not the first three are packed."""
    arrays = record.parameters
    for position, part in enumerate(("query", "key", "value")):
        kernel = arrays.get(f"{part}/kernel")
        if kernel is not None:
            slices = {"kernel": ParamSlice(kernel, (kernel.shape[0], math.prod(kernel.shape[1:])))}
        else:
            packed = arrays["qkv/kernel"]
            shape = (packed.shape[0], math.prod(packed.shape[2:]))
            slices = {"kernel": ParamSlice(packed, shape, index=(slice(None), position))}
        if f"{part}/bias" in arrays:
            slices["bias"] = _flat_slice(arrays[f"{part}/bias"])
        elif "qkv/bias" in arrays:
            bias = arrays["qkv/bias"]
            slices["bias"] = ParamSlice(bias, (math.prod(bias.shape[1:]),), index=(position,))
        yield _make_unit(record, "dense", slices, part=part, call=part)
    kernel = arrays["attention_output/kernel"]
    slices = {"kernel": ParamSlice(kernel, (math.prod(kernel.shape[:-1]), kernel.shape[-1]))}
    if "attention_output/bias" in arrays:
        slices["bias"] = _whole_slice(arrays["attention_output/bias"])
    yield _make_unit(record, "dense", slices, part="attention_output", call="attention_output")


RECIPES: dict[str, Callable[[LayerRecord], Iterator[LayerUnit]]] = {
    "dense": _plain_recipe("dense"),
    "einsum": _einsum_units,
    "embedding": _plain_recipe("embedding"),
    "reversible_embedding": _reversible_units,
    "conv": _conv_units,
    "conv_transpose": _conv_transpose_units,
    "separable": _separable_units,
    "conv_lstm": _conv_lstm_units,
    "batch_norm": _vector_recipe("batch_norm"),
    "layer_norm": _vector_recipe("layer_norm"),
    "group_norm": _vector_recipe("group_norm"),
    "rms_norm": _vector_recipe("rms_norm"),
    "normalization": _vector_recipe("normalization"),
    "prelu": _vector_recipe("prelu"),
    "simple_rnn": _recurrent_units,
    "lstm": _recurrent_units,
    "gru": _recurrent_units,
    "gru_reset_before": _recurrent_units,
    "attention": _attention_units,
    "additive_attention": _additive_units,
    "attention_scale": _vector_recipe("attention_scale"),
    "other": _vector_recipe("other"),
    "multiply": _vector_recipe("multiply"),
    "rows": _plain_recipe("rows"),
}
