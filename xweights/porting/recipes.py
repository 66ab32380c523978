"""Recipes: every kind of layer, taken apart into units of the canonical form.

Each recipe is a pure function of a record: it looks at axes, gates and attributes, never at a framework. What a layer
is called where it differs between frameworks (gate order, packed projections, two biases) ends here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

from xweights.core.parameter import Parameter
from xweights.errors import PortError
from xweights.porting.protocol import LayerRecord
from xweights.porting.units import Index, LayerUnit, ParamSlice

# The canonical order of gates. Simple recurrent layers have one gate without a name.
GATES = {
    "lstm": ("i", "f", "c", "o"),
    "gru": ("r", "z", "h"),
    "gru_reset_before": ("r", "z", "h"),
    "simple_rnn": ("h",),
}


class NoCounterpartError(PortError):
    """A layer that can't be taken apart; the message says why."""


def units_of(record: LayerRecord) -> list[LayerUnit]:
    """Return the units of a layer; none for a layer without weights. Raise NoCounterpartError."""
    if not record.parameters or record.kind == "plain":
        return []
    if record.refused is not None:
        raise NoCounterpartError(record.refused)
    return list(RECIPES[record.kind](record))


def _whole(parameter: Parameter) -> ParamSlice:
    return ParamSlice(parameter, parameter.shape)


def _flat(parameter: Parameter) -> ParamSlice:
    return ParamSlice(parameter, (parameter.size,))


def _unit(
    record: LayerRecord, kind: str, pieces: dict[str, ParamSlice], *, part: str = "", call: str = ""
) -> LayerUnit:
    return LayerUnit(kind, record, pieces, part, call, attributes=record.attributes)


def _plainly(kind: str) -> Callable[[LayerRecord], Iterator[LayerUnit]]:
    def recipe(record: LayerRecord) -> Iterator[LayerUnit]:
        yield _unit(record, kind, {role: _whole(p) for role, p in record.parameters.items()})

    return recipe


def _vector(kind: str) -> Callable[[LayerRecord], Iterator[LayerUnit]]:
    """Every array runs along the features, flattened in neutral order."""

    def recipe(record: LayerRecord) -> Iterator[LayerUnit]:
        yield _unit(record, kind, {role: _flat(p) for role, p in record.parameters.items()})

    return recipe


def _einsum(record: LayerRecord) -> Iterator[LayerUnit]:
    """A product that sums over some letters is a dense layer over those, one after another as the input has them."""
    kernel = record.parameters["kernel"]
    equation = str(record.attributes["equation"])
    inputs, letters = equation.partition("->")[0].split(",")
    output = equation.partition("->")[2]
    summed = [letter for letter in inputs if letter in letters and letter not in output]
    made = [letter for letter in output if letter in letters and letter not in inputs]
    if len(summed) + len(made) != len(letters) or not summed:
        raise NoCounterpartError(f"the equation {equation!r} is no product of two matrices")
    order = tuple(letters.index(letter) for letter in [*summed, *made])
    lengths = [kernel.shape[axis] for axis in order]
    width = math.prod(lengths[len(summed) :])
    shape = (math.prod(lengths[: len(summed)]), width)
    pieces = {"kernel": ParamSlice(kernel, shape, order=order)}
    if "bias" in record.parameters:
        bias = record.parameters["bias"]
        if bias.size != width:
            raise NoCounterpartError(
                f"the bias of {equation!r} is shared along an axis: {bias.shape} for {tuple(lengths[len(summed) :])}"
            )
        pieces["bias"] = ParamSlice(bias, (width,))
    yield _unit(record, "dense", pieces)


def _additive(record: LayerRecord) -> Iterator[LayerUnit]:
    scale = record.parameters["scale"]
    yield _unit(record, "dense", {"kernel": ParamSlice(scale, (scale.size, 1))}, call="scores")


def _reversible(record: LayerRecord) -> Iterator[LayerUnit]:
    """An embedding, and the dense layer that its table is when it is read the other way."""
    table = record.parameters["embeddings"]
    yield _unit(record, "embedding", {"embeddings": _whole(table)})
    back = record.parameters.get("reverse_embeddings")
    kernel = ParamSlice(table, table.shape[::-1], order=(1, 0)) if back is None else _whole(back)
    yield _unit(record, "dense", {"kernel": kernel}, part="reverse", call="reverse")


def _conv_piece(kernel: Parameter) -> ParamSlice:
    *space, channels, filters = kernel.shape
    if kernel.axes is not None and kernel.axes[-1] == "mult":
        return ParamSlice(kernel, (*space, 1, channels * filters))
    return _whole(kernel)


def _conv(record: LayerRecord) -> Iterator[LayerUnit]:
    """A depthwise convolution is one with a group for each channel."""
    pieces = {role: _conv_piece(p) if role == "kernel" else _whole(p) for role, p in record.parameters.items()}
    yield _unit(record, "conv", pieces)


