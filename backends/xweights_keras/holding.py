"""Holds in Keras: chains ride on the optimizer's own update, as a variable's constraint.

Owns :func:`attach`. Imports keras, errors and the core's protocols. A constraint is part of the compiled step and costs
nothing measurable there; but one that is set after the first fit is ignored on compiled backends until the train
function is made anew, and nothing says so: that is done here, and undone. Averaging (EMA) overwrites weights behind the
constraint when a fit ends: the chains run again then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import keras

from xweights.backend import HeldChain
from xweights.errors import HoldError, Problems, StaleTrainFunctionError
from xweights.running import ops_for
from xweights_keras.counting import counting


class HeldConstraint:
    """What stands as ``variable.constraint``: the former one, then the chain."""

    def __init__(self, former: Any, chain: HeldChain) -> None:
        self.former = former
        self.chain = chain
        self.holds = 0
        self.calls = 0

    def __call__(self, value: Any) -> Any:
        self.calls += 1
        if self.former is not None:
            value = self.former(value)
        if isinstance(value, keras.Variable):
            value = self.chain.parameter.storage.leaf(value, native=True)
        return self.chain.of(value, ops_for(value))


class KerasAttachment:
    """One hold's constraints, on the model and the optimizer that they ride on."""

    def __init__(
        self, chains: Sequence[HeldChain], model: Any, optimizer: Any, after_step: Callable[[Any], None] | None
    ) -> None:
        self.chains = list(chains)
        self.model = model
        self.optimizer = optimizer
        if keras.backend.backend() != "jax":
            for chain in self.chains:
                chain.make_live()
        self.counting = None if after_step is None else counting(model, after_step)
        self.constraints = [self._constrain(chain) for chain in self.chains]
        self.start = iterations_of(optimizer)
        self.calls = [one.calls for one in self.constraints]
        if optimizer is not None:
            _after_averaging(optimizer, self.chains, add=True)
        make_anew(model)

    @staticmethod
    def _constrain(chain: HeldChain) -> HeldConstraint:
        variable = chain.parameter.handle
        if not isinstance(variable.constraint, HeldConstraint):
            variable.constraint = HeldConstraint(variable.constraint, chain)
        variable.constraint.holds += 1
        held: HeldConstraint = variable.constraint
        return held

    def check(self) -> None:
        """Raise if the optimizer has moved on without the constraints."""
        now = iterations_of(self.optimizer)
        if now == self.start or any(not chain.parameter.trainable for chain in self.chains):
            return
        missed = [
            chain.parameter.name
            for chain, one, before in zip(self.chains, self.constraints, self.calls, strict=True)
            if one.calls == before
        ]
        replaced = [
            c.parameter.name
            for c, one in zip(self.chains, self.constraints, strict=True)
            if c.parameter.handle.constraint is not one
        ]
        if missed or replaced:
            raise StaleTrainFunctionError(
                f"training went on without the hold on {', '.join(missed or replaced)}\n"
                f"optimizer steps since it began: {now - self.start}\n"
                + (
                    "the constraint was replaced meanwhile\n"
                    if replaced
                    else "the step was traced before the hold began\n"
                )
                + "Fix: hold before your step is traced, or make the step anew (a new tf.function or jax.jit)"
            )

    def detach(self) -> None:
        """Take this hold's share off; the former constraint comes back with the last."""
        if self.counting is not None:
            self.counting.drop()
        self.let_go(self.chains)

    def let_go(self, chains: Sequence[HeldChain]) -> None:
        """Take this hold's share off some of its chains."""
        leaving = [chain in chains for chain in self.chains]
        for chain, one, leaves in zip(self.chains, self.constraints, leaving, strict=True):
            if leaves:
                one.holds -= 1
                if not one.holds and chain.parameter.handle.constraint is one:
                    chain.parameter.handle.constraint = one.former
        if self.optimizer is not None:
            gone = [chain for chain, leaves in zip(self.chains, leaving, strict=True) if leaves]
            _after_averaging(self.optimizer, gone, add=False)
        stays = [not leaves for leaves in leaving]
        self.chains = list(compress(self.chains, stays))
        self.constraints = list(compress(self.constraints, stays))
        self.calls = list(compress(self.calls, stays))
        make_anew(self.model)

    def steps(self) -> int | None:
        """How many steps the optimizer took since the hold began; None where nothing counts them."""
        return None if self.counting is None else iterations_of(self.optimizer) - self.start


def attach(
    chains: Sequence[HeldChain], target: Any, optimizer: Any, after_step: Callable[[Any], None] | None
) -> KerasAttachment:
    """Attach chains as constraints; the model's compiled train function is made anew, slots and all kept."""
    model = target if isinstance(target, keras.Model) else None
    optimizer = optimizer if optimizer is not None else getattr(model, "optimizer", None)
    if optimizer is not None and not isinstance(optimizer, keras.optimizers.Optimizer):
        raise HoldError(
            f"optimizer= is no Keras optimizer\ngot: {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    if optimizer is not None and optimizer.built:
        owned = {id(one) for one in optimizer._trainable_variables}
        problems = Problems("this optimizer can't keep the hold, and nothing was changed")
        for chain in chains:
            if chain.parameter.trainable and id(chain.parameter.handle) not in owned:
                problems.add(
                    HoldError,
                    f"{chain.parameter.name!r} is not among the optimizer's variables",
                    fix="pass the optimizer that trains it, or narrow where=",
                )
        problems.check()
    return KerasAttachment(chains, model, optimizer, after_step)


def iterations_of(optimizer: Any) -> int:
    """Return how many updates an optimizer has made; gradients that were only collected are not counted."""
    if optimizer is None or not optimizer.built:
        return 0
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


def make_anew(model: Any) -> None:
    """Have a compiled model trace its train function again. (compile() would lose the optimizer's state.)"""
    if model is not None and getattr(model, "compiled", False) and model.train_function is not None:
        model.make_train_function(force=True)


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
