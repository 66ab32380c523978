"""Hooks around the step of a PyTorch optimizer that continues an experiment of another framework.

They run before the step, in this order: the mean of accumulated gradients, clipping, the schedule's learning rate,
decoupled decay, and the changes that make the optimizer's own formula compute the other one:

    eps      adam: epsilon / sqrt(1 - beta_2 ** t) instead of epsilon, and a learning rate with the other's corrections
    offset   rmsprop, adamax: epsilon is part of the slot, and is restored to its size before each step
    rescale  sgd, rmsprop: the momentum, which contains the learning rate there, is rescaled when that changes

Hyperparameters that are swapped for a step are restored after it, so that a parameter group shows the true ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.optim import Optimizer

from xweights.errors import HandoffError
from xweights.optimizers.rules.scalars import HostNumbers
from xweights.optimizers.state import Clipping, OptimizerGroup, OptimizerState, scale_momentum_by_lr
from xweights_torch.dtypes import numpy_dtype
from xweights_torch.optimizers.foreign import ForeignOptimizer
from xweights_torch.sharding.beside import block_beside, block_of, whole_norms
from xweights_torch.training.holds import plain_python

_hooks_by_optimizer: WeakKeyDictionary[Optimizer, OptimizerHooks] = WeakKeyDictionary()
# Slots that contain epsilon, and the hyperparameter that shrinks them.
OFFSETS = {"rmsprop": ("square_avg", "velocity", "rho"), "adamax": ("exp_inf", "norm", "beta_2")}


def hooks_of(optimizer: Any) -> OptimizerHooks | None:
    """Return the hooks around the steps of an optimizer, or None."""
    return _hooks_by_optimizer.get(optimizer)


class OptimizerHooks:
    """Hooks around the steps of one optimizer, until :meth:`release`.

    ``remedies``: for each parameter group, which of "eps", "offset", "rescale" and "decay" it needs. ``averaged``:
    pairs of a mean in ``ema`` and its weight.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        state: OptimizerState,
        remedies: Sequence[frozenset[str]],
        ema: Any = None,
        averaged: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
    ) -> None:
        self.optimizer, self.state, self.remedies, self.ema = optimizer, state, remedies, ema
        self.averaged = [(mean.detach(), p.detach()) for mean, p in averaged]
        self.updates, self.micro_done = state.updates, state.micro_done
        self.last_lrs = [group.last_rate for group in state.groups]
        self._swapped: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._handles = [
            optimizer.register_step_pre_hook(plain_python(self._before)),
            optimizer.register_step_post_hook(plain_python(self._after)),
        ]
        _hooks_by_optimizer[optimizer] = self

    def release(self) -> None:
        """Remove the hooks: the optimizer continues with its own formula."""
        for handle in self._handles:
            handle.remove()
        if _hooks_by_optimizer.get(self.optimizer) is self:
            del _hooks_by_optimizer[self.optimizer]

    @property
    def iterations(self) -> int:
        """Return the step that a schedule sees in this update, whose last gradient has just been computed."""
        return (self.updates + 1) * self.state.micro_steps - 1

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if any(value is not None for value in (*args[1:], *kwargs.values())):
            raise HandoffError(
                "this optimizer can't be stepped with a closure: its gradients would be made after the hook\n"
                "Fix: call backward() first, then step()"
            )
        state = self.state
        members = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
        wholes = [p.grad for group_members in members for p in group_members]
        if not wholes:
            return
        grads = [block_beside(p.grad, p, "a gradient") for group_members in members for p in group_members]
        if state.micro_steps > 1:
            torch._foreach_div_(grads, float(state.micro_steps))
        if state.clip is not None:
            times = [
                neutral.variant.get("counts", 1)
                for neutral, group_members in zip(state.groups, members, strict=True)
                for _ in group_members
            ]
            clip_(grads, state.clip, times, wholes)
        self._average(state.micro_steps - 1 - self.micro_done)
        for index, (group, neutral_group) in enumerate(zip(optimizer.param_groups, state.groups, strict=True)):
            if state.schedule is not None:
                group["lr"] = state.schedule.at(self.iterations) * neutral_group.factor
            self._swap_hyper(index, group, neutral_group, members[index])

    def _swap_hyper(self, index: int, group: dict[str, Any], neutral_group: OptimizerGroup, members: list[Any]) -> None:
        lr = float(group["lr"])
        remedies = self.remedies[index]
        swapped: dict[str, Any] = {}
        if members and remedies:
            hyper = {**neutral_group.hyper, "weight_decay": group["weight_decay"]}
            dtype = np.dtype(numpy_dtype(members[0].dtype))
            numbers = HostNumbers(hyper, neutral_group.variant, t=self.updates + 1, lr=lr, dtype=dtype)
            if "decay" in remedies and group["weight_decay"]:
                decay = numbers.cast("weight_decay") * lr
                weights = [block_of(p) for p in members]
                if neutral_group.variant.get("decays") == "factor":
                    torch._foreach_mul_(weights, 1.0 - decay)
                else:
                    # One pass; the difference of two took 0.4 ms of a step of 8.
                    torch._foreach_add_(weights, weights, alpha=-decay)
                swapped["weight_decay"] = 0.0
            if "eps" in remedies:
                swapped |= _adam_hyper(numbers, hyper, self.updates + 1)
            if "offset" in remedies:
                swapped |= self._offset(neutral_group, numbers, members)
            if "rescale" in remedies and lr != self.last_lrs[index]:
                self._rescale(index, lr, members, swapped)
        self.last_lrs[index] = lr or 1.0
        self._swapped.append((group, {key: group[key] for key in swapped}))
        group.update(swapped)

    def _offset(self, neutral_group: OptimizerGroup, numbers: HostNumbers, members: list[Any]) -> dict[str, Any]:
        slot, _, shrinking = OFFSETS[neutral_group.rule]
        eps = float(neutral_group.hyper["epsilon"])
        values = [block_of(self.optimizer.state[p][slot]) for p in members]
        torch._foreach_add_(values, eps * (1.0 / neutral_group.hyper[shrinking] - 1.0))
        if neutral_group.rule == "rmsprop":
            return {"eps": 0.0}
        correction = numbers.complement("beta_1") / (1.0 - neutral_group.hyper["beta_1"] ** (self.updates + 1))
        return {"lr": numbers.lr / correction}

    def _rescale(self, index: int, lr: float, members: list[Any], swapped: dict[str, Any]) -> None:
        buffers = [block_of(self.optimizer.state[p]["momentum_buffer"]) for p in members]
        torch._foreach_mul_(buffers, self.last_lrs[index] / (lr or 1.0))
        if lr == 0:
            # The momentum continues by itself, and nothing is added to it.
            torch._foreach_mul_([block_of(p.grad) for p in members], 0.0)
            swapped["lr"] = 1.0

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        swapped, self._swapped = self._swapped, []
        for group, original in swapped:
            group.update(original)
        self._average(1)
        self.updates += 1
        self.micro_done = 0

    def _average(self, times: int) -> None:
        """Update the average of the weights, once for each gradient."""
        ema = self.state.moving
        if ema is None or self.ema is None:
            return
        decay = ema.momentum if self.updates else 0.0
        means, weights = [mean for mean, _ in self.averaged], [weight for _, weight in self.averaged]
        for _ in range(times):
            torch._foreach_mul_(means, decay)
            torch._foreach_add_(means, weights, alpha=1.0 - decay)
            self.ema.n_averaged += 1
            if ema.every and (self.updates + 1) % ema.every == 0:
                torch._foreach_copy_(weights, means)

    def current(self, slots: Mapping[str, Mapping[str, Any]], hyper: Sequence[Mapping[str, Any]]) -> OptimizerState:
        """Return the present state; ``slots`` and ``hyper`` as the optimizer has them."""
        neutral_slots, groups = {name: dict(values) for name, values in slots.items()}, []
        for index, (neutral_group, shown) in enumerate(zip(self.state.groups, hyper, strict=True)):
            lr = self.last_lrs[index]
            group = replace(neutral_group, hyper={**neutral_group.hyper, **shown}, last_rate=lr)
            groups.append(group)
            for name in neutral_group.names:
                self._to_neutral(index, group, neutral_slots[name])
        return replace(
            self.state, groups=tuple(groups), slots=neutral_slots, updates=self.updates, micro_done=self.micro_done
        )

    def _to_neutral(self, index: int, group: OptimizerGroup, slots: dict[str, Any]) -> None:
        """Convert slots from the values of torch's own class to those of the rule."""
        if isinstance(self.optimizer, ForeignOptimizer):
            return
        if group.rule in ("sgd", "rmsprop") and group.variant.get("rate_inside") and "momentum" in slots:
            slots["momentum"] = scale_momentum_by_lr(group, slots["momentum"])
        if group.rule == "adagrad" and group.variant.get("eps") == "inside":
            slots["accumulator"] = slots["accumulator"] - slots["accumulator"].dtype.type(group.hyper["epsilon"])
        if "offset" in self.remedies[index]:
            _, slot, _ = OFFSETS[group.rule]
            slots[slot] = slots[slot] - slots[slot].dtype.type(group.hyper["epsilon"])


