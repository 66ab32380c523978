"""Values that pass from step to step while a torch module is read, and where their channels are.

A torch tensor (B, a1, ..., an) corresponds to a neutral value in one of two ways: with the channels first, the neutral
axes are (a2, ..., an, a1), otherwise (a1, ..., an). A value keeps the order that costs no permutation, and is permuted
where the next step needs the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from xweights.porting.skeleton import Step


@dataclass(frozen=True)
class TracedValue:
    """Output of a step. ``rank``: the number of axes after the batch, or None; ``first`` is None until it is used."""

    name: str
    rank: int | None
    first: bool | None
    time_first: bool = False


@dataclass(frozen=True)
class PendingOutput:
    """Output of a module that is no array yet: a tuple, or a part of one."""

    module: Any
    path: str
    args: tuple[TracedValue, ...]
    part: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


class StepRecorder:
    """Recorder of steps that also permutes values."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.taken = {"results", "self", "inputs"}

    def add(
        self,
        name: str,
        kind: str,
        inputs: tuple[TracedValue, ...],
        options: Mapping[str, Any] | None = None,
        *,
        layer: str = "",
        shape: tuple[int, ...] | None = None,
    ) -> str:
        """Add a step; return its name."""
        step_name = self.unique_name(name)
        self.steps.append(
            Step(step_name, kind, tuple(value.name for value in inputs), options or {}, layer=layer, shape=shape)
        )
        return step_name

    def unique_name(self, name: str) -> str:
        """Return a name that isn't taken yet."""
        candidate, number = name, 1
        while candidate in self.taken:
            number += 1
            candidate = f"{name}_{number}"
        self.taken.add(candidate)
        return candidate

    def add_unsupported(self, name: str, what: str) -> TracedValue:
        """Add a step that can't be written, to be listed with all others."""
        step_name = self.unique_name(name)
        self.steps.append(Step(step_name, f"{what}, which has no recipe for code"))
        return TracedValue(step_name, None, False)

    def with_channels(self, value: TracedValue, *, first: bool) -> TracedValue:
        """Return a value with its channels first or last, permuted if necessary."""
        if value.first is None or value.rank == 1 or value.first == first:
            return replace(value, first=first)
        if value.rank is None:
            return replace(self.add_unsupported(value.name, "of a rank that isn't known (pass sample=)"), first=first)
        axes = tuple(range(1, value.rank + 1))
        order = (*axes[1:], 1) if first else (axes[-1], *axes[:-1])
        return replace(value, name=self.add(f"{value.name}_turned", "permute", (value,), {"order": order}), first=first)
