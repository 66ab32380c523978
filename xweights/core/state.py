"""The state that a framework itself saves for a model, and how the keys of a file go into it.

A framework's own saver (``state_dict``) knows more than parameters: every name of a tied array, the arrays that a
parameter is computed from, values that are no arrays. A backend with such a saver hands it out as a :class:`State`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter

Combine = Callable[[Sequence[Array]], Array]


@dataclass(frozen=True, eq=False)
class StateEntry:
    """One array of a state, or one value that is no array.

    Attributes:
        keys: Its keys in the state; the first is its own, the others are those of arrays tied to it.
        plain_keys: The same keys without the attributes of wrappers around the model, in the same order.
        parameter: Access to exactly this array. None: the entry is no array, and ``value`` is what the state holds.
        of: The parameter that is computed from this array; None for an ordinary one.
        value: A tree of dicts, lists and tuples, whose arrays are Parameters.
        extra: Whether it is what a module's own code adds to the state, which only that code can take back.
    """

    keys: tuple[str, ...]
    plain_keys: tuple[str, ...]
    parameter: Parameter | None
    of: Parameter | None = None
    value: Any = None
    extra: bool = False


@dataclass(frozen=True, eq=False)
class State:
    """Everything that a framework saves for a model.

    Attributes:
        entries: The entries, in the order of their first keys.
        order: All keys in the framework's order.
        attributes: What the framework keeps beside the entries in a file of its own, such as versions of modules.
    """

    entries: Sequence[StateEntry]
    order: Sequence[str] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StateWrite:
    """Where the value of one parameter is in a file.

    Attributes:
        parameter: What is written, in stored order.
        sources: Keys of the file.
        combine: The function that computes the value from the arrays of ``sources``, in their order and as they are
            stored; it raises ShapeError for arrays that don't belong together. None: the one source is the value.
        of: The parameter that is computed from the written one; None for an ordinary one.
        same: Further keys of the file that name the written array; their values have to be the same.
    """

    parameter: Parameter
    sources: tuple[str, ...]
    combine: Combine | None = None
    of: Parameter | None = None
    same: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of the file that this write accounts for."""
        return (*self.sources, *self.same)


@dataclass(frozen=True, eq=False)
class StateMatch:
    """How the keys of a file go into the state of a model.

    Attributes:
        writes: In the order of the state.
        left_in_file: Keys of the file that go nowhere, each with the reason why that is no fault, or None.
        left_in_model: Entries that get no value, each with the reason why that is no fault, or None.
    """

    writes: Sequence[StateWrite]
    left_in_file: Mapping[str, str | None]
    left_in_model: Sequence[tuple[StateEntry, str | None]]
