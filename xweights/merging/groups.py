"""Groups of parameters that are merged into one parameter of the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xweights.core.dtypes import COUNTERS, Array
from xweights.core.layout import Layout, reorder
from xweights.core.parameter import Parameter


def is_counter(p: Parameter) -> bool:
    """Return True for a counter of the framework; the first target's is taken, whatever the others' values."""
    return p.role in COUNTERS and not p.floating


@dataclass
class Member:
    """One target's parameter in a group.

    Attributes:
        parameter: The target's parameter.
        layout: The layout of its stored array: its own, or, for unknown axes, that of a member with known ones.
    """

    parameter: Parameter
    layout: Layout

    def read_neutral(self, group: Group) -> Array:
        """Return a view of the values, in the order of the group's axes."""
        array = self.layout.to_neutral(self.parameter.read())
        axes = self.layout.axes
        if axes is None or group.axes is None or axes == group.axes:
            return array
        return reorder(array, axes, group.axes, what=repr(self.parameter.name))


@dataclass
class Group:
    """One parameter of the result, and the parameters that it is merged from.

    Attributes:
        first: The first target's parameter, which names the result.
        members: One member for each target.
        base: The member of the base, if there is a base.
        into: The parameter of ``into=`` that is written.
        key: The key of its randomness.
        dtype: The dtype of the result.
        axes: The axes of the result.
    """

    first: Parameter
    key: str
    members: list[Member] = field(default_factory=list)
    base: Member | None = None
    into: Parameter | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        found = self.first.dtype if self.into is None else self.into.dtype
        return found.newbyteorder("=") if found.byteorder in "<>" else found

    @property
    def axes(self) -> tuple[str, ...] | None:
        return self.members[0].layout.axes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.members[0].layout.shape

    @property
    def all_members(self) -> list[Member]:
        return self.members if self.base is None else [*self.members, self.base]
