"""Norms that are written by hand, told by their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# Names under which modules keep what they add to a variance.
_NAMES = ("eps", "epsilon", "variance_epsilon", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rms_norm_eps")


def list_eps(module: nn.Module) -> Iterator[tuple[str, float]]:
    """Return the settings of a module that may be added to a variance."""
    for name in dict.fromkeys((*_NAMES, *(name for name in vars(module) if "eps" in name))):
        value = vars(module).get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


def find_eps_name(modules: list[nn.Module], eps: Any) -> tuple[nn.Module, str] | None:
    """Return the module and the name of its setting that is this number."""
    return next(((one, name) for one in modules for name, value in list_eps(one) if value == eps), None)


def find_norm(
    given: torch.Tensor | None, normal: torch.Tensor, modules: list[nn.Module]
) -> tuple[str, nn.Module, str, float] | None:
    """Return the kind of norm that makes ``normal`` of ``given`` (both rows), and the module that has its eps."""
    if given is None or given.shape != normal.shape or not given.is_floating_point() or not given.numel():
        return None
    if not any(True for module in modules for _ in list_eps(module)):
        return None
    wanted = normal.double()
    wide = given.double()
    precision = max(torch.finfo(one.dtype).eps for one in (given, normal))
    # The sums are rounded in the model's own precision.
    limit = 64 * precision * float(wanted.abs().max())
    for kind in ("rms_norm", "layer_norm"):
        centered = wide if kind == "rms_norm" else wide - wide.mean(-1, keepdim=True)
        variance = centered.square().mean(-1, keepdim=True)
        for module in modules:
            for name, eps in list_eps(module):
                if bool(((centered * torch.rsqrt(variance + eps) - wanted).abs() <= limit).all()):
                    return kind, module, name, eps
    return None


def is_batch_norm(module: nn.Module, given: torch.Tensor | None, output: Any) -> float | None:
    """Return the eps with which a module of four arrays computes a batch norm; None if it computes something else."""
    arrays = [getattr(module, key, None) for key in ("running_mean", "running_var", "weight", "bias")]
    if given is None or not isinstance(output, torch.Tensor) or output.shape != given.shape or given.dim() < 2:
        return None
    mean, variance, gamma, beta = arrays
    if any(not isinstance(one, torch.Tensor) or one.shape != given.shape[1:2] for one in arrays):
        return None
    limit = 64 * torch.finfo(output.dtype).eps * (1 + float(output.abs().max()))
    for _, eps in (*list_eps(module), ("", 0.0)):
        expected = nn.functional.batch_norm(given, mean, variance, gamma, beta, False, 0.0, eps)
        if bool(((expected - output).abs() <= limit).all()):
            return eps
    return None
