"""What a backend has to tell about its models so that they can be ported.

All arrays that a backend hands over are host arrays in one *neutral form*, so that the core compares numbers and never
layouts: the batch comes first, channels come last, time is the second axis, and a layer that reads its sequence
backwards shows it in the order in which it reads. A spatial layer called on more leading axes has them merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.errors import PortError, TargetError

# What the settings of a layer are called, and what differs if they do. Padding is compared by its effect, because a
# twin may pad in a layer of its own.
ATTRIBUTES = ("eps", "groups", "strides", "dilation", "activation", "recurrent_activation", "slope", "approximate")
# These change training only, so they are listed and don't stop a port.
TRAINING = ("momentum",)


@dataclass(frozen=True, slots=True, eq=False)
class LayerRecord:
    """One layer of a model, as its backend describes it.

    ``kind`` is one of the project's own words (``dense conv conv_transpose embedding batch_norm layer_norm group_norm
    rms_norm prelu simple_rnn lstm gru attention separable conv_lstm ...``), ``plain`` for a layer without weights and
    ``other`` for one that no table knows. ``parameters`` are its arrays by their path inside the layer, ``attributes``
    its settings in neutral words. ``layer`` is the native object, for the backend alone. ``refused`` says why it has no
    counterpart anywhere.
    """

    kind: str
    path: str
    parameters: Mapping[str, Parameter]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    layer: Any = None
    refused: str | None = None


Arrays = Mapping[str, Array | None]


class Watcher(Protocol):
    """Who looks on while a model runs."""

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        """A layer is about to compute. ``inputs``: by part, "" for a layer of one; None where it can't be seen."""

    def leave(self, record: LayerRecord, outputs: Arrays) -> Array | None:
        """It has computed, before its fused activation. Return what it shall put out instead, or None."""


@runtime_checkable
class Porting(Protocol):
    """What a backend's ``porting()`` returns."""

    name: str

    @property
    def channels_first(self) -> bool:
        """Where images of this framework have their channels."""

    def records(self, model: Any) -> list[LayerRecord]:
        """Return every layer of a model in definition order, those without weights too."""

    def chain(self, model: Any, records: Sequence[LayerRecord]) -> list[LayerRecord] | None:
        """Return the layers in call order if each feeds the next and nothing else; None if that can't be known."""

    def run(self, model: Any, records: Sequence[LayerRecord], sample: Any, watcher: Watcher) -> dict[str, Array]:
        """Call the model in inference mode, and return its outputs on the host; the model stays as it was."""

    def double(self, model: Any) -> Any:
        """Return a copy of the model that computes in float64; raise PortError where there can be none."""

    def set_attribute(self, record: LayerRecord, name: str, value: Any) -> None:
        """Set a setting of a layer; raise PortError where that can't be done."""


def porting_for(model: Any, what: str) -> Porting:
    """Return what describes a model, or raise TargetError."""
    backend = backend_for(model)
    made = getattr(backend, "porting", None)
    if made is None:
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise TargetError(
            f"the {what} of a port is a model whose layers are known\ngot:      {kind}\n"
            "expected: a model or layer of a backend that describes its layers"
        )
    found: Porting = made()
    return found


def unable(text: str) -> PortError:
    """Return the error for something that a backend can't do."""
    return PortError(text)
