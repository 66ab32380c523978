"""The protocol of hubs: libraries of one framework's models that another library knows in its own classes.

A hub is found through the entry-point group ``xweights.hubs``. It maps settings, and makes models and samples; the
weights are moved by a port, like those of any two models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, eq=False)
class Twins:
    """A model of the hub and its twin in the other library, with weights of their own, and how both are called.

    ``outputs`` are the twin's by the hub's; ``settings`` is the text of the twin's settings file, ``notes`` what one of
    the two can't express. ``returned`` is what a user gets, if ``model`` is only wrapped around it.
    """

    model: Any
    twin: Any
    sample: Any
    twin_sample: Any
    outputs: Mapping[str, str] | None = None
    settings: str = ""
    notes: tuple[str, ...] = ()
    returned: Any = None


class Hub(Protocol):
    """One library of models."""

    name: str

    def takes(self, model: Any) -> bool:
        """Return True for a model of this library, known or not; nothing is imported."""

    def make_twin(self, model: Any, sample: Any, settings: Mapping[str, Any]) -> Twins:
        """Return a model and a new twin of it in the other library.

        Raise TargetError for a model whose settings can't be mapped, and BackendMissingError without the other library.
        """

    def read_twin(self, twins: Twins, folder: str) -> Any:
        """Return the twin as the other library loads it from a folder; raise PortError if weights are left over."""

    def open_folder(self, folder: str, sample: Any, *, ignore: bool) -> Twins:
        """Return the twin in a folder and a new model of the hub.

        ``ignore``: settings that the hub's class doesn't have are left at its own, and noted; otherwise they are an
        error. Raise CheckpointError for a folder that isn't what it says, TargetError for a family that isn't known.
        """