def _adam_hyper(numbers: HostNumbers, hyper: Mapping[str, Any], t: int) -> dict[str, Any]:
    first_share, second_share = numbers.complement("beta_1"), numbers.complement("beta_2")
    first_correction, second_correction = 1.0 - hyper["beta_1"] ** t, 1.0 - hyper["beta_2"] ** t
    # torch divides by sqrt(v) / sqrt(second_correction) + eps, so sqrt(second_correction) has to be in both numbers.
    lr = numbers.lr * (math.sqrt(second_share) / first_share) * (first_correction / math.sqrt(second_correction))
    return {"lr": lr, "eps": hyper["epsilon"] / math.sqrt(second_correction)}


def clip_(grads: list[torch.Tensor], clip: Clipping, times: Sequence[int], wholes: Sequence[torch.Tensor]) -> None:
    """Clip gradients in place, as the source framework of the experiment does.

    ``times``: how often each counts in the global norm: twice where the source has the parameter twice. ``wholes``:
    what the gradients are this rank's blocks of.
    """
    if clip.kind == "value":
        torch._foreach_clamp_min_(grads, -clip.limit)
        torch._foreach_clamp_max_(grads, clip.limit)
        return
    norms = whole_norms(list(torch._foreach_norm(grads)), wholes)
    if clip.kind == "global_norm":
        counted = [norm if count == 1 else norm * count**0.5 for norm, count in zip(norms, times, strict=True)]
        norms = [torch.linalg.vector_norm(torch.stack(counted))] * len(norms)
    for grad, norm in zip(grads, norms, strict=True):
        if clip.eps:
            grad.mul_(torch.clamp(clip.limit / (norm + clip.eps), max=1.0))
        else:
            grad.mul_(clip.limit / torch.clamp(norm, min=clip.limit))
