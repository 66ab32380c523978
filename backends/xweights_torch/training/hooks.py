"""Freezing, learning-rate factors and weight averages in PyTorch, by hooks around an optimizer's step.

The order after a step is: learning-rate factors, holds, averages.
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
from xweights.training.learning_rates import blend_step
from xweights_torch.ops import TorchOps
from xweights_torch.sharding.placements import is_dtensor, local_of
from xweights_torch.storage import TensorHandle, tensor_of
from xweights_torch.training.holds import (
    AFTER_HOLDS,
    OtherOptimizers,
    check_not_replaced,
    plain_python,
    run_holds_last,
    unwrap_optimizer,
)

_OPS = TorchOps()

# Buffers that batch normalization changes in each forward pass.
_STATISTICS = ("running_mean", "running_var")


def is_statistic(parameter: Parameter) -> bool:
    """Return whether a parameter is a buffer, which a forward pass changes."""
    handle = parameter.handle
    return isinstance(handle, TensorHandle) and handle.table == "buffer"


def freeze(
    parameters: Sequence[Parameter],
    *,
    target: Any,
    optimizer: Any,
    whole: bool,
    inference: bool,
    owner: object,
) -> FrozenTensors:
    """Exclude parameters from training: the backend's `freeze`."""
    statistics = [p for p in parameters if is_statistic(p)]
    inference_modules = (
        [module for p in parameters for module in _owners(p) if isinstance(module, _NormBase)] if inference else []
    )
    _check_freezable(statistics, inference_modules)
    # DDP expects a gradient of everything that had one when it was wrapped; there the Keep hold has to suffice.
    drop_gradients = whole and not isinstance(target, DistributedDataParallel)
    without_gradients = (
        [p for p in parameters if p.trainable or id(tensor_of(p.handle)) in _frozen] if drop_gradients else []
    )
    untracked = [(m, "track_running_stats") for p in statistics for m in _owners(p) if m not in inference_modules]
    return FrozenTensors(
        without_gradients, [*untracked, *((module, "training") for module in inference_modules)], owner
    )


def multiply(
    pairs: Sequence[tuple[Parameter, float]], *, target: Any, optimizer: Any, owner: object
) -> LRFactorsHandle:
    """Have each step count a factor of times: the backend's `multiply`."""
    if optimizer is None:
        raise ArgumentError("in torch, multiply_lr needs the optimizer\nFix: optimizer=...")
    unwrapped = unwrap_optimizer(optimizer)
    owned = _parameter_ids(unwrapped)
    factors = _lr_factors.get(id(unwrapped))
    problems = Problems("these learning rates can't be multiplied, and nothing was changed")
    for p, _ in pairs:
        if id(tensor_of(p.handle)) not in owned:
            problems.add(HoldError, f"{p.name!r} is not among the optimizer's parameters", fix="narrow factors=")
        elif factors is not None and id(tensor_of(p.handle)) in factors.factors:
            problems.add(HoldError, f"{p.name!r} has a factor already", fix="release() the former one")
    problems.check()
    if factors is None:
        factors = _lr_factors[id(unwrapped)] = LRFactors(unwrapped)
    return LRFactorsHandle(factors, pairs, owner)


def follow(
    parameters: Sequence[Parameter], call: Callable[[StepState | None], None], *, target: Any, optimizer: Any
) -> StepFollower | None:
    """Call a function after each step: the backend's `follow`."""
    trained = [p for p in parameters if isinstance(tensor_of(p.handle), nn.Parameter)]
    if optimizer is None:
        return StepFollower(trained[0], None, call) if trained else None
    unwrapped = unwrap_optimizer(optimizer)
    owned = _parameter_ids(unwrapped)
    owned_parameters = [p for p in trained if id(tensor_of(p.handle)) in owned]
    if not owned_parameters:
        raise HoldError("this optimizer trains none of these parameters\nFix: pass the one that does")
    return StepFollower(owned_parameters[0], unwrapped, call)


