"""Registry of what is attached to training: holds, freezes, learning-rate factors, averages; undo brings it back."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any, Protocol

from xweights.core.parameter import Parameter


class Handle(Protocol):
    """Something attached to the training of some parameters."""

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters that it is attached to; none after its release."""

    def remember(self) -> Callable[[], None]:
        """Return a function that attaches it as it is now, with the counts and arrays that it has now."""

    def withdraw(self, parameters: Sequence[Parameter]) -> None:
        """Take it back from these parameters; from all if it can't be attached to some of them."""


_numbers = count()
# In the order in which they were attached.
_handles: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def register(handle: Handle) -> None:
    """Register a handle for as long as anything refers to it."""
    if all(known is not handle for known in _handles.values()):
        _handles[next(_numbers)] = handle


def handles_on(parameters: Iterable[Parameter]) -> list[Any]:
    """Return the handles that are attached to any of these parameters, in the order in which they were attached."""
    if not _handles:
        return []
    wanted = {p.identity() for p in parameters}
    known = [handle for _, handle in sorted(_handles.items())]
    return [handle for handle in known if any(p.identity() in wanted for p in handle.parameters)]
