"""One parameter of the result, and each target's share in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xweights.core.dtypes import COUNTERS, Array
from xweights.core.layout import Layout, reorder
from xweights.core.parameter import Parameter


def is_counter(p: Parameter) -> bool:
    """Return True for what a framework counts beside the weights: the first target's is taken, whatever the others'."""
    return p.role in COUNTERS and not p.floating


@dataclass
class Member:
    """One target's share in a group.

    Attributes:
        parameter: What it has.
        layout: How its stored array becomes neutral: its own, or, for unknown axes, that of one that knows them.
        others: Parameters that have to be equal to it, because the first target has them tied.
    """

    parameter: Parameter
    layout: Layout
    others: list[Parameter] = field(default_factory=list)

    def neutral(self, group: Group) -> Array:
        """Return a look at the values, in the order of the group's axes."""
        return self.turned(self.parameter, group)

    def turned(self, p: Parameter, group: Group) -> Array:
        """Return a look at the values of a parameter that lies as this one does."""
        array = self.layout.to_neutral(p.read())
        axes = self.layout.axes
        if axes is None or group.axes is None or axes == group.axes:
            return array
        return reorder(array, axes, group.axes, what=repr(p.name))


@dataclass
class Group:
    """One parameter of the result, and who has it.

    Attributes:
        first: The first target's, which names the result.
        members: One for each target.
        base: The base's, if there is a base.
        into: The parameter of ``into=`` that is written.
        key: What its randomness is keyed by.
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
    def everybody(self) -> list[Member]:
        return self.members if self.base is None else [*self.members, self.base]
