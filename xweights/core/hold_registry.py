"""Which parameters are held, known to everything that writes.

Lower than running and writing, which call :func:`reapply` after their last write; what is in the ledger comes from
holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from typing import Any, Protocol

from xweights.core.parameter import Parameter


class HeldEntry(Protocol):
    """What stands in the ledger for a held parameter."""

    parameter: Parameter

    def apply(self) -> None:
        """Make every rule held on the parameter true now."""

    def check(self) -> None:
        """Raise if a training step went by without the rules."""

    def written(self) -> None:
        """Know that xweights wrote to the parameter, not a training step."""


_chains: weakref.WeakSet[Any] = weakref.WeakSet()
# What no framework's training keeps alive: a hold lasts until it is released, whether its owner kept it or not.
_kept: set[HeldEntry] = set()
_by_identity: weakref.WeakValueDictionary[Hashable, HeldEntry] = weakref.WeakValueDictionary()


def identity(parameter: Parameter) -> Hashable:
    """Return a key that two handles of one native array share."""
    return parameter.identity()


def look_again() -> None:
    """Find out where the held arrays are now: ``model.to(dtype)`` and ``.data =`` in torch give them other memory."""
    if _chains or _by_identity:
        _by_identity.clear()
        for chain in _chains:
            _by_identity[identity(chain.parameter)] = chain


def held(parameter: Parameter) -> HeldEntry | None:
    """Return what holds a parameter, or None; as of the last :func:`look_again`."""
    return _by_identity.get(identity(parameter)) if _by_identity else None


def enter(chain: HeldEntry, *, keep: bool) -> None:
    """Note that a parameter is held: for as long as somebody keeps ``chain``, or until :func:`leave`."""
    _chains.add(chain)
    _by_identity[identity(chain.parameter)] = chain
    if keep:
        _kept.add(chain)


def leave(chain: HeldEntry) -> None:
    """Note that a parameter is held no more."""
    _chains.discard(chain)
    _kept.discard(chain)
    if held(chain.parameter) is chain:
        del _by_identity[identity(chain.parameter)]


def check(parameters: Iterable[Parameter]) -> None:
    """Raise before a write if a hold on one of these is not being honoured."""
    look_again()
    for chain in _holding(parameters):
        chain.check()


def reapply(parameters: Iterable[Parameter]) -> None:
    """Re-apply the holds on these parameters after a write."""
    look_again()
    for chain in _holding(parameters):
        chain.apply()
        chain.written()


def _holding(parameters: Iterable[Parameter]) -> list[HeldEntry]:
    found = [held(parameter) for parameter in parameters] if _by_identity else []
    return [chain for chain in found if chain is not None]
