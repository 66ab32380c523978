"""The table of Keras 3's layers: the names of each layer's arrays, and their axes.

A subclass of a built-in layer is read as that layer wherever its shapes still fit. A row's ``native`` is the variable's
own name (``add_weight(name=...)``).

Keras stores arrays in the neutral order, also with ``data_format="channels_first"``, so most patterns have no arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from xweights.core.layer_table import Entry

Rows = tuple[Entry, ...]

SPATIAL = {1: "t", 2: "h w", 3: "d h w"}
# Gates as Keras packs them: input, forget, candidate, output; update, reset, candidate.
LSTM_GATES = ("i", "f", "c", "o")
GRU_GATES = ("z", "r", "h")
# Kernels with several values to a byte: an index of their axes no longer means one weight.
PACKED = ("int4", "gptq", "awq")


@dataclass(frozen=True, slots=True)
class Inner:
    """A layer inside a composite one, its path there, and its rows (None: those of its own type)."""

    layer: Any
    path: str = ""
    rows: Rows | None = None


def _none(layer: Any) -> tuple[()]:
    return ()


def _always(layer: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The contents of a type of layer.

    ``rows`` are its own variables in order, and ``inners`` the inner layers that are named by this table and not by
    attribute. ``whole``: all of it counts as one layer. ``has_weights``: it will have some once it is built.
    """

    rows: Callable[[Any], Rows] = _none
    inners: Callable[[Any], Iterable[Inner]] = _none
    whole: bool = False
    has_weights: Callable[[Any], bool] = _always


def spec_of(layer: Any) -> LayerSpec | None:
    """Return the row of the table for a layer's type or its nearest base class, or None."""
    kind = type(layer)
    if kind not in _specs:
        names = (base.__name__ for base in kind.__mro__ if base.__module__.partition(".")[0] == "keras")
        _specs[kind] = next((TABLE[name] for name in names if name in TABLE), None)
    return _specs[kind]


_specs: dict[type[Any], LayerSpec | None] = {}


def entries(*rows: tuple[str, str | None], gates: tuple[str, ...] | None = None) -> Rows:
    """Return rows whose neutral name is the variable's own."""
    return tuple(Entry(name, name, pattern, gates=gates) for name, pattern in rows)


def _fixed_spec(*rows: tuple[str, str | None], gates: tuple[str, ...] | None = None) -> LayerSpec:
    fixed = entries(*rows, gates=gates)
    return LayerSpec(lambda layer: fixed)


def _is_packed(layer: Any) -> bool:
    return getattr(layer, "quantization_mode", None) in PACKED


# Dense and related layers. Float8 histories and the scales of packed kernels have no axes with a meaning elsewhere.


def _dense(layer: Any) -> Rows:
    return entries(
        ("kernel", None if _is_packed(layer) else "in out"),
        ("bias", "out"),
        ("lora_kernel_a", "in rank"),
        ("lora_kernel_b", "rank out"),
        ("kernel_scale", None if _is_packed(layer) else "out"),
    )


def _einsum(layer: Any) -> Rows:
    inputs, _, output = layer.equation.partition("->")
    letters = inputs.partition(",")[2]
    if not letters.isalpha():
        return entries(("kernel", None), ("bias", None))
    bias = getattr(layer, "bias", None)
    # The bias is broadcast against the end of the output, and has length 1 where the equation's bias_axes leave a gap.
    rank = 0 if bias is None else len(bias.shape)
    rows = entries(
        ("kernel", None if _is_packed(layer) else " ".join(letters)),
        ("bias", " ".join(output[-rank:]) if rank and output[-rank:].isalpha() else None),
        ("lora_kernel_a", " ".join([*letters[:-1], "rank"])),
        ("lora_kernel_b", f"rank {letters[-1]}"),
        ("kernel_scale", None),
    )
    # The letters that are summed over are in the kernel and not in the output: their names don't show it.
    kept = tuple(letter for letter in letters if letter in output)
    return tuple(replace(row, outputs=kept) if row.name == "kernel" else row for row in rows)


def _embedding(layer: Any) -> Rows:
    packed = _is_packed(layer)
    return entries(
        ("embeddings", None if packed else "vocab dim"),
        ("reverse_embeddings", None if packed else "dim vocab"),
        ("lora_embeddings_a", "vocab rank"),
        ("lora_embeddings_b", "rank dim"),
        ("embeddings_scale", None if packed else "vocab"),
        ("reverse_embeddings_scale", None if packed else "vocab"),
    )


