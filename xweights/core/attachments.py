"""What is attached to training until it is released: holds, freezes, learning-rate factors, averages.

Its base class, and the registry by which undo brings it back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from xweights.core.parameter import Parameter

if TYPE_CHECKING:
    from typing import Self  # Python 3.11


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


class Releasable:
    """A handle on something attached to training: `check` it, `release` it, or use it as a context manager."""

    _attachments: list[Any]

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a training step ran without it."""
        for attachment in self._attachments:
            attachment.check()

    def release(self) -> None:
        """Detach it from training. Calling it twice does nothing."""
        attachments, self._attachments = self._attachments, []
        for attachment in attachments:
            attachment.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def refer_to_target(target: Any) -> Callable[[], Any]:
    """Return a function that returns a target, or None once nobody has it any more."""
    try:
        return weakref.ref(target)
    except TypeError:  # dicts and lists
        return lambda: target


def count_of(parameters: Sized) -> str:
    """Return "1 parameter", "2 parameters"."""
    return f"{len(parameters)} parameter{'s' * (len(parameters) != 1)}"
