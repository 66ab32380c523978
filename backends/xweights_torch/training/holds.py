"""Holds in PyTorch: held rules run after each optimizer step.

A step post-hook works with every optimizer (foreach, fused, LBFGS, under a GradScaler or gradient accumulation).
Masked gradients leak: momentum and weight decay moved a "frozen" entry under each of ten optimizers tried, and under
none with a post-hook.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from xweights.core.backend import HeldChain
from xweights.core.parameter import Parameter
from xweights.errors import HoldError, Problems, StaleTrainFunctionError
from xweights.training.held_groups import HeldGroups
from xweights_torch.storage import TensorHandle, tensor_of

# Dynamo would trace a hook into a compiled step and fix the current rules there. It is untyped.
plain_python: Any = torch.compiler.disable


class HoldHooks:
    """Rules held after the steps of one optimizer, or (``optimizer`` None) of any that steps their parameters."""

    def __init__(self, optimizer: Optimizer | None) -> None:
        self.chains: dict[int, tuple[HeldChain, int]] = {}  # by tensor, with the number of holds
        self.after: list[tuple[int, Callable[[Any], None]]] = []  # the tensor whose steps count, and the callback
        self._owned: weakref.WeakKeyDictionary[Optimizer, tuple[list[int], HeldGroups, set[int]]] = (
            weakref.WeakKeyDictionary()
        )
        self._hook = plain_python(self._run)
        self.handle = self._register(optimizer)
        self.optimizer = optimizer
        self.other_optimizers = OtherOptimizers(optimizer, self.chains.keys) if optimizer is not None else None

    def _register(self, optimizer: Optimizer | None) -> RemovableHandle:
        if optimizer is None:
            handle = register_optimizer_step_post_hook(self._hook)
            for register_again in AFTER_HOLDS:
                register_again()
            return handle
        return optimizer.register_step_post_hook(self._hook)

    def move_last(self, optimizer: Optimizer | None) -> None:
        """Run after every hook that was registered so far."""
        self.handle.remove()
        self.handle = self._register(optimizer)

    def add(self, chains: Sequence[HeldChain]) -> None:
        """Run these rules after each step, once each."""
        for chain in chains:
            key = id(tensor_of(chain.parameter.handle))
            self.chains[key] = (chain, self.chains.get(key, (chain, 0))[1] + 1)
        self._owned.clear()

    def drop(self, chains: Sequence[HeldChain]) -> None:
        """Remove one hold from these rules, and the hook with the last one."""
        for chain in chains:
            key = id(tensor_of(chain.parameter.handle))
            count = self.chains[key][1] - 1
            if count:
                self.chains[key] = (chain, count)
            else:
                del self.chains[key]
        self._owned.clear()
        if not self.chains:
            self.handle.remove()
            if self.other_optimizers is not None:
                self.other_optimizers.handle.remove()

    def _run(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        groups, stepped = self._groups_of(optimizer)
        groups.apply()
        for counted, call in self.after:
            if counted in stepped:
                call(None)

    def _groups_of(self, optimizer: Optimizer) -> tuple[HeldGroups, set[int]]:
        # Kept for each optimizer, since two that step the parts of one model take turns; and compared one by one, in C,
        # since a parameter may be replaced in its list.
        parameters = itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)
        stepped = list(map(id, parameters))
        known = self._owned.get(optimizer)
        if known is None or known[0] != stepped:
            held = set(stepped)
            chains = [chain for tensor, (chain, _) in self.chains.items() if tensor in held]
            known = self._owned[optimizer] = (stepped, HeldGroups(chains), held)
        return known[1], known[2]


class OtherOptimizers:
    """Detector of steps of the same tensors by an optimizer other than the one that was attached to."""

    def __init__(self, optimizer: Optimizer, tensors: Callable[[], Collection[int]]) -> None:
        self.optimizer, self.tensors = optimizer, tensors
        self.other_name: str | None = None
        # Cached for each optimizer and number of tensors.
        self._known: weakref.WeakKeyDictionary[Optimizer, tuple[int, list[Any]]] = weakref.WeakKeyDictionary()
        self.handle = register_optimizer_step_post_hook(plain_python(self._watch))

    def _watch(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is self.optimizer or self.other_name is not None:
            return
        tensors = self.tensors()
        if self._known.get(optimizer, (-1,))[0] != len(tensors):
            shared = [p for group in optimizer.param_groups for p in group["params"] if id(p) in tensors]
            self._known[optimizer] = (len(tensors), shared)
        if any(p.grad is not None for p in self._known[optimizer][1]):
            self.other_name = type(optimizer).__name__

    def check(self, what: str) -> None:
        """Raise if another optimizer has stepped the tensors."""
        if self.other_name is not None:
            raise StaleTrainFunctionError(
                f"the parameters were stepped by another optimizer, without {what}\n"
                f"got:      {self.other_name}\n"
                f"expected: the {type(self.optimizer).__name__} that was given as optimizer=\n"
                "Fix: release() what was attached, and attach it to the new one"
            )


_hooks: dict[int, tuple[Optimizer | None, HoldHooks]] = {}

# Functions that re-register hooks which have to run after those of all holds.
AFTER_HOLDS: list[Callable[[], None]] = []


def run_holds_last(optimizer: Optimizer) -> None:
    """Make the holds on an optimizer run after every hook that was registered on it so far."""
    if id(optimizer) in _hooks:
        _hooks[id(optimizer)][1].move_last(optimizer)


class TorchAttachment:
    """The rules of one hold, attached to an optimizer."""

    def __init__(
        self, optimizer: Optimizer | None, chains: Sequence[HeldChain], after_step: Callable[[Any], None] | None
    ) -> None:
        self.key = id(optimizer)
        self.chains = list(chains)
        if self.key not in _hooks or not _hooks[self.key][1].chains:
            _hooks[self.key] = (optimizer, HoldHooks(optimizer))
        _hooks[self.key][1].add(self.chains)
        self.after = None if after_step is None else (id(tensor_of(self.chains[0].parameter.handle)), after_step)
        if self.after is not None:
            _hooks[self.key][1].after.append(self.after)

    def check(self) -> None:
        """Raise if a held parameter was replaced or stepped by another optimizer: nothing else bypasses a post-hook."""
        others = _hooks[self.key][1].other_optimizers if self.chains else None
        if others is not None:
            others.check("the hold")
        check_not_replaced([chain.parameter for chain in self.chains])

    def detach(self) -> None:
        """Detach all rules of this hold."""
        if self.after is not None:
            _hooks[self.key][1].after.remove(self.after)
        self.let_go(self.chains)

    def let_go(self, chains: Sequence[HeldChain]) -> None:
        """Detach some rules of this hold."""
        leaving = [chain for chain in chains if chain in self.chains]
        if not leaving:
            return
        self.chains = [chain for chain in self.chains if chain not in leaving]
        hooks = _hooks[self.key][1]
        hooks.drop(leaving)
        if not hooks.chains:
            del _hooks[self.key]


def check_not_replaced(parameters: Sequence[Parameter]) -> None:
    """Raise if one of these parameters was replaced in its module since something was attached to it."""
    problems = Problems("a part of the model was replaced")
    for p in parameters:
        if isinstance(p.handle, TensorHandle) and not p.handle.is_registered:
            problems.add(
                StaleTrainFunctionError,
                f"{p.name!r} is another object now, to which nothing that was attached to the former one applies",
                fix="release() what was attached, and attach it again",
            )
    problems.check()


def attach(
    chains: Sequence[HeldChain], optimizer: Any, after_step: Callable[[Any], None] | None
) -> TorchAttachment | None:
    """Attach held rules to an optimizer, or to any that steps their parameters."""
    trained = [chain for chain in chains if isinstance(tensor_of(chain.parameter.handle), torch.nn.Parameter)]
    if optimizer is None:
        return TorchAttachment(None, trained, after_step) if trained else None
    plain = unwrap_optimizer(optimizer)
    owned = {id(p) for group in plain.param_groups for p in group["params"]}
    problems = Problems("this optimizer can't keep the hold, and nothing was changed")
    for chain in chains:
        if id(tensor_of(chain.parameter.handle)) not in owned:
            problems.add(
                HoldError,
                f"{chain.parameter.name!r} is not among the optimizer's parameters",
                fix="pass the optimizer that trains it, or narrow where=",
            )
    problems.check()
    return TorchAttachment(plain, chains, after_step)


def unwrap_optimizer(optimizer: Any) -> Optimizer:
    """Return the torch optimizer inside of a wrapper (Accelerate, Lightning) that can't take hooks itself."""
    # Accelerate's wrapper is an Optimizer by class, but was never initialised as one: registering a hook on it raises.
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise HoldError(
            f"optimizer= is no torch optimizer\ngot: {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    return optimizer