# Convolutions


def _conv(layer: Any) -> Rows:
    space = SPATIAL[layer.rank]
    kernel = Entry("kernel", "kernel", f"{space} in out")
    if layer.groups > 1 and layer.kernel is not None and layer.kernel.shape[-2] == 1:
        # One group per channel: the depthwise convolution, which DepthwiseConv stores with two axes instead of one.
        kernel = Entry("kernel", "kernel", f"{space} 1 (in mult) -> {space} in mult", {"in": layer.groups})
    return kernel, *entries(
        ("bias", "out"),
        ("lora_kernel_a", f"{space} in rank"),
        ("lora_kernel_b", "rank out"),
    )


def _conv_transpose(layer: Any) -> Rows:
    return entries(("kernel", f"{SPATIAL[layer.rank]} out in"), ("bias", "out"))


def _depthwise(layer: Any) -> Rows:
    return entries(("kernel", f"{SPATIAL[layer.rank]} in mult"), ("bias", "out"))


def _separable(layer: Any) -> Rows:
    space = SPATIAL[layer.rank]
    return entries(("depthwise_kernel", f"{space} in mult"), ("pointwise_kernel", f"{space} in out"), ("bias", "out"))


# Norms. Their arrays have one axis for each normalised axis of the input.


def _norm_spec(*names: str) -> LayerSpec:
    def rows(layer: Any) -> Rows:
        pattern = norm_pattern(layer)
        return entries(*[(name, pattern) for name in names])

    return LayerSpec(rows)


def norm_pattern(layer: Any) -> str | None:
    """Return the pattern of a norm's arrays: ``channel`` for one axis, the axes of the input for several."""
    axis = layer.axis
    if axis is None:
        return ""
    axis = [axis] if isinstance(axis, int) else list(axis)
    if len(axis) == 1:
        return "channel"
    shape = (layer.get_build_config() or {}).get("input_shape")
    if shape is None:
        return None
    rank = len(shape)
    return feature_pattern(rank, [index % rank for index in axis])


def feature_pattern(rank: int, axes: list[int]) -> str | None:
    """Return the pattern for an array over these axes of an input, such as ``channel h w -> h w channel``."""
    space = SPATIAL.get(rank - 2, "").split()
    if (rank > 2 and not space) or 0 in axes:
        return None
    last = ["batch", *space, "channel"]
    import keras

    channels_first = keras.config.image_data_format() == "channels_first" and space
    order = ["batch", "channel", *space] if channels_first else last
    stored = [order[axis] for axis in axes]
    return f"{' '.join(stored)} -> {' '.join(sorted(stored, key=last.index))}"


def _normalization(layer: Any) -> Rows:
    pattern = norm_pattern(layer)
    return entries(("mean", pattern), ("variance", pattern), ("count", ""))


def _prelu(layer: Any) -> Rows:
    alpha = getattr(layer, "alpha", None)
    if alpha is None:
        return ()
    rank = len(alpha.shape) + 1
    return entries(("alpha", feature_pattern(rank, list(range(1, rank)))))


def _spectral(layer: Any) -> Rows:
    # vector_u belongs to the last axis of the inner kernel; Keras stores it as one row.
    inner = spec_of(layer.layer)
    rows = () if inner is None else inner.rows(layer.layer)
    pattern = next((row.pattern for row in rows if row.native in ("kernel", "embeddings")), None)
    return entries(("vector_u", f"1 {pattern.split()[-1]}" if pattern else None))


# Recurrent layers. The inner cell is a detail of the implementation and not a part of the name.


def _cell_spec(gates: tuple[str, ...] | None) -> LayerSpec:
    def rows(layer: Any) -> Rows:
        bias = getattr(layer, "bias", None)
        # A GRU with reset_after has two biases: one for the input and one for the recurrent state.
        two = bias is not None and len(bias.shape) == 2
        return entries(
            ("kernel", "in gate*unit"),
            ("recurrent_kernel", "unit gate*unit"),
            ("bias", "side gate*unit" if two else "gate*unit"),
            gates=gates,
        )

    return LayerSpec(rows)


def _conv_lstm_cell(layer: Any) -> Rows:
    space = SPATIAL[layer.rank]
    return entries(
        ("kernel", f"{space} in gate*unit"),
        ("recurrent_kernel", f"{space} unit gate*unit"),
        ("bias", "gate*unit"),
        gates=LSTM_GATES,
    )


