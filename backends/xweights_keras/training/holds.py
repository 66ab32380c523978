"""Holds in Keras: the rules run in the optimizer's own update, as variable constraints.

A constraint is part of the compiled step, where its cost can't be measured; but compiled backends silently ignore one
that is set after the first fit until the train function is made again. Attaching and detaching do that. Averaging (EMA)
overwrites weights after the constraints when a fit ends, so the held rules run again then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import keras

from xweights.core.backend import HeldChain
from xweights.core.dispatch import ops_for
from xweights.errors import HoldError, Problems, StaleTrainFunctionError
from xweights_keras.training.step_counter import count_steps
from xweights_keras.training.trainers import Trainers, ids_of_trained, iterations_of, owning_models, refuse_parts


class HeldConstraint(keras.constraints.Constraint):  # type: ignore[misc] # Keras before 3.14 takes no other
    """A ``variable.constraint`` that runs the former constraint, then the held rules."""

    def __init__(self, former: Any, chain: HeldChain) -> None:
        self.former = former
        self.chain = chain
        self.attachments: list[KerasAttachment] = []
        self.calls = 0

    def __call__(self, value: Any) -> Any:
        self.calls += 1
        for attachment in self.attachments:
            attachment.renew(traced=True)
        if self.former is not None:
            value = self.former(value)
        if isinstance(value, keras.Variable):
            value = self.chain.parameter.storage.native_array(value, tensor=True)
        return self.chain.of(value, ops_for(value))


def foreign_constraint(variable: Any) -> Any:
    """Return the constraint of a variable that isn't a held rule, or None."""
    constraint = variable.constraint
    return constraint.former if isinstance(constraint, HeldConstraint) else constraint


class KerasAttachment:
    """One hold's constraints, and the models and optimizers that run them."""

    def __init__(
        self, chains: Sequence[HeldChain], trainers: Trainers, after_step: Callable[[Any], None] | None
    ) -> None:
        self.chains = list(chains)
        self.trainers = trainers
        if keras.backend.backend() != "jax":
            for chain in self.chains:
                chain.make_live()
        self.subscriptions = [] if after_step is None else [count_steps(model, after_step) for model in trainers.models]
        self.constraints = [self._constrain(chain) for chain in self.chains]
        self.starts = [(optimizer, iterations_of(optimizer)) for optimizer in trainers.optimizers]
        self.calls = [constraint.calls for constraint in self.constraints]
        self.averaged: list[Any] = []
        self.renew()
        trainers.retrace()

    def _constrain(self, chain: HeldChain) -> HeldConstraint:
        variable = chain.parameter.handle
        if not isinstance(variable.constraint, HeldConstraint):
            variable.constraint = HeldConstraint(variable.constraint, chain)
        held: HeldConstraint = variable.constraint
        held.attachments.append(self)
        return held

    def renew(self, *, traced: bool = False) -> None:
        """Add optimizers that a model was compiled with since; the rules have to run after their averaging, too."""
        for model in self.trainers.models:
            optimizer = getattr(model, "optimizer", None)
            if optimizer is not None and all(optimizer is not known for known, _ in self.starts):
                self.starts.append((optimizer, 0 if traced else iterations_of(optimizer)))
        for optimizer, _ in self.starts[len(self.averaged) :]:
            _run_after_averaging(optimizer, self.chains, add=True)
            self.averaged.append(optimizer)

    def check(self) -> None:
        """Raise if an optimizer has made steps without the constraints."""
        self.renew()
        made = [(optimizer, iterations_of(optimizer) - start) for optimizer, start in self.starts]
        moved = [(ids_of_trained(optimizer), steps) for optimizer, steps in made if steps]
        if not moved:
            return
        problems = Problems("training went on without a hold")
        for chain, constraint, before in zip(self.chains, self.constraints, self.calls, strict=True):
            variable, name = chain.parameter.handle, chain.parameter.name
            replaced = variable.constraint is not constraint
            if not replaced and constraint.calls != before:
                continue
            steps = sum(n for trained, n in moved if id(variable) in trained) if chain.parameter.trainable else 0
            if steps:
                why = "its constraint was replaced" if replaced else "the step was traced before the hold began"
                problems.add(
                    StaleTrainFunctionError,
                    f"{name!r}: {why}\noptimizer steps since the hold began: {steps}",
                    fix="hold before your step is traced, or make the step again (a new tf.function or jax.jit)",
                )
        problems.check()

    def detach(self) -> None:
        """Remove this hold; removing the last one restores the former constraint."""
        for subscription in self.subscriptions:
            subscription.drop()
        self.let_go(self.chains)

    def let_go(self, chains: Sequence[HeldChain]) -> None:
        """Remove this hold from some of its parameters."""
        leaving = [chain in chains for chain in self.chains]
        for chain, constraint, leaves in zip(self.chains, self.constraints, leaving, strict=True):
            if leaves:
                constraint.attachments.remove(self)
                if not constraint.attachments and chain.parameter.handle.constraint is constraint:
                    chain.parameter.handle.constraint = constraint.former
        gone = [chain for chain, leaves in zip(self.chains, leaving, strict=True) if leaves]
        for optimizer in self.averaged:
            _run_after_averaging(optimizer, gone, add=False)
        stays = [not leaves for leaves in leaving]
        self.chains = list(compress(self.chains, stays))
        self.constraints = list(compress(self.constraints, stays))
        self.calls = list(compress(self.calls, stays))
        self.trainers.retrace()

    def steps(self) -> int | None:
        """Return how many updates there were since the hold began; None where nothing counts them."""
        return sum(iterations_of(optimizer) - start for optimizer, start in self.starts) if self.subscriptions else None


