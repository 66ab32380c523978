"""Base class of handles that stay attached to training until they are released."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self  # Python 3.11


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


def refer_to(target: Any) -> Callable[[], Any]:
    """Return a function that returns a target, or None once nobody has it any more."""
    try:
        return weakref.ref(target)
    except TypeError:  # dicts and lists
        return lambda: target


def count_of(parameters: Sized) -> str:
    """Return "1 parameter", "2 parameters"."""
    return f"{len(parameters)} parameter{'s' * (len(parameters) != 1)}"
