"""Which parameters are held, known to everything that writes.

Owns the ledger and :func:`obey`. Imports parameter. Lower than running and writing, which call :func:`obey` after their
last write; what is in the ledger comes from holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from typing import Protocol

from xweights.parameter import Parameter


class Obeyed(Protocol):
    """What stands in the ledger for a held parameter."""

    def apply(self) -> None:
        """Make every rule held on the parameter true now."""

    def check(self) -> None:
        """Raise if a training step went by without the rules."""


_held: weakref.WeakValueDictionary[Hashable, Obeyed] = weakref.WeakValueDictionary()
# What no framework's training keeps alive: a hold lasts until it is released, whether its owner kept it or not.
_kept: dict[Hashable, Obeyed] = {}


def identity(parameter: Parameter) -> Hashable:
    """Return a key that two handles of one native array share."""
    return parameter.storage.identity(parameter.handle)


def held(parameter: Parameter) -> Obeyed | None:
    """Return what holds a parameter, or None."""
    return _held.get(identity(parameter)) if _held else None


def enter(parameter: Parameter, chain: Obeyed, *, keep: bool) -> None:
    """Note that a parameter is held: for as long as somebody keeps ``chain``, or until :func:`leave`."""
    _held[identity(parameter)] = chain
    if keep:
        _kept[identity(parameter)] = chain


def leave(parameter: Parameter) -> None:
    """Note that a parameter is held no more."""
    _held.pop(identity(parameter), None)
    _kept.pop(identity(parameter), None)


def check(parameters: Iterable[Parameter]) -> None:
    """Raise before a write if a hold on one of these is not being honoured."""
    if _held:
        for parameter in parameters:
            chain = held(parameter)
            if chain is not None:
                chain.check()


def obey(parameters: Iterable[Parameter]) -> None:
    """Re-apply the holds on these parameters after a write."""
    if _held:
        for parameter in parameters:
            chain = held(parameter)
            if chain is not None:
                chain.apply()
