"""Observe a model: note the operations that use parameters while it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from xweights_torch.porting.norms import find_norm, is_batch_norm
from xweights_torch.porting.uses import Use
from xweights_torch.porting.views import Derived, Root
from xweights_torch.porting.watching import OperationWatch, Pending


@dataclass(eq=False, slots=True)
class Event:
    """One call of an operation.

    ``addition`` is the operation to whose output the parameter was added by this call. ``used``: its own output was
    used otherwise as well.
    """

    number: int
    use: Use
    modules: list[nn.Module]
    norm: tuple[str, nn.Module, str, float] | None = None
    betas: list[Derived] = field(default_factory=list)
    used: bool = False
    addition: Event | None = None
    addend: Derived | None = None


class Observer(OperationWatch):
    """A watch that notes what it sees. ``called`` is when each known layer was called first, by its identity."""

    def __init__(self, roots: Sequence[Root]) -> None:
        super().__init__(roots)
        self.events: list[Event] = []
        self.called: dict[int, int] = {}
        self.number = 0
        self.found: dict[int, float] = {}  # modules that compute a batch norm by hand, with their eps

    def compute(self, uses: Sequence[Use], call: Callable[[], Any]) -> Any:
        events = [self._note(use) for use in uses]
        result = call()
        for event in events:
            if event.use.columns is None:
                self.expect_addition(result, event.use, event)
        return result

    def add(self, pending: Pending, beta: Derived, addend: Derived, call: Callable[[], Any]) -> Any:
        role = "beta" if pending.use.kind == "multiply" else "bias"
        event = self._note(Use(pending.use.kind, {role: beta}))
        event.addition, event.addend = pending.token, addend
        pending.token.betas.append(beta)
        return call()

    def note_use(self, pending: Pending) -> None:
        pending.token.used = True

    def _note(self, use: Use) -> Event:
        modules = [module for module, _ in reversed(self.stack)]
        event = Event(self._count(), use, modules)
        if use.kind == "multiply" and use.given is not None and use.arranged is not None:
            given = use.arranged.apply_alike(self.stack[-1][1] if self.stack else None, use.given)
            event.norm = find_norm(given, use.arranged.apply(use.given), modules[:1])
        use.given = None
        self.events.append(event)
        return event

    def _count(self) -> int:
        self.number += 1
        return self.number

    def watch_layer(self, module: nn.Module, stack: contextlib.ExitStack, *, known: bool) -> None:
        """Note the calls of a layer; what a known one does inside is its own."""

        def before(_: nn.Module, args: Any, named: Any) -> None:
            if not self.inside:
                if known:
                    self.note_uses((args, named))
                for use in self.list_given(args, named) if known else ():
                    self._note(use)
                self.called.setdefault(id(module), self._count())
            self.inside += known

        def after(_: nn.Module, args: Any, named: Any, output: Any) -> None:
            self.inside -= known

        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)

    def watch_batch_norm(self, module: nn.Module, stack: contextlib.ExitStack) -> None:
        """Find out whether a module with the arrays of a batch norm is one."""
        first: list[int] = []

        def before(_: nn.Module, args: Any, named: Any) -> None:
            first.append(len(self.events))

        def after(_: nn.Module, args: Any, named: Any, output: Any) -> None:
            start = first.pop()
            self.inside += 1  # the comparison isn't the module's
            eps = is_batch_norm(module, args[0] if args else None, output)
            self.inside -= 1
            if eps is not None:
                del self.events[start:]
                self.called.setdefault(id(module), self._count())
                self.found[id(module)] = eps

        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
