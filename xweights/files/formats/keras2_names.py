"""Name the weights of Keras 2's HDF5 files: neutral name, layer and axes of each, as the live model has them.

The files list their layers, and for each layer the names of its variables (``lstm/lstm_cell/kernel:0``). A whole model
has its configuration beside them, which says the rest. Weights alone have only these names and the shapes: the kind of
a layer is then read from the name that Keras made up for it (``conv2d_3``) or from its arrays, and what they leave
open stays open: a layer keeps its own name, and an array has no axes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from xweights.core.layer_table import Entry
from xweights.core.layout import Shape
from xweights.files.formats.keras_config import STATISTICS, WeightDescription, iter_parts, snake

_DEPTH = 32
# The layers that a name made up by Keras may stand for, where they have weights.
_CLASSES = (
    *("Dense", "EinsumDense", "Embedding", "LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "TimeDistributed"),
    *("BatchNormalization", "LayerNormalization", "GroupNormalization", "Normalization", "PReLU"),
    *("MultiHeadAttention", "Attention", "AdditiveAttention"),
    *(f"{family}{n}D" for family in ("Conv", "DepthwiseConv", "ConvLSTM") for n in (1, 2, 3)),
    *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "SeparableConv1D", "SeparableConv2D"),
)
_CLASS_OF = {snake(name): name for name in _CLASSES}
# Layers and names that Keras 3 no longer has, and what a model of today has in their place.
_TODAY = {"cu_dnnlstm": "lstm", "cu_dnngru": "gru"}
_CELL = re.compile(r"(\w+_)?cells?(_\d+)?")
_ATTENTION = frozenset({"query", "key", "value", "attention_output"})
_RECURRENT = frozenset({"lstm", "gru", "simple_rnn", "rnn"})


@dataclass(frozen=True)
class ListedWeight:
    """A weight as the file lists it: the parts of its variable's name, without the ``:0``, and its shape.

    ``inside``: the parts are those after the name of the layer that lists it.
    """

    key: str
    parts: tuple[str, ...]
    shape: Shape
    inside: bool = False

    @property
    def role(self) -> str:
        """The variable's own name."""
        return self.parts[-1]


@dataclass(frozen=True)
class ListedLayer:
    """A layer as the file lists it; with the name ``""`` the model itself, for the weights that no layer has."""

    name: str
    weights: Sequence[ListedWeight]


def describe_listed(layers: Sequence[ListedLayer], config: Any) -> dict[str, WeightDescription]:
    """Return the description of each weight, by its key, in the order of the layers."""
    nodes = _read_nodes(config, "", trained=True, depth=0) if isinstance(config, dict) else []
    by_name = {node.name: node for node in nodes}
    described: dict[str, WeightDescription] = {}
    unknown = []
    for layer in layers:
        node = by_name.get(layer.name)
        if node is None:
            unknown.append(replace(layer, weights=[_step_into(weight, layer.name) for weight in layer.weights]))
        else:
            described.update(_describe_by_config(node, layer.weights))
    described.update(_describe_by_names(unknown, "", listed_in_order=True))
    return {weight.key: described[weight.key] for layer in layers for weight in layer.weights}


def _step_into(weight: ListedWeight, name: str) -> ListedWeight:
    """Return a weight with the parts of its name that come after a layer's own name, if that is among them."""
    own = tuple(name.split("/")) if name else weight.parts[:-1]
    for start in range(len(weight.parts) - len(own)):
        if weight.parts[start : start + len(own)] == own:
            return replace(weight, parts=weight.parts[start + len(own) :], inside=True)
    return weight


# With a configuration


@dataclass
class _Node:
    """A layer in the configuration, and the layers in it if it is a model."""

    name: str
    path: str
    layer: Mapping[str, Any]
    trained: bool
    children: list[_Node] = field(default_factory=list)


def _settings_of(layer: Any) -> Mapping[str, Any]:
    settings = layer.get("config") if isinstance(layer, dict) else None
    if isinstance(settings, list):  # a Sequential model of Keras 2.2 and before
        return {"layers": settings}
    return settings if isinstance(settings, dict) else {}


def _kind_of(layer: Mapping[str, Any]) -> str:
    name = str(layer.get("class_name", "")).rpartition(">")[2]  # "package>Class", if it was registered
    return snake(re.sub(r"V[12]$", "", name))


