"""The protocols that a backend implements.

A backend is found by the root package in ``type(x).__mro__``, matched with the entry points of the group
``xweights.backends`` *before* one is loaded, so that a user of one framework never imports another.

Four small protocols, because they change for different reasons:

    Adapter   found by the type of the *target*:  its parameters and their names
    Storage   held by each parameter:             the one place that reads and writes a native array
    Ops       found by the type of the *array*:   the array math that rules are written in
    Backend   what an entry point loads:          hands out the other three
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, runtime_checkable

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops, Storage

if TYPE_CHECKING:
    from xweights.core.state import State, StateMatch


class Adapter(Protocol):
    """The parameters and their names in one framework's targets."""

    def parameters(self, target: Any) -> Sequence[Parameter]:
        """Return the parameters in definition order, a tied one once; raise NotBuiltError for an unbuilt model."""


class HeldChain(Protocol):
    """The rules held on one parameter, as a backend sees them."""

    parameter: Parameter

    def apply(self) -> None:
        """Edit the parameter in place, in eager code or traced inline."""

    def apply_native(self) -> None:
        """Edit the framework's own tensor, traceable where a verb isn't."""

    def of(self, value: Any, ops: Ops) -> Any:
        """Return a stored tensor of the framework with the rules applied; write nothing."""

    def make_live(self) -> None:
        """Move operands that change into buffers that compiled steps read; otherwise ``of`` leaves those rules out."""


class StepState(Protocol):
    """The weights inside a stateless training loop, out of reach of variables and storage."""

    def read(self, parameter: Parameter) -> Array:
        """Return the stored values of a held parameter."""

    def keep(self, parameter: Parameter, mask: Array) -> None:
        """Set the entries to +0.0 where the mask (stored order) is False."""


class Attachment(Protocol):
    """A link between held rules and a framework's update."""

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a step ran without the rules."""

    def detach(self) -> None:
        """Restore the former state exactly; rules of other attachments stay attached."""


class HoldAttachment(Attachment, Protocol):
    """A link between the rules of one hold and a framework's update."""

    def let_go(self, chains: Sequence[HeldChain]) -> None:
        """Detach the rules of some parameters."""


@runtime_checkable
class CopiesPlainly(Protocol):
    """An optional protocol of backends whose models may lie on several ranks."""

    def plain_twin(self, target: Any, arrays: Mapping[Parameter, Array]) -> Any:
        """Return a copy of a model on this process alone; ``arrays``: the whole values of parameters that are cut."""


@runtime_checkable
class Regularizing(Protocol):
    """An optional protocol of backends whose models compute their own training loss (Keras' ``fit``)."""

    def regularize(
        self, parameters: Sequence[Parameter], penalty: Callable[[Parameter, Any], Any], *, target: Any
    ) -> Attachment:
        """Make the model add ``penalty(parameter, native tensor)`` for each parameter to its loss from now on."""


Tracing = Literal["no", "inline", "refuse"]


@runtime_checkable
class NamesFiles(Protocol):
    """A backend whose framework expects certain names in its weight files."""

    file_names: Literal["neutral", "native"]


@runtime_checkable
class MergesFactors(Protocol):
    """A backend whose layers may add factors (LoRA) to a weight."""

    def merge_factors(self, parameters: Sequence[Parameter], target: Any) -> None:
        """Store in each parameter what its layer computes with, and take the factors out of use.

        The parameters are those whose :meth:`Parameter.effective` isn't None.
        """


@runtime_checkable
class FileLayout(Protocol):
    """A backend whose framework expects certain keys in an HDF5 file of a model."""

    def file_layout(self, target: Any) -> Sequence[tuple[str, Parameter | Array]]:
        """Return a (key, parameter or array) pair for everything that the framework expects in the file."""


@runtime_checkable
class SavesModels(Protocol):
    """A backend whose framework saves whole models in one file: their configuration with their weights."""

    def save_model(self, target: Any, file: BinaryIO) -> None:
        """Write a model with the framework's own saver; raise ArgumentError for what it can't save."""


@runtime_checkable
class HasState(Protocol):
    """A backend whose framework saves more of a model than its parameters (PyTorch's ``state_dict``)."""

    file_texts: Mapping[str, str]
    """Texts that readers of the framework expect in a file, where the format has a place for them."""

    def state(self, target: Any) -> State | None:
        """Return what the framework itself would save of a target; None for a target without a state."""

    def match_state(self, file_keys: Iterable[str], target: Any, *, state: State | None = None) -> StateMatch | None:
        """Return where the arrays with these keys go in the state of a target; None for one without a state.

        ``state`` is what :meth:`state` returned just now.
        """

    def respell(self, keys: Iterable[str], wanted: Iterable[str]) -> Mapping[str, str]:
        """Return ``{wanted key: key}`` for keys that are spellings of wanted ones in another version.

        A function of the names alone.
        """


@runtime_checkable
class Backend(Protocol):
    """The object that an entry point of the group ``xweights.backends`` loads."""

    name: str

    def adapter(self, target: Any) -> Adapter | None:
        """Return the adapter for a target of this framework, or None if it holds no weights."""

    def is_tensor(self, value: Any) -> bool:
        """Return True for a bare tensor, which is no target."""

    def storage(self, variable: Any) -> Storage:
        """Return the storage for a native variable, for adapters of models built on this framework."""

    def to_host(self, value: Any) -> Array:
        """Return a tensor or variable of this framework as a NumPy array (a view where possible)."""

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
        """Make the framework's own update apply these rules after each step; return None where it can't.

        ``after_step`` is then called on the host after each step, with None, or with a ``StepState`` where the weights
        can't be reached through their variables. Raise HoldError if ``optimizer`` doesn't train one of the parameters.
        The same chain may be passed again with another hold.
        """

    def compiled(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return a faster equivalent of a bound step for calls from eager code, or the function itself."""
