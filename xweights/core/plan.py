"""The plan of a call: the parameters of a target, those that ``where=`` selects, and the groups that go together.

A backend that can tell cheaply whether a target is still what it was keeps an :class:`Outline` of it from call to call:
names, axes, selections and groups, but no tensor and no module, so that a plan keeps no model alive.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Hashable, Sequence
from operator import is_, methodcaller
from typing import Any, NamedTuple, Protocol, runtime_checkable

from xweights.core import selection as predicates
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter, is_shared
from xweights.core.protocols import GroupStorage
from xweights.core.selection import DEFAULT_KERNELS, Where, WhereLike, select

# New in Python 3.11, and twice as fast as its stand-in.
_call: Callable[[Any], Any] = getattr(operator, "call", methodcaller("__call__"))
# A function in C that returns None, for a bias that a layer doesn't have: one in Python would be called 1,000 times.
_nothing: Callable[[], Any] = [].clear

# A script that makes its selections in a loop shouldn't fill the memory.
MOST_SELECTIONS = 16

# Predicates that look only at what an outline is checked for: names, roles, layers, dtypes, trainable flags.
_PURE: frozenset[type[Where]] = frozenset(
    {
        predicates.Everything, predicates.Glob, predicates.NativeName, predicates.Role, predicates.Layer,
        predicates.Trainable, predicates.Inexact,
    }
)  # fmt: skip


# Whether the storages of a type edit groups: asking a protocol takes as long as editing an array.
_grouping: dict[type[Any], bool] = {}


class Group(NamedTuple):
    """Parameters that one call of their storage edits together: the positions of them in a selection."""

    storage: GroupStorage
    positions: Sequence[int]


class Choice:
    """What is kept of a selection: which parameters, in which groups.

    Attributes:
        positions: The positions of the selected parameters among all of the target.
        likes: A Parameter for each, which knows everything but where its array is.
        groups: Parameters that go together; all can be read and written, and their layers obey.
        singles: The positions, within the selection, of those that go one by one.
        notes: What other rooms derive from the selection, for as long as it is kept.
    """

    def __init__(
        self, positions: Sequence[int], likes: Sequence[Parameter], keys: Sequence[tuple[GroupStorage, Hashable] | None]
    ) -> None:
        self.positions = positions
        self.likes = likes
        groups: dict[Hashable, tuple[GroupStorage, list[int]]] = {}
        self.singles: list[int] = []
        for position, key in enumerate(keys):
            if key is None:
                self.singles.append(position)
            else:
                groups.setdefault((id(key[0]), key[1]), (key[0], []))[1].append(position)
        self.groups = [Group(storage, members) for storage, members in groups.values()]
        self.notes: dict[Hashable, Any] = {}


class Outline:
    """What is kept of a target from call to call, without holding its arrays.

    Attributes:
        likes: A Parameter for each of the target, which knows everything but where its array is.
        keys: The storage and the key of the group that each belongs to, None for those that go one by one.
        notes: What other rooms derive from the target, for as long as it stays as it is.
    """

    def __init__(self, likes: Sequence[Parameter], keys: Sequence[tuple[GroupStorage, Hashable] | None]) -> None:
        self.likes = likes
        self.keys = keys
        self.choices: dict[Hashable, Choice] = {}
        self.notes: dict[str, Any] = {}

    def saves_by_name(self) -> bool:
        """Return whether the framework's own saver has, as of now, exactly these arrays under their native names."""
        return False


class Plan:
    """The parameters of a target, for one call.

    Attributes:
        outline: What is kept of the target; None if nothing is.
    """

    def __init__(
        self,
        parameters: Callable[[], list[Parameter]],
        outline: Outline | None = None,
        handles: Sequence[Any] = (),
    ) -> None:
        self._make = parameters
        self._everything: list[Parameter] | None = None
        self.outline = outline
        self.handles = handles

    @property
    def everything(self) -> list[Parameter]:
        """All parameters, hidden ones included; made when they are first asked for."""
        if self._everything is None:
            self._everything = self._make()
        return self._everything

    @property
    def is_shared(self) -> bool:
        """True if other ranks hold some of the parameters, too: no outline is kept of those."""
        return self.outline is None and any(map(is_shared, self.everything))

    def select(self, where: WhereLike) -> Selection:
        """Return the parameters that ``where`` selects; raise SelectionError if a part of it selects none."""
        outline = self.outline
        if outline is None:
            return Selection(select(self.everything, where))
        key = _key_of(where)
        choice = None if key is None else outline.choices.get(key)
        if choice is None:
            from xweights.core.unknown_roles import unknown_roles

            everything = self.everything
            chosen = {id(p) for p in select(everything, where)}
            positions = [position for position, p in enumerate(everything) if id(p) in chosen]
            choice = Choice(
                positions,
                [outline.likes[position] for position in positions],
                [outline.keys[position] for position in positions],
            )
            # A selection that warns must warn again.
            warns = where is DEFAULT_KERNELS and unknown_roles([p for p in everything if id(p) not in chosen])
            if key is not None and not warns:
                while len(outline.choices) >= MOST_SELECTIONS:
                    outline.choices.pop(next(iter(outline.choices)), None)
                outline.choices[key] = choice
        return Selection(None, choice, self)


