"""Freezing, scaled updates and averages in PyTorch: what rests, and hooks before and after an optimizer's step.

The order after a step is: scaled updates, holds, averages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from xweights.core.backend import StepState
from xweights.core.parameter import Parameter
from xweights.errors import ArgumentError, HoldError, Problems
from xweights.training.learning_rates import blended
from xweights_torch.ops import TorchOps
from xweights_torch.storage import Slot, tensor_of
from xweights_torch.training.holds import AFTER_HOLDS, Others, check_in_place, holds_last, plain_python, unwrapped

_OPS = TorchOps()

# What batch normalization changes in each forward pass.
_STATISTICS = ("running_mean", "running_var")


class TorchTraining:
    """What torch's own training offers beyond holds (``xweights.training.Training``)."""

    def is_statistic(self, parameter: Parameter) -> bool:
        handle = parameter.handle
        return isinstance(handle, Slot) and handle.table == "buffer"

    def freeze(
        self,
        parameters: Sequence[Parameter],
        *,
        target: Any,
        optimizer: Any,
        whole: bool,
        inference: bool,
        owner: object,
    ) -> TorchResting:
        statistics = [p for p in parameters if self.is_statistic(p)]
        inferring = [one for p in parameters for one in _owners(p) if isinstance(one, _NormBase)] if inference else []
        _check_stoppable(statistics, inferring)
        # DDP expects a gradient of everything that had one when it was wrapped: there the Keep hold has to do.
        spare = whole and not isinstance(target, DistributedDataParallel)
        spared = [p for p in parameters if p.trainable or id(tensor_of(p.handle)) in _resting] if spare else []
        switched = [(one, "track_running_stats") for p in statistics for one in _owners(p) if one not in inferring]
        return TorchResting(spared, [*switched, *((one, "training") for one in inferring)], owner)

    def multiply(self, pairs: Sequence[tuple[Parameter, float]], *, target: Any, optimizer: Any) -> Scaled:
        if optimizer is None:
            raise ArgumentError("in torch, multiply_lr needs the optimizer\nFix: optimizer=...")
        plain = unwrapped(optimizer)
        owned = _owned(plain)
        standing = _scaling.get(id(plain))
        problems = Problems("these learning rates can't be multiplied, and nothing was changed")
        for p, _ in pairs:
            if id(tensor_of(p.handle)) not in owned:
                problems.add(HoldError, f"{p.name!r} is not among the optimizer's parameters", fix="narrow factors=")
            elif standing is not None and id(tensor_of(p.handle)) in standing.factors:
                problems.add(HoldError, f"{p.name!r} has a factor already", fix="release() the former one")
        problems.check()
        if standing is None:
            standing = _scaling[id(plain)] = Scaling(plain)
        return Scaled(standing, pairs)

    def follow(
        self, parameters: Sequence[Parameter], call: Callable[[StepState | None], None], *, target: Any, optimizer: Any
    ) -> Following | None:
        trained = [p for p in parameters if isinstance(tensor_of(p.handle), nn.Parameter)]
        if optimizer is None:
            return Following(trained[0], None, call) if trained else None
        plain = unwrapped(optimizer)
        owned = _owned(plain)
        mine = [p for p in trained if id(tensor_of(p.handle)) in owned]
        if not mine:
            raise HoldError("this optimizer trains none of these parameters\nFix: pass the one that does")
        return Following(mine[0], plain, call)


class Flags:
    """Forward hooks that set a flag of a module while it runs, so that nobody sees it changed in between."""

    def __init__(self, module: nn.Module, flag: str, owner: object) -> None:
        self.flag, self.owner = flag, owner
        self.former: bool | None = None
        self.handles = [
            module.register_forward_pre_hook(self._before, prepend=True),
            module.register_forward_hook(self._after, always_call=True),
        ]

    def _before(self, module: nn.Module, args: Any) -> None:
        self.former = getattr(module, self.flag)
        setattr(module, self.flag, False)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.former is not None:
            setattr(module, self.flag, self.former)
            self.former = None

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


# Tensors that rest: with the number of freezes, and whether they required a gradient before the first.
_resting: dict[int, tuple[torch.Tensor, int, bool]] = {}


class TorchResting:
    """Parameters without gradients, and modules that run with a flag of theirs off."""

    def __init__(self, spared: Sequence[Parameter], switched: Sequence[tuple[nn.Module, str]], owner: object) -> None:
        self.tensors = {id(one): one for p in spared for one in _tensors(p)}
        for key, tensor in self.tensors.items():
            _, count, former = _resting.get(key, (tensor, 0, tensor.requires_grad))
            _resting[key] = (tensor, count + 1, former)
            tensor.requires_grad_(False)
            tensor.grad = None  # an optimizer would go on to use a stale one
        self.flags = {(id(one), flag): Flags(one, flag, owner) for one, flag in dict.fromkeys(switched)}

    def unfreeze(self, parameters: Sequence[Parameter] | None) -> None:
        """Restore the flags of these parameters, and of the modules that own them."""
        waking = list(self.tensors) if parameters is None else [id(one) for p in parameters for one in _tensors(p)]
        for key in waking:
            if self.tensors.pop(key, None) is not None:
                tensor, count, former = _resting.pop(key)
                if count > 1:
                    _resting[key] = (tensor, count - 1, former)
                else:
                    tensor.requires_grad_(former)
        owners = None if parameters is None else {id(one) for p in parameters for one in _owners(p)}
        for module, flag in [key for key in self.flags if owners is None or key[0] in owners]:
            self.flags.pop((module, flag)).remove()


