"""Call functions on the host after each step of fit and train_on_batch, on any Keras backend.

A Keras callback would have to be passed to every fit. The model's train function is wrapped instead, whenever it is
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

StepCallback = Callable[[Any], None]


class JaxState:
    """The weights inside a running fit on JAX, where the variables hold no values."""

    def __init__(self, model: Any, state: tuple[Any, ...]) -> None:
        self.positions = {id(variable): position for position, variable in enumerate(model.trainable_variables)}
        self.values = list(state[0])
        self.model, self.state = model, state

    def read(self, parameter: Parameter) -> Array:
        return np.asarray(self.value_of(parameter.handle))

    def value_of(self, variable: Any) -> Any:
        """Return the value of a variable of the model or of its optimizer."""
        position = self.positions.get(id(variable))
        if position is not None:
            return self.values[position]
        others = (*self.model.non_trainable_variables, *self.model.optimizer.variables)
        values = (*self.state[1], *self.state[2])
        return next(value for other, value in zip(others, values, strict=True) if other is variable)

    def keep(self, parameter: Parameter, mask: Array) -> None:
        position = self.positions.get(id(parameter.handle))
        if position is not None:
            value = self.values[position]
            self.values[position] = keras.ops.where(mask, value, keras.ops.zeros((), value.dtype))


def updates_of(model: Any, state: JaxState | None) -> int:
    """Return how many updates the optimizer of a model has made."""
    optimizer = getattr(model, "optimizer", None)
    if state is None or optimizer is None or not optimizer.built:
        return iterations_of(optimizer)
    plain = innermost(optimizer)
    return int(state.value_of(plain._iterations)) // (plain.gradient_accumulation_steps or 1)


class StepCounter:
    """A wrapped ``model.make_train_function``, and the callbacks after each step."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls: list[StepCallback] = []
        self.last: list[StepCallback] = []  # run after all others
        self.former = model.make_train_function
        self.seen = updates_of(model, None)
        object.__setattr__(model, "make_train_function", self.make)

    def make(self, force: bool = False) -> None:
        """Make the train function as the model does, then wrap it."""
        before = self.model.train_function
        self.former(force=force)
        function = self.model.train_function
        if function is not before or getattr(function, "counts_for", None) is not self:
            self.model.train_function = self.wrap(function)

    def due_calls(self, state: JaxState | None) -> list[StepCallback]:
        """Return the callbacks to run after a step: none if it only collected a gradient or skipped its update."""
        optimizer = self.model.optimizer
        if innermost(optimizer) is optimizer and not optimizer.gradient_accumulation_steps:
            return [*self.calls, *self.last]
        before, self.seen = self.seen, updates_of(self.model, state)
        return [] if self.seen == before else [*self.calls, *self.last]

    def wrap(self, train_function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the train function followed by the callbacks."""
        if self.model.steps_per_execution != 1:
            raise HoldError(
                "schedules and averages need to see every step, and this model runs several at once\n"
                f"steps_per_execution: {self.model.steps_per_execution}\nFix: compile it with steps_per_execution=1"
            )

        def stateless(state: Any, iterator: Any) -> Any:
            logs, state = train_function(state, iterator)
            for call in self.due_calls(JaxState(self.model, state)):
                jax_state = JaxState(self.model, state)
                call(jax_state)
                state = (jax_state.values, *state[1:])
            return logs, state

        def plain(iterator: Any) -> Any:
            logs = train_function(iterator)
            for call in self.due_calls(None):
                call(None)
            return logs

        wrapper: Any = stateless if keras.backend.backend() == "jax" else plain
        wrapper.counts_for = self
        counted: Callable[..., Any] = wrapper
        return counted


class StepSubscription:
    """One callback of a StepCounter."""

    def __init__(self, counter: StepCounter, call: StepCallback, last: bool) -> None:
        self.counter, self.call = counter, call
        self.calls = counter.last if last else counter.calls
        self.calls.append(call)

    def drop(self) -> None:
        """Remove the callback; removing the last one restores the model."""
        self.calls.remove(self.call)
        if not self.counter.calls and not self.counter.last:
            model = self.counter.model
            model.__dict__.pop("make_train_function", None)
            if model.train_function is not None:
                model.make_train_function(force=True)


def count_steps(model: Any, call: StepCallback, *, last: bool = False) -> StepSubscription:
    """Run ``call`` after each update in a model's own training; ``last``: after all that may change weights."""
    installed = model.__dict__.get("make_train_function")
    counter = getattr(installed, "__self__", None)
    if not isinstance(counter, StepCounter):
        counter = StepCounter(model)
        if model.train_function is not None:
            counter.make(force=True)
    return StepSubscription(counter, call, last)
