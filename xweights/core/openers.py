"""How rooms that don't know files open what only those can: paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from xweights.core.parameter import Parameter
    from xweights.core.parts import Part

_homes: dict[str, str] = {}


@runtime_checkable
class HasParts(Protocol):
    """A target that consists of several parts, such as the file of a training run.

    The arrays of a part are Parameters. One part is chosen, or there is only one of weights; else there is a refusal.
    """

    path: str
    part: str | None

    def __xweights_parameters__(self) -> list[Parameter]: ...
    def __xweights_parts__(self) -> Sequence[Part]: ...
    def __xweights_part__(self, part: str | None = None) -> Part: ...


class ModelFolder(Protocol):
    """The place of a folder of settings and weights that is going to be written."""

    def write(self, settings: str, target: Any, prove: Callable[[str], None]) -> None:
        """Write both; ``prove`` gets a folder that has them, and if it raises nothing is left behind."""


def register(*, opener: str, writer: str, model_folder: str) -> None:
    """Have these functions called, each as ``module:name``; they are imported when a path is opened first.

    ``opener`` returns the target behind a path, which has ``__xweights_parameters__``. ``writer`` calls a function with
    the file behind a path as a target, and writes what that wrote. ``model_folder`` returns the place of a folder of
    settings and weights.
    """
    _homes.update(opener=opener, writer=writer, model_folder=model_folder)


def _load(kind: str) -> Any:
    module, _, name = _homes[kind].partition(":")
    return getattr(import_module(module), name)


def open_model_folder(path: Any, *, overwrite: bool) -> ModelFolder:
    """Return the place of a folder of settings and weights; raise FileAccessError if it can't be written."""
    folder: ModelFolder = _load("model_folder")(path, overwrite=overwrite)
    return folder


def write_file(path: Any, write: Callable[[Any], Any]) -> Any:
    """Return what ``write`` returns of the file behind a path as a target, all of whose writes go into it at once."""
    return _load("writer")(path, write)


def open_path(path: Any) -> list[Parameter]:
    """Return the parameters behind a path."""
    return list(open_file(path).__xweights_parameters__())


def open_file(path: Any, **options: Any) -> Any:
    """Return the target behind a path."""
    return _load("opener")(path, **options)
