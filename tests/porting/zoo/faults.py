"""Faults of a careless port, injected into the torch twin of a correctly ported pair."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Fault:
    """A fault; ``layers`` and ``words`` are the locations and causes that a report may name."""

    kind: str
    layers: tuple[str, ...]
    words: tuple[str, ...]
    inject: Callable[[], None]

    @property
    def word(self) -> str:
        """The first of the causes."""
        return self.words[0]

    def shows_at(self, layer: str) -> bool:
        """Return True if a report may name this layer."""
        return any(layer == path or layer.startswith(f"{path}/") or not path for path in self.layers)

    @contextlib.contextmanager
    def injecting(self, module) -> Iterator[None]:
        """Inject the fault into the module, and restore the module afterwards."""
        state = {name: value.clone() for name, value in module.state_dict().items()}
        settings = [(part, dict(part.__dict__), dict(part._modules)) for part in module.modules()]
        # Those that aren't saved, too.
        buffers = {name: value.clone() for name, value in module.named_buffers()}
        try:
            with torch.no_grad():
                self.inject()
            yield
        finally:
            for part, former, parts in settings:
                part.__dict__.update(former)
                part._modules.update(parts)
            module.load_state_dict(state)
            for name, value in module.named_buffers():
                value.copy_(buffers[name])


def set_tensor(tensor, value):
    """Write a value that may be made of the tensor itself."""
    tensor.copy_(value.clone())


def faults_in(module) -> Iterator[Fault]:
    """Yield every fault that can be injected into a module, each at one layer."""
    named = [
        (name, layer) for name, layer in module.named_modules() if not name.endswith(("out_proj", "parametrizations"))
    ]
    # Reports write paths with slashes, and a tied weight is named after its first path.
    tied = {id(p): name.replace(".", "/").rpartition("/")[0] for name, p in module.named_parameters()}
    named = [(tied.get(id(getattr(layer, "weight", None)), name.replace(".", "/")), layer) for name, layer in named]
    for name, layer in named:
        yield from _in_layer(name, layer)
    for (first, layer), (second, other) in itertools.combinations(named, 2):
        alike = type(layer) is type(other) and type(layer) in (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)
        if alike and layer.weight is not other.weight and layer.weight.shape == other.weight.shape:
            both = (first, second)
            yield Fault("layers of equal shape swapped", both, ("pairing",), lambda a=layer, b=other: _swap(a, b))
    yield from _flattened(named)
    yield from _padding(module, dict(named))


def _flattened(named) -> Iterator[Fault]:
    """Yield the fault of dense rows behind an image that are copied without reordering."""
    channels = 0
    for name, layer in named:
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            channels = layer.out_channels
        elif isinstance(layer, nn.Linear) and channels and layer.in_features % channels == 0:
            positions = layer.in_features // channels

            def misorder(weight=layer.weight, channels=channels, positions=positions):
                set_tensor(weight, weight.reshape(-1, channels, positions).transpose(1, 2).reshape(weight.shape))

            if positions > 1:
                yield Fault("flattened the other way", (name,), ("flatten",), misorder)
            channels = 0


def _padding(module, named) -> Iterator[Fault]:
    """Yield the fault of half the padding on each side, where the other framework pads at the end."""
    forward = getattr(module, "_forward", None)
    first = named.get("a")
    if forward is None or getattr(first, "stride", None) != (2, 2):
        return

    def inject():
        first.padding = (1, 1)
        if isinstance(first, nn.ConvTranspose2d):
            first.output_padding = (1, 1)
        module._forward = lambda m, x: m.b(m.a(x))

    yield Fault("padding symmetric", ("a", "b"), ("padding",), inject)


def _swap(a, b):
    state_a, state_b = ({k: v.clone() for k, v in m.state_dict().items()} for m in (a, b))
    a.load_state_dict(state_b)
    b.load_state_dict(state_a)


def _in_layer(name, layer) -> Iterator[Fault]:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    where = (name,)
    if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)) and isinstance(weight, nn.Parameter):
        if bias is not None and bias.any():
            yield Fault("bias dropped", where, ("bias",), lambda: bias.zero_())
        if weight.shape[0] == weight.shape[1] and weight.shape[0] > 1:
            transpose = lambda: set_tensor(weight, weight.transpose(0, 1))  # noqa: E731
            yield Fault("square kernel transposed", where, ("transposed",), transpose)
        yield Fault("kernel scaled by 1.01", where, ("scaled", "weights"), lambda: weight.mul_(1.01))
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        height, width = weight.shape[2:]
        if height == width > 1:
            exchange = lambda: set_tensor(weight, weight.transpose(2, 3))  # noqa: E731
            yield Fault("height and width exchanged", where, ("transposed",), exchange)
            yield Fault("kernel flipped", where, ("transposed",), lambda: set_tensor(weight, weight.flip(2, 3)))
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
        larger = 1e-3 if layer.eps < 1e-4 else 1e-5
        yield Fault("wrong eps", where, ("eps",), lambda: setattr(layer, "eps", larger))
        if weight is not None:
            yield Fault("gamma left at one", where, ("weights", "scaled"), lambda: weight.fill_(1.0))
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        mean, variance = layer.running_mean, layer.running_var
        yield Fault("statistics left at their start", where, ("weights",), lambda: (mean.zero_(), variance.fill_(1.0)))
    if isinstance(layer, nn.GELU):
        other = "tanh" if layer.approximate == "none" else "none"
        yield Fault(
            "gelu of the other kind", (name, *_next(name)), ("activation",), lambda: _put(layer, "approximate", other)
        )
    if isinstance(layer, nn.LeakyReLU):
        yield Fault(
            "slope of the other framework",
            (name, *_next(name)),
            ("activation",),
            lambda: _put(layer, "negative_slope", 0.01),
        )
    if isinstance(layer, nn.RNNBase) and layer.mode in ("LSTM", "GRU"):
        yield from _gates(name, layer)
    if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
        yield from _heads(name, layer)


def _put(module, name, value):
    setattr(module, name, value)


def _next(name: str) -> tuple[str, ...]:
    return (str(int(name) + 1),) if name.isdigit() else ()


def _gates(name, rnn) -> Iterator[Fault]:
    count = 4 if rnn.mode == "LSTM" else 3
    for part in [key.removeprefix("weight_ih_") for key in rnn._parameters if key.startswith("weight_ih")]:
        for a, b in itertools.combinations(range(count), 2):
            order = list(range(count))
            order[a], order[b] = b, a

            def swap(part=part, order=order):
                for key in (f"weight_ih_{part}", f"weight_hh_{part}", f"bias_ih_{part}", f"bias_hh_{part}"):
                    tensor = getattr(rnn, key, None)
                    if tensor is not None:
                        set_tensor(tensor, torch.cat([tensor.chunk(count)[gate] for gate in order]))

            # Inside one module that runs several layers only its output can be seen.
            yield Fault("gates swapped", (f"{name}/{part}", name), ("gates",), swap)
    if rnn.bias and rnn.mode == "LSTM":
        both = lambda: set_tensor(rnn.bias_hh_l0, rnn.bias_ih_l0)  # noqa: E731
        yield Fault("one bias put into both", (f"{name}/l0", name), ("weights", "scaled", "bias"), both)


def _heads(name, attention) -> Iterator[Fault]:
    size, heads = attention.embed_dim, attention.num_heads
    weight = attention.in_proj_weight

    def permute(part):
        block = weight[part * size : (part + 1) * size]
        set_tensor(block, block.reshape(heads, -1, block.shape[1]).flip(0).reshape(block.shape))

    for part, key in enumerate(("query", "key", "value")):
        where = (f"{name}/{key}", f"{name}/attention_output", name)
        yield Fault("heads permuted", where, ("heads", "gates"), lambda part=part: permute(part))
    if not attention.batch_first:
        return
    order = [np.arange(size), np.arange(2 * size, 3 * size), np.arange(size, 2 * size)]
    rows = torch.from_numpy(np.concatenate(order))
    where = (f"{name}/key", f"{name}/value", f"{name}/attention_output", name)
    yield Fault("key and value exchanged", where, ("pairing",), lambda: set_tensor(weight, weight[rows]))
    out = attention.out_proj.weight
    where = (f"{name}/attention_output", name)
    yield Fault("square kernel transposed", where, ("transposed",), lambda: set_tensor(out, out.T))
