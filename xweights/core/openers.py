"""How rooms that don't know files open what only those can: paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from xweights.core.parameter import Parameter
    from xweights.core.parts import Part

Opener = Callable[..., Any]
_openers: list[Opener] = []
_writers: list[Callable[..., Any]] = []
_folders: list[Callable[..., ModelFolder]] = []


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


def register_opener(opener: Opener) -> None:
    """Have ``opener`` return the target behind a path, which has ``__xweights_parameters__``."""
    _openers[:] = [opener]


def register_writer(writer: Callable[..., Any]) -> None:
    """Have ``writer`` call a function with the file behind a path as a target, and write what that wrote."""
    _writers[:] = [writer]


def register_model_folder(folder: Callable[..., ModelFolder]) -> None:
    """Have ``folder`` return the place of a folder of settings and weights."""
    _folders[:] = [folder]


def open_model_folder(path: Any, *, overwrite: bool) -> ModelFolder:
    """Return the place of a folder of settings and weights; raise FileAccessError if it can't be written."""
    (folder,) = _folders
    return folder(path, overwrite=overwrite)


def write_file(path: Any, write: Callable[[Any], Any]) -> Any:
    """Return what ``write`` returns of the file behind a path as a target, all of whose writes go into it at once."""
    (writer,) = _writers
    return writer(path, write)


def open_path(path: Any) -> list[Parameter]:
    """Return the parameters behind a path."""
    return list(open_file(path).__xweights_parameters__())


def open_file(path: Any, **options: Any) -> Any:
    """Return the target behind a path."""
    (opener,) = _openers
    return opener(path, **options)
