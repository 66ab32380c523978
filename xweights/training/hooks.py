"""Protocol of a backend's hooks into its framework's training, beyond holds.

It is optional: without it freezes and averages work by hand, and learning rates can't be multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from xweights.core.backend import StepState
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_of


class TrainingChange(Protocol):
    """A change attached to a framework's training."""

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a step went by without it."""

    def detach(self) -> None:
        """Restore the former state exactly."""


class FrozenHandle(Protocol):
    """Parameters that a framework doesn't train."""

    def unfreeze(self, parameters: Sequence[Parameter] | None) -> None:
        """Restore the former state of some of them, or (None) of all that are left."""


@runtime_checkable
class TrainingHooks(Protocol):
    """Hooks of a backend whose framework trains models by optimizers that can be attached to."""

    def is_statistic(self, parameter: Parameter) -> bool:
        """Return True for a parameter that a forward pass changes, rather than an optimizer."""

    def freeze(
        self,
        parameters: Sequence[Parameter],
        *,
        target: Any,
        optimizer: Any,
        whole: bool,
        inference: bool,
        owner: object,
    ) -> FrozenHandle:
        """Exclude these parameters from training, as far as nothing is lost by it.

        ``whole``: no gradients, slots or weight decay; forward passes no longer change the statistics among them.
        ``inference``: batch normalizations that own one of them run in inference mode. ``owner`` lives as long.
        Raise HoldError, before anything is changed, for a statistic that can't be stopped.
        """

    def multiply(
        self, pairs: Sequence[tuple[Parameter, float]], *, target: Any, optimizer: Any, owner: object
    ) -> TrainingChange:
        """Have each step count ``factor`` times for its parameter, by ``learning_rates.blend_step``, before any hold.

        ``owner`` lives as long.
        Raise ArgumentError without an optimizer, HoldError where it doesn't train one of them, or scales it already.
        """

    def follow(
        self, parameters: Sequence[Parameter], call: Callable[[StepState | None], None], *, target: Any, optimizer: Any
    ) -> TrainingChange | None:
        """Have ``call`` called on the host after each step that may change the parameters, after all holds.

        Return None where there is nothing to attach to; raise HoldError if ``optimizer`` trains none of them.
        """


@runtime_checkable
class CountsSteps(Protocol):
    """An attachment that counts the steps of its optimizer."""

    def steps(self) -> int | None:
        """Return the number of steps, or None if it can't be known."""


@runtime_checkable
class ExpectsOptimizer(Protocol):
    """An attachment that counts steps of an optimizer that the model may get later."""

    def expect(self, optimizer: Any) -> None:
        """Allow for the updates that an optimizer has made elsewhere."""


def training_for(parameter: Parameter) -> TrainingHooks | None:
    """Return the training hooks of a parameter's backend, or None."""
    backend = backend_of(parameter)
    return backend if isinstance(backend, TrainingHooks) else None
