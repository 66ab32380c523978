"""What the configuration of a Keras model says of its weights: which layer each belongs to, and what its axes are.

A configuration is only looked at: no layer is made.

Covers functional and Sequential models, also inside each other. A layer that isn't in the table, and a model that
keeps its layers in attributes, leave their arrays under the file's own keys, without axes.
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
_STATISTICS = frozenset({"moving_mean", "moving_variance", "mean", "variance", "count"})

# (path inside of the layer's group, neutral path inside of the layer, its arrays in order)
Part = tuple[str, str, list[Entry]]


@dataclass(frozen=True)
class Described:
    """One array: its neutral name and layer, its row of the table, whether it is trained."""

    name: str
    layer: str
    entry: Entry
    trainable: bool


def snake(name: str) -> str:
    """Return a class's name as Keras writes it in paths: ``Conv2DTranspose`` -> ``conv2d_transpose``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(?<=.)(?=[A-Z][a-z]+)", "_", name)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def described(config: Any) -> dict[str, Described]:
    """Return what is known of each array, by its key in the file, in the order of the layers."""
    found: dict[str, Described] = {}
    if isinstance(config, dict):
        _graph(config, "", "", True, found, 0)
    return found


def _graph(
    model: Mapping[str, Any], key: str, path: str, trained: bool, found: dict[str, Described], depth: int
) -> None:
    inner = _settings(model)
    layers = inner.get("layers")
    if not isinstance(layers, list) or depth > 32:
        return
    saved: Counter[str] = Counter()
    for one in layers:
        if not isinstance(one, dict) or not isinstance(one.get("class_name"), str):
            continue
        kind, settings = snake(one["class_name"]), _settings(one)
        name = settings.get("name")
        number = saved[kind]
        saved[kind] += 1
        made_up = not isinstance(name, str) or re.fullmatch(re.escape(kind) + r"(_\d+)?", name) is not None
        place = f"{path}{f'{kind}/{number}' if made_up else name}"
        group = f"{key}layers/{kind}{f'_{number}' if number else ''}"
        here = trained and settings.get("trainable", True) is not False
        if isinstance(settings.get("layers"), list):
            _graph(one, f"{group}/", f"{place}/", here, found, depth + 1)
            continue
        wrapped = settings.get("layer")
        if kind == "time_distributed" and isinstance(wrapped, dict) and "layers" in _settings(wrapped):
            _graph(wrapped, f"{group}/layer/", f"{place}/", here, found, depth + 1)
            continue
        for inside, part, rows in parts(one):
            where = f"{group}/{inside}vars"
            for position, entry in enumerate(rows):
                row = f"{place}/{part}{entry.name}"
                trains = here and entry.name not in _STATISTICS
                found[f"{where}/{position}"] = Described(row, place, entry, trains)