def attach(
    chains: Sequence[HeldChain], target: Any, optimizer: Any, after_step: Callable[[Any], None] | None
) -> KerasAttachment:
    """Attach held rules as constraints; compiled train functions are made again, and optimizers keep their state."""
    refuse_parts([chain.parameter for chain in chains], "these can't be held")
    trainers = owning_models(target, [chain.parameter.handle for chain in chains], optimizer)
    if after_step is not None and not trainers.models:
        raise HoldError(
            "nothing counts the steps of a schedule here\n"
            f"got: {type(target).__module__}.{type(target).__qualname__}, which is part of no compiled model\n"
            "Fix: pass the model that is fitted, and name the layer with where="
        )
    problems = Problems("this optimizer can't keep the hold, and nothing was changed")
    built = [(known, ids_of_trained(known)) for known in trainers.optimizers if known.built]
    for chain in chains:
        wrong = [known for known, trained in built if id(chain.parameter.handle) not in trained]
        # A layer may be part of several models; an optimizer that the caller named has to train all parameters.
        misses = bool(wrong) and (optimizer in wrong or len(wrong) == len(trainers.optimizers))
        if misses and chain.parameter.trainable:
            problems.add(
                HoldError,
                f"{chain.parameter.name!r} is not among the optimizer's variables",
                fix="pass the optimizer that trains it, or narrow where=",
            )
    problems.check()
    return KerasAttachment(chains, trainers, after_step)


class _FinalizeWithHolds:
    """An optimizer's ``finalize_variable_values`` (end of averaging), followed by the held rules."""

    def __init__(self, optimizer: Any) -> None:
        self.former = optimizer.finalize_variable_values
        self.chains: list[HeldChain] = []

    def __call__(self, variables: Any) -> None:
        self.former(variables)
        for chain in self.chains:
            if chain.parameter.handle._value is not None:  # on JAX it is lost in a step that raises, and fit ends here
                chain.apply()


def _run_after_averaging(optimizer: Any, chains: Sequence[HeldChain], *, add: bool) -> None:
    installed = optimizer.__dict__.get("finalize_variable_values")
    if add:
        if not isinstance(installed, _FinalizeWithHolds):
            installed = _FinalizeWithHolds(optimizer)
            object.__setattr__(optimizer, "finalize_variable_values", installed)
        installed.chains.extend(chains)
        return
    if isinstance(installed, _FinalizeWithHolds):
        for chain in chains:
            installed.chains.remove(chain)
        if not installed.chains:
            object.__delattr__(optimizer, "finalize_variable_values")
