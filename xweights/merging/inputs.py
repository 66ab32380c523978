"""The targets of a merge as sides, each with the names that the first target's become there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xweights.core.names import NameIndex, named
from xweights.core.parameter import Parameter
from xweights.core.renaming import Names, renamer
from xweights.core.targets import open_target
from xweights.errors import ArgumentError, Problems, SelectionError, XweightsError, got_expected


@dataclass
class MergeInput:
    """A target, what it is called in errors, and how its names follow from the first target's.

    ``settled``: its names were given for it alone.
    """

    called: str
    target: Any
    names: Names | None = None
    settled: bool = False
    everything: list[Parameter] = field(default_factory=list)
    index: NameIndex = field(init=False)
    met: set[int] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)

    def open(self, problems: Problems) -> None:
        try:
            self.everything = open_target(self.target)
        except XweightsError as wrong:
            problems.add(type(wrong), f"{self.called}: {wrong}")
        self.index = NameIndex(self.everything)

    def find(self, first: Parameter) -> list[Parameter]:
        """Return what this side has under the names of a parameter of the first target; one, but for ties."""
        rename = renamer(self.names)
        found: dict[int, Parameter] = {}
        for name in (first.name, *first.aliases):
            for p in named(rename(name), self.index):
                found[id(p)] = p
        if not found:
            # A state dict has the framework's own names, and so has many a file.
            own = self.index.neutral.get(first.native_name) or self.index.native.get(first.native_name) or []
            found = {id(p): p for p in own[:1] if len(own) == 1}
        self.met |= found.keys()
        return list(found.values())


def sides_of(targets: Sequence[Any], base: Any, into: Any, names: Any) -> list[MergeInput]:
    """Return the targets as sides, then the base and ``into`` where given; each with its share of ``names``."""
    sides = [MergeInput(f"target {i}", one) for i, one in enumerate(targets)]
    sides += [MergeInput("the base", base)] if base is not None else []
    sides += [MergeInput("into", into)] if into is not None else []
    if isinstance(names, (list, tuple)):
        if len(names) != len(sides) - 1:
            raise ArgumentError(
                "a list of names= has a mapping (or None) for each target but the first, then for the base, then for "
                f"into\n{got_expected(len(names), len(sides) - 1)}"
            )
        for side, one in zip(sides[1:], names, strict=True):
            side.names, side.settled = one, True
    elif names is not None and not isinstance(names, Mapping):
        raise ArgumentError(f"names= is a mapping, or a list of these\ngot: {names!r}")
    else:
        for side in sides[1:]:
            side.names = names
    for side in sides:
        renamer(side.names)
    return sides


def settle_names(sides: Sequence[MergeInput], problems: Problems) -> None:
    """Let each side that has the first target's own names go by them, whatever one mapping for all sides says.

    A mapping that would pair it as well, and otherwise, can't be for it and for the others at once: that is refused.
    """
    first = sides[0].everything
    for side in sides[1:]:
        if side.names is None or side.settled:
            continue
        rename = renamer(side.names)
        plain = [p for p in first if p.name in side.index.neutral]
        if len(plain) < len(first):
            continue
        other = [p for p in first if rename(p.name) in side.index.neutral]
        if all(rename(p.name) == p.name for p in first):
            continue
        if len(other) == len(first):
            problems.add(
                SelectionError,
                f"{side.called} has every name of target 0, and every name that names= makes of them",
                fix="give names= as a list: a mapping, or None, for each target but the first, then base, then into",
            )
        side.names = None
