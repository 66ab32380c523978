"""What trainers' callbacks have in common: something is attached when training begins, and released at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from inspect import signature
from typing import Any, ClassVar

from xweights.core.attachments import Releasable
from xweights.core.public_calls import explain
from xweights.errors import ArgumentError, HoldError
from xweights.training.averages import Averages, average
from xweights.training.freeze import freeze
from xweights.training.hold import hold
from xweights.training.learning_rates import multiply_lr
from xweights.training.prune import prune

__all__ = ["WhileTraining", "average", "freeze", "hold", "hold_pruned", "multiply_lr"]


def hold_pruned(target: Any, **keywords: Any) -> Any:
    """Prune, and hold the masks: `xweights.prune(..., hold=True)`."""
    if "hold" in keywords:
        raise ArgumentError("a callback holds the masks by itself\nFix: leave out hold=")
    return prune(target, hold=True, **keywords)


class WhileTraining:
    """Keeps the arguments of a call until a trainer begins, and the handle that it returned.

    Attributes:
        attached: The handle of the last training, also after its end (`callback.attached.masks`); None before.
    """

    attach: ClassVar[Callable[..., Any]]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__()
        _check_call(type(self), arguments, keywords)
        self.attached: Any = None
        self._arguments, self._keywords = arguments, keywords
        self._swapped: AbstractContextManager[Any] | None = None

    def begin(self, model: Any, **more: Any) -> None:
        """Attach it to a model that is about to be trained."""
        self.release()
        self.attached = None
        self.attached = type(self).attach(model, *self._arguments, **{**self._keywords, **more})
        if isinstance(self.attached, Averages) and self.attached.manual:
            raise HoldError("averages that follow no optimizer stay empty\nFix: leave out attach=False")

    def end(self) -> None:
        """Make sure that it was true to the end, and release it."""
        self.swap_back()
        try:
            if isinstance(self.attached, Releasable):
                self.attached.check()
        finally:
            self.release()

    def release(self) -> None:
        """Detach it, whatever happened; the handle stays readable."""
        self.swap_back()
        if self.attached is not None:
            self.attached.release()

    def swap_in(self) -> None:
        """Put averaged weights into the model, for an evaluation."""
        if isinstance(self.attached, Averages) and self._swapped is None and self.attached.updates:
            self._swapped = self.attached.swapped_in()
            self._swapped.__enter__()

    def swap_back(self) -> None:
        """Put the trained weights back."""
        swapped, self._swapped = self._swapped, None
        if swapped is not None:
            swapped.__exit__(None, None, None)


def _check_call(kind: type[WhileTraining], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Raise for arguments that the call doesn't have, or needs, when they are written and not when training begins."""
    called = prune if kind.attach is hold_pruned else kind.attach
    try:
        signature(called).bind(None, *arguments, **keywords)
    except TypeError as wrong:
        raise explain(wrong, called, called.__name__, (None, *arguments), keywords) or wrong from None