class FlagHooks:
    """Forward hooks that clear a flag of a module only while it runs, so that nothing else sees the change."""

    def __init__(self, module: nn.Module, flag: str, owner: object) -> None:
        self.flag: str | None = flag
        self.owner = owner
        self.previous: bool | None = None
        self.handles = [
            module.register_forward_pre_hook(self._before, prepend=True),
            module.register_forward_hook(self._after, always_call=True),
        ]

    def _before(self, module: nn.Module, args: Any) -> None:
        if self.flag is None:
            _remove_hooks(self, module._forward_pre_hooks)
            return
        self.previous = getattr(module, self.flag)
        setattr(module, self.flag, False)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.flag is None:
            for key in _remove_hooks(self, module._forward_hooks):
                module._forward_hooks_always_called.pop(key, None)
        elif self.previous is not None:
            setattr(module, self.flag, self.previous)
            self.previous = None

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def __reduce__(self) -> tuple[Callable[[], FlagHooks], tuple[()]]:
        # A module copies and pickles its hooks, and the copy isn't frozen.
        return _hooks_of_a_copy, ()


def _hooks_of_a_copy() -> FlagHooks:
    """Return hooks that remove themselves from a copy of a module when it first runs."""
    hooks = FlagHooks.__new__(FlagHooks)
    hooks.flag, hooks.owner, hooks.previous, hooks.handles = None, None, None, []
    return hooks


def _remove_hooks(owner: object, hooks: dict[int, Callable[..., Any]]) -> list[int]:
    keys = [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is owner]
    for key in keys:
        del hooks[key]
    return keys


# Frozen tensors, with the number of freezes, and whether they required a gradient before the first.
_frozen: dict[int, tuple[torch.Tensor, int, bool]] = {}


class FrozenTensors:
    """Parameters without gradients, and modules that run with a flag cleared."""

    def __init__(
        self, without_gradients: Sequence[Parameter], cleared_flags: Sequence[tuple[nn.Module, str]], owner: object
    ) -> None:
        self.tensors = {id(tensor): tensor for p in without_gradients for tensor in _tensors(p)}
        for key, tensor in self.tensors.items():
            _, count, required_grad = _frozen.get(key, (tensor, 0, tensor.requires_grad))
            _frozen[key] = (tensor, count + 1, required_grad)
            tensor.requires_grad_(False)
            tensor.grad = None  # an optimizer would go on using a stale one
        self.flags = {
            (id(module), flag): FlagHooks(module, flag, owner) for module, flag in dict.fromkeys(cleared_flags)
        }

    def unfreeze(self, parameters: Sequence[Parameter] | None) -> None:
        """Restore the flags of these parameters, and of the modules that own them."""
        unfrozen = (
            list(self.tensors) if parameters is None else [id(tensor) for p in parameters for tensor in _tensors(p)]
        )
        for key in unfrozen:
            if self.tensors.pop(key, None) is not None:
                tensor, count, required_grad = _frozen.pop(key)
                if count > 1:
                    _frozen[key] = (tensor, count - 1, required_grad)
                else:
                    tensor.requires_grad_(required_grad)
        owners = None if parameters is None else {id(module) for p in parameters for module in _owners(p)}
        for module, flag in [key for key in self.flags if owners is None or key[0] in owners]:
            self.flags.pop((module, flag)).remove()


class LRFactors:
    """Learning-rate factors of one optimizer, and the hooks that blend the weights before and after its step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.factors: dict[int, tuple[Parameter, float]] = {}
        self.owners: dict[int, object] = {}
        self._saved: list[torch.Tensor] = []
        self.handles = [
            optimizer.register_step_pre_hook(plain_python(self._before)),
            optimizer.register_step_post_hook(plain_python(self._after)),
        ]
        # First on both sides of the step: a hook that a hand-off left decays the weights before the step, which is part
        # of the update, and averages them after it.
        _move_first(optimizer._optimizer_step_pre_hooks, self.handles[0].id)
        _move_first(optimizer._optimizer_step_post_hooks, self.handles[1].id)
        self.other_optimizers = OtherOptimizers(optimizer, self.factors.keys)
        run_holds_last(optimizer)

    def _scaled_parameters(self) -> list[tuple[Parameter, float]]:
        return [(p, factor) for p, factor in self.factors.values() if factor != 1.0]

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._saved = [_values_of(p).clone() for p, _ in self._scaled_parameters()]

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        saved, self._saved = self._saved, []
        with torch.no_grad():
            for (p, factor), old in zip(self._scaled_parameters(), saved, strict=True):
                native = _values_of(p)
                new = blend_step(_OPS, native, old, factor, p.dtype)
                if new is not native:
                    native.copy_(new)

    def drop(self, keys: Sequence[int]) -> None:
        """Remove factors, and the hooks with the last one."""
        for key in keys:
            self.factors.pop(key, None)
            self.owners.pop(key, None)
        if not self.factors:
            for handle in self.handles:
                handle.remove()
            self.other_optimizers.handle.remove()
            _lr_factors.pop(id(self.optimizer), None)


def _values_of(p: Parameter) -> torch.Tensor:
    """Return the tensor of a parameter, or this rank's block of it."""
    tensor = tensor_of(p.handle)
    return local_of(tensor) if is_dtensor(tensor) else tensor.detach()


