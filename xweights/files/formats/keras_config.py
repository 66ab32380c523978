"""Describe the weights in a Keras model's configuration: layer, name and axes of each.

The configuration is only read; no layer is created.

Covers functional and Sequential models, also nested ones. For a layer that isn't in the table, and for a model that
keeps its layers in attributes, arrays keep the file's own keys, without axes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from xweights.core.layer_table import Entry

_SPACE = {"1": "t", "2": "h w", "3": "d h w"}
_LSTM = ("i", "f", "c", "o")
_GRU = ("z", "r", "h")
STATISTICS = frozenset({"moving_mean", "moving_variance", "mean", "variance", "count"})

# (path inside the layer's group, neutral path inside the layer, its arrays in order)
Part = tuple[str, str, list[Entry]]


@dataclass(frozen=True)
class WeightDescription:
    """Description of one array: neutral name, layer, row of the table, and whether it is trained."""

    name: str
    layer: str
    entry: Entry
    trainable: bool


def snake(name: str) -> str:
    """Return a class name as Keras writes it in paths: ``Conv2DTranspose`` -> ``conv2d_transpose``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(?<=.)(?=[A-Z][a-z]+)", "_", name)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def describe_weights(config: Any) -> dict[str, WeightDescription]:
    """Return the description of each array, by its key in the file, in the order of the layers."""
    descriptions: dict[str, WeightDescription] = {}
    if isinstance(config, dict):
        _describe_model(config, "", "", True, descriptions, 0)
    return descriptions


def _describe_model(
    model: Mapping[str, Any], key: str, path: str, trained: bool, descriptions: dict[str, WeightDescription], depth: int
) -> None:
    inner = _settings_of(model)
    layers = inner.get("layers")
    if not isinstance(layers, list) or depth > 32:
        return
    saved: Counter[str] = Counter()
    for layer in layers:
        if not isinstance(layer, dict) or not isinstance(layer.get("class_name"), str):
            continue
        kind, settings = snake(layer["class_name"]), _settings_of(layer)
        name = settings.get("name")
        number = saved[kind]
        saved[kind] += 1
        made_up = not isinstance(name, str) or re.fullmatch(re.escape(kind) + r"(_\d+)?", name) is not None
        name_path = f"{path}{f'{kind}/{number}' if made_up else name}"
        group = f"{key}layers/{kind}{f'_{number}' if number else ''}"
        trains_here = trained and settings.get("trainable", True) is not False
        if isinstance(settings.get("layers"), list):
            _describe_model(layer, f"{group}/", f"{name_path}/", trains_here, descriptions, depth + 1)
            continue
        wrapped = settings.get("layer")
        if kind == "time_distributed" and isinstance(wrapped, dict) and "layers" in _settings_of(wrapped):
            _describe_model(wrapped, f"{group}/layer/", f"{name_path}/", trains_here, descriptions, depth + 1)
            continue
        for inside, part, rows in iter_parts(layer):
            variables = f"{group}/{inside}vars"
            for position, entry in enumerate(rows):
                row = f"{name_path}/{part}{entry.name}"
                trains = trains_here and entry.name not in STATISTICS
                descriptions[f"{variables}/{position}"] = WeightDescription(row, name_path, entry, trains)


