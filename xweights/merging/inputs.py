"""The inputs of a merge: targets, base and ``into``, each with its mapping from the first target's names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xweights.core.backend import HasState
from xweights.core.names import NameIndex, Names, find_named, renamer
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for
from xweights.core.targets import is_path, open_target
from xweights.errors import ArgumentError, Problems, SelectionError, XweightsError, got_expected
from xweights.files.io.records import Record
from xweights.files.load import Checkpoint, load


@dataclass
class MergeInput:
    """A target, its label in errors, and the mapping of the first target's names to its own.

    ``settled``: the mapping was given for this input alone. ``part``: which part of a training run's file it is.
    ``read_as``: its parameters by the first target's own names, where these differ by prefixes.
    """

    label: str
    target: Any
    names: Names | None = None
    settled: bool = False
    parameters: list[Parameter] = field(default_factory=list)
    index: NameIndex = field(init=False)
    matched: set[int] = field(default_factory=set)
    missing: list[Parameter] = field(default_factory=list)
    part: str | None = None
    read_as: Mapping[str, Parameter] = field(default_factory=dict)
    _native_aliases: dict[Hashable, tuple[str, ...]] | None = None

    def open(self, problems: Problems, view: Callable[[Parameter], Parameter] | None = None) -> None:
        """Open the target; ``view`` returns the parameter to read in the place of one that several ranks hold."""
        try:
            self.target = open_part(self.target, self.part)
            found = open_target(self.target)
            self.replace_parameters(found if view is None else list(map(view, found)))
        except XweightsError as wrong:
            problems.add(type(wrong), f"{self.label}: {wrong}")
            self.replace_parameters([])

    def replace_parameters(self, parameters: list[Parameter]) -> None:
        """Take these as the parameters of the target."""
        self.parameters, self.index = parameters, NameIndex(parameters)

    def find(self, first: Parameter) -> Parameter | None:
        """Return the parameter with one of the names of a parameter of the first target, None if there is none."""
        for name in (first.name, *first.aliases):
            found = self.find_name(name, first.native_name if name == first.name else None)
            if found is not None:
                self.matched.add(id(found))
                return found
        return None

    def find_name(self, neutral: str, native: str | None) -> Parameter | None:
        """Return the parameter with a name of the first target, neutral or the framework's own."""
        found = find_named(renamer(self.names)(neutral), self.index)
        if not found and native is not None:
            # A state dict has the framework's own names, and so have many files.
            own = self.index.neutral.get(native) or self.index.native.get(native) or []
            found = own if len(own) == 1 else []
        if not found:
            tied = [p for p in self.parameters if p.aliases and {neutral, native} & {*self.list_native_aliases(p)}]
            found = tied if len(tied) == 1 else []
        if not found and native is not None and native in self.read_as:
            return self.read_as[native]
        return found[0] if found else None

    def is_tied_to(self, first: Parameter, match: Parameter) -> bool:
        """Return whether a match has the name of a parameter of the first target as a further one."""
        names = {renamer(self.names)(first.name), first.native_name}
        return not names & {match.name, match.native_name} and bool(
            match.aliases and names & {*match.aliases, *self.list_native_aliases(match)}
        )

    def list_native_aliases(self, p: Parameter) -> tuple[str, ...]:
        """Return the framework's own names of a tied array, in the order of its aliases; () where they aren't known."""
        if isinstance(p.handle, Record):
            return p.handle.metadata.native_aliases
        if self._native_aliases is None:
            self._native_aliases = _read_native_aliases(self.target)
        return self._native_aliases.get(p.identity(), ())


def open_part(target: Any, part: str | None) -> Any:
    """Return a target, a path as its opened file, of which a part is meant; a file of weights alone has no parts."""
    opened = load(target) if is_path(target) else target
    if part is None or not isinstance(opened, Checkpoint) or opened.part is not None or not has_parts(opened):
        return opened
    return load(opened.path, part=part)


def has_parts(target: Any) -> bool:
    """Return whether a target is a file that holds more than one state dict."""
    return isinstance(target, Checkpoint) and [found.name for found in target.parts] != [""]


def _read_native_aliases(target: Any) -> dict[Hashable, tuple[str, ...]]:
    """Return a framework's own further names of each tied array of a live target, by the array's identity."""
    if isinstance(target, (Mapping, list, tuple, Parameter)) or is_path(target):
        return {}
    backend = None if hasattr(type(target), "__xweights_parameters__") else backend_for(target)
    state = backend.state(target) if isinstance(backend, HasState) else None
    if state is None:
        return {}
    return {entry.parameter.identity(): entry.plain_keys[1:] for entry in state.entries if entry.parameter is not None}


def list_inputs(targets: Sequence[Any], base: Any, into: Any, names: Any, part: str | None = None) -> list[MergeInput]:
    """Return the targets, then the base and ``into`` where given, each with its mapping of ``names``."""
    inputs = [MergeInput(f"target {i}", target, part=part) for i, target in enumerate(targets)]
    inputs += [MergeInput("the base", base, part=part)] if base is not None else []
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
