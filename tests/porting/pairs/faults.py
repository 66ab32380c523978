"""Faults of a careless conversion, injected into public torch models: what the zoo's faults are, and more.

They are told by what a module has (a weight, an eps, a scale), not by its class, as every package has classes of its
own for norms, activations and attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import nn
from zoo.faults import Fault, faults_in, set_tensor

EPS = ("eps", "epsilon", "variance_epsilon", "layer_norm_eps")
SCALES = ("scale", "scaling", "scale_attn", "inv_norm_factor")
ACTIVATIONS = re.compile("GELU|SiLU|ReLU|Activation|Swish")
OTHERS = {"gelu": lambda x: nn.functional.gelu(x, approximate="tanh"), "relu": nn.functional.relu,
          "exact gelu": nn.functional.gelu}  # fmt: skip


class Function(nn.Module):
    """A function in the place of a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, *_, **__):
        return self.function(x)


def public_faults(module, run) -> Iterator[Fault]:
    """Yield the faults that can be injected into a public model; ``run`` calls it, so that the order is known."""
    order = calls_of(module, run)
    called = {path for path, _ in order}
    for fault in faults_in(module):
        # What isn't called can't be seen, and an activation is told by what follows.
        if fault.word == "activation" or not any(layer in called for layer in fault.layers):
            continue
        yield fault
    for place, (path, layer) in enumerate(order):
        if first_of(order, place):
            after = [name for name, other in order[place + 1 :] if list(other.parameters(recurse=False))][:4]
            yield from _of_layer(path, layer, after, module)
    yield from _free(module, [path for path, _ in order])


def calls_of(module, run):
    """Return the path and the module of every call, in order, of those that have no parts with parameters."""
    found, hooks = [], []
    for name, layer in module.named_modules():
        if name and (not list(layer.children()) or any(hasattr(layer, scale) for scale in SCALES)):
            path = name.replace(".", "/")
            hooks.append(layer.register_forward_pre_hook(lambda m, _, path=path: found.append((path, m))))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def first_of(order, place):
    """Whether this is the first call of the module, and its only one."""
    return [layer for _, layer in order].count(order[place][1]) == 1


