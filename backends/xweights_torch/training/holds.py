"""Holds in PyTorch: chains run after each optimizer step.

A step post-hook runs whatever the optimizer's rule is (foreach, fused, LBFGS, under a GradScaler or gradient
accumulation), where masked gradients leak: momentum and weight decay moved a "frozen" entry under each of ten
optimizers tried, and under none with a post-hook.
"""

from __future__ import annotations

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
from xweights_torch.storage import Slot, tensor_of

# Dynamo would trace a hook into a compiled step, and freeze today's chains there. It has no types.
plain_python: Any = torch.compiler.disable


class Hooks:
    """The chains that follow one optimizer, or (``optimizer`` None) any that steps their parameters."""

    def __init__(self, optimizer: Optimizer | None) -> None:
        self.chains: dict[int, tuple[HeldChain, int]] = {}  # by tensor, with the number of holds
        self.after: list[tuple[int, Callable[[Any], None]]] = []  # the tensor whose steps count, and what to call
        self._owned: tuple[tuple[int, ...], list[HeldChain], set[int]] | None = None
        self._hook = plain_python(self._run)
        self.handle = self._register(optimizer)
        self.optimizer = optimizer
        self.others = Others(optimizer, self.chains.keys) if optimizer is not None else None

    def _register(self, optimizer: Optimizer | None) -> RemovableHandle:
        if optimizer is None:
            handle = register_optimizer_step_post_hook(self._hook)
            for again in AFTER_HOLDS:
                again()
            return handle
        return optimizer.register_step_post_hook(self._hook)

    def again(self, optimizer: Optimizer | None) -> None:
        """Run after every hook that was registered up to now."""
        self.handle.remove()
        self.handle = self._register(optimizer)

    def add(self, chains: Sequence[HeldChain]) -> None:
        """Have these chains follow, once each."""
        for chain in chains:
            key = id(tensor_of(chain.parameter.handle))
            self.chains[key] = (chain, self.chains.get(key, (chain, 0))[1] + 1)
        self._owned = None

    def drop(self, chains: Sequence[HeldChain]) -> None:
        """Take one hold off these chains, and the hook off with the last."""
        for chain in chains:
            key = id(tensor_of(chain.parameter.handle))
            count = self.chains[key][1] - 1
            if count:
                self.chains[key] = (chain, count)
            else:
                del self.chains[key]
        self._owned = None
        if not self.chains:
            self.handle.remove()
            if self.others is not None:
                self.others.handle.remove()

    def _run(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        chains, mine = self._stepped(optimizer)
        for chain in chains:
            chain.apply()
        for counted, call in self.after:
            if counted in mine:
                call(None)

    def _stepped(self, optimizer: Optimizer) -> tuple[list[HeldChain], set[int]]:
        # Looked up once for each optimizer and set of parameters: a loop over all of them costs as much as a rule.
        key = (id(optimizer), *(id(group["params"]) for group in optimizer.param_groups))
        key = (*key, *(len(group["params"]) for group in optimizer.param_groups))
        if self._owned is None or self._owned[0] != key:
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            self._owned = (key, [chain for at, (chain, _) in self.chains.items() if at in mine], mine)
        return self._owned[1], self._owned[2]


class Others:
    """Finds out that an optimizer other than the one that something was attached to steps the same tensors."""

    def __init__(self, optimizer: Optimizer, tensors: Callable[[], Collection[int]]) -> None:
        self.optimizer, self.tensors = optimizer, tensors
        self.found: str | None = None
        # Looked up once for each optimizer and number of tensors.
        self._known: weakref.WeakKeyDictionary[Optimizer, tuple[int, list[Any]]] = weakref.WeakKeyDictionary()
        self.handle = register_optimizer_step_post_hook(plain_python(self._watch))

    def _watch(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is self.optimizer or self.found is not None:
            return
        tensors = self.tensors()
        if self._known.get(optimizer, (-1,))[0] != len(tensors):
            shared = [p for group in optimizer.param_groups for p in group["params"] if id(p) in tensors]
            self._known[optimizer] = (len(tensors), shared)
        if any(p.grad is not None for p in self._known[optimizer][1]):
            self.found = type(optimizer).__name__

    def check(self, what: str) -> None:
        """Raise if another optimizer was found."""
        if self.found is not None:
            raise StaleTrainFunctionError(
                f"the parameters were stepped by another optimizer, without {what}\n"
                f"got:      {self.found}\n"
                f"expected: the {type(self.optimizer).__name__} that was given as optimizer=\n"
                "Fix: release() what was attached, and attach it to the new one"
            )


_hooks: dict[int, tuple[Optimizer | None, Hooks]] = {}

# Registers hooks again that have to run after those of all holds.
AFTER_HOLDS: list[Callable[[], None]] = []


def holds_last(optimizer: Optimizer) -> None:
    """Have the holds on an optimizer run after what was registered on it up to now."""
    if id(optimizer) in _hooks:
        _hooks[id(optimizer)][1].again(optimizer)


class TorchAttachment:
    """One hold's share in the hooks of an optimizer."""

    def __init__(
        self, optimizer: Optimizer | None, chains: Sequence[HeldChain], after_step: Callable[[Any], None] | None
    ) -> None:
        self.key = id(optimizer)
        self.chains = list(chains)
        if self.key not in _hooks or not _hooks[self.key][1].chains:
            _hooks[self.key] = (optimizer, Hooks(optimizer))
        _hooks[self.key][1].add(self.chains)
        self.after = None if after_step is None else (id(tensor_of(self.chains[0].parameter.handle)), after_step)
        if self.after is not None:
            _hooks[self.key][1].after.append(self.after)

    def check(self) -> None:
        """Raise if another object stands in the place of a held parameter: a post-hook can't be passed by else."""
        others = _hooks[self.key][1].others if self.chains else None
        if others is not None:
            others.check("the hold")
        check_in_place([chain.parameter for chain in self.chains])

    def detach(self) -> None:
        """Take this hold's share off."""
        if self.after is not None:
            _hooks[self.key][1].after.remove(self.after)
        self.let_go(self.chains)

    def let_go(self, chains: Sequence[HeldChain]) -> None:
        """Take this hold's share off some of its chains."""
        leaving = [chain for chain in chains if chain in self.chains]
        if not leaving:
            return
        self.chains = [chain for chain in self.chains if chain not in leaving]
        hooks = _hooks[self.key][1]
        hooks.drop(leaving)
        if not hooks.chains:
            del _hooks[self.key]


def check_in_place(parameters: Sequence[Parameter]) -> None:
    """Raise if another object stands where one of these parameters stood when something was attached to it."""
    problems = Problems("a part of the model was replaced")
    for p in parameters:
        if isinstance(p.handle, Slot) and not p.handle.in_place:
            problems.add(
                StaleTrainFunctionError,
                f"{p.name!r} is another object now, which obeys nothing that was attached to the former one",
                fix="release() what was attached, and attach it again",
            )
    problems.check()


def attach(
    chains: Sequence[HeldChain], optimizer: Any, after_step: Callable[[Any], None] | None
) -> TorchAttachment | None:
    """Attach chains to an optimizer, or to whichever steps them."""
    trained = [chain for chain in chains if isinstance(tensor_of(chain.parameter.handle), torch.nn.Parameter)]
    if optimizer is None:
        return TorchAttachment(None, trained, after_step) if trained else None
    plain = unwrapped(optimizer)
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


def unwrapped(optimizer: Any) -> Optimizer:
    """Return the torch optimizer inside of a wrapper (Accelerate, Lightning), on which no hook can be registered."""
    # Accelerate's wrapper is an Optimizer by class, but was never initialised as one: registering a hook on it raises.
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, Optimizer):
        raise HoldError(
            f"optimizer= is no torch optimizer\ngot: {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    return optimizer