class Scaling:
    """The factors of one optimizer, and the hooks that save what was and blend it with what came."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.factors: dict[int, tuple[Parameter, float]] = {}
        self._saved: list[torch.Tensor] = []
        self.handles = [
            optimizer.register_step_pre_hook(plain_python(self._before)),
            optimizer.register_step_post_hook(plain_python(self._after)),
        ]
        self.others = Others(optimizer, self.factors.keys)
        holds_last(optimizer)

    def _scaled(self) -> list[tuple[Parameter, float]]:
        return [(p, factor) for p, factor in self.factors.values() if factor != 1.0]

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._saved = [tensor_of(p.handle).detach().clone() for p, _ in self._scaled()]

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        saved, self._saved = self._saved, []
        with torch.no_grad():
            for (p, factor), old in zip(self._scaled(), saved, strict=True):
                native = tensor_of(p.handle).detach()
                new = blended(_OPS, native, old, factor, p.dtype)
                if new is not native:
                    native.copy_(new)

    def drop(self, keys: Sequence[int]) -> None:
        """Take factors off, and the hooks with the last."""
        for key in keys:
            self.factors.pop(key, None)
        if not self.factors:
            for handle in self.handles:
                handle.remove()
            self.others.handle.remove()
            _scaling.pop(id(self.optimizer), None)


_scaling: dict[int, Scaling] = {}


class Scaled:
    """One call's share in the factors of an optimizer."""

    def __init__(self, scaling: Scaling, pairs: Sequence[tuple[Parameter, float]]) -> None:
        self.scaling = scaling
        self.parameters = [p for p, _ in pairs]
        self.keys = [id(tensor_of(p.handle)) for p, _ in pairs]
        scaling.factors |= dict(zip(self.keys, pairs, strict=True))

    def check(self) -> None:
        """Raise if another optimizer stepped the parameters, or another object stands in the place of one."""
        self.scaling.others.check("the multiplied learning rates")
        check_in_place(self.parameters)

    def detach(self) -> None:
        """Take this call's factors off."""
        self.scaling.drop(self.keys)


class Following:
    """A call after each step of one optimizer, or of whichever steps a parameter."""

    def __init__(
        self, counted: Parameter, optimizer: Optimizer | None, call: Callable[[StepState | None], None]
    ) -> None:
        self.counted = id(tensor_of(counted.handle))
        self.kept = counted  # so that its id is given to no other
        self.optimizer, self.call = optimizer, call
        self._hook = plain_python(self._run)
        # Always on all optimizers: the hooks for one run before those for all, among which there may be holds.
        self.handle = register_optimizer_step_post_hook(self._hook)
        AFTER_HOLDS.append(self._again)

    def _again(self) -> None:
        self.handle.remove()
        self.handle = register_optimizer_step_post_hook(self._hook)

    def _run(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        mine = optimizer is self.optimizer if self.optimizer is not None else self.counted in _owned(optimizer)
        if mine:
            self.call(None)

    def check(self) -> None:
        """A hook can't be passed by: nothing to find."""

    def detach(self) -> None:
        """Follow no more."""
        self.handle.remove()
        AFTER_HOLDS.remove(self._again)


def _check_stoppable(statistics: Sequence[Parameter], inferring: Sequence[nn.Module]) -> None:
    problems = Problems("these can't be frozen, and nothing was changed")
    chosen = {id(one) for p in statistics for one in _tensors(p)}
    for p in statistics:
        for owner in _owners(p):
            if owner in inferring:
                continue
            if not isinstance(owner, _BatchNorm):
                problems.add(
                    HoldError,
                    f"{p.name!r} is a buffer of {type(owner).__name__}, whose forward pass changes it as it likes",
                    fix="leave it out with where=",
                )
                continue
            missing = [name for name in _STATISTICS if id(owner._buffers.get(name)) not in chosen]
            if missing:
                problems.add(
                    HoldError,
                    f"{p.name!r} is collected together with {', '.join(missing)}: both stop, or none",
                    fix="select them all, as with where='*/moving_*'",
                )
    problems.check()


def _owners(p: Parameter) -> list[nn.Module]:
    return [one.owner for one in p.handle.places] if isinstance(p.handle, Slot) else []


def _tensors(p: Parameter) -> list[torch.Tensor]:
    return p.handle.tensors if isinstance(p.handle, Slot) else [tensor_of(p.handle)]


def _owned(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
