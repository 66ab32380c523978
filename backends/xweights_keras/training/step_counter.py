"""A call on the host after each step of a Keras model's own training: fit and train_on_batch, on any Keras backend.

A callback would have to be handed to every fit; here the model's train function is wrapped, in whatever way it gets
made: the first time, after compile(), or by force.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.errors import HoldError
from xweights_keras.training.trainers import innermost, iterations_of

Call = Callable[[Any], None]


class JaxState:
    """The weights inside of a running fit on JAX, where the variables are empty shells."""

    def __init__(self, model: Any, state: tuple[Any, ...]) -> None:
        self.at = {id(variable): place for place, variable in enumerate(model.trainable_variables)}
        self.values = list(state[0])
        self.model, self.state = model, state

    def read(self, parameter: Parameter) -> Array:
        return np.asarray(self.value_of(parameter.handle))

    def value_of(self, variable: Any) -> Any:
        """Return the value of a variable of the model, or of its optimizer."""
        place = self.at.get(id(variable))
        if place is not None:
            return self.values[place]
        others = (*self.model.non_trainable_variables, *self.model.optimizer.variables)
        values = (*self.state[1], *self.state[2])
        return next(value for one, value in zip(others, values, strict=True) if one is variable)

    def keep(self, parameter: Parameter, mask: Array) -> None:
        place = self.at.get(id(parameter.handle))
        if place is not None:
            value = self.values[place]
            self.values[place] = keras.ops.where(mask, value, keras.ops.zeros((), value.dtype))


def updates_of(model: Any, state: JaxState | None) -> int:
    """Return how many updates the optimizer of a model has made."""
    optimizer = getattr(model, "optimizer", None)
    if state is None or optimizer is None or not optimizer.built:
        return iterations_of(optimizer)
    plain = innermost(optimizer)
    return int(state.value_of(plain._iterations)) // (plain.gradient_accumulation_steps or 1)


class Counting:
    """A wrapped ``model.make_train_function``, and the calls after each step."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls: list[Call] = []
        self.last: list[Call] = []  # those that see what all others have done
        self.former = model.make_train_function
        self.seen = updates_of(model, None)
        object.__setattr__(model, "make_train_function", self.make)

    def make(self, force: bool = False) -> None:
        """Make the train function as the model does, then wrap it."""
        before = self.model.train_function
        self.former(force=force)
        made = self.model.train_function
        if made is not before or getattr(made, "counts_for", None) is not self:
            self.model.train_function = self.wrapped(made)

    def due(self, state: JaxState | None) -> list[Call]:
        """Return the calls after a step: none after one that only collected a gradient, or skipped its update."""
        optimizer = self.model.optimizer
        if innermost(optimizer) is optimizer and not optimizer.gradient_accumulation_steps:
            return [*self.calls, *self.last]
        before, self.seen = self.seen, updates_of(self.model, state)
        return [] if self.seen == before else [*self.calls, *self.last]

    def wrapped(self, made: Callable[..., Any]) -> Callable[..., Any]:
        """Return the train function with the calls after it."""
        if self.model.steps_per_execution != 1:
            raise HoldError(
                "schedules and averages need to see every step, and this model runs several at once\n"
                f"steps_per_execution: {self.model.steps_per_execution}\nFix: compile it with steps_per_execution=1"
            )

        def stateless(state: Any, iterator: Any) -> Any:
            logs, state = made(state, iterator)
            for call in self.due(JaxState(self.model, state)):
                seen = JaxState(self.model, state)
                call(seen)
                state = (seen.values, *state[1:])
            return logs, state

        def plain(iterator: Any) -> Any:
            logs = made(iterator)
            for call in self.due(None):
                call(None)
            return logs

        function: Any = stateless if keras.backend.backend() == "jax" else plain
        function.counts_for = self
        counted: Callable[..., Any] = function
        return counted


class Share:
    """One hold's share in the counting of a model."""

    def __init__(self, counting: Counting, call: Call, last: bool) -> None:
        self.counting, self.call = counting, call
        self.place = counting.last if last else counting.calls
        self.place.append(call)

    def drop(self) -> None:
        """Take the call off; with the last one the model is as it was."""
        self.place.remove(self.call)
        if not self.counting.calls and not self.counting.last:
            model = self.counting.model
            model.__dict__.pop("make_train_function", None)
            if model.train_function is not None:
                model.make_train_function(force=True)


def counting(model: Any, call: Call, *, last: bool = False) -> Share:
    """Have ``call`` called after each update in a model's own training; ``last``: after all that may change weights."""
    standing = model.__dict__.get("make_train_function")
    owner = getattr(standing, "__self__", None)
    if not isinstance(owner, Counting):
        owner = Counting(model)
        if model.train_function is not None:
            owner.make(force=True)
    return Share(owner, call, last)
