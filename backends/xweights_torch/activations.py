"""Activations in PyTorch: neutral name, module, functions, settings and source code, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn


class Activation(NamedTuple):
    """One activation.

    ``functions`` are the names of torch's functions and tensor methods. ``code`` calls it on ``{x}``. ``settings`` are
    the module's attributes that tell two of them apart, with their neutral names. ``fixed``: the module has none that
    changes what it computes.
    """

    name: str
    module: type[nn.Module] | None
    functions: tuple[str, ...]
    code: str
    settings: Mapping[str, str] = {}
    fixed: bool = True


_TABLE = (
    Activation("relu", nn.ReLU, ("relu", "relu_"), "torch.relu({x})"),
    Activation("relu6", nn.ReLU6, ("relu6",), "functional.relu6({x})"),
    Activation("silu", nn.SiLU, ("silu",), "functional.silu({x})"),
    Activation("mish", nn.Mish, ("mish",), "functional.mish({x})"),
    Activation("tanh", nn.Tanh, ("tanh",), "torch.tanh({x})"),
    Activation("sigmoid", nn.Sigmoid, ("sigmoid",), "torch.sigmoid({x})"),
    Activation("selu", nn.SELU, ("selu",), "functional.selu({x})"),
    Activation("softsign", nn.Softsign, ("softsign",), "functional.softsign({x})"),
    Activation("hard_sigmoid", nn.Hardsigmoid, ("hardsigmoid",), "functional.hardsigmoid({x})"),
    Activation("hard_silu", nn.Hardswish, ("hardswish",), "functional.hardswish({x})"),
    Activation("gelu", nn.GELU, ("gelu",), "functional.gelu({x})", {"approximate": "approximate"}, fixed=False),
    Activation("gelu_tanh", None, (), 'functional.gelu({x}, approximate="tanh")'),
    Activation("leaky_relu", nn.LeakyReLU, ("leaky_relu",), "functional.leaky_relu({x}, {slope})",
               {"negative_slope": "slope"}, fixed=False),
    Activation("elu", nn.ELU, ("elu",), "functional.elu({x}, {alpha})", {"alpha": "alpha"}, fixed=False),
    Activation("softplus", nn.Softplus, ("softplus",), "functional.softplus({x})", fixed=False),
    Activation("softmax", nn.Softmax, (), "torch.softmax({x}, {channel})", fixed=False),
    Activation("log_softmax", None, (), "torch.log_softmax({x}, {channel})", fixed=False),
)  # fmt: skip

NAME_OF_FUNCTION: dict[str, str] = {function: row.name for row in _TABLE for function in row.functions}
NAME_OF_FIXED_MODULE: dict[type[nn.Module], str] = {
    row.module: row.name for row in _TABLE if row.module is not None and row.fixed
}
MODULES: dict[type[nn.Module], tuple[str, Mapping[str, str]]] = {
    row.module: (row.name, row.settings) for row in _TABLE if row.module is not None
}
_CODE = {row.name: row.code for row in _TABLE}


def code_of(name: str, x: str, channel: int, options: Mapping[str, Any]) -> str:
    """Return the code of an activation of ``x``; ``channel`` is the axis of a softmax."""
    code = _CODE.get(name, f"functional.{name}({{x}})")
    return code.format(x=x, channel=channel, slope=options.get("slope", 0.2), alpha=options.get("alpha", 1.0))
