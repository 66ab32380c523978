"""Time training steps in PyTorch with a held rule, against the same edit written inline.

Each candidate trains a model of its own, from equal weights. An inline edit is the least that anybody could write: it
has its tensors, checks nothing, and follows ``optimizer.step()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from timing import Call, Memory, Timing, compare_each
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import xweights as xw

HOLD_GOAL = 1.03
KERNELS = "*/kernel"

Edit = Callable[[nn.Module, torch.optim.Optimizer], object]


def rows(quick: bool) -> Iterator[Timing | Memory]:
    """Yield the rows."""
    for net, optimizer in (("mlp", "sgd"), ("mlp", "adam"), ("cnn", "sgd")):
        yield from _time_masks(Setting(net, optimizer, quick))
    yield from _time_other_rules(Setting("mlp", "adam", quick))


class Mul(nn.Module):
    """A parametrization by a mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return w * self.mask


class Setting:
    """A net, an optimizer and a batch; :meth:`step` makes one candidate."""

    def __init__(self, net: str, optimizer: str, quick: bool) -> None:
        self.net, self.optimizer = net, optimizer
        self.name = f"{net} {optimizer}"
        self.limits = {"seconds": 1.0, "most": 10} if quick else {"seconds": 45.0, "most": 400}
        rng = np.random.default_rng(0)
        size = (128, 784) if net == "mlp" else (32, 3, 32, 32)
        self.x = torch.from_numpy(rng.standard_normal(size, np.float32))
        self.y = torch.from_numpy(rng.integers(0, 10, size[0]))

    def model(self) -> nn.Module:
        """Return the net: 669,000 or 371,000 parameters."""
        torch.manual_seed(0)
        if self.net == "mlp":
            return nn.Sequential(
                nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
            )  # fmt: skip
        return nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip

    def step(self, prepare: Edit | None = None, *, after: Callable[[nn.Module], Call] | None = None) -> Call:
        """Return a training step; ``prepare`` attaches a hold, ``after`` makes an edit that follows each step."""
        model = self.model()
        weights = model.parameters()
        if self.optimizer == "sgd":
            optimizer: Any = torch.optim.SGD(weights, lr=1e-3, momentum=0.9)
        else:
            optimizer = torch.optim.Adam(weights, lr=1e-4)
        kept = None if prepare is None else prepare(model, optimizer)
        edit = None if after is None else after(model)

        def step(kept: object = kept) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(self.x), self.y).backward()
            optimizer.step()
            if edit is not None:
                edit()

        return step


def _kernels(model: nn.Module) -> list[tuple[nn.Module, torch.Tensor]]:
    return [(layer, layer.weight) for layer in model if isinstance(layer, (nn.Linear, nn.Conv2d))]


def _masks(model: nn.Module) -> list[torch.Tensor]:
    rng = np.random.default_rng(1)
    return [torch.from_numpy(rng.random(tuple(w.shape), np.float32) < 0.5) for _, w in _kernels(model)]


def _neutral_masks(model: nn.Module) -> dict[str, np.ndarray]:
    chosen = xw.parameters(model, where=KERNELS)
    stored = (mask.numpy() for mask in _masks(model))
    return {p.name: p.layout.to_neutral(mask) for p, mask in zip(chosen, stored, strict=True)}


def _inline_mask(model: nn.Module) -> Call:
    weights = [w for _, w in _kernels(model)]
    with torch.no_grad():
        masks = [mask.to(w.dtype) for mask, w in zip(_masks(model), weights, strict=True)]
    return torch.no_grad()(lambda: torch._foreach_mul_(weights, masks))


def _prune(model: nn.Module, optimizer: Any) -> None:
    for (layer, _), mask in zip(_kernels(model), _masks(model), strict=True):
        prune.custom_from_mask(layer, "weight", mask)


def _parametrize(model: nn.Module, optimizer: Any) -> None:
    for (layer, _), mask in zip(_kernels(model), _masks(model), strict=True):
        parametrize.register_parametrization(layer, "weight", Mul(mask.float()))


def _time_masks(setting: Setting) -> Iterator[Timing]:
    def hold_mask(model: Any, optimizer: Any) -> object:
        return xw.hold(model, xw.Mask(_neutral_masks(model)), where=KERNELS, optimizer=optimizer)

    yield from compare_each(
        "training step, mask held", "torch", setting.name, setting.step(hold_mask),
        {
            "inline _foreach_mul_": (setting.step(after=_inline_mask), HOLD_GOAL),
            "plain step": (setting.step(), None),
            "nn.utils.prune": (setting.step(_prune), None),
            "nn.utils.parametrize": (setting.step(_parametrize), None),
        },
        **setting.limits,
    )  # fmt: skip


def _inline_clip(model: nn.Module) -> Call:
    weights = [w for _, w in _kernels(model)]

    @torch.no_grad()
    def clip() -> None:
        torch._foreach_clamp_min_(weights, -0.05)
        torch._foreach_clamp_max_(weights, 0.05)

    return clip


def _inline_rows(model: nn.Module) -> Call:
    kept = [(w, w.detach()[:8].clone()) for _, w in _kernels(model)]

    @torch.no_grad()
    def restore() -> None:
        for w, rows in kept:
            w[:8] = rows

    return restore


def _swa(model: nn.Module) -> Call:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    return lambda: averaged.update_parameters(model)


def _own_lr(model: nn.Module, optimizer: Any) -> None:
    kernels = {id(w) for _, w in _kernels(model)}
    group = optimizer.param_groups[0]
    first = [p for p in group["params"] if id(p) in kernels]
    group["params"] = [p for p in group["params"] if id(p) not in kernels]
    optimizer.add_param_group({"params": first, "lr": 0.1 * group["lr"]})


def _time_other_rules(setting: Setting) -> Iterator[Timing]:
    def each(name: str, ours: Edit, peer: str, call: Call, goal: float | None) -> Iterator[Timing]:
        peers = {peer: (call, goal), "plain step": (setting.step(), None)}
        yield from compare_each(f"training step, {name}", "torch", setting.name, setting.step(ours), peers,
                                **setting.limits)  # fmt: skip

    yield from each(
        "clip held", lambda m, o: xw.hold(m, xw.Clip(-0.05, 0.05), where=KERNELS, optimizer=o),
        "inline _foreach_clamp_", setting.step(after=_inline_clip), HOLD_GOAL,
    )  # fmt: skip
    yield from each(
        "pruned 50 %, held", lambda m, o: xw.prune(m, fraction=0.5, where=KERNELS, hold=True, optimizer=o),
        "inline _foreach_mul_", setting.step(after=_inline_mask), HOLD_GOAL,
    )  # fmt: skip
    yield from each(
        "8 rows frozen", lambda m, o: xw.freeze(m, where=KERNELS, entries={"out": slice(8)}, optimizer=o),
        "inline w[:8] = rows", setting.step(after=_inline_rows), None,
    )  # fmt: skip
    yield from each(
        "multiply_lr of kernels", lambda m, o: xw.multiply_lr(m, {KERNELS: 0.1}, optimizer=o),
        "a parameter group with its own lr", setting.step(_own_lr), None,
    )  # fmt: skip
    yield from each(
        "average, 0.999", lambda m, o: xw.average(m, decay=0.999, optimizer=o),
        "AveragedModel, foreach", setting.step(after=_swa), None,
    )  # fmt: skip
