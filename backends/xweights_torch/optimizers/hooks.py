"""What surrounds the step of a PyTorch optimizer that goes on with an experiment of another framework.

Before the step come, in this order: the mean of accumulated gradients, clipping, the schedule's rate, decoupled
decay, and what the optimizer's own formula has to be given so that it computes the other one:

    eps      adam: epsilon / sqrt(1 - beta_2 ** t) instead of epsilon, and a rate that has the other's corrections in it
    offset   rmsprop, adamax: epsilon lies in the slot, and is brought back to its size before each step
    rescale  sgd, rmsprop: the momentum is rescaled when the learning rate changes, which the other has inside

Hyperparameters that are exchanged for a step are put back after it, so that a parameter group shows the true ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
from xweights_torch.training.holds import plain_python

_attached: WeakKeyDictionary[Optimizer, Attached] = WeakKeyDictionary()
# Slots that epsilon lies in, and the number that shrinks them.
OFFSETS = {"rmsprop": ("square_avg", "velocity", "rho"), "adamax": ("exp_inf", "norm", "beta_2")}


def attached_to(optimizer: Any) -> Attached | None:
    """Return what surrounds the steps of an optimizer, or None."""
    return _attached.get(optimizer)


class Attached:
    """Hooks around the steps of one optimizer, until :meth:`release`.

    ``remedies``: by group of parameters, which of "eps", "offset", "rescale" and "decay" it needs. ``averaged``: pairs
    of a mean in ``ema`` and the weight that it is of.
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
        self.last_rates = [group.last_rate for group in state.groups]
        self._swapped: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._handles = [
            optimizer.register_step_pre_hook(plain_python(self._before)),
            optimizer.register_step_post_hook(plain_python(self._after)),
        ]
        _attached[optimizer] = self

    def release(self) -> None:
        """Take the hooks off: the optimizer goes on by its own formula."""
        for handle in self._handles:
            handle.remove()
        if _attached.get(self.optimizer) is self:
            del _attached[self.optimizer]

    @property
    def iterations(self) -> int:
        """The step that a schedule sees in this update: the last gradient of it has just come in."""
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
        grads = [p.grad for mine in members for p in mine]
        if not grads:
            return
        if state.micro_steps > 1:
            torch._foreach_div_(grads, float(state.micro_steps))
        if state.clip is not None:
            times = [
                ours.variant.get("counts", 1) for ours, mine in zip(state.groups, members, strict=True) for _ in mine
            ]
            clip_(grads, state.clip, times)
        self._average(state.micro_steps - 1 - self.micro_done)
        for place, (group, ours) in enumerate(zip(optimizer.param_groups, state.groups, strict=True)):
            if state.schedule is not None:
                group["lr"] = state.schedule.at(self.iterations) * ours.factor
            self._exchange(place, group, ours, members[place])

    def _exchange(self, place: int, group: dict[str, Any], ours: OptimizerGroup, members: list[Any]) -> None:
        rate = float(group["lr"])
        remedies = self.remedies[place]
        swapped: dict[str, Any] = {}
        if members and remedies:
            hyper = {**ours.hyper, "weight_decay": group["weight_decay"]}
            dtype = np.dtype(numpy_dtype(members[0].dtype))
            numbers = HostNumbers(hyper, ours.variant, t=self.updates + 1, rate=rate, dtype=dtype)
            if "decay" in remedies and group["weight_decay"]:
                share = numbers.cast("weight_decay") * rate
                if ours.variant.get("decays") == "factor":
                    torch._foreach_mul_(members, 1.0 - share)
                else:
                    # One pass; the difference of two took 0.4 ms of a step of 8.
                    torch._foreach_add_(members, members, alpha=-share)
                swapped["weight_decay"] = 0.0
            if "eps" in remedies:
                swapped |= _adam_numbers(numbers, hyper, self.updates + 1)
            if "offset" in remedies:
                swapped |= self._offset(ours, numbers, members)
            if "rescale" in remedies and rate != self.last_rates[place]:
                self._rescale(place, rate, members, swapped)
        self.last_rates[place] = rate or 1.0
        self._swapped.append((group, {key: group[key] for key in swapped}))
        group.update(swapped)

    def _offset(self, ours: OptimizerGroup, numbers: HostNumbers, members: list[Any]) -> dict[str, Any]:
        slot, _, shrinking = OFFSETS[ours.rule]
        eps = float(ours.hyper["epsilon"])
        values = [self.optimizer.state[p][slot] for p in members]
        torch._foreach_add_(values, eps * (1.0 / ours.hyper[shrinking] - 1.0))
        if ours.rule == "rmsprop":
            return {"eps": 0.0}
        correction = numbers.complement("beta_1") / (1.0 - ours.hyper["beta_1"] ** (self.updates + 1))
        return {"lr": numbers.rate / correction}

    def _rescale(self, place: int, rate: float, members: list[Any], swapped: dict[str, Any]) -> None:
        buffers = [self.optimizer.state[p]["momentum_buffer"] for p in members]
        torch._foreach_mul_(buffers, self.last_rates[place] / (rate or 1.0))
        if rate == 0:
            # The momentum goes on by itself, and nothing is added to it.
            torch._foreach_mul_([p.grad for p in members], 0.0)
            swapped["lr"] = 1.0

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        swapped, self._swapped = self._swapped, []
        for group, former in swapped:
            group.update(former)
        self._average(1)
        self.updates += 1
        self.micro_done = 0

    def _average(self, times: int) -> None:
        """Let the average of the weights follow, once for each gradient that came in."""
        moving = self.state.moving
        if moving is None or self.ema is None:
            return
        decay = moving.momentum if self.updates else 0.0
        means, weights = [one for one, _ in self.averaged], [one for _, one in self.averaged]
        for _ in range(times):
            torch._foreach_mul_(means, decay)
            torch._foreach_add_(means, weights, alpha=1.0 - decay)
            self.ema.n_averaged += 1
            if moving.every and (self.updates + 1) % moving.every == 0:
                torch._foreach_copy_(weights, means)

    def current(self, slots: Mapping[str, Mapping[str, Any]], hyper: Sequence[Mapping[str, Any]]) -> OptimizerState:
        """Return the state as it is now; ``slots`` as they lie in the optimizer, ``hyper``: what groups show."""
        made, groups = {name: dict(mine) for name, mine in slots.items()}, []
        for place, (ours, shown) in enumerate(zip(self.state.groups, hyper, strict=True)):
            rate = self.last_rates[place]
            group = replace(ours, hyper={**ours.hyper, **shown}, last_rate=rate)
            groups.append(group)
            for name in ours.names:
                self._neutral(place, group, made[name])
        return replace(self.state, groups=tuple(groups), slots=made, updates=self.updates, micro_done=self.micro_done)

    def _neutral(self, place: int, group: OptimizerGroup, slots: dict[str, Any]) -> None:
        """Bring slots from what torch's own class keeps back to what the rule keeps."""
        if isinstance(self.optimizer, ForeignOptimizer):
            return
        if group.rule in ("sgd", "rmsprop") and group.variant.get("rate_inside") and "momentum" in slots:
            slots["momentum"] = scale_momentum_by_lr(group, slots["momentum"])
        if group.rule == "adagrad" and group.variant.get("eps") == "inside":
            slots["accumulator"] = slots["accumulator"] - slots["accumulator"].dtype.type(group.hyper["epsilon"])
        if "offset" in self.remedies[place]:
            _, slot, _ = OFFSETS[group.rule]
            slots[slot] = slots[slot] - slots[slot].dtype.type(group.hyper["epsilon"])


