"""Keep writes all or nothing: order them, back up, and undo on errors."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from xweights.core.blocks import aliased_values
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.plan import Selection
from xweights.errors import WriteError


class _Call:
    """A call that writes. Its turn ends with it, even where Ctrl-C kept it from saying so."""

    __slots__ = ("__weakref__",)


# What each thread is writing to: the keys of arrays, by call.
_writing: weakref.WeakKeyDictionary[_Call, tuple[int, frozenset[Hashable]]] = weakref.WeakKeyDictionary()
# Taken as it is, in C: Condition's own `with` is Python, and Ctrl-C within would leave it locked.
_lock = threading.RLock()
_turn = threading.Condition(_lock)
# Nobody is woken by a call that Ctrl-C ended between two lines.
_LOOK_AGAIN = 0.2


def _forget_other_threads() -> None:
    """Begin anew in a forked process, in which the other threads, and what they held, don't exist."""
    global _lock, _turn
    _lock = threading.RLock()
    _turn = threading.Condition(_lock)
    _writing.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


def order_fallible_first(chosen: Sequence[Parameter]) -> list[int]:
    """Return the positions, those first whose write may fail: nothing else has been written then."""
    return sorted(range(len(chosen)), key=lambda position: not chosen[position].storage.fallible)


def copy_aliased(chosen: Sequence[Parameter], values: Sequence[tuple[Array, ...]]) -> list[tuple[Array, ...]]:
    """Return the values, those copied that share memory with another of these parameters."""
    uncast = [
        (position, value)
        for position, p in enumerate(chosen)
        for value in values[position]
        # A cast value is a new array.
        if value.shape and value.size and value.dtype == p.dtype
    ]
    # A storage that replaces buffers never writes into one that others may still read.
    homes = [p for p in chosen if not p.storage.replaces]
    if not uncast or len(chosen) < 2 or not homes:
        return list(values)
    positions = {id(p): position for position, p in enumerate(homes)}
    indexed = [(positions.get(id(chosen[position]), -1), value) for position, value in uncast]
    aliased = aliased_values(indexed, [p.read() for p in homes])
    copied = {id(indexed[position][1]) for position in aliased}
    return [tuple(value.copy() if id(value) in copied else value for value in group) for group in values]


def keys_of(parameters: Iterable[Parameter]) -> frozenset[Hashable]:
    """Return a key for the array of each parameter, for :func:`alone`."""
    return keys_from(p.identity() for p in parameters)


def keys_from(identities: Iterable[Hashable]) -> frozenset[Hashable]:
    """Return the same for the identities of parameters."""
    # Where it is an address with a shape and strides, another view of the same memory has the address, too.
    return frozenset(identity[0] if isinstance(identity, tuple) else identity for identity in identities)


def keys_of_selection(selection: Selection) -> frozenset[Hashable]:
    """Return the same for the selected parameters: found out once, and kept with their plan."""
    notes = selection.choice.notes
    if "keys" not in notes:
        notes["keys"] = keys_from(selection.identities)
    keys: frozenset[Hashable] = notes["keys"]
    return keys


@contextmanager
def alone(keys: frozenset[Hashable]) -> Iterator[None]:
    """Wait until no other thread writes to any of these arrays, and have others wait meanwhile.

    A call from within another one doesn't wait, since the other thread might wait for that: it raises WriteError.
    """
    thread, call = threading.get_ident(), _Call()
    try:
        with _lock:
            is_nested = any(owner == thread for owner, _ in _writing.values())
            while any(owner != thread and not keys.isdisjoint(theirs) for owner, theirs in _writing.values()):
                if is_nested:
                    raise WriteError(
                        "another thread is writing to the same parameters, and this call is inside of one that writes\n"
                        "Fix: edit one model from one thread at a time"
                    )
                _turn.wait(_LOOK_AGAIN)
            _writing[call] = (thread, keys)
        yield
    finally:
        with _lock:
            _writing.pop(call, None)
            _turn.notify_all()


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Defer Ctrl-C until all checked writes inside are done, so that it never leaves half of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import signal  # here, since its enumerations take 0.6 ms of the first use of a verb's name

    former = signal.getsignal(signal.SIGINT)
    if former is None:  # not set by Python, so it couldn't be restored
        yield
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
        if waiting:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def undo_on_error(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Back up the parameters now, and restore them if anything is raised inside."""
    kept = [(p, p.backup()) for p in parameters]
    try:
        yield
    except BaseException:
        with defer_interrupts():
            for p, backup in kept:
                p.restore(backup)
        raise


@contextmanager
def enter_guards(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Enter the edit context of each storage once."""
    with ExitStack() as stack:
        for storage in {id(p.storage): p.storage for p in parameters}.values():
            stack.enter_context(storage.guard())
        yield
