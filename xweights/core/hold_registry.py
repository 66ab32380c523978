"""Registry of held parameters: every write path calls :func:`reapply` after its last write."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any, Protocol

from xweights.core.parameter import Parameter


class HeldEntry(Protocol):
    """A held parameter in the registry."""

    parameter: Parameter
    rules: list[Any]

    def apply(self) -> None:
        """Make every rule held on the parameter true now."""

    def attachments(self) -> list[Any]:
        """Return what attaches the rules to training: their ``check`` raises if a step ran without them."""

    def written(self) -> None:
        """Note that xweights, not a training step, wrote to the parameter."""

    def owners(self) -> list[Any]:
        """Return the holds of its rules, in the order in which these apply."""

    def arrange(self, owners: Sequence[Any]) -> None:
        """Bring the rules into the order of their holds."""


class HasIdentities(Protocol):
    """What knows the identities of its arrays, such as a selection."""

    @property
    def identities(self) -> Collection[Hashable]: ...


_entries: weakref.WeakSet[Any] = weakref.WeakSet()
# Held while that set changes or is listed, which one thread may do for its model while another does for its own.
_listing = threading.RLock()
# Entries that no framework's training keeps alive: a hold lasts until it is released, whether or not anybody kept it.
_kept_alive: set[HeldEntry] = set()
# Replaced as a whole, never emptied: another thread, which edits another model, may be looking for its holds in it.
_by_identity: weakref.WeakValueDictionary[Hashable, HeldEntry] = weakref.WeakValueDictionary()


def _begin_anew() -> None:
    """Forget, in a forked process, another thread's lock: that thread doesn't exist there."""
    global _listing
    _listing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def identity(parameter: Parameter) -> Hashable:
    """Return a key that two handles of one native array share."""
    return parameter.identity()


def refresh() -> None:
    """Look up the held arrays again: ``model.to(dtype)`` and ``.data =`` in torch move them to other memory."""
    global _by_identity
    if _entries or _by_identity:
        fresh: weakref.WeakValueDictionary[Hashable, HeldEntry] = weakref.WeakValueDictionary()
        with _listing:
            entries = list(_entries)
        for entry in entries:
            fresh[identity(entry.parameter)] = entry
        _by_identity = fresh


def is_empty() -> bool:
    """Return whether nothing is held at all."""
    return not _entries


def are_held(selection: HasIdentities) -> bool:
    """Return whether any of the selected arrays is held."""
    if is_empty():  # which arrays they are needn't be found out
        return False
    refresh()
    identities = selection.identities
    return any(identity in identities for identity in list(_by_identity))


def find(parameter: Parameter) -> HeldEntry | None:
    """Return the entry of a held parameter, or None; as of the last :func:`refresh`."""
    return _by_identity.get(identity(parameter)) if _by_identity else None


def register(entry: HeldEntry, *, keep: bool) -> None:
    """Register a held parameter: for as long as ``entry`` is referenced, or (``keep``) until :func:`unregister`."""
    with _listing:
        _entries.add(entry)
    _by_identity[identity(entry.parameter)] = entry
    if keep:
        _kept_alive.add(entry)


def unregister(entry: HeldEntry) -> None:
    """Remove a parameter that is no longer held."""
    with _listing:
        _entries.discard(entry)
    _kept_alive.discard(entry)
    if find(entry.parameter) is entry:
        _by_identity.pop(identity(entry.parameter), None)


def check(parameters: Iterable[Parameter]) -> None:
    """Raise, before a write, if a hold on one of these isn't applied by its training."""
    refresh()
    attached = [attachment for entry in _entries_of(parameters) for attachment in entry.attachments()]
    # Each once: one may attach a hold on 1,000 parameters, and looks at all of them.
    for attachment in {id(attachment): attachment for attachment in attached}.values():
        attachment.check()


def reapply(parameters: Iterable[Parameter]) -> None:
    """Re-apply the holds on these parameters after a write."""
    refresh()
    for entry in _entries_of(parameters):
        entry.apply()
        entry.written()


def note_write(parameters: Iterable[Parameter]) -> None:
    """Note that xweights wrote to these parameters what satisfies the holds on them."""
    for entry in _entries_of(parameters):
        entry.written()


def owners(parameter: Parameter) -> list[Any]:
    """Return the holds on a parameter, in the order in which their rules apply; as of the last :func:`refresh`."""
    entry = find(parameter)
    return [] if entry is None else entry.owners()


def arrange(parameter: Parameter, owners: Sequence[Any]) -> None:
    """Have the rules on a parameter apply in the order of their holds; rules of others come after these."""
    entry = find(parameter)
    if entry is not None:
        entry.arrange(owners)


def _entries_of(parameters: Iterable[Parameter]) -> list[HeldEntry]:
    entries = [find(parameter) for parameter in parameters] if _by_identity else []
    return [entry for entry in entries if entry is not None]