def _adam_numbers(numbers: HostNumbers, hyper: Mapping[str, Any], t: int) -> dict[str, Any]:
    one, two = numbers.complement("beta_1"), numbers.complement("beta_2")
    first, second = 1.0 - hyper["beta_1"] ** t, 1.0 - hyper["beta_2"] ** t
    # torch divides by sqrt(v) / sqrt(second) + eps: so sqrt(second) has to be in both numbers.
    rate = numbers.rate * (math.sqrt(two) / one) * (first / math.sqrt(second))
    return {"lr": rate, "eps": hyper["epsilon"] / math.sqrt(second)}


def clip_(grads: list[torch.Tensor], clip: Clipping, times: Sequence[int]) -> None:
    """Clip gradients in place, as the framework does that the experiment comes from.

    ``times``: how often each counts in the norm of all: twice where the source has the parameter twice.
    """
    if clip.kind == "value":
        torch._foreach_clamp_min_(grads, -clip.limit)
        torch._foreach_clamp_max_(grads, clip.limit)
        return
    norms = list(torch._foreach_norm(grads))
    if clip.kind == "global_norm":
        counted = [norm if many == 1 else norm * many**0.5 for norm, many in zip(norms, times, strict=True)]
        norms = [torch.linalg.vector_norm(torch.stack(counted))] * len(norms)
    for grad, norm in zip(grads, norms, strict=True):
        if clip.eps:
            grad.mul_(torch.clamp(clip.limit / (norm + clip.eps), max=1.0))
        else:
            grad.mul_(clip.limit / torch.clamp(norm, min=clip.limit))


def release_of(attached: Attached | None) -> Callable[[], None]:
    """Return what takes hooks off."""
    return (lambda: None) if attached is None else attached.release
