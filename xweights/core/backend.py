"""The protocols that a backend keeps, and the door it comes in by.

It knows no framework's name: a backend is found by the root package in ``type(x).__mro__``, matched with the entry
points of the group ``xweights.backends`` *before* one is loaded, so that a user of one framework never imports
another.

Four small protocols, because they change for different reasons:

    Adapter   found by the type of the *target*:  which parameters it has and what they are called
    Storage   held by each parameter:             the one place that reads and lawfully writes a native array
    Ops       found by the type of the *array*:   the maths that rules are written in
    Backend   what an entry point loads:          hands out the other three
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops, Storage


class Adapter(Protocol):
    """How one framework's targets are walked and named."""

    def parameters(self, target: Any) -> Sequence[Parameter]:
        """Return the parameters in definition order, a tied one once. Raise NotBuiltError for an unbuilt model."""


class HeldChain(Protocol):
    """The rules held on one parameter, as a backend sees them (the core's ``holds.HeldRules``)."""

    parameter: Parameter

    def apply(self) -> None:
        """Edit the parameter in place, in eager code or traced inline."""

    def apply_native(self) -> None:
        """Edit the framework's own tensor, traceable where a verb isn't."""

    def of(self, value: Any, ops: Ops) -> Any:
        """Return what becomes of a stored tensor of the framework, without writing."""

    def make_live(self) -> None:
        """Let compiled steps see operands that change; unless a backend calls it, ``of`` leaves those rules out."""


class StepState(Protocol):
    """The weights in the middle of a stateless training loop: neither variables nor storage can reach them."""

    def read(self, parameter: Parameter) -> Array:
        """Return the stored values of a held parameter."""

    def keep(self, parameter: Parameter, mask: Array) -> None:
        """Set the entries to +0.0 where the mask (stored order) is False."""


class Attachment(Protocol):
    """What keeps chains attached to a framework's update."""

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a step went by without the chains."""

    def detach(self) -> None:
        """Restore the former state exactly; chains that others still hold stay attached by theirs."""


class HoldAttachment(Attachment, Protocol):
    """What keeps the chains of one hold attached."""

    def let_go(self, chains: Sequence[HeldChain]) -> None:
        """Detach some of the chains."""


@runtime_checkable
class Regularizing(Protocol):
    """What a backend keeps besides, if its models put together the loss that they are trained by (Keras' ``fit``)."""

    def regularize(
        self, parameters: Sequence[Parameter], penalty: Callable[[Parameter, Any], Any], *, target: Any
    ) -> Attachment:
        """Have the model add ``penalty(parameter, native tensor)`` for each of these to its loss from now on."""


Tracing = Literal["no", "inline", "refuse"]


@runtime_checkable
class Backend(Protocol):
    """What an entry point of the group ``xweights.backends`` loads."""

    name: str
    # May also have ``file_names = "native"``: other readers of its weight files expect the framework's own names; and
    # ``file_layout(target)``: (key, parameter or array) of all that its framework wants to find in an HDF5 file.

    def adapter(self, target: Any) -> Adapter | None:
        """Return the adapter for a target of this framework, or None if it holds no weights."""

    def is_tensor(self, value: Any) -> bool:
        """Return True for a bare tensor: an array, and no target."""

    def storage(self, variable: Any) -> Storage:
        """Return the storage for a native variable of this framework, for adapters of models built on top of it."""

    def to_host(self, value: Any) -> Array:
        """Return a tensor or variable of this framework as a NumPy array (a view where there can be one)."""

    def ops(self, array: Any) -> Ops:
        """Return the ops for an array of this framework."""

    def tracing(self) -> Tracing:
        """Return "no" in eager code, "inline" where a verb may be traced, "refuse" where it must be bound first."""

    def attach(
        self,
        chains: Sequence[HeldChain],
        *,
        target: Any,
        optimizer: Any,
        after_step: Callable[[Any], None] | None = None,
    ) -> HoldAttachment | None:
        """Have the framework's own update apply these chains after each step; None where it has no such place.

        ``after_step`` is then called on the host after each step, with None, or with a ``StepState`` where the weights
        are out of reach in their variables. Raise HoldError if ``optimizer`` doesn't train one of the parameters. A
        may come again with another hold.
        """

    def compiled(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return a quicker equivalent of a bound step for calls from eager code, or the function itself."""
