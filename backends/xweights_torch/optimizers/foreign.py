"""PyTorch's maths for the formulas of optimizers, and an optimizer that follows any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from xweights.optimizers.rules.array_math import Composed
from xweights.optimizers.rules.scalars import HostNumbers
from xweights.optimizers.rules.updates import NON_ELEMENTWISE_RULES, updated
from xweights_torch.dtypes import numpy_dtype


class TorchMaths(Composed):
    """The functions that formulas are written in.

    What is made of several is one or two calls here, and in place where it may be: a new array of a megabyte costs as
    much as three sums.
    """

    sqrt = staticmethod(torch.sqrt)
    square = staticmethod(torch.square)
    abs = staticmethod(torch.abs)
    sign = staticmethod(torch.sign)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all entries."""
        return x.sum()

    def where(self, condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The first tensor where the condition holds, else the second."""
        return torch.where(condition, x, y)

    def power(self, x: torch.Tensor, exponent: float) -> torch.Tensor:
        """The tensor to a power."""
        return torch.pow(x, exponent)

    def clip(self, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """The tensor between two numbers."""
        return torch.clamp(x, low, high)

    def maximum(self, x: torch.Tensor, y: Any) -> torch.Tensor:
        """The larger of two tensors, or of a tensor and a number."""
        return torch.maximum(x, y) if isinstance(y, torch.Tensor) else torch.clamp(x, min=y)

    def mean(self, x: torch.Tensor, axis: int | None = None) -> torch.Tensor:
        """The mean over one axis, which stays, or over all."""
        return x.mean() if axis is None else x.mean(dim=axis, keepdim=True)

    def swap(self, x: torch.Tensor) -> torch.Tensor:
        """The transpose of a matrix."""
        return x.transpose(-2, -1)

    def cast(self, x: Any, dtype: str) -> Any:
        """A tensor or a number in another dtype."""
        if not isinstance(x, torch.Tensor):
            return float(np.dtype(dtype).type(x))
        return x.to(getattr(torch, dtype))

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """A float32 tensor, rounded to bfloat16."""
        return x.bfloat16().float()

    def like(self, x: Any, other: torch.Tensor) -> Any:
        """A tensor in the dtype of another; a number as it is."""
        return x.to(other.dtype) if isinstance(x, torch.Tensor) else x

    def mix(self, x: torch.Tensor, a: float, y: torch.Tensor, b: float) -> torch.Tensor:
        """X * a + y * b."""
        return torch.mul(x, a).add_(y, alpha=b)

    def ratio(self, x: torch.Tensor, a: float, size: torch.Tensor) -> torch.Tensor:
        """X / a / size."""
        return torch.div(x, a).div_(size)

    def slot_blend(self, slot: torch.Tensor, new: torch.Tensor, share: float) -> torch.Tensor:
        """Slot + share * (new - slot), in place."""
        return slot.lerp_(new, share)

    def slot_blend_square(self, slot: torch.Tensor, new: torch.Tensor, share: float) -> torch.Tensor:
        """Slot + share * (new ** 2 - slot), in place."""
        return slot.mul_(1.0 - share).addcmul_(new, new, value=share)

    def slot_mix(self, slot: torch.Tensor, a: float, y: torch.Tensor, b: float) -> torch.Tensor:
        """Slot * a + y * b, in place."""
        return slot.mul_(a).add_(y, alpha=b)

    def slot_mix_square(self, slot: torch.Tensor, a: float, y: torch.Tensor, b: float) -> torch.Tensor:
        """Slot * a + y ** 2 * b, in place."""
        return slot.mul_(a).addcmul_(y, y, value=b)

    def slot_mix_ratio(
        self, slot: torch.Tensor, a: float, x: torch.Tensor, rate: float, size: torch.Tensor
    ) -> torch.Tensor:
        """Slot * a + x * rate / size, in place."""
        return slot.mul_(a).addcdiv_(x, size, value=rate)

    def less(self, w: torch.Tensor, x: torch.Tensor, rate: Any) -> torch.Tensor:
        """W - x * rate, in place."""
        return w.addcmul_(x, rate, value=-1.0) if isinstance(rate, torch.Tensor) else w.sub_(x, alpha=rate)

    def less_ratio(self, w: torch.Tensor, x: torch.Tensor, rate: float, size: torch.Tensor) -> torch.Tensor:
        """W - x * rate / size, in place."""
        return w.addcdiv_(x, size, value=-rate)

    def root(self, x: torch.Tensor, eps: float, *, under: float | None = None, over: float | None = None) -> Any:
        """Sqrt(x / under) / over + eps."""
        made = torch.sqrt(x) if under is None else torch.div(x, under).sqrt_()
        return (made if over is None else made.div_(over)).add_(eps)

    def root_sum(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        """Sqrt(x + eps)."""
        return torch.add(x, eps).sqrt_()

    def less_square(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """X - y ** 2."""
        return torch.addcmul(x, y, y, value=-1.0)

    def rms(self, x: torch.Tensor) -> Any:
        """The root of the mean square of all entries."""
        return self.length(x) / float(x.numel()) ** 0.5

    def length(self, x: torch.Tensor) -> Any:
        """The root of the sum of all squares."""
        return torch.linalg.vector_norm(x)


_MATHS = TorchMaths()


class ForeignOptimizer(Optimizer):
    """Follow a rule that no optimizer of PyTorch's own follows, slot by slot as its framework does.

    Its parameter groups have ``lr`` and ``weight_decay`` as usual, so schedulers work; ``rule``, ``hyper`` and
    ``variant`` say the rest. ``orders``: how each parameter is turned into neutral order, for a rule that looks at
    matrices (None: as it lies); ``factored``: the axes that adafactor keeps rows and columns of, as a parameter lies.

    Example:
        >>> import torch
        >>> from xweights_torch.optimizers.foreign import ForeignOptimizer
        >>> w = torch.nn.Parameter(torch.ones(1)); w.grad = torch.ones(1)
        >>> hyper = {"beta_1": 0.9, "beta_2": 0.99}
        >>> lion = ForeignOptimizer([{"params": [w], "lr": 0.5, "rule": "lion", "hyper": hyper, "variant": {},
        ...                           "slots": {"momentum": 0.0}}])
        >>> lion.step(); w.item()
        0.5
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.001, "weight_decay": 0.0, "orders": None, "factored": None})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            numbers: dict[Any, HostNumbers] = {}
            for place, p in enumerate(group["params"]):
                if p.grad is not None:
                    self._update(group, place, p, numbers)
        return loss

    def _update(self, group: dict[str, Any], place: int, p: torch.Tensor, numbers: dict[Any, HostNumbers]) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name, value in group["slots"].items():
                state[name] = torch.full_like(p, value) if name != "product" else torch.ones((), dtype=p.dtype)
        state["step"] += 1
        factored = None if group["factored"] is None else group["factored"][place]
        key = (int(state["step"].item()), p.dtype, factored)
        if key not in numbers:
            hyper = {**group["hyper"], "learning_rate": float(group["lr"]), "weight_decay": group["weight_decay"]}
            numbers[key] = HostNumbers(
                hyper, group["variant"], t=key[0], dtype=np.dtype(numpy_dtype(p.dtype)), factored=factored
            )
        order = None if group["orders"] is None else group["orders"][place]
        names = [name for name in state if name not in _OWN]
        slots = {name: _turned(state[name], order) for name in names}
        # Numbers that a rule keeps beside are floats meanwhile: it takes them up anew with every block.
        former = {name: one.item() for name, one in slots.items() if name == "product"}
        for w, grad, mine in _parts(group["rule"], _turned(p.detach(), order), _turned(p.grad, order), slots):
            new, made = updated(group["rule"], _MATHS, numbers[key], w, grad, {**mine, **former})
            if new is not w:
                w.copy_(new)
            for name, value in made.items():
                if name in former:
                    mine[name].fill_(value)
                elif value is not mine[name]:
                    mine[name].copy_(value)


# Entries that a rule is applied to at a time: what it makes on the way stays in the cache.
BLOCK = 2**17


def _parts(
    rule: str, w: torch.Tensor, grad: Any, slots: dict[str, torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]:
    """Yield (weights, gradient, slots) block by block, where a rule looks at each entry by itself."""
    tensors = [w, grad, *(one for one in slots.values() if one.ndim or not w.ndim)]
    alike = all(one.is_contiguous() and one.shape == w.shape for one in tensors)
    if rule in NON_ELEMENTWISE_RULES or not alike or w.numel() <= BLOCK:
        yield w, grad, slots
        return
    parts = {name: repeat(one) if one.ndim == 0 else _blocks(one) for name, one in slots.items()}
    for first, second, *mine in zip(_blocks(w), _blocks(grad), *parts.values(), strict=False):
        yield first, second, dict(zip(parts, mine, strict=True))


def _blocks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    found: tuple[torch.Tensor, ...] = torch.split(x.view(-1), BLOCK)
    return found


def _turned(x: Any, order: Any) -> Any:
    """Return a tensor in neutral order, as a view; numbers that a rule keeps beside stay as they are."""
    return x if order is None or x.ndim != len(order) else x.permute(order)


_OWN = frozenset({"step", "accumulated"})
