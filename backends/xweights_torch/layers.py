"""Table of layer types: layer type -> parameter -> role and axes.

A row has a layer's own name of an array, its neutral path inside the layer (the last part is the role) and its axes,
stored order -> neutral order. A parameter or module without a row keeps torch's name and order, and its axes are
unknown. The layers of other packages are in the folder ``tables``, and users can declare their own.

Meaning of the axes where it isn't obvious:

* Convolutions with groups: ``in`` counts the input channels *of one group*, as in Keras; ``out`` all output channels.
  One group per channel is a depthwise convolution: ``(h, w, in, mult)``, where ``out = in * mult``.
* Transposed convolutions with groups have no counterpart in Keras. Their axes are ``(h, w, group, out, in)``, where
  ``out`` and ``in`` count within a group: an output channel is ``per=("group", "out")``.
* LayerNorm and RMSNorm over 3 (4) axes are taken for torch's image order (channel, [d,] h, w). Over 2 axes it is
  unknown whether the first or the last are the channels, so their axes are unknown.
* A recurrent layer with ``proj_size`` feeds back its projection: ``recurrent_kernel`` is ``(proj, gate*unit)``.
* A simple RNN has one gate, so no ``gates``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from xweights.core.layer_rows import LayerRows, declared_rows, on_change, read_size
from xweights.core.layer_table import Entry
from xweights_torch.tables import layer_rows_of

Rows = tuple[Entry, ...]
Config = tuple[Hashable, ...]

LSTM_GATES = ("i", "f", "c", "o")  # torch's papers call c g
GRU_GATES = ("r", "z", "h")  # and h n
QKV = ("query", "key", "value")

_SPACE = {1: "t", 2: "h w", 3: "d h w"}


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Rows of one layer type, and the attributes of a module that they depend on."""

    rows: Callable[..., Rows]
    reads: tuple[str, ...] = ()

    def config(self, module: nn.Module) -> Config | None:
        """Return the settings that this module's rows depend on (not shapes); None for a subclass that lacks them."""
        if not self.reads:
            return ()
        try:
            values = tuple([getattr(module, name) for name in self.reads])
            hash(values)
        except (AttributeError, TypeError):
            return None
        return values


def _fixed_rows(*rows: Entry) -> LayerSpec:
    return LayerSpec(lambda: rows)


_OUT_BIAS = Entry("bias", "bias", "out")


def _conv(space: int, groups: int, channels: int) -> Rows:
    axes = _SPACE[space]
    if groups == channels > 1:
        return (
            Entry("weight", "kernel", f"(in mult) 1 {axes} -> {axes} in mult", {"in": channels}),
            _OUT_BIAS,
        )
    return (Entry("weight", "kernel", f"out in {axes} -> {axes} in out"), _OUT_BIAS)


def _conv_transpose(space: int, groups: int) -> Rows:
    axes = _SPACE[space]
    if groups == 1:
        return (Entry("weight", "kernel", f"in out {axes} -> {axes} out in"), _OUT_BIAS)
    pattern = f"(group in) out {axes} -> {axes} group out in"
    return (Entry("weight", "kernel", pattern, {"group": groups}), _OUT_BIAS)


def _norm(scale: str) -> Callable[[tuple[int, ...]], Rows]:
    patterns = {1: "channel", 3: "channel h w -> h w channel", 4: "channel d h w -> d h w channel"}

    def rows(normalized_shape: tuple[int, ...]) -> Rows:
        pattern = patterns.get(len(normalized_shape))
        return (Entry("weight", scale, pattern), Entry("bias", "beta", pattern))

    return rows


def _recurrent(gates: tuple[str, ...] | None, suffix: str, path: str, feedback: str = "unit") -> Rows:
    # torch stores (gate*unit, in): one transposition, and the gates keep their order.
    return (
        Entry(f"weight_ih{suffix}", f"{path}kernel", "gate*unit in -> in gate*unit", gates=gates),
        Entry(
            f"weight_hh{suffix}",
            f"{path}recurrent_kernel",
            f"gate*unit {feedback} -> {feedback} gate*unit",
            gates=gates,
        ),
        Entry(f"bias_ih{suffix}", f"{path}bias", "gate*unit", gates=gates),
        Entry(f"bias_hh{suffix}", f"{path}recurrent_bias", "gate*unit", gates=gates),
    )


def _recurrent_stack(gates: tuple[str, ...] | None) -> LayerSpec:
    def rows(layers: int, bidirectional: bool, proj_size: int) -> Rows:
        entries: list[Entry] = []
        for layer in range(layers):
            for direction in ("", "_reverse") if bidirectional else ("",):
                suffix, path = f"_l{layer}{direction}", f"l{layer}{direction}/"
                entries += _recurrent(gates, suffix, path, "proj" if proj_size else "unit")
                if proj_size:
                    entries.append(Entry(f"weight_hr{suffix}", f"{path}projection_kernel", "proj unit -> unit proj"))
        return tuple(entries)

    return LayerSpec(rows, ("num_layers", "bidirectional", "proj_size"))


def _attention(heads: int) -> Rows:
    split = {"head": heads}
    separate = tuple(
        Entry(f"{name[0]}_proj_weight", f"{name}/kernel", f"(head {last}) in -> in head {last}", split)
        for name, last in (("query", "key"), ("key", "key"), ("value", "value"))
    )
    return (
        Entry("in_proj_weight", "qkv/kernel", "(qkv head key) in -> in qkv head key", {"qkv": 3, **split}, QKV),
        *separate,
        # Packed even where the three kernels are separate.
        Entry("in_proj_bias", "qkv/bias", "(qkv head key)", {"qkv": 3, **split}, QKV),
        Entry("bias_k", "bias_k", "1 1 (head key)", split),
        Entry("bias_v", "bias_v", "1 1 (head value)", split),
        Entry("out_proj.weight", "attention_output/kernel", "out (head value) -> head value out", split),
        Entry("out_proj.bias", "attention_output/bias", "out"),
    )