class Selection:
    """The parameters that a call works on, in the target's order.

    Attributes:
        choice: The kept part: groups, and what is known without the arrays.
    """

    def __init__(
        self, parameters: list[Parameter] | None, choice: Choice | None = None, plan: Plan | None = None
    ) -> None:
        self._parameters = parameters
        self._choice = choice
        self._plan = plan

    @property
    def choice(self) -> Choice:
        """The groups, and what is known without the arrays."""
        if self._choice is None:
            parameters = self.parameters
            self._choice = Choice(range(len(parameters)), parameters, [group_key(p) for p in parameters])
        return self._choice

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters; made when they are first asked for."""
        if self._parameters is None:
            assert self._plan is not None and self._choice is not None
            everything = self._plan.everything
            self._parameters = [everything[position] for position in self._choice.positions]
        return self._parameters

    @property
    def identities(self) -> frozenset[Hashable]:
        """The identities of the arrays."""
        notes = self.choice.notes
        if "identities" not in notes:
            notes["identities"] = frozenset(p.identity() for p in self.parameters)
        known: frozenset[Hashable] = notes["identities"]
        return known

    @property
    def everything(self) -> Sequence[Parameter]:
        """All parameters of the target, without their arrays where a plan is kept."""
        if self._plan is None or self._plan.outline is None:
            return self.parameters
        return self._plan.outline.likes

    def read(self) -> list[Array]:
        """Return the values of the parameters on the host, in stored order: new views where the storage can."""
        arrays: list[Any] = [None] * len(self.choice.likes)
        for group in self.choice.groups:
            views = group.storage.read_group(self.handles(group.positions))
            for position, view in zip(group.positions, views, strict=True):
                arrays[position] = view
        for position in self.choice.singles:
            arrays[position] = self.parameters[position].read().view()
        return arrays

    def handles(self, positions: Sequence[int]) -> list[Any]:
        """Return what the storage of a group finds these arrays by."""
        if self._plan is None or self._choice is None:
            return [self.parameters[position].handle for position in positions]
        handles, chosen = self._plan.handles, self._choice.positions
        return [handles[chosen[position]] for position in positions]


@runtime_checkable
class KeepsPlans(Protocol):
    """An adapter that keeps the outlines of its targets."""

    def plan(self, target: Any) -> Plan | None:
        """Return the plan of a target with an outline that is true of it now; None where none can be kept."""


@runtime_checkable
class WatchesPlaces(Protocol):
    """An adapter of targets whose arrays, or the layers that have them, can be replaced by others."""

    def watch_places(self, target: Any, parameters: Sequence[Parameter]) -> Callable[[], list[str]]:
        """Return a cheap function that names the parameters that the target has no more, for each call of a bind."""


def refer_to(value: Any) -> Callable[[], Any]:
    """Return a weak reference; to None, one that stays what it is."""
    return _nothing if value is None else weakref.ref(value)


def find_referred(references: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return what references are to, None for what is gone; all at once, in C."""
    return list(map(_call, references))


def are_same(references: Sequence[Callable[[], Any]], now: Sequence[Any]) -> bool:
    """Return whether references are to these very objects, in this order; all at once, in C."""
    return len(references) == len(now) and all(map(is_, map(_call, references), now))


def group_key(p: Parameter) -> tuple[GroupStorage, Hashable] | None:
    """Return the group that a parameter belongs to, None if it goes by itself."""
    storage: Any = p.storage
    kind = type(storage)
    if kind not in _grouping:
        _grouping[kind] = isinstance(storage, GroupStorage)
    if not _grouping[kind]:
        return None
    key = storage.group_key(p.handle)
    if key is None or p.refusal(writing=True) is not None or p.edit_refusal() is not None:
        return None
    return storage, (key, p.dtype)


def _key_of(where: WhereLike) -> Hashable | None:
    """Return a key that only equal selections share, None for one that may differ from call to call."""
    if where is ... or isinstance(where, str):
        return where
    if isinstance(where, (list, tuple)):
        # Names are compared as strings, for a thousand of them in microseconds.
        return (tuple, *where) if where and all(type(name) is str for name in where) else None
    return where if isinstance(where, Where) and _is_pure(where) else None


def _is_pure(where: Where) -> bool:
    kind = type(where)
    if kind in _PURE:
        return True
    if isinstance(where, predicates.Both):
        return kind in (predicates.Both, predicates.Default) and _is_pure(where.left) and _is_pure(where.right)
    if isinstance(where, predicates.Either):
        return all(map(_is_pure, where.these))
    return isinstance(where, predicates.Except) and _is_pure(where.this)