def _of_layer(path, layer, after, module) -> Iterator[Fault]:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    where = (path,)
    eps = next((name for name in EPS if isinstance(getattr(layer, name, None), float)), None)
    known = isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm))
    if eps is not None and weight is not None and weight.ndim == 1 and not known:
        larger = 1e-3 if getattr(layer, eps) < 1e-4 else 1e-5
        yield Fault("wrong eps", where, ("eps",), lambda: setattr(layer, eps, larger))
        yield Fault("gamma left at one", where, ("weights", "scaled"), lambda: weight.fill_(1.0))
    if eps is not None and weight is not None and weight.ndim == 1:
        yield Fault("one added to gamma", where, ("weights", "scaled"), lambda: weight.add_(1.0))
    if type(layer).__name__ == "Conv1D":  # transformers' product, whose kernel isn't transposed
        yield Fault("kernel scaled by 1.01", where, ("scaled",), lambda: weight.mul_(1.01))
        if bias is not None and bias.any():
            yield Fault("bias dropped", where, ("bias",), lambda: bias.zero_())
        if weight.shape[0] == weight.shape[1]:
            yield Fault("square kernel transposed", where, ("transposed",), lambda: set_tensor(weight, weight.T))
    wide = isinstance(layer, nn.Linear) and weight.shape[0] == 3 * weight.shape[1]
    packed = type(layer).__name__ == "Conv1D" and weight.shape[1] == 3 * weight.shape[0]
    if wide or packed:
        axis = 0 if wide else 1

        def exchange():
            query, key, value = weight.chunk(3, axis)
            set_tensor(weight, torch.cat([query, value, key], axis))

        yield Fault("key and value exchanged", where, ("heads", "pairing", "blocks"), exchange)
    if (
        isinstance(layer, nn.Linear)
        and weight.shape[0] == weight.shape[1]
        and re.search(r"(^|[._/])(q|query|q_proj|q_lin)$", path)
    ):

        def permute():
            set_tensor(weight, weight.reshape(4, -1, weight.shape[1]).flip(0).reshape(weight.shape))
            if bias is not None:
                set_tensor(bias, bias.reshape(4, -1).flip(0).reshape(-1))

        if weight.shape[0] % 4 == 0:
            yield Fault("heads permuted", where, ("heads",), permute)
    if isinstance(layer, nn.Embedding) and len(weight) > 1:
        shift = lambda: set_tensor(weight, weight.roll(1, 0))  # noqa: E731
        yield Fault("rows of a table off by one", where, ("rows",), shift)
    if isinstance(layer, nn.Conv2d) and any(layer.padding) and not isinstance(layer.padding, str):
        edge = lambda: _put(layer, padding_mode="replicate", _reversed_padding_repeated_twice=_around(layer))  # noqa: E731
        yield Fault("the border repeated instead of zeros", where, ("padding",), edge)
    if type(layer) is nn.AvgPool2d and any(_pair(layer.padding)):
        change = lambda: _put(layer, count_include_pad=not layer.count_include_pad)  # noqa: E731
        yield Fault(
            "zeros counted in an average", (path, *after), ("padding", "pooling", "input", "activation"), change
        )
    name = type(layer).__name__
    if ACTIVATIONS.search(name) and not list(layer.parameters()):
        other = "relu" if "ReLU" not in name else "gelu"
        if "GELU" in name and "New" not in name and getattr(layer, "approximate", "none") == "none":
            other = "gelu"
        elif "GELU" in name:
            other = "exact gelu"
        kind = "gelu of the other kind" if "gelu" in other and "GELU" in name else "another activation"
        replaced = lambda: _replace(module, path, Function(OTHERS[other]))  # noqa: E731
        yield Fault(kind, (path, *after), ("activation",), replaced)
    scale = next((one for one in SCALES if isinstance(getattr(layer, one, None), float)), None)
    if scale is not None and re.search("attn|attention", path, re.IGNORECASE):
        half = getattr(layer, scale) / 2
        yield Fault(
            "scale of attention halved", (path, *after), ("attention", "scale"), lambda: _put(layer, **{scale: half})
        )


def _free(module, called) -> Iterator[Fault]:
    """Yield the faults of parameters that belong to no layer, and of tables that follow from the configuration."""
    for name, parameter in module.named_parameters():
        owner, _, last = name.rpartition(".")
        if last in ("weight", "bias") or owner.replace(".", "/") in called:
            continue
        path = name.replace(".", "/")
        where = (path, owner.replace(".", "/")) if owner else (path,)
        if parameter.ndim > 1:
            yield Fault("a parameter left at zero", where, ("weights", "rows"), lambda p=parameter: p.zero_())
            if parameter.shape[-2] > 1:
                shift = lambda p=parameter: set_tensor(p, p.roll(1, -2))  # noqa: E731
                yield Fault("rows of a table off by one", where, ("rows",), shift)
        else:
            yield Fault("a scale left at one", where, ("weights", "scaled"), lambda p=parameter: p.fill_(1.0))
    for name, buffer in module.named_buffers():
        owner, _, last = name.rpartition(".")
        if last == "inv_freq":
            first = next((path for path in called if re.search("attn|attention", path)), "")
            where = (re.sub("(attn|attention).*", r"\1", first),)
            base = lambda b=buffer: b.mul_(0.5 ** torch.linspace(0, 1, len(b)))  # noqa: E731
            yield Fault("another base of rotations", where, ("attention", "rotation"), base)


def _put(layer, **settings):
    layer.__dict__.update(settings)


def _replace(module, path, other):
    *parents, last = path.split("/")
    for part in parents:
        module = getattr(module, part)
    module._modules[last] = other


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)


def _around(layer):
    return [side for length in reversed(_pair(layer.padding)) for side in (length, length)]