def _move_first(hooks: dict[int, Any], key: int) -> None:
    others = {other: hooks.pop(other) for other in list(hooks) if other != key}
    hooks.update(others)


_lr_factors: dict[int, LRFactors] = {}


class LRFactorsHandle:
    """The factors of one call, attached to an optimizer."""

    def __init__(self, lr_factors: LRFactors, pairs: Sequence[tuple[Parameter, float]], owner: object) -> None:
        self.lr_factors = lr_factors
        self.parameters = [p for p, _ in pairs]
        self.keys = [id(tensor_of(p.handle)) for p, _ in pairs]
        lr_factors.factors |= dict(zip(self.keys, pairs, strict=True))
        lr_factors.owners |= dict.fromkeys(self.keys, owner)

    def check(self) -> None:
        """Raise if another optimizer stepped the parameters, or one of them was replaced."""
        self.lr_factors.other_optimizers.check("the multiplied learning rates")
        check_not_replaced(self.parameters)

    def detach(self) -> None:
        """Remove this call's factors."""
        self.lr_factors.drop(self.keys)


class StepFollower:
    """A callback after each step of one optimizer, or of any that steps a parameter."""

    def __init__(
        self, counted: Parameter, optimizer: Optimizer | None, call: Callable[[StepState | None], None]
    ) -> None:
        self.counted = id(tensor_of(counted.handle))
        self.parameter = counted  # so that its id isn't reused
        self.optimizer, self.call = optimizer, call
        self._hook = plain_python(self._run)
        # Always on all optimizers: hooks of one optimizer run before those of all, which may include holds.
        self.handle = register_optimizer_step_post_hook(self._hook)
        AFTER_HOLDS.append(self._move_last)

    def _move_last(self) -> None:
        self.handle.remove()
        self.handle = register_optimizer_step_post_hook(self._hook)

    def _run(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        follows = (
            optimizer is self.optimizer if self.optimizer is not None else self.counted in _parameter_ids(optimizer)
        )
        if follows:
            self.call(None)

    def check(self) -> None:
        """Do nothing: no step bypasses the hook."""

    def detach(self) -> None:
        """Remove the hook."""
        self.handle.remove()
        AFTER_HOLDS.remove(self._move_last)


def _check_freezable(statistics: Sequence[Parameter], inference_modules: Sequence[nn.Module]) -> None:
    problems = Problems("these can't be frozen, and nothing was changed")
    selected = {id(tensor) for p in statistics for tensor in _tensors(p)}
    for p in statistics:
        for owner in _owners(p):
            if owner in inference_modules:
                continue
            if not isinstance(owner, _BatchNorm):
                problems.add(
                    HoldError,
                    f"{p.name!r} is a buffer of {type(owner).__name__}, whose forward pass changes it as it likes",
                    fix="leave it out with where=",
                )
                continue
            missing = [name for name in _STATISTICS if id(owner._buffers.get(name)) not in selected]
            if missing:
                problems.add(
                    HoldError,
                    f"{p.name!r} is collected together with {', '.join(missing)}: both stop, or none",
                    fix="select them all, as with where='*/moving_*'",
                )
    problems.check()


def _owners(p: Parameter) -> list[nn.Module]:
    return [place.owner for place in p.handle.places] if isinstance(p.handle, TensorHandle) else []


def _tensors(p: Parameter) -> list[torch.Tensor]:
    return p.handle.tensors if isinstance(p.handle, TensorHandle) else [tensor_of(p.handle)]


def _parameter_ids(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