def _settings(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    found = layer.get("config")
    return found if isinstance(found, dict) else {}


def parts(layer: Mapping[str, Any]) -> Iterator[Part]:
    """Yield the groups of arrays that a layer has, or nothing for one that isn't in the table."""
    kind = str(layer.get("class_name", ""))
    settings = _settings(layer)
    conv = re.fullmatch(r"(Separable|Depthwise)?Conv([123])D(Transpose)?", kind)
    try:
        if kind in ("Bidirectional", "TimeDistributed"):
            inner = settings["layer"]
            places = [("layer/", "")]
            if kind == "Bidirectional":
                places = [("forward_layer/", "forward/"), ("backward_layer/", "backward/")]
            for place, path in places:
                for inside, part, rows in parts(inner):
                    yield place + inside, path + part, rows
        elif kind in ("LSTM", "GRU", "SimpleRNN"):
            yield "cell/", "", _recurrent(kind, settings)
        elif kind == "MultiHeadAttention":
            yield from _attention(settings)
        elif conv:
            yield "", "", _conv(conv[1], _SPACE[conv[2]], bool(conv[3]), settings)
        elif kind in _TABLE:
            yield "", "", _TABLE[kind](layer, settings)
    except (KeyError, TypeError, ValueError, AttributeError):
        return  # a configuration of another version: its arrays keep the file's keys


def _rows(*rows: tuple[str, str | None] | None, gates: tuple[str, ...] | None = None) -> list[Entry]:
    return [Entry(row[0], row[0], row[1], gates=gates) for row in rows if row is not None]


def _if(flag: Any, name: str, pattern: str | None) -> tuple[str, str | None] | None:
    return (name, pattern) if flag else None


def _conv(family: str | None, space: str, transposed: bool, c: Mapping[str, Any]) -> list[Entry]:
    bias = _if(c["use_bias"], "bias", "out")
    if family == "Separable":
        return _rows(("depthwise_kernel", f"{space} in mult"), ("pointwise_kernel", f"{space} in out"), bias)
    if family == "Depthwise":
        return _rows(("kernel", f"{space} in mult"), bias)
    if transposed:
        return _rows(("kernel", f"{space} out in"), bias)
    rows = _rows(("kernel", f"{space} in out"), bias)
    groups = c.get("groups", 1)
    if groups > 1:
        # Fits only where each channel is a group of its own: elsewhere the length of that axis isn't 1.
        one = replace(rows[0], pattern=f"{space} 1 (in mult) -> {space} in mult", sizes={"in": groups})
        rows[0] = replace(one, outputs=("mult",))
    return rows


def _recurrent(kind: str, c: Mapping[str, Any]) -> list[Entry]:
    gates = {"LSTM": _LSTM, "GRU": _GRU, "SimpleRNN": None}[kind]
    two = kind == "GRU" and c.get("reset_after", True)
    bias = _if(c["use_bias"], "bias", "side gate*unit" if two else "gate*unit")
    return _rows(("kernel", "in gate*unit"), ("recurrent_kernel", "unit gate*unit"), bias, gates=gates)


def _attention(c: Mapping[str, Any]) -> Iterator[Part]:
    plain = c.get("output_shape") is None
    for inside, path, kernel, bias in (
        ("query_dense/", "query/", "in head key", "head key"),
        ("key_dense/", "key/", "in head key", "head key"),
        ("value_dense/", "value/", "in head value", "head value"),
        ("output_dense/", "attention_output/", "head value out" if plain else None, "out" if plain else None),
    ):
        yield inside, path, _rows(("kernel", kernel), _if(c["use_bias"], "bias", bias))


def _einsum(layer: Mapping[str, Any], c: Mapping[str, Any]) -> list[Entry]:
    inputs, _, output = c["equation"].partition("->")
    letters = inputs.partition(",")[2]
    if not letters.isalpha():
        return _rows(("kernel", None), _if(c.get("bias_axes"), "bias", None))
    kept = tuple(letter for letter in letters if letter in output)
    axes = c.get("bias_axes") or ""
    # The bias is broadcast against the end of the output.
    last = output[min((output.index(axis) for axis in axes), default=len(output)) :]
    rows = _rows(("kernel", " ".join(letters)), _if(axes, "bias", " ".join(last) if last.isalpha() else None))
    rows[0] = replace(rows[0], outputs=kept)
    return rows


def _norm(*names: tuple[str, str]) -> Callable[[Mapping[str, Any], Mapping[str, Any]], list[Entry]]:
    def rows(layer: Mapping[str, Any], c: Mapping[str, Any]) -> list[Entry]:
        axis = c.get("axis", -1)
        pattern = "channel" if isinstance(axis, int) or len(axis) == 1 else None
        return _rows(*[_if(c.get(flag, True), name, pattern) for name, flag in names])

    return rows


def _dense(layer: Mapping[str, Any], c: Mapping[str, Any]) -> list[Entry]:
    return _rows(("kernel", "in out"), _if(c["use_bias"], "bias", "out"))


_TABLE: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], list[Entry]]] = {
    "Dense": _dense,
    "EinsumDense": _einsum,
    "Embedding": lambda layer, c: _rows(("embeddings", "vocab dim")),
    "BatchNormalization": _norm(("gamma", "scale"), ("beta", "center"), ("moving_mean", ""), ("moving_variance", "")),
    "LayerNormalization": _norm(("gamma", "scale"), ("beta", "center")),
    "GroupNormalization": _norm(("gamma", "scale"), ("beta", "center")),
    "RMSNormalization": _norm(("scale", "")),
}