def _separable(record: LayerRecord) -> Iterator[LayerUnit]:
    first, second = record.parameters["depthwise_kernel"], record.parameters["pointwise_kernel"]
    channels = first.shape[-2]
    deep = _unit(record, "conv", {"kernel": _conv_piece(first)}, part="depthwise", call="depthwise")
    yield replace(deep, attributes={**record.attributes, "groups": channels})
    pieces = {"kernel": _whole(second)}
    if "bias" in record.parameters:
        pieces["bias"] = _whole(record.parameters["bias"])
    yield replace(_unit(record, "conv", pieces, part="pointwise", call="pointwise"), attributes={"groups": 1})


def _conv_transpose(record: LayerRecord) -> Iterator[LayerUnit]:
    """Groups are so many layers side by side, which a framework without groups writes out."""
    kernel = record.parameters["kernel"]
    bias = record.parameters.get("bias")
    groups = int(record.attributes.get("groups", 1))
    if groups == 1:
        yield from _plainly("conv_transpose")(record)
        return
    *space, _, filters, channels = kernel.shape
    attributes = {**record.attributes, "groups": 1}
    for group in range(groups):
        mine = slice(group * filters, (group + 1) * filters)
        at: Index = (*(slice(None) for _ in space), group)
        pieces = {"kernel": ParamSlice(kernel, (*space, filters, channels), index=at)}
        if bias is not None:
            pieces["bias"] = ParamSlice(bias, (filters,), index=(mine,))
        slices = (slice(group * channels, (group + 1) * channels), mine)
        yield LayerUnit("conv_transpose", record, pieces, f"group{group}", "", slices, attributes)


def _conv_lstm(record: LayerRecord) -> Iterator[LayerUnit]:
    """Two convolutions: of the input, which has the bias, and of the state."""
    arrays = record.parameters
    first = {"kernel": _whole(arrays["kernel"])}
    if "bias" in arrays:
        first["bias"] = _whole(arrays["bias"])
    yield replace(_unit(record, "conv", first, part="input", call="input"), attributes={"groups": 1})
    second = {"kernel": _whole(arrays["recurrent_kernel"])}
    yield replace(_unit(record, "conv", second, part="state", call="state"), attributes={"groups": 1})


def _recurrent(record: LayerRecord) -> Iterator[LayerUnit]:
    """One unit for each layer and direction inside."""
    parts: dict[str, dict[str, Parameter]] = {}
    for path, parameter in record.parameters.items():
        part, _, role = path.rpartition("/")
        parts.setdefault(part, {})[role] = parameter
    for part, arrays in parts.items():
        pieces: dict[str, ParamSlice] = {}
        for role, parameter in arrays.items():
            pieces |= _gated(record.kind, role, parameter)
        yield _unit(record, record.kind, pieces, part=part, call=part)


def _gated(kind: str, role: str, parameter: Parameter) -> dict[str, ParamSlice]:
    canonical = GATES[kind]
    have = parameter.gates or canonical
    gates = tuple(have.index(gate) for gate in canonical)
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


def _attention(record: LayerRecord) -> Iterator[LayerUnit]:
    """Four dense layers, wherever the first three are packed."""
    arrays = record.parameters
    for place, part in enumerate(("query", "key", "value")):
        kernel = arrays.get(f"{part}/kernel")
        if kernel is not None:
            pieces = {"kernel": ParamSlice(kernel, (kernel.shape[0], math.prod(kernel.shape[1:])))}
        else:
            packed = arrays["qkv/kernel"]
            shape = (packed.shape[0], math.prod(packed.shape[2:]))
            pieces = {"kernel": ParamSlice(packed, shape, index=(slice(None), place))}
        if f"{part}/bias" in arrays:
            pieces["bias"] = _flat(arrays[f"{part}/bias"])
        elif "qkv/bias" in arrays:
            bias = arrays["qkv/bias"]
            pieces["bias"] = ParamSlice(bias, (math.prod(bias.shape[1:]),), index=(place,))
        yield _unit(record, "dense", pieces, part=part, call=part)
    kernel = arrays["attention_output/kernel"]
    pieces = {"kernel": ParamSlice(kernel, (math.prod(kernel.shape[:-1]), kernel.shape[-1]))}
    if "attention_output/bias" in arrays:
        pieces["bias"] = _whole(arrays["attention_output/bias"])
    yield _unit(record, "dense", pieces, part="attention_output", call="attention_output")


RECIPES: dict[str, Callable[[LayerRecord], Iterator[LayerUnit]]] = {
    "dense": _plainly("dense"),
    "einsum": _einsum,
    "embedding": _plainly("embedding"),
    "reversible_embedding": _reversible,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "separable": _separable,
    "conv_lstm": _conv_lstm,
    "batch_norm": _vector("batch_norm"),
    "layer_norm": _vector("layer_norm"),
    "group_norm": _vector("group_norm"),
    "rms_norm": _vector("rms_norm"),
    "normalization": _vector("normalization"),
    "prelu": _vector("prelu"),
    "simple_rnn": _recurrent,
    "lstm": _recurrent,
    "gru": _recurrent,
    "gru_reset_before": _recurrent,
    "attention": _attention,
    "additive_attention": _additive,
    "attention_scale": _vector("attention_scale"),
    "other": _vector("other"),
}
