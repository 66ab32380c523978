"""What a framework's own training offers beyond holds: the protocol, and who keeps it.

A backend needn't keep it: freezes and averages then work by hand, and learning rates can't be multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from xweights.core.backend import StepState
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for


class Change(Protocol):
    """Something attached to a framework's training."""

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a step went by without it."""

    def detach(self) -> None:
        """Restore the former state exactly."""


class FrozenHandle(Protocol):
    """Parameters that a framework leaves alone."""

    def unfreeze(self, parameters: Sequence[Parameter] | None) -> None:
        """Restore the former state of some of them, or (None) of all that are left."""


@runtime_checkable
class TrainingHooks(Protocol):
    """What a backend keeps besides whose framework trains models by optimizers that can be attached to."""

    def is_statistic(self, parameter: Parameter) -> bool:
        """Return True for what a forward pass changes, rather than an optimizer."""

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
        """Spare these parameters all that training does to them, as far as nothing is lost by it.

        ``whole``: no gradients, slots or weight decay; forward passes no longer change the statistics among them.
        ``inference``: batch normalizations that own one of them run in inference mode. ``owner`` lives as long.
        Raise HoldError, before anything is changed, for a statistic that can't be stopped.
        """

    def multiply(self, pairs: Sequence[tuple[Parameter, float]], *, target: Any, optimizer: Any) -> Change:
        """Have each step count ``factor`` times for its parameter, by ``multipliers.blended``, before any hold.

        Raise ArgumentError without an optimizer, HoldError where it doesn't train one of them, or scales it already.
        """

    def follow(
        self, parameters: Sequence[Parameter], call: Callable[[StepState | None], None], *, target: Any, optimizer: Any
    ) -> Change | None:
        """Have ``call`` called on the host after each step that may change the parameters, after all holds.

        Return None where there is nothing to attach to; raise HoldError if ``optimizer`` trains none of them.
        """


def native_of(parameter: Parameter) -> Any:
    """Return the native object of a parameter, by whose type its backend is found."""
    return getattr(parameter.handle, "tensor", parameter.handle)


def training_for(parameter: Parameter) -> TrainingHooks | None:
    """Return what trains a parameter, or None."""
    backend = backend_for(native_of(parameter))
    return backend if isinstance(backend, TrainingHooks) else None
