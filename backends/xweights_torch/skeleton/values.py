"""What goes from step to step while a torch module is read, and how it lies.

A torch tensor (B, a1, ..., an) is the same as a neutral value in one of two ways: with the channels first, its axes are
(a2, ..., an, a1) there, otherwise (a1, ..., an). A value keeps the way that costs no turning, and is turned where what
comes next needs the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from xweights.porting.skeleton import Step


@dataclass(frozen=True)
class Value:
    """``rank``: the number of axes after the batch; None: unknown. ``first`` is None for what nothing has used yet."""

    name: str
    rank: int | None
    first: bool | None
    time_first: bool = False


@dataclass(frozen=True)
class Pending:
    """Something that a module returned and that is no array yet: a tuple, or a part of one."""

    module: Any
    path: str
    given: tuple[Value, ...]
    part: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


class Reading:
    """Collects steps, and turns values."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.taken = {"results", "self", "inputs"}

    def add(
        self,
        name: str,
        kind: str,
        given: tuple[Value, ...],
        options: Mapping[str, Any] | None = None,
        *,
        layer: str = "",
        shape: tuple[int, ...] | None = None,
    ) -> str:
        """Add a step; return what it is called."""
        fresh = self.fresh(name)
        self.steps.append(Step(fresh, kind, tuple(one.name for one in given), options or {}, layer=layer, shape=shape))
        return fresh

    def fresh(self, name: str) -> str:
        """Return a name that nothing has yet."""
        found, number = name, 1
        while found in self.taken:
            number += 1
            found = f"{name}_{number}"
        self.taken.add(found)
        return found

    def unknown(self, name: str, what: str) -> Value:
        """Add what can't be written, to be listed with everything else."""
        fresh = self.fresh(name)
        self.steps.append(Step(fresh, f"{what}, which has no recipe for code"))
        return Value(fresh, None, False)

    def laid(self, value: Value, *, first: bool) -> Value:
        """Return a value with its channels where they are wanted, by a permutation where they aren't."""
        if value.first is None or value.rank == 1 or value.first == first:
            return replace(value, first=first)
        if value.rank is None:
            return replace(self.unknown(value.name, "of a rank that isn't known (pass sample=)"), first=first)
        axes = tuple(range(1, value.rank + 1))
        order = (*axes[1:], 1) if first else (axes[-1], *axes[:-1])
        return replace(value, name=self.add(f"{value.name}_turned", "permute", (value,), {"order": order}), first=first)
