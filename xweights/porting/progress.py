"""A progress bar over the layers of the two models, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from xweights.core.dtypes import Array
from xweights.porting.protocol import Arrays, LayerRecord, Watcher


class _Bar(Protocol):
    """The bar of one port."""

    def begin(self, text: str, total: int) -> None:
        """Begin to count the layers of one forward."""

    def advance(self) -> None:
        """Count one layer."""


class _NoBar:
    """In the place of a bar where a caller shows its own."""

    def begin(self, text: str, total: int) -> None:
        """Do nothing."""

    def advance(self) -> None:
        """Do nothing."""


_current: ContextVar[_Bar | None] = ContextVar("bar", default=None)


@contextmanager
def show_progress() -> Iterator[None]:
    """Show a bar on stderr while the models run; in a pipe, and inside of another bar, nothing."""
    if _current.get() is not None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    class LayerBar:
        """One task of a progress display, begun again with each forward."""

        def begin(self, text: str, total: int) -> None:
            bar.reset(task, description=text, total=max(total, 1))

        def advance(self) -> None:
            bar.advance(task)

    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1)
        token = _current.set(LayerBar())
        try:
            yield
        finally:
            _current.reset(token)


@contextmanager
def hide_progress() -> Iterator[None]:
    """Show no bar inside: the caller shows its own."""
    token = _current.set(_NoBar())
    try:
        yield
    finally:
        _current.reset(token)


def count_layers(watcher: Watcher, text: str, total: int) -> Watcher:
    """Return a watcher that also moves the bar, if there is one, for each layer with weights; else the same watcher."""
    bar = _current.get()
    if bar is None or isinstance(bar, _NoBar):
        return watcher
    bar.begin(text, total)
    return _Counting(watcher, bar)


class _Counting:
    """A watcher that moves a bar."""

    def __init__(self, watcher: Watcher, bar: _Bar) -> None:
        self._watcher, self._bar = watcher, bar

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        """Pass the call of a layer on."""
        self._watcher.enter(record, inputs)

    def leave(self, record: LayerRecord, outputs: Arrays) -> Array | None:
        """Pass the output of a layer on, and count it."""
        if record.parameters:
            self._bar.advance()
        return self._watcher.leave(record, outputs)
