"""The table of Keras 3's layers: what each calls its arrays, and what their axes are.

So a subclass of a built-in layer is read as that layer wherever its shapes still fit. A row's ``native`` is the
variable's own name (``add_weight(name=...)``).

Keras stores its arrays in the neutral order, with ``data_format="channels_first"`` too, so most patterns have no arrow.
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
# Kernels of which several values share a byte: what an index of their axes means is then no longer one weight.
PACKED = ("int4", "gptq", "awq")


@dataclass(frozen=True, slots=True)
class Inner:
    """A layer inside a composite one: where it is, its path inside, and its rows (None: those of its own type)."""

    layer: Any
    path: str = ""
    rows: Rows | None = None


def _none(layer: Any) -> tuple[()]:
    return ()


def _always(layer: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Spec:
    """What a type of layer holds.

    ``rows`` are its own variables in order, ``inners`` the layers inside that are named by this table and not by
    attribute, ``whole`` says that all of it counts as one layer, ``weighs`` that it will have weights once it is built.
    """

    rows: Callable[[Any], Rows] = _none
    inners: Callable[[Any], Iterable[Inner]] = _none
    whole: bool = False
    weighs: Callable[[Any], bool] = _always


def spec_of(layer: Any) -> Spec | None:
    """Return the row of the table for a layer's type or the nearest base of it, or None."""
    kind = type(layer)
    if kind not in _found:
        names = (base.__name__ for base in kind.__mro__ if base.__module__.partition(".")[0] == "keras")
        _found[kind] = next((TABLE[name] for name in names if name in TABLE), None)
    return _found[kind]


_found: dict[type[Any], Spec | None] = {}


def entries(*rows: tuple[str, str | None], gates: tuple[str, ...] | None = None) -> Rows:
    """Return rows whose neutral name is the variable's own."""
    return tuple(Entry(name, name, pattern, gates=gates) for name, pattern in rows)


def _fixed(*rows: tuple[str, str | None], gates: tuple[str, ...] | None = None) -> Spec:
    made = entries(*rows, gates=gates)
    return Spec(lambda layer: made)


def _is_packed(layer: Any) -> bool:
    return getattr(layer, "quantization_mode", None) in PACKED


# Dense and its kin. The float8 histories and the scales of packed kernels have no axes that mean anything elsewhere.


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
    # What is summed over stands in the kernel and not in the output: no name says it.
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


def _norm(*names: str) -> Spec:
    def rows(layer: Any) -> Rows:
        pattern = norm_pattern(layer)
        return entries(*[(name, pattern) for name in names])

    return Spec(rows)


def norm_pattern(layer: Any) -> str | None:
    """Return the pattern of a norm's arrays: ``channel`` for one axis, the input's own axes for several."""
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
    return feature_pattern(rank, [one % rank for one in axis])


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
    # vector_u belongs to the last axis of the inner kernel; Keras keeps it as one row.
    inner = spec_of(layer.layer)
    rows = () if inner is None else inner.rows(layer.layer)
    pattern = next((row.pattern for row in rows if row.native in ("kernel", "embeddings")), None)
    return entries(("vector_u", f"1 {pattern.split()[-1]}" if pattern else None))


# Recurrent layers. The cell inside is an attribute of the implementation and no part of the name.


def _cell(gates: tuple[str, ...] | None) -> Spec:
    def rows(layer: Any) -> Rows:
        bias = getattr(layer, "bias", None)
        # A GRU with reset_after keeps two biases: for the input's side and for the recurrent one.
        two = bias is not None and len(bias.shape) == 2
        return entries(
            ("kernel", "in gate*unit"),
            ("recurrent_kernel", "unit gate*unit"),
            ("bias", "side gate*unit" if two else "gate*unit"),
            gates=gates,
        )

    return Spec(rows)


def _conv_lstm_cell(layer: Any) -> Rows:
    space = SPATIAL[layer.rank]
    return entries(
        ("kernel", f"{space} in gate*unit"),
        ("recurrent_kernel", f"{space} unit gate*unit"),
        ("bias", "gate*unit"),
        gates=LSTM_GATES,
    )


def _at(*places: tuple[str, str]) -> Callable[[Any], Iterator[Inner]]:
    """Return the inner layers at these attributes, under these paths."""

    def inners(layer: Any) -> Iterator[Inner]:
        for attribute, path in places:
            inner = getattr(layer, attribute, None)
            if inner is not None:
                yield Inner(inner, path)

    return inners


def _stacked(layer: Any) -> Iterator[Inner]:
    for position, cell in enumerate(layer.cells):
        yield Inner(cell, f"l{position}")


def _by_inner(layer: Any) -> bool:
    return False  # what is inside says it


_RNN = Spec(inners=_at(("cell", "")), whole=True, weighs=lambda layer: not getattr(layer.cell, "built", True))
_WRAPPER = Spec(inners=_at(("layer", "")), weighs=_by_inner)


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


_ATTENTION = Spec(inners=_attention, whole=True)
_BATCH = ("gamma", "beta", "moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")

TABLE: dict[str, Spec] = {
    "Dense": Spec(_dense),
    "EinsumDense": Spec(_einsum),
    "Embedding": Spec(_embedding),
    "BaseConv": Spec(_conv),
    "BaseConvTranspose": Spec(_conv_transpose),
    "BaseDepthwiseConv": Spec(_depthwise),
    "BaseSeparableConv": Spec(_separable),
    "BatchNormalization": _norm(*_BATCH),
    "LayerNormalization": _norm("gamma", "beta"),
    "GroupNormalization": _norm("gamma", "beta"),
    "RMSNormalization": _norm("scale"),
    "Normalization": Spec(_normalization, weighs=lambda layer: layer.input_mean is None),
    "SpectralNormalization": Spec(_spectral, _at(("layer", ""))),
    "PReLU": Spec(_prelu),
    "SimpleRNNCell": _cell(None),
    "LSTMCell": _cell(LSTM_GATES),
    "GRUCell": _cell(GRU_GATES),
    "ConvLSTMCell": Spec(_conv_lstm_cell),
    "RNN": _RNN,
    "StackedRNNCells": Spec(inners=_stacked, whole=True, weighs=_by_inner),
    "Bidirectional": Spec(
        inners=_at(("forward_layer", "forward"), ("backward_layer", "backward")),
        whole=True,
        weighs=lambda layer: not layer.forward_layer.built,
    ),
    "Wrapper": _WRAPPER,
    "MultiHeadAttention": _ATTENTION,
    "GroupedQueryAttention": _ATTENTION,
    "Attention": Spec(lambda layer: entries(("scale", ""), ("concat_score_weight", "")), weighs=_has_scale),
    "AdditiveAttention": Spec(lambda layer: entries(("scale", "in")), weighs=lambda layer: bool(layer.use_scale)),
    "STFTSpectrogram": _fixed(("real_kernel", "t in out"), ("imag_kernel", "t in out")),
}
