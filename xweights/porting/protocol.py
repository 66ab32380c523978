"""Protocols by which a backend describes its models so that they can be ported.

All arrays from a backend are host arrays in one *neutral form*, so that the core compares numbers and never layouts:
the batch comes first, channels come last, time is the second axis, and a layer that reads its sequence backwards has it
in the order in which it reads. A spatial layer that is called with more leading axes has them merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.errors import TargetError

# The names of the settings that are compared. Padding is compared by its effect, because a twin may pad in a separate
# layer.
ATTRIBUTES = ("eps", "groups", "strides", "dilation", "activation", "recurrent_activation", "slope", "approximate")
# These change training only, so they are listed and don't stop a port.
TRAINING = ("momentum",)

# How an operation sees a parameter: from its neutral array to the array that it computes with, a view where strides
# allow.
View = Callable[[Array], Array]


@dataclass(frozen=True, slots=True, eq=False)
class LayerRecord:
    """One layer of a model, as its backend describes it.

    ``kind`` is one of the project's names (``dense conv conv_transpose embedding batch_norm layer_norm group_norm
    rms_norm prelu simple_rnn lstm gru attention separable conv_lstm ...``), ``plain`` for a layer without weights and
    ``other`` for one that is in no table. ``parameters`` are its arrays by their path inside the layer, ``attributes``
    its settings under neutral names. ``layer`` is the native object, for the backend alone. ``refused`` is the reason
    why it has no counterpart anywhere.

    A record may also be one operation of a layer that computes by a forward of its own, seen while the model ran. Its
    kind is that of the layer that computes the same, or one of two more. ``multiply`` is by ``gamma``, to which
    ``attributes["offset"]`` is added first, along the last axis of its input, plus ``beta`` if it has one. ``rows`` is
    a parameter that is added, joined or selected as it is: ``rows`` (rows, features), of which ``attributes["first"]``
    is the first that was used and ``attributes["count"]`` their number; it has neither input nor output.
    ``views`` are the ways from the parameters to these arrays, by role.
    """

    kind: str
    path: str
    parameters: Mapping[str, Parameter]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    layer: Any = None
    refused: str | None = None
    views: Mapping[str, View] = field(default_factory=dict)


Arrays = Mapping[str, Array | None]


class Watcher(Protocol):
    """An observer of a model's layers while it runs."""

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        """Note that a layer is about to compute. ``inputs``: by part ("" if it has one); None where unseen."""

    def leave(self, record: LayerRecord, outputs: Arrays) -> Array | None:
        """Note that a layer has computed, before its fused activation. Return the output to use instead, or None."""


@runtime_checkable
class Porting(Protocol):
    """The description of a backend's models, returned by its ``porting()``."""

    name: str

    @property
    def channels_first(self) -> bool:
        """True if images of this framework have their channels first."""

    def records(self, model: Any) -> list[LayerRecord]:
        """Return every layer of a model in definition order, including those without weights."""

    def observe(self, model: Any, records: Sequence[LayerRecord], sample: Any) -> list[LayerRecord]:
        """Call the model and return its records as they were seen to compute, in the order of their first calls.

        Layers of a kind that is known and that compute as their kind does stay as they are. Those that have a forward
        of their own are taken apart into the operations that use their parameters, or get the kind of the layer that
        computes the same. ``run`` takes these records as well.
        """

    def chain(self, model: Any, records: Sequence[LayerRecord]) -> list[LayerRecord] | None:
        """Return the layers in call order if each feeds only the next; None if that isn't known."""

    def run(self, model: Any, records: Sequence[LayerRecord], sample: Any, watcher: Watcher) -> dict[str, Array]:
        """Call the model in inference mode and return its outputs on the host; the model is unchanged."""

    def double(self, model: Any) -> Any:
        """Return a copy of the model that computes in float64; raise PortError if that is impossible."""

    def set_attribute(self, record: LayerRecord, name: str, value: Any) -> None:
        """Set a setting of a layer; raise PortError if that is impossible."""


@runtime_checkable
class Ports(Protocol):
    """A backend whose models can be ported."""

    def porting(self) -> Porting:
        """Return the description of its models; its code is loaded only now."""


def porting_for(model: Any, what: str) -> Porting:
    """Return the porting description of a model's backend; raise TargetError if it has none."""
    backend = backend_for(model)
    if not isinstance(backend, Ports):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise TargetError(
            f"the {what} of a port is a model whose layers are known\ngot:      {kind}\n"
            "expected: a model or layer of a backend that describes its layers"
        )
    return backend.porting()
