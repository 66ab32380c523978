"""Faults that a careless port makes, injected into the torch twin of a pair that was ported right."""

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
    """``layers``: where it may be said to show first; ``words``: what may be said to be the cause."""

    kind: str
    layers: tuple[str, ...]
    words: tuple[str, ...]
    inject: Callable[[], None]

    def shows_at(self, layer: str) -> bool:
        """Return True if this is one of the layers where it may be said to show."""
        return any(layer == one or layer.startswith(f"{one}/") or not one for one in self.layers)

    @contextlib.contextmanager
    def injected(self, module) -> Iterator[None]:
        """Have the fault in the module, and afterwards the module as it was."""
        kept = {name: value.clone() for name, value in module.state_dict().items()}
        settings = [(one, dict(one.__dict__)) for one in module.modules()]
        try:
            with torch.no_grad():
                self.inject()
            yield
        finally:
            for one, former in settings:
                for name in ("eps", "approximate", "negative_slope", "padding", "output_padding", "_forward"):
                    if name in former:
                        setattr(one, name, former[name])
            module.load_state_dict(kept)


def _set(tensor, value):
    tensor.copy_(value.clone())


def faults_in(module) -> Iterator[Fault]:
    """Yield every fault that can be injected into a module, each at one layer."""
    named = [(name, one) for name, one in module.named_modules() if not name.endswith(("out_proj", "parametrizations"))]
    # Reports write paths with slashes, and a tied weight is named after its first place.
    tied = {id(p): name.replace(".", "/").rpartition("/")[0] for name, p in module.named_parameters()}
    named = [(tied.get(id(getattr(one, "weight", None)), name.replace(".", "/")), one) for name, one in named]
    for name, one in named:
        yield from _in_layer(name, one)
    for (first, one), (second, other) in itertools.combinations(named, 2):
        alike = type(one) is type(other) and type(one) in (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)
        if alike and one.weight is not other.weight and one.weight.shape == other.weight.shape:
            both = (first, second)
            yield Fault("layers of equal shape swapped", both, ("pairing",), lambda a=one, b=other: _swap(a, b))
    yield from _flattened(named)
    yield from _padding(module, dict(named))


def _flattened(named) -> Iterator[Fault]:
    """The rows of a dense layer behind an image, taken over as they lay."""
    channels = 0
    for name, one in named:
        if isinstance(one, (nn.Conv1d, nn.Conv2d)):
            channels = one.out_channels
        elif isinstance(one, nn.Linear) and channels and one.in_features % channels == 0:
            positions = one.in_features // channels

            def lie(weight=one.weight, channels=channels, positions=positions):
                _set(weight, weight.reshape(-1, channels, positions).transpose(1, 2).reshape(weight.shape))

            if positions > 1:
                yield Fault("flattened the other way", (name,), ("flatten",), lie)
            channels = 0


def _padding(module, named) -> Iterator[Fault]:
    """A padding of one half on each side, where the other framework pads at the end."""
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


def _swap(one, other):
    mine, theirs = ({k: v.clone() for k, v in m.state_dict().items()} for m in (one, other))
    one.load_state_dict(theirs)
    other.load_state_dict(mine)


def _in_layer(name, one) -> Iterator[Fault]:
    weight, bias = getattr(one, "weight", None), getattr(one, "bias", None)
    here = (name,)
    if isinstance(one, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)) and isinstance(weight, nn.Parameter):
        if bias is not None and bias.any():
            yield Fault("bias dropped", here, ("bias",), lambda: bias.zero_())
        if weight.shape[0] == weight.shape[1] and weight.shape[0] > 1:
            turned = lambda: _set(weight, weight.transpose(0, 1))  # noqa: E731
            yield Fault("square kernel transposed", here, ("transposed",), turned)
        yield Fault("kernel scaled by 1.01", here, ("scaled", "weights"), lambda: weight.mul_(1.01))
    if isinstance(one, (nn.Conv2d, nn.ConvTranspose2d)):
        high, wide = weight.shape[2:]
        if high == wide > 1:
            swapped = lambda: _set(weight, weight.transpose(2, 3))  # noqa: E731
            yield Fault("height and width exchanged", here, ("transposed",), swapped)
            yield Fault("kernel flipped", here, ("transposed",), lambda: _set(weight, weight.flip(2, 3)))
    if isinstance(one, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
        larger = 1e-3 if one.eps < 1e-4 else 1e-5
        yield Fault("wrong eps", here, ("eps",), lambda: setattr(one, "eps", larger))
        if weight is not None:
            yield Fault("gamma left at one", here, ("weights", "scaled"), lambda: weight.fill_(1.0))
    if isinstance(one, (nn.BatchNorm1d, nn.BatchNorm2d)):
        mean, variance = one.running_mean, one.running_var
        yield Fault("statistics left at their start", here, ("weights",), lambda: (mean.zero_(), variance.fill_(1.0)))
    if isinstance(one, nn.GELU):
        other = "tanh" if one.approximate == "none" else "none"
        yield Fault(
            "gelu of the other kind", (name, *_next(name)), ("activation",), lambda: _put(one, "approximate", other)
        )
    if isinstance(one, nn.LeakyReLU):
        yield Fault(
            "slope of the other framework",
            (name, *_next(name)),
            ("activation",),
            lambda: _put(one, "negative_slope", 0.01),
        )
    if isinstance(one, nn.RNNBase) and one.mode in ("LSTM", "GRU"):
        yield from _gates(name, one)
    if isinstance(one, nn.MultiheadAttention) and one.in_proj_weight is not None:
        yield from _heads(name, one)


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
                        _set(tensor, torch.cat([tensor.chunk(count)[place] for place in order]))

            # Inside one module that runs several layers only its end can be seen.
            yield Fault("gates swapped", (f"{name}/{part}", name), ("gates",), swap)
    if rnn.bias and rnn.mode == "LSTM":
        both = lambda: _set(rnn.bias_hh_l0, rnn.bias_ih_l0)  # noqa: E731
        yield Fault("one bias put into both", (f"{name}/l0", name), ("weights", "scaled", "bias"), both)


def _heads(name, attention) -> Iterator[Fault]:
    size, heads = attention.embed_dim, attention.num_heads
    weight = attention.in_proj_weight

    def permuted(part):
        block = weight[part * size : (part + 1) * size]
        _set(block, block.reshape(heads, -1, block.shape[1]).flip(0).reshape(block.shape))

    for part, word in enumerate(("query", "key", "value")):
        where = (f"{name}/{word}", f"{name}/attention_output", name)
        yield Fault("heads permuted", where, ("heads", "gates"), lambda part=part: permuted(part))
    if not attention.batch_first:
        return
    order = [np.arange(size), np.arange(2 * size, 3 * size), np.arange(size, 2 * size)]
    rows = torch.from_numpy(np.concatenate(order))
    where = (f"{name}/key", f"{name}/value", f"{name}/attention_output", name)
    yield Fault("key and value exchanged", where, ("pairing",), lambda: _set(weight, weight[rows]))
    out = attention.out_proj.weight
    where = (f"{name}/attention_output", name)
    yield Fault("square kernel transposed", where, ("transposed",), lambda: _set(out, out.T))