def _read_nodes(model: Any, path: str, *, trained: bool, depth: int) -> list[_Node]:
    layers = _settings_of(model).get("layers")
    nodes = []
    seen: Counter[str] = Counter()
    for layer in layers if isinstance(layers, list) and depth < _DEPTH else ():
        if not isinstance(layer, dict) or not isinstance(layer.get("class_name"), str):
            continue
        settings, kind = _settings_of(layer), _kind_of(layer)
        name = settings.get("name", layer.get("name"))
        today = _TODAY.get(kind, kind)
        number = seen[today]
        seen[today] += 1
        if not isinstance(name, str):
            continue
        inside = f"{path}{today}/{number}" if _base(name) in (kind, today, f"{kind}_v1", f"{kind}_v2") else path + name
        trains = trained and settings.get("trainable", True) is not False
        node = _Node(name, inside, layer, trains)
        wrapped = settings.get("layer") if kind == "time_distributed" else None
        for inner in (layer, wrapped):
            node.children += _read_nodes(inner, f"{inside}/", trained=trains, depth=depth + 1)
        nodes.append(node)
    return nodes


def _base(name: str) -> str:
    """Return a name without the number that Keras puts at its end."""
    return re.sub(r"_\d+$", "", name)


def _describe_by_config(node: _Node, weights: Sequence[ListedWeight]) -> Iterator[tuple[str, WeightDescription]]:
    leaves = list(_iter_leaves(node, ())) if node.children else []
    for weight in weights:
        leaf = _find_leaf(leaves, weight.parts[:-1]) if leaves else node
        if leaf is None:
            inside = _step_into(weight, node.name)
            yield weight.key, _describe_raw(node.path, inside, node.trained)
        else:
            inside = _step_into(weight, leaf.name)
            yield weight.key, _describe_in_layer(leaf.path, leaf.layer, inside, leaf.trained)


def _iter_leaves(node: _Node, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Node]]:
    for child in node.children:
        if child.children:
            yield from _iter_leaves(child, (*above, child.name))
        else:
            yield above, child


def _find_leaf(leaves: Sequence[tuple[tuple[str, ...], _Node]], parts: tuple[str, ...]) -> _Node | None:
    """Return the layer that a variable's name speaks of: its own name is there, and most of the models around it."""
    found: list[tuple[tuple[int, int], _Node]] = []
    for above, leaf in leaves:
        if leaf.name in parts:
            at = parts.index(leaf.name)
            found.append(((-sum(name in parts[:at] for name in above), at), leaf))
    best = min((rank for rank, _ in found), default=None)
    fitting = [leaf for rank, leaf in found if rank == best]
    return fitting[0] if len(fitting) == 1 else None


def _describe_in_layer(path: str, layer: Mapping[str, Any], weight: ListedWeight, trained: bool) -> WeightDescription:
    """Return the description of a weight by the table's row for it; by its name if the table has none."""
    layer = _as_today(layer)
    inside, kind = weight.parts[:-1], _kind_of(layer)
    role = "kernel" if kind.startswith("depthwise_conv") and weight.role == "depthwise_kernel" else weight.role
    for _, part, rows in iter_parts(layer):
        if not all(any(_stands_for(name, wanted) for name in inside) for wanted in part.split("/") if wanted):
            continue
        for entry in rows:
            if entry.name == role:
                trains = trained and role not in STATISTICS
                return WeightDescription(f"{path}/{part}{role}", path, entry, trains)
    if (kind in _RECURRENT or kind.startswith("conv_lstm")) and "stacked_rnn_cells" not in inside:
        weight = replace(weight, parts=(*(name for name in inside if not _CELL.fullmatch(name)), role))
    return _describe_raw(path, weight, trained)


