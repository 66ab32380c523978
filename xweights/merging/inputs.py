"""The inputs of a merge: targets, base and ``into``, each with its mapping from the first target's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xweights.core.names import NameIndex, Names, find_named, renamer
from xweights.core.parameter import Parameter
from xweights.core.targets import open_target
from xweights.errors import ArgumentError, Problems, SelectionError, XweightsError, got_expected


@dataclass
class MergeInput:
    """A target, its label in errors, and the mapping of the first target's names to its own.

    ``settled``: the mapping was given for this input alone.
    """

    label: str
    target: Any
    names: Names | None = None
    settled: bool = False
    parameters: list[Parameter] = field(default_factory=list)
    index: NameIndex = field(init=False)
    matched: set[int] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)

    def open(self, problems: Problems) -> None:
        try:
            self.parameters = open_target(self.target)
        except XweightsError as wrong:
            problems.add(type(wrong), f"{self.label}: {wrong}")
        self.index = NameIndex(self.parameters)

    def find(self, first: Parameter) -> list[Parameter]:
        """Return the parameters with the names of a parameter of the first target: one, except for ties."""
        rename = renamer(self.names)
        matches: dict[int, Parameter] = {}
        for name in (first.name, *first.aliases):
            for p in find_named(rename(name), self.index):
                matches[id(p)] = p
        if not matches:
            # A state dict has the framework's own names, and so have many files.
            own = self.index.neutral.get(first.native_name) or self.index.native.get(first.native_name) or []
            matches = {id(p): p for p in own[:1] if len(own) == 1}
        self.matched |= matches.keys()
        return list(matches.values())


def list_inputs(targets: Sequence[Any], base: Any, into: Any, names: Any) -> list[MergeInput]:
    """Return the targets, then the base and ``into`` where given, each with its part of ``names``."""
    inputs = [MergeInput(f"target {i}", target) for i, target in enumerate(targets)]
    inputs += [MergeInput("the base", base)] if base is not None else []
    inputs += [MergeInput("into", into)] if into is not None else []
    if isinstance(names, (list, tuple)):
        if len(names) != len(inputs) - 1:
            raise ArgumentError(
                "a list of names= has a mapping (or None) for each target but the first, then for the base, then for "
                f"into\n{got_expected(len(names), len(inputs) - 1)}"
            )
        for merge_input, mapping in zip(inputs[1:], names, strict=True):
            merge_input.names, merge_input.settled = mapping, True
    elif names is not None and not isinstance(names, Mapping):
        raise ArgumentError(f"names= is a mapping, or a list of these\ngot: {names!r}")
    else:
        for merge_input in inputs[1:]:
            merge_input.names = names
    for merge_input in inputs:
        renamer(merge_input.names)
    return inputs


def settle_names(inputs: Sequence[MergeInput], problems: Problems) -> None:
    """Drop the mapping of each input that has the first target's own names, where one mapping was given for all.

    An input that has all mapped names too, and other ones, is ambiguous, so it is refused.
    """
    first = inputs[0].parameters
    for merge_input in inputs[1:]:
        if merge_input.names is None or merge_input.settled:
            continue
        rename = renamer(merge_input.names)
        under_first_names = [p for p in first if p.name in merge_input.index.neutral]
        if len(under_first_names) < len(first):
            continue
        under_mapped_names = [p for p in first if rename(p.name) in merge_input.index.neutral]
        if all(rename(p.name) == p.name for p in first):
            continue
        if len(under_mapped_names) == len(first):
            problems.add(
                SelectionError,
                f"{merge_input.label} has every name of target 0, and every name that names= makes of them",
                fix="give names= as a list: a mapping, or None, for each target but the first, then base, then into",
            )
        merge_input.names = None