_STATISTICS = (
    Entry("weight", "gamma", "channel"),
    Entry("bias", "beta", "channel"),
    Entry("running_mean", "moving_mean", "channel"),
    Entry("running_var", "moving_variance", "channel"),
    Entry("num_batches_tracked", "num_batches_tracked", ""),
)
_EMBEDDINGS = _fixed_rows(Entry("weight", "embeddings", "vocab dim"))


def _conv_spec(space: int) -> LayerSpec:
    return LayerSpec(lambda groups, channels: _conv(space, groups, channels), ("groups", "in_channels"))


def _conv_transpose_spec(space: int) -> LayerSpec:
    return LayerSpec(lambda groups: _conv_transpose(space, groups), ("groups",))


# Lazy layers, SyncBatchNorm and the like are subclasses of these and need no rows of their own. Transformer layers,
# AdaptiveLogSoftmaxWithLoss and other containers are made of them.
LAYERS: dict[type[nn.Module], LayerSpec] = {
    nn.Linear: _fixed_rows(Entry("weight", "kernel", "out in -> in out"), _OUT_BIAS),
    nn.Bilinear: _fixed_rows(Entry("weight", "kernel", "out in1 in2 -> in1 in2 out"), _OUT_BIAS),
    nn.Conv1d: _conv_spec(1),
    nn.Conv2d: _conv_spec(2),
    nn.Conv3d: _conv_spec(3),
    nn.ConvTranspose1d: _conv_transpose_spec(1),
    nn.ConvTranspose2d: _conv_transpose_spec(2),
    nn.ConvTranspose3d: _conv_transpose_spec(3),
    nn.Embedding: _EMBEDDINGS,
    nn.EmbeddingBag: _EMBEDDINGS,
    _NormBase: _fixed_rows(*_STATISTICS),
    nn.GroupNorm: _fixed_rows(Entry("weight", "gamma", "channel"), Entry("bias", "beta", "channel")),
    nn.LayerNorm: LayerSpec(_norm("gamma"), ("normalized_shape",)),
    nn.RMSNorm: LayerSpec(_norm("scale"), ("normalized_shape",)),
    nn.PReLU: _fixed_rows(Entry("weight", "alpha", "channel")),
    nn.RNN: _recurrent_stack(None),
    nn.LSTM: _recurrent_stack(LSTM_GATES),
    nn.GRU: _recurrent_stack(GRU_GATES),
    nn.RNNCell: _fixed_rows(*_recurrent(None, "", "")),
    nn.LSTMCell: _fixed_rows(*_recurrent(LSTM_GATES, "", "")),
    nn.GRUCell: _fixed_rows(*_recurrent(GRU_GATES, "", "")),
    nn.MultiheadAttention: LayerSpec(_attention, ("num_heads",)),
}


@dataclass(frozen=True, slots=True)
class DeclaredSpec:
    """Rows that somebody declared for a type; their sizes are read from the module."""

    declared: LayerRows

    def config(self, module: nn.Module) -> Config:
        """Return the sizes that the rows depend on."""
        return tuple([read_size(module, size) for size in self.declared.sizes.values()])

    def rows(self, *lengths: Any) -> Rows:
        """Return the rows for these sizes."""
        return self.declared.entries_of(lengths)


@dataclass(frozen=True, slots=True)
class MergedSpec:
    """The specs of a class and its bases, nearest first: the first row for an attribute counts."""

    parts: tuple[LayerSpec | DeclaredSpec, ...]

    def config(self, module: nn.Module) -> Config:
        """Return the settings of each part."""
        return tuple([part.config(module) for part in self.parts])

    def rows(self, *configs: Any) -> Rows:
        """Return the rows of all parts that apply."""
        found: dict[str, Entry] = {}
        for part, config in zip(self.parts, configs, strict=True):
            if config is not None:
                for row in part.rows(*config):
                    found.setdefault(row.native, row)
        return tuple(found.values())


Spec = LayerSpec | DeclaredSpec | MergedSpec


@lru_cache(maxsize=4096)
def spec_of(cls: type[Any]) -> Spec | None:
    """Return the rows of a class: what was declared of it and its bases, torch's own layers, those of packages."""
    parts: list[LayerSpec | DeclaredSpec] = []
    parts += [DeclaredSpec(declared) for base in cls.__mro__ if (declared := declared_rows(base)) is not None]
    parts += [LAYERS[base] for base in cls.__mro__ if base in LAYERS][:1]
    parts += [DeclaredSpec(found) for base in cls.__mro__ if (found := layer_rows_of(base)) is not None]
    return MergedSpec(tuple(parts)) if len(parts) > 1 else next(iter(parts), None)


@lru_cache(maxsize=4096)
def rows_of(cls: Any, config: Config) -> Mapping[str, Entry]:
    """Return the rows of a layer by torch's names; none for an unknown one."""
    spec = spec_of(cls)
    return {} if spec is None else {row.native: row for row in spec.rows(*config)}


def _forget() -> None:
    spec_of.cache_clear()
    rows_of.cache_clear()


on_change(_forget)
