"""Array math of PyTorch for update formulas, and an optimizer that follows any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from xweights.optimizers.rules.array_math import Composed
from xweights.optimizers.rules.scalars import HostNumbers
from xweights.optimizers.rules.updates import NON_ELEMENTWISE_RULES, apply_update
from xweights_torch.dtypes import numpy_dtype
from xweights_torch.sharding.beside import block_beside, block_of


class TorchMath(Composed):
    """Array math of update formulas on torch tensors.

    A composed function is one or two calls here, in place where allowed: a new array of a megabyte costs as much as
    three sums.
    """

    sqrt = staticmethod(torch.sqrt)
    square = staticmethod(torch.square)
    abs = staticmethod(torch.abs)
    sign = staticmethod(torch.sign)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of all entries."""
        return x.sum()

    def where(self, condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return x where the condition holds, else y."""
        return torch.where(condition, x, y)

    def power(self, x: torch.Tensor, exponent: float) -> torch.Tensor:
        """Return a tensor to a power."""
        return torch.pow(x, exponent)

    def clip(self, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """Return a tensor clamped between two numbers."""
        return torch.clamp(x, low, high)

    def maximum(self, x: torch.Tensor, y: Any) -> torch.Tensor:
        """Return the larger of two tensors, or of a tensor and a number."""
        return torch.maximum(x, y) if isinstance(y, torch.Tensor) else torch.clamp(x, min=y)

    def mean(self, x: torch.Tensor, axis: int | None = None) -> torch.Tensor:
        """Return the mean over one axis, kept with length 1, or over all axes."""
        return x.mean() if axis is None else x.mean(dim=axis, keepdim=True)

    def swap(self, x: torch.Tensor) -> torch.Tensor:
        """Return the transpose of a matrix."""
        return x.transpose(-2, -1)

    def cast(self, x: Any, dtype: str) -> Any:
        """Return a tensor or a number in another dtype."""
        if not isinstance(x, torch.Tensor):
            return float(np.dtype(dtype).type(x))
        return x.to(getattr(torch, dtype))

    def round_to_bfloat16(self, x: torch.Tensor) -> torch.Tensor:
        """Return a float32 tensor, rounded to bfloat16."""
        return x.bfloat16().float()

    def like(self, x: Any, other: torch.Tensor) -> Any:
        """Return a tensor in the dtype of another; a number unchanged."""
        return x.to(other.dtype) if isinstance(x, torch.Tensor) else x

    def mix(self, x: torch.Tensor, a: float, y: torch.Tensor, b: float) -> torch.Tensor:
        """Return x * a + y * b."""
        return torch.mul(x, a).add_(y, alpha=b)

    def ratio(self, x: torch.Tensor, a: float, size: torch.Tensor) -> torch.Tensor:
        """Return x / a / size."""
        return torch.div(x, a).div_(size)

    def slot_blend(self, slot: torch.Tensor, new: torch.Tensor, share: float) -> torch.Tensor:
        """Return slot + share * (new - slot), in place."""
        return slot.lerp_(new, share)

    def slot_blend_square(self, slot: torch.Tensor, new: torch.Tensor, share: float) -> torch.Tensor:
        """Return slot + share * (new ** 2 - slot), in place."""
        return slot.mul_(1.0 - share).addcmul_(new, new, value=share)

    def slot_mix(self, slot: torch.Tensor, a: float, y: torch.Tensor, b: float) -> torch.Tensor:
        """Return slot * a + y * b, in place."""
        return slot.mul_(a).add_(y, alpha=b)

    def slot_mix_square(self, slot: torch.Tensor, a: float, y: torch.Tensor, b: float) -> torch.Tensor:
        """Return slot * a + y ** 2 * b, in place."""
        return slot.mul_(a).addcmul_(y, y, value=b)

    def slot_mix_ratio(
        self, slot: torch.Tensor, a: float, x: torch.Tensor, lr: float, size: torch.Tensor
    ) -> torch.Tensor:
        """Return slot * a + x * lr / size, in place."""
        return slot.mul_(a).addcdiv_(x, size, value=lr)

    def less(self, w: torch.Tensor, x: torch.Tensor, lr: Any) -> torch.Tensor:
        """Return w - x * lr, in place."""
        return w.addcmul_(x, lr, value=-1.0) if isinstance(lr, torch.Tensor) else w.sub_(x, alpha=lr)

    def less_ratio(self, w: torch.Tensor, x: torch.Tensor, lr: float, size: torch.Tensor) -> torch.Tensor:
        """Return w - x * lr / size, in place."""
        return w.addcdiv_(x, size, value=-lr)

    def root(self, x: torch.Tensor, eps: float, *, under: float | None = None, over: float | None = None) -> Any:
        """Return sqrt(x / under) / over + eps."""
        result = torch.sqrt(x) if under is None else torch.div(x, under).sqrt_()
        return (result if over is None else result.div_(over)).add_(eps)

    def root_sum(self, x: torch.Tensor, eps: float) -> torch.Tensor:
        """Return sqrt(x + eps)."""
        return torch.add(x, eps).sqrt_()

    def less_square(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return x - y ** 2."""
        return torch.addcmul(x, y, y, value=-1.0)

    def rms(self, x: torch.Tensor) -> Any:
        """Return the root of the mean square of all entries."""
        return self.length(x) / float(x.numel()) ** 0.5

    def length(self, x: torch.Tensor) -> Any:
        """Return the root of the sum of all squares."""
        return torch.linalg.vector_norm(x)


_MATH = TorchMath()


class ForeignOptimizer(Optimizer):
    """Optimizer that follows a rule PyTorch's own optimizers don't, slot by slot as its framework does.

    Its parameter groups have ``lr`` and ``weight_decay`` as usual, so schedulers work; ``rule``, ``hyper`` and
    ``variant`` hold the rest. ``orders``: the permutation of each parameter into neutral order, for a rule on matrices
    (None: as stored); ``factored``: the stored axes of which adafactor keeps rows and columns.

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
            for index, p in enumerate(group["params"]):
                if p.grad is not None:
                    self._update(group, index, p, numbers)
        return loss

    def _update(self, group: dict[str, Any], index: int, p: torch.Tensor, numbers: dict[Any, HostNumbers]) -> None:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name, value in group["slots"].items():
                state[name] = torch.full_like(p, value) if name != "product" else torch.ones((), dtype=p.dtype)
        state["step"] += 1
        factored = None if group["factored"] is None else group["factored"][index]
        key = (int(state["step"].item()), p.dtype, factored)
        if key not in numbers:
            hyper = {**group["hyper"], "learning_rate": float(group["lr"]), "weight_decay": group["weight_decay"]}
            numbers[key] = HostNumbers(
                hyper, group["variant"], t=key[0], dtype=np.dtype(numpy_dtype(p.dtype)), factored=factored
            )
        order = None if group["orders"] is None else group["orders"][index]
        names = [name for name in state if name not in _OWN]
        slots = {name: _permute(block_of(state[name]), order) for name in names}
        # Scalar slots are passed as floats: the rule reads them again for every block.
        scalars = {name: slot.item() for name, slot in slots.items() if name == "product"}
        for w, grad, block_slots in _iter_blocks(
            group["rule"],
            _permute(block_of(p.detach()), order),
            _permute(block_beside(p.grad, p, "a gradient"), order),
            slots,
        ):
            new, new_slots = apply_update(group["rule"], _MATH, numbers[key], w, grad, {**block_slots, **scalars})
            if new is not w:
                w.copy_(new)
            for name, value in new_slots.items():
                if name in scalars:
                    block_slots[name].fill_(value)
                elif value is not block_slots[name]:
                    block_slots[name].copy_(value)


# Entries that a rule is applied to at a time: its temporary arrays stay in the cache.
BLOCK = 2**17


def _iter_blocks(
    rule: str, w: torch.Tensor, grad: Any, slots: dict[str, torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]:
    """Yield (weights, gradient, slots), block by block for an elementwise rule."""
    tensors = [w, grad, *(slot for slot in slots.values() if slot.ndim or not w.ndim)]
    same_shape = all(x.is_contiguous() and x.shape == w.shape for x in tensors)
    if rule in NON_ELEMENTWISE_RULES or not same_shape or w.numel() <= BLOCK:
        yield w, grad, slots
        return
    parts = {name: repeat(slot) if slot.ndim == 0 else _split(slot) for name, slot in slots.items()}
    for first, second, *slot_blocks in zip(_split(w), _split(grad), *parts.values(), strict=False):
        yield first, second, dict(zip(parts, slot_blocks, strict=True))


def _split(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    blocks: tuple[torch.Tensor, ...] = torch.split(x.view(-1), BLOCK)
    return blocks


def _permute(x: Any, order: Any) -> Any:
    """Return a tensor in neutral order, as a view; scalar slots are returned unchanged."""
    return x if order is None or x.ndim != len(order) else x.permute(order)


_OWN = frozenset({"step", "accumulated"})