def _as_today(layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a layer of the configuration as today's Keras names it, also inside a wrapper."""
    name = re.sub(r"V[12]$", "", str(layer.get("class_name", "")))
    settings = dict(_settings_of(layer))
    if name.startswith("CuDNN"):
        name = name.removeprefix("CuDNN")
        settings |= {"use_bias": True, "reset_after": True}
    elif name == "GRU":
        settings.setdefault("reset_after", False)  # what the first versions of Keras 2 had, without the option
    if isinstance(settings.get("layer"), dict):
        settings["layer"] = _as_today(settings["layer"])
    return {**layer, "class_name": name, "config": settings}


def _stands_for(name: str, wanted: str) -> bool:
    """Return whether part of a variable's name means a part of a composite layer: ``forward_lstm`` -> forward."""
    return name == wanted or (wanted in ("forward", "backward") and name.startswith(f"{wanted}_"))


def _describe_raw(path: str, weight: ListedWeight, trained: bool) -> WeightDescription:
    layer = "/".join(part for part in (path, *weight.parts[:-1]) if part)
    entry = Entry(weight.role, weight.role, None)
    return WeightDescription(
        f"{layer}/{weight.role}" if layer else weight.role, layer, entry, trained and weight.role not in STATISTICS
    )


# Without a configuration


def _describe_by_names(
    layers: Sequence[ListedLayer], path: str, *, listed_in_order: bool, depth: int = 0
) -> Iterator[tuple[str, WeightDescription]]:
    """Yield descriptions from names and shapes alone.

    Keras 2 lists the weights inside a model with the trained ones first, so its layers aren't certainly in order:
    they are numbered only where their own numbers agree.
    """
    kinds = [_possible_kinds(layer) for layer in layers]
    made_up = [_made_up_kind(layer, possible) for layer, possible in zip(layers, kinds, strict=True)]
    unclear = set() if listed_in_order else set(_disordered(layers, made_up))
    present = {kind for kind in made_up if kind is not None}
    seen: Counter[str] = Counter()
    after = Counter(kind for kind in made_up if kind is not None)
    for layer, possible, kind in zip(layers, kinds, made_up, strict=True):
        inside = f"{path}{layer.name}"
        if kind is not None:
            inside = inside if kind in unclear else f"{path}{kind}/{seen[kind]}"
            after[kind] -= 1
            seen[kind] += 1
        elif possible:
            # A named layer takes a number too. Where its kind is open, a wrong guess shifts the numbers after it:
            # of one layer to a number that nothing has, but of several to each other's.
            seen[possible[0]] += 1
            open_kinds = {possible[0], *(other for other in possible if other in present)}
            unclear |= {other for other in open_kinds if len(open_kinds) > 1 and after[other] > 1}
        certain = kind if kind is not None else possible[0] if len(possible) == 1 else None
        yield from _describe_layer_by_names(layer, inside, certain, depth)


def _disordered(layers: Sequence[ListedLayer], kinds: Sequence[str | None]) -> Iterator[str]:
    last: dict[str, int] = {}
    for layer, kind in zip(layers, kinds, strict=True):
        if kind is not None:
            number = int(layer.name[len(_base(layer.name)) + 1 :] or 0)
            if number <= last.get(kind, -1):
                yield kind
            last[kind] = number


def _describe_layer_by_names(
    layer: ListedLayer, path: str, kind: str | None, depth: int
) -> Iterator[tuple[str, WeightDescription]]:
    if kind is not None:
        fake = _make_layer(kind, layer.weights)
        inner = {weight.parts[:-1] for weight in layer.weights}
        if kind == "time_distributed" and all(weight.inside for weight in layer.weights) and len(inner) == 1:
            # Around one layer: Keras 3 has that layer's name here, Keras 2 hasn't.
            flat = ListedLayer("", [replace(weight, parts=weight.parts[-1:]) for weight in layer.weights])
            possible = _possible_kinds(flat)
            yield from _describe_layer_by_names(flat, path, possible[0] if len(possible) == 1 else None, depth)
            return
        if kind == "time_distributed":
            layer = _drop_model_name(layer)
        else:
            for weight in layer.weights:
                described = _describe_in_layer(path, fake, weight, True)
                yield weight.key, _check_groups(described, kind, weight)
            return
    children: dict[str, list[ListedWeight]] = {}
    for weight in layer.weights:
        if len(weight.parts) == 1 or depth >= _DEPTH:
            yield weight.key, _describe_raw(path, weight, True)
        else:
            children.setdefault(weight.parts[0], []).append(replace(weight, parts=weight.parts[1:]))
    listed = [ListedLayer(name, weights) for name, weights in children.items()]
    yield from _describe_by_names(listed, f"{path}/" if path else "", listed_in_order=False, depth=depth + 1)


def _drop_model_name(layer: ListedLayer) -> ListedLayer:
    """Return a layer around a model without that model's name, which Keras 3 has in front of its layers' names."""
    first = {weight.parts[0] for weight in layer.weights}
    if len(first) == 1 and all(len(weight.parts) > 2 and not weight.inside for weight in layer.weights):
        return ListedLayer(layer.name, [replace(weight, parts=weight.parts[1:]) for weight in layer.weights])
    return layer


def _check_groups(described: WeightDescription, kind: str, weight: ListedWeight) -> WeightDescription:
    """Return a description without axes for a kernel that may be one channel's or one of many groups'."""
    if re.fullmatch(r"conv[123]d", kind) and weight.role == "kernel" and weight.shape[-2:-1] == (1,):
        return replace(described, entry=replace(described.entry, pattern=None))
    return described


def _make_layer(kind: str, weights: Iterable[ListedWeight]) -> Mapping[str, Any]:
    """Return a configuration that says of a layer what its arrays show."""
    if kind == "bidirectional":
        inner = [replace(weight, parts=weight.parts[-1:]) for weight in weights if _is_forward(weight)]
        possible = _possible_kinds(ListedLayer("", inner))
        cell = possible[0] if len(possible) == 1 else "rnn"
        return {"class_name": "Bidirectional", "config": {"layer": _make_layer(cell, inner)}}
    two = any(weight.role == "bias" and (len(weight.shape) == 2 or _is_cudnn(weight, weights)) for weight in weights)
    return {"class_name": _CLASS_OF.get(kind, kind), "config": {"use_bias": True, "reset_after": two, "bias_axes": ""}}


def _is_forward(weight: ListedWeight) -> bool:
    return any(_stands_for(name, "forward") for name in weight.parts[:-1])


def _is_cudnn(bias: ListedWeight, weights: Iterable[ListedWeight]) -> bool:
    recurrent = next((w.shape for w in weights if w.role == "recurrent_kernel"), ())
    return len(recurrent) == 2 and bias.shape == (2 * recurrent[1],)


def _made_up_kind(layer: ListedLayer, possible: tuple[str, ...]) -> str | None:
    """Return the kind of a layer whose name Keras made up, if its arrays don't contradict."""
    base = re.sub(r"_v[12]$", "", _base(layer.name))
    kind = _TODAY.get(base, base)
    # Of a depthwise convolution, Keras 3 calls the kernel so, as of any other.
    vague = kind in ("einsum_dense", "rnn", "time_distributed") or kind.startswith("depthwise_conv")
    fits = not possible or kind in possible or vague
    return kind if kind in _CLASS_OF and fits else None


def _possible_kinds(layer: ListedLayer) -> tuple[str, ...]:
    """Return the kinds of layer that have such arrays, the likeliest first; none if no usual one has."""
    inner = {weight.parts[:-1] for weight in layer.weights}
    parts = {name for parts in inner for name in parts[:1]}
    if parts and parts <= _ATTENTION:
        return ("multi_head_attention",)
    if parts and all(_stands_for(name, "forward") or _stands_for(name, "backward") for name in parts):
        return ("bidirectional",)
    if len(inner) != 1 or not all(_CELL.fullmatch(name) for name in next(iter(inner))):
        return ()
    roles = {weight.role: weight.shape for weight in layer.weights}
    kernel, bias = roles.get("kernel", ()), roles.get("bias")
    rank, names = len(kernel), roles.keys() - {"bias"}
    if names == {"kernel", "recurrent_kernel"}:
        return _recurrent_kinds(kernel, roles["recurrent_kernel"])
    if names == {"kernel"} and rank == 2 and (bias is None or bias == kernel[1:]):
        return ("dense",)
    if names == {"kernel"} and 3 <= rank <= 5:
        conv, transposed = f"conv{rank - 2}d", f"conv{rank - 2}d_transpose"
        if bias is None or kernel[-1] == kernel[-2]:
            return (conv, transposed, f"depthwise_{conv}", *(("einsum_dense",) if rank == 3 else ()))
        if bias == kernel[-1:]:
            return (conv,)
        # With one filter for each channel, a depthwise convolution's arrays are those of a transposed one.
        vague = (transposed, f"depthwise_{conv}") if kernel[-1] == 1 else (transposed,)
        return vague if bias == kernel[-2:-1] else ()
    if names == {"depthwise_kernel"}:
        return _if_known(f"depthwise_conv{len(roles['depthwise_kernel']) - 2}d")
    if names == {"depthwise_kernel", "pointwise_kernel"}:
        return _if_known(f"separable_conv{len(roles['depthwise_kernel']) - 2}d")
    if names == {"embeddings"} and bias is None and len(roles["embeddings"]) == 2:
        return ("embedding",)
    if {"moving_mean", "moving_variance"} <= roles.keys() <= {"gamma", "beta", "moving_mean", "moving_variance"}:
        return ("batch_normalization",)
    if names and names <= {"gamma", "beta"}:
        return ("layer_normalization", "group_normalization")
    if names == {"alpha"}:
        return ("p_re_lu",)
    return ()


def _if_known(kind: str) -> tuple[str, ...]:
    return (kind,) if kind in _CLASS_OF else ()


def _recurrent_kinds(kernel: Shape, recurrent: Shape) -> tuple[str, ...]:
    if len(kernel) != len(recurrent) or len(recurrent) < 2 or kernel[-1] != recurrent[-1] or not recurrent[-2]:
        return ()
    gates, rest = divmod(recurrent[-1], recurrent[-2])
    if len(recurrent) > 2:
        return _if_known(f"conv_lstm{len(recurrent) - 2}d") if (gates, rest) == (4, 0) else ()
    kind = {4: "lstm", 3: "gru", 1: "simple_rnn"}.get(gates)
    return (kind,) if kind is not None and not rest else ()