def _inners_at(*attributes: tuple[str, str]) -> Callable[[Any], Iterator[Inner]]:
    """Return a function that yields the inner layers at these attributes, with their paths."""

    def inners(layer: Any) -> Iterator[Inner]:
        for attribute, path in attributes:
            inner = getattr(layer, attribute, None)
            if inner is not None:
                yield Inner(inner, path)

    return inners


def _stack_inners(layer: Any) -> Iterator[Inner]:
    for position, cell in enumerate(layer.cells):
        yield Inner(cell, f"l{position}")


def _never(layer: Any) -> bool:
    return False  # the inner layer decides


_RNN = LayerSpec(
    inners=_inners_at(("cell", "")), whole=True, has_weights=lambda layer: not getattr(layer.cell, "built", True)
)
_WRAPPER = LayerSpec(inners=_inners_at(("layer", "")), has_weights=_never)


# Attention


def _attention(layer: Any) -> Iterator[Inner]:
    for attribute, path, axes, bias_axes in (
        ("_query_dense", "query", "in head key", "head key"),
        ("_key_dense", "key", "in head key", "head key"),
        ("_value_dense", "value", "in head value", "head value"),
        ("_gate_dense", "gate", "in head value", "head value"),
        ("_output_dense", "attention_output", "head value out", "out"),
    ):
        inner = getattr(layer, attribute, None)
        if inner is None:
            continue
        kernel, bias = axes, bias_axes
        if path == "attention_output" and len(inner.kernel.shape) > 3:
            # output_shape= gave the result several axes
            bias = " ".join(f"out{i}" for i in range(len(inner.kernel.shape) - 2))
            kernel = f"head value {bias}"
        names = kernel.split()
        rows = entries(
            ("kernel", None if _is_packed(inner) else kernel),
            ("bias", bias),
            ("lora_kernel_a", " ".join([*names[:-1], "rank"])),
            ("lora_kernel_b", f"rank {names[-1]}"),
            ("kernel_scale", None),
        )
        yield Inner(inner, path, rows)


def _has_scale(layer: Any) -> bool:
    return bool(layer.use_scale) or getattr(layer, "score_mode", "dot") == "concat"


_ATTENTION = LayerSpec(inners=_attention, whole=True)
_BATCH = ("gamma", "beta", "moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")

TABLE: dict[str, LayerSpec] = {
    "Dense": LayerSpec(_dense),
    "EinsumDense": LayerSpec(_einsum),
    "Embedding": LayerSpec(_embedding),
    "BaseConv": LayerSpec(_conv),
    "BaseConvTranspose": LayerSpec(_conv_transpose),
    "BaseDepthwiseConv": LayerSpec(_depthwise),
    "BaseSeparableConv": LayerSpec(_separable),
    "BatchNormalization": _norm_spec(*_BATCH),
    "LayerNormalization": _norm_spec("gamma", "beta"),
    "GroupNormalization": _norm_spec("gamma", "beta"),
    "RMSNormalization": _norm_spec("scale"),
    "Normalization": LayerSpec(_normalization, has_weights=lambda layer: layer.input_mean is None),
    "SpectralNormalization": LayerSpec(_spectral, _inners_at(("layer", ""))),
    "PReLU": LayerSpec(_prelu),
    "SimpleRNNCell": _cell_spec(None),
    "LSTMCell": _cell_spec(LSTM_GATES),
    "GRUCell": _cell_spec(GRU_GATES),
    "ConvLSTMCell": LayerSpec(_conv_lstm_cell),
    "RNN": _RNN,
    "StackedRNNCells": LayerSpec(inners=_stack_inners, whole=True, has_weights=_never),
    "Bidirectional": LayerSpec(
        inners=_inners_at(("forward_layer", "forward"), ("backward_layer", "backward")),
        whole=True,
        has_weights=lambda layer: not layer.forward_layer.built,
    ),
    "Wrapper": _WRAPPER,
    "MultiHeadAttention": _ATTENTION,
    "GroupedQueryAttention": _ATTENTION,
    "Attention": LayerSpec(lambda layer: entries(("scale", ""), ("concat_score_weight", "")), has_weights=_has_scale),
    "AdditiveAttention": LayerSpec(
        lambda layer: entries(("scale", "in")), has_weights=lambda layer: bool(layer.use_scale)
    ),
    "STFTSpectrogram": _fixed_spec(("real_kernel", "t in out"), ("imag_kernel", "t in out")),
}
