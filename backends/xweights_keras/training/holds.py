"""Holds in Keras: chains ride on the optimizer's own update, as a variable's constraint.

A constraint is part of the compiled step and costs nothing measurable there; but one that is set after the first fit
is ignored on compiled backends until the train function is made anew, and nothing says so: that is done here, and
undone. Averaging (EMA) overwrites weights behind the constraint when a fit ends: the chains run again then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import keras

from xweights.core.backend import HeldChain
from xweights.core.dispatch import ops_for
from xweights.errors import HoldError, Problems, StaleTrainFunctionError
from xweights_keras.training.step_counter import counting
from xweights_keras.training.trainers import Trainers, iterations_of, owning_models, owns


class HeldConstraint:
    """What stands as ``variable.constraint``: the former one, then the chain."""

    def __init__(self, former: Any, chain: HeldChain) -> None:
        self.former = former
        self.chain = chain
        self.attachments: list[KerasAttachment] = []
        self.calls = 0

    def __call__(self, value: Any) -> Any:
        self.calls += 1
        for one in self.attachments:
            one.renew(traced=True)
        if self.former is not None:
            value = self.former(value)
        if isinstance(value, keras.Variable):
            value = self.chain.parameter.storage.native_array(value, tensor=True)
        return self.chain.of(value, ops_for(value))


class KerasAttachment:
    """One hold's constraints, and the models and optimizers that they ride on."""

    def __init__(
        self, chains: Sequence[HeldChain], trainers: Trainers, after_step: Callable[[Any], None] | None
    ) -> None:
        self.chains = list(chains)
        self.trainers = trainers
        if keras.backend.backend() != "jax":
            for chain in self.chains:
                chain.make_live()
        self.counting = [] if after_step is None else [counting(model, after_step) for model in trainers.models]
        self.constraints = [self._constrain(chain) for chain in self.chains]
        self.starts = [(one, iterations_of(one)) for one in trainers.optimizers]
        self.calls = [one.calls for one in self.constraints]
        self.averaged: list[Any] = []
        self.renew()
        trainers.make_anew()

    def _constrain(self, chain: HeldChain) -> HeldConstraint:
        variable = chain.parameter.handle
        if not isinstance(variable.constraint, HeldConstraint):
            variable.constraint = HeldConstraint(variable.constraint, chain)
        held: HeldConstraint = variable.constraint
        held.attachments.append(self)
        return held

    def renew(self, *, traced: bool = False) -> None:
        """Know the optimizer that a model was compiled with since: its averaging has to be followed, too."""
        for model in self.trainers.models:
            optimizer = getattr(model, "optimizer", None)
            if optimizer is not None and all(optimizer is not one for one, _ in self.starts):
                self.starts.append((optimizer, 0 if traced else iterations_of(optimizer)))
        for optimizer, _ in self.starts[len(self.averaged) :]:
            _after_averaging(optimizer, self.chains, add=True)
            self.averaged.append(optimizer)

    def check(self) -> None:
        """Raise if an optimizer has moved on without the constraints."""
        self.renew()
        moved = [(one, iterations_of(one) - start) for one, start in self.starts]
        moved = [(one, steps) for one, steps in moved if steps]
        problems = Problems("training went on without a hold")
        for chain, constraint, before in zip(self.chains, self.constraints, self.calls, strict=True):
            variable, name = chain.parameter.handle, chain.parameter.name
            steps = sum(steps for one, steps in moved if owns(one, variable)) if chain.parameter.trainable else 0
            replaced = variable.constraint is not constraint
            if steps and (replaced or constraint.calls == before):
                why = "its constraint was replaced" if replaced else "the step was traced before the hold began"
                problems.add(
                    StaleTrainFunctionError,
                    f"{name!r}: {why}\noptimizer steps since the hold began: {steps}",
                    fix="hold before your step is traced, or make the step anew (a new tf.function or jax.jit)",
                )
        problems.check()

    def detach(self) -> None:
        """Take this hold's share off; the former constraint comes back with the last."""
        for share in self.counting:
            share.drop()
        self.let_go(self.chains)

    def let_go(self, chains: Sequence[HeldChain]) -> None:
        """Take this hold's share off some of its chains."""
        leaving = [chain in chains for chain in self.chains]
        for chain, one, leaves in zip(self.chains, self.constraints, leaving, strict=True):
            if leaves:
                one.attachments.remove(self)
                if not one.attachments and chain.parameter.handle.constraint is one:
                    chain.parameter.handle.constraint = one.former
        gone = [chain for chain, leaves in zip(self.chains, leaving, strict=True) if leaves]
        for optimizer in self.averaged:
            _after_averaging(optimizer, gone, add=False)
        stays = [not leaves for leaves in leaving]
        self.chains = list(compress(self.chains, stays))
        self.constraints = list(compress(self.constraints, stays))
        self.calls = list(compress(self.calls, stays))
        self.trainers.make_anew()

    def steps(self) -> int | None:
        """How many updates there were since the hold began; None where nothing counts them."""
        return sum(iterations_of(one) - start for one, start in self.starts) if self.counting else None


def attach(
    chains: Sequence[HeldChain], target: Any, optimizer: Any, after_step: Callable[[Any], None] | None
) -> KerasAttachment:
    """Attach chains as constraints; compiled train functions are made anew, slots and all kept."""
    trainers = owning_models(target, [chain.parameter.handle for chain in chains], optimizer)
    if after_step is not None and not trainers.models:
        raise HoldError(
            "nothing counts the steps of a schedule here\n"
            f"got: {type(target).__module__}.{type(target).__qualname__}, which is part of no compiled model\n"
            "Fix: pass the model that is fitted, and name the layer with where="
        )
    problems = Problems("this optimizer can't keep the hold, and nothing was changed")
    for chain in chains:
        wrong = [one for one in trainers.optimizers if one.built and not owns(one, chain.parameter.handle)]
        # A layer may be a part of several models; an optimizer that the caller named has to train all.
        if chain.parameter.trainable and wrong and (optimizer in wrong or len(wrong) == len(trainers.optimizers)):
            problems.add(
                HoldError,
                f"{chain.parameter.name!r} is not among the optimizer's variables",
                fix="pass the optimizer that trains it, or narrow where=",
            )
    problems.check()
    return KerasAttachment(chains, trainers, after_step)


class _Averaged:
    """The optimizer's own end of averaging, and the chains that run after it."""

    def __init__(self, optimizer: Any) -> None:
        self.former = optimizer.finalize_variable_values
        self.chains: list[HeldChain] = []

    def __call__(self, variables: Any) -> None:
        self.former(variables)
        for chain in self.chains:
            chain.apply()


def _after_averaging(optimizer: Any, chains: Sequence[HeldChain], *, add: bool) -> None:
    standing = optimizer.__dict__.get("finalize_variable_values")
    if add:
        if not isinstance(standing, _Averaged):
            standing = _Averaged(optimizer)
            object.__setattr__(optimizer, "finalize_variable_values", standing)
        standing.chains.extend(chains)
        return
    if isinstance(standing, _Averaged):
        for chain in chains:
            standing.chains.remove(chain)
        if not standing.chains:
            object.__delattr__(optimizer, "finalize_variable_values")
