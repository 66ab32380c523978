"""How rooms above the core open what only they can read: paths of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from xweights.core.parameter import Parameter
    from xweights.core.parts import Part

Opener = Callable[..., Any]
_openers: list[Opener] = []


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


def register_opener(opener: Opener) -> None:
    """Have ``opener`` return the target behind a path, which has ``__xweights_parameters__``."""
    _openers[:] = [opener]


def open_path(path: Any) -> list[Parameter]:
    """Return the parameters behind a path."""
    return list(open_file(path).__xweights_parameters__())


def open_file(path: Any, **options: Any) -> Any:
    """Return the target behind a path."""
    (opener,) = _openers
    return opener(path, **options)
