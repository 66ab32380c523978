"""Learning-rate schedulers of PyTorch, read as neutral schedules and made from them.

A scheduler is stepped once after each update; the neutral step is its ``last_epoch``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from xweights.errors import HandoffError
from xweights.optimizers.lr_schedule import LRSchedule, schedule


def read_scheduler(scheduler: Any, optimizer: Optimizer) -> tuple[LRSchedule, list[float]]:
    """Return the schedule of the first group, and each group's factor on its learning rate."""
    if getattr(scheduler, "optimizer", None) is not optimizer:
        raise HandoffError("the scheduler is of another optimizer\nFix: pass the one that was made for this optimizer")
    bases = [float(group["initial_lr"]) for group in optimizer.param_groups]
    base = bases[0] or 1.0
    return _read(scheduler, base), [lr / base for lr in bases]


def _read(s: Any, base: float) -> LRSchedule:
    if isinstance(s, lr_scheduler.LambdaLR):
        factor = s.lr_lambdas[0]
        if isinstance(factor, ScheduleFactor):
            return factor.schedule
        raise _refusal(s, "a function says nothing about itself")
    if type(s) is lr_scheduler.ExponentialLR:
        return schedule("exponential", base, steps=1, decay=s.gamma)
    if type(s) is lr_scheduler.StepLR:
        return schedule("exponential", base, steps=s.step_size, decay=s.gamma, staircase=True)
    if type(s) is lr_scheduler.MultiStepLR:
        # A milestone is the first step of the new learning rate, a boundary the last one of the old.
        values = [base]
        boundaries = []
        for milestone, times in sorted(s.milestones.items()):
            boundaries.append(milestone - 1)
            values.append(values[-1] * s.gamma**times)
        return schedule("piecewise", boundaries=boundaries, values=values)
    if type(s) is lr_scheduler.ConstantLR:
        return schedule("piecewise", boundaries=[s.total_iters - 1], values=[base * s.factor, base])
    if type(s) is lr_scheduler.LinearLR:
        return schedule("polynomial", base * s.start_factor, steps=s.total_iters, end=base * s.end_factor)
    if type(s) is lr_scheduler.PolynomialLR:
        return schedule("polynomial", base, steps=s.total_iters, power=s.power)
    if type(s) is lr_scheduler.CosineAnnealingLR:
        return schedule("cosine", base, steps=s.T_max, alpha=s.eta_min / base, climbs=True)
    if type(s) is lr_scheduler.CosineAnnealingWarmRestarts:
        return schedule("cosine_restarts", base, steps=s.T_0, t_mul=float(s.T_mult), alpha=s.eta_min / base)
    if type(s) is lr_scheduler.SequentialLR:
        return _warm_cosine(s, base)
    raise _refusal(s, "it has no neutral counterpart")


def _warm_cosine(s: Any, base: float) -> LRSchedule:
    parts = s._schedulers
    kinds = [type(part) for part in parts]
    if kinds != [lr_scheduler.LinearLR, lr_scheduler.CosineAnnealingLR]:
        raise _refusal(s, "of several parts, only LinearLR followed by CosineAnnealingLR is known")
    warmup, cosine = parts
    if warmup.total_iters != s._milestones[0] or warmup.end_factor != 1.0:
        raise _refusal(s, "its warm-up doesn't end at the full rate where the cosine begins")
    return schedule("cosine", base * warmup.start_factor, steps=cosine.T_max, alpha=cosine.eta_min / base,
                    warmup_target=base, warmup_steps=warmup.total_iters, climbs=True)  # fmt: skip


def _refusal(s: Any, why: str) -> HandoffError:
    return HandoffError(
        f"{type(s).__name__} can't be handed over: {why}\n"
        'Fix: xw.schedule(...) says the same in every framework ("table" takes any values); '
        "xweights_torch.optimizers.schedules.make_scheduler(optimizer, schedule) makes a scheduler of it"
    )


class ScheduleFactor:
    """Schedule divided by a group's initial learning rate, as ``LambdaLR`` takes it.

    Example:
        >>> import xweights as xw
        >>> from xweights_torch.optimizers.schedules import ScheduleFactor
        >>> ScheduleFactor(xw.schedule("exponential", 0.1, steps=1, decay=0.5), 0.1)(1)
        0.5
    """

    def __init__(self, lr_schedule: LRSchedule, base: float) -> None:
        self.schedule, self.base = lr_schedule, base

    def __call__(self, step: int) -> float:
        return self.schedule.at(step) / self.base


def make_scheduler(
    optimizer: Optimizer, lr_schedule: LRSchedule, *, step: int = 0, factors: Sequence[float] | None = None
) -> Any:
    """Return a scheduler that follows a neutral schedule, to be stepped once after each update.

    Example:
        >>> import torch, xweights as xw
        >>> from xweights_torch.optimizers.schedules import make_scheduler
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        >>> make_scheduler(sgd, xw.schedule("polynomial", 0.5, steps=10), step=5).get_last_lr()
        [0.25]
    """
    # Learning rates are base * factor: a base that is a power of two keeps them to the bit.
    base = 2.0 ** math.ceil(math.log2(lr_schedule.rate)) if lr_schedule.rate > 0 else 1.0
    for index, group in enumerate(optimizer.param_groups):
        group["initial_lr"] = base * (1.0 if factors is None else factors[index])
    # A scheduler steps once when it is made.
    return lr_scheduler.LambdaLR(optimizer, ScheduleFactor(lr_schedule, base), last_epoch=step - 1)