def _settings_of(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = layer.get("config")
    return settings if isinstance(settings, dict) else {}


def iter_parts(layer: Mapping[str, Any]) -> Iterator[Part]:
    """Yield the groups of arrays of a layer, or nothing for one that isn't in the table."""
    kind = str(layer.get("class_name", ""))
    settings = _settings_of(layer)
    conv = re.fullmatch(r"(Separable|Depthwise)?Conv([123])D(Transpose)?", kind)
    try:
        if kind in ("Bidirectional", "TimeDistributed"):
            inner = settings["layer"]
            sublayers = [("layer/", "")]
            if kind == "Bidirectional":
                sublayers = [("forward_layer/", "forward/"), ("backward_layer/", "backward/")]
            for group, path in sublayers:
                for inside, part, rows in iter_parts(inner):
                    yield group + inside, path + part, rows
        elif kind in ("LSTM", "GRU", "SimpleRNN"):
            yield "cell/", "", _recurrent_rows(kind, settings)
        elif kind == "MultiHeadAttention":
            yield from _attention_parts(settings)
        elif conv:
            yield "", "", _conv_rows(conv[1], _SPACE[conv[2]], bool(conv[3]), settings)
        elif kind in _TABLE:
            yield "", "", _TABLE[kind](layer, settings)
    except (KeyError, TypeError, ValueError, AttributeError):
        return  # the configuration of another version: its arrays keep the file's keys


def _make_rows(*rows: tuple[str, str | None] | None, gates: tuple[str, ...] | None = None) -> list[Entry]:
    return [Entry(row[0], row[0], row[1], gates=gates) for row in rows if row is not None]


def _row_if(flag: Any, name: str, pattern: str | None) -> tuple[str, str | None] | None:
    return (name, pattern) if flag else None


def _conv_rows(family: str | None, space: str, transposed: bool, c: Mapping[str, Any]) -> list[Entry]:
    bias = _row_if(c["use_bias"], "bias", "out")
    if family == "Separable":
        return _make_rows(("depthwise_kernel", f"{space} in mult"), ("pointwise_kernel", f"{space} in out"), bias)
    if family == "Depthwise":
        return _make_rows(("kernel", f"{space} in mult"), bias)
    if transposed:
        return _make_rows(("kernel", f"{space} out in"), bias)
    rows = _make_rows(("kernel", f"{space} in out"), bias)
    groups = c.get("groups", 1)
    if groups > 1:
        # Fits only where each channel is its own group: elsewhere the length of that axis isn't 1.
        kernel = replace(rows[0], pattern=f"{space} 1 (in mult) -> {space} in mult", sizes={"in": groups})
        rows[0] = replace(kernel, outputs=("mult",))
    return rows


def _recurrent_rows(kind: str, c: Mapping[str, Any]) -> list[Entry]:
    gates = {"LSTM": _LSTM, "GRU": _GRU, "SimpleRNN": None}[kind]
    two = kind == "GRU" and c.get("reset_after", True)
    bias = _row_if(c["use_bias"], "bias", "side gate*unit" if two else "gate*unit")
    return _make_rows(("kernel", "in gate*unit"), ("recurrent_kernel", "unit gate*unit"), bias, gates=gates)


def _attention_parts(c: Mapping[str, Any]) -> Iterator[Part]:
    plain = c.get("output_shape") is None
    for inside, path, kernel, bias in (
        ("query_dense/", "query/", "in head key", "head key"),
        ("key_dense/", "key/", "in head key", "head key"),
        ("value_dense/", "value/", "in head value", "head value"),
        ("output_dense/", "attention_output/", "head value out" if plain else None, "out" if plain else None),
    ):
        yield inside, path, _make_rows(("kernel", kernel), _row_if(c["use_bias"], "bias", bias))


def _einsum_rows(layer: Mapping[str, Any], c: Mapping[str, Any]) -> list[Entry]:
    inputs, _, output = c["equation"].partition("->")
    letters = inputs.partition(",")[2]
    if not letters.isalpha():
        return _make_rows(("kernel", None), _row_if(c.get("bias_axes"), "bias", None))
    kept = tuple(letter for letter in letters if letter in output)
    axes = c.get("bias_axes") or ""
    # The bias is broadcast against the end of the output.
    last = output[min((output.index(axis) for axis in axes), default=len(output)) :]
    rows = _make_rows(("kernel", " ".join(letters)), _row_if(axes, "bias", " ".join(last) if last.isalpha() else None))
    rows[0] = replace(rows[0], outputs=kept)
    return rows


def _norm_rows(*names: tuple[str, str]) -> Callable[[Mapping[str, Any], Mapping[str, Any]], list[Entry]]:
    def rows(layer: Mapping[str, Any], c: Mapping[str, Any]) -> list[Entry]:
        axis = c.get("axis", -1)
        pattern = "channel" if isinstance(axis, int) or len(axis) == 1 else None
        return _make_rows(*[_row_if(c.get(flag, True), name, pattern) for name, flag in names])

    return rows


def _dense_rows(layer: Mapping[str, Any], c: Mapping[str, Any]) -> list[Entry]:
    return _make_rows(("kernel", "in out"), _row_if(c["use_bias"], "bias", "out"))


_TABLE: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], list[Entry]]] = {
    "Dense": _dense_rows,
    "EinsumDense": _einsum_rows,
    "Embedding": lambda layer, c: _make_rows(("embeddings", "vocab dim")),
    "BatchNormalization": _norm_rows(
        ("gamma", "scale"), ("beta", "center"), ("moving_mean", ""), ("moving_variance", "")
    ),
    "LayerNormalization": _norm_rows(("gamma", "scale"), ("beta", "center")),
    "GroupNormalization": _norm_rows(("gamma", "scale"), ("beta", "center")),
    "RMSNormalization": _norm_rows(("scale", "")),
}
