"""Pair the values of a source (a file, a state dict) with the parameters of a target, by names.

The names of a source are neutral or a framework's own. Wrappers' prefixes are seen through, and the target may be a
part of what was saved, or contain it; see :mod:`xweights.core.readings`. What a framework itself would save of the
target (its *state*: aliases, the arrays that a parametrization computes from) is matched by the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from xweights.core.backend import HasState
from xweights.core.dtypes import COUNTERS
from xweights.core.names import Names, renamer, suggest_names
from xweights.core.parameter import Parameter
from xweights.core.readings import Reading, find_readings
from xweights.core.registry import backend_for
from xweights.core.state import Combine, State
from xweights.errors import Problems, SelectionError, near


@dataclass(frozen=True)
class Source:
    """The values of one part of a source.

    Attributes:
        native: The values by the keys they were saved under.
        neutral: The values by neutral name, where the source knows these names; else the same mapping.
        label: What messages call the source.
    """

    native: Mapping[str, Any]
    neutral: Mapping[str, Any]
    label: str = "the values"


@dataclass(frozen=True, eq=False)
class Pair:
    """A parameter of the target, and where its value is in the source.

    ``keys`` are those of ``values``; ``combine`` computes the stored array from them, None if it is the only one.
    ``same`` are further keys with values that have to be the same. ``native``: found by the framework's own names.
    ``of``: the parameter that is computed from this one.
    """

    parameter: Parameter
    keys: tuple[str, ...]
    values: tuple[Any, ...]
    combine: Combine | None = None
    same: tuple[tuple[str, Any], ...] = ()
    native: bool = False
    of: Parameter | None = None


@dataclass(eq=False)
class Pairing:
    """How a source goes into a target.

    Attributes:
        pairs: In the target's order.
        reading: How the names were read.
        left: Keys of the source that go nowhere, each with the reason why that is no fault, or None.
        excused: Identities of parameters that may well be missing, each with the reason.
    """

    pairs: list[Pair]
    reading: Reading
    left: dict[str, str | None]
    excused: dict[Any, str] = field(default_factory=dict)

    @property
    def unexplained(self) -> int:
        """Number of the source's names that go nowhere, without a reason."""
        return sum(reason is None for reason in self.left.values())

    @cached_property
    def covered(self) -> set[Any]:
        """The identities of the parameters that get a value, computed ones included."""
        return {p.identity() for pair in self.pairs for p in (pair.parameter, pair.of) if p is not None}


def pair(
    source: Source, target: Any, parameters: Sequence[Parameter], names: Names | None, wanted: set[Any]
) -> list[Pairing]:
    """Return the pairings that find most of the parameters: one, or several if they find equally many; maybe none.

    ``wanted`` are the identities of the parameters that count.
    """

    def found(pairing: Pairing) -> int:
        return len(pairing.covered & wanted)

    def is_complete(pairings: list[Pairing]) -> bool:
        return len(pairings) == 1 and found(pairings[0]) == len(wanted) and not pairings[0].unexplained

    # Where a source knows neutral names, they go between frameworks; plain keys are a framework's own more often.
    has_neutral_names = source.neutral.keys() != source.native.keys()
    by_neutral: list[Pairing] = []
    if has_neutral_names or names:
        by_neutral = _pair_by_name(source.neutral, parameters, names, native=False)
        if is_complete(by_neutral):
            return by_neutral
    backend = None if isinstance(target, (Mapping, list, tuple, Parameter)) else backend_for(target)
    state = backend.state(target) if isinstance(backend, HasState) else None
    if state is not None and isinstance(backend, HasState):
        by_native = _pair_by_state(source.native, target, backend, state, names)
    else:
        by_native = _pair_by_name(source.native, parameters, names, native=True)
    if is_complete(by_native):
        return by_native
    if not has_neutral_names and not names:
        by_neutral = _pair_by_name(source.neutral, parameters, names, native=False)
    every = [pairing for pairing in (*by_native, *by_neutral) if pairing.pairs]
    most = max(map(found, every), default=0)
    best = [pairing for pairing in every if found(pairing) == most]
    if by_native and by_neutral:
        fewest = min((pairing.unexplained for pairing in best), default=0)
        best = [pairing for pairing in best if pairing.unexplained == fewest]
    # Both kinds of names may be the same words: then the framework's own ones say more.
    return [pairing for pairing in best if pairing in by_native] or best


def _pair_by_name(
    values: Mapping[str, Any], parameters: Sequence[Parameter], names: Names | None, *, native: bool
) -> list[Pairing]:
    by_name: dict[str, int] = {}
    for position, p in enumerate(parameters):
        for name in (p.native_name,) if native else (p.name, *p.aliases):
            by_name.setdefault(name, position)
    pairings = []
    for reading in _find_readings(values, by_name, names):
        found: dict[int, list[str]] = {}
        for name, key in reading.pairs.items():
            if key not in found.setdefault(by_name[name], []):
                found[by_name[name]].append(key)
        pairs = [
            Pair(parameters[i], (keys[0],), (values[keys[0]],), same=_same(values, keys[1:]), native=native)
            for i, keys in sorted(found.items())
        ]
        taken = {key for keys in found.values() for key in keys}
        pairings.append(Pairing(pairs, reading, {key: None for key in values if key not in taken}))
    return pairings


def _pair_by_state(
    values: Mapping[str, Any], target: Any, backend: HasState, state: State, names: Names | None
) -> list[Pairing]:
    by_name: dict[str, int] = {}
    for position, entry in enumerate(state.entries):
        for key in entry.plain_keys:
            by_name.setdefault(key, position)
        if entry.of is not None:
            by_name.setdefault(entry.of.native_name, position)
    pairings = []
    for reading in _find_readings(values, by_name, names) or [Reading((), (), {})]:
        renamed = {key: name for name, key in reading.pairs.items()}
        # The target's keys for what is spelled alike; the backend knows other spellings.
        originals: dict[str, str] = {}
        for key in values:
            name = renamed.get(key) or reading.rename(key)
            if name is not None:
                originals.setdefault(name, key)
        match = backend.match_state(list(originals), target, state=state)
        if match is None:
            continue
        pairs = [
            Pair(
                write.parameter,
                tuple(originals[key] for key in write.sources),
                tuple(values[originals[key]] for key in write.sources),
                combine=write.combine,
                same=_same(values, [originals[key] for key in write.same]),
                native=True,
                of=write.of,
            )
            for write in match.writes
        ]
        left: dict[str, str | None] = dict.fromkeys(values)
        for name, reason in match.left_in_file.items():
            left[originals[name]] = reason
        for write in match.writes:
            for name in write.keys:
                left.pop(originals[name], None)
        excused = {
            entry.parameter.identity(): reason
            for entry, reason in match.left_in_model
            if entry.parameter is not None and reason is not None
        }
        pairings.append(Pairing(pairs, reading, left, excused))
    return pairings


def _same(values: Mapping[str, Any], keys: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, values[key]) for key in keys)


def _find_readings(values: Mapping[str, Any], by_name: Mapping[str, int], names: Names | None) -> list[Reading]:
    if not names:
        return find_readings(list(values), by_name)
    rename: Callable[[str], str] = renamer(names)
    pairs = {name: rename(name) for name in by_name if rename(name) in values}
    meant: dict[str, dict[int, str]] = {}
    for name, key in pairs.items():
        meant.setdefault(key, {}).setdefault(by_name[name], name)
    problems = Problems("names= sends several parameters to one value")
    for key, of_key in meant.items():
        if len(of_key) > 1:
            shown = ", ".join(map(repr, of_key.values()))
            problems.add(
                SelectionError,
                f"{key!r} could mean {len(of_key)} parameters\n{shown}",
                fix="map each to a value of its own",
            )
    problems.check()
    return [Reading((), (), pairs)]


def nothing_fits(source: Source, parameters: Sequence[Parameter], pairings: Sequence[Pairing]) -> bool:
    """Return whether the names of a source are those of another model."""
    agree = len(pairings[0].pairs) if pairings else 0
    natives = [p for p in parameters if not p.hidden]
    # A few names that agree behind a prefix may do so by chance ("norm.weight").
    by_chance = bool(pairings) and bool(pairings[0].reading.source or pairings[0].reading.target)
    return not agree or (by_chance and 2 * agree < min(len(natives), len(source.native)))


def refuse_foreign(source: Source, parameters: Sequence[Parameter], pairings: Sequence[Pairing]) -> None:
    """Raise SelectionError for a source whose names are those of another model, or that can be read in two ways."""
    if len(pairings) > 1:
        ways = "\n".join(f"  {pairing.reading}: {len(pairing.pairs)} parameters" for pairing in pairings[:8])
        begin = ".".join(pairings[0].reading.source) or "encoder"
        raise SelectionError(
            f"the names in {source.label} fit the target in {len(pairings)} ways\n{ways}\n"
            f'Fix: say which, as in names={{"*": "{begin}.*"}} (target\'s names: names in the file)'
        )
    if not nothing_fits(source, parameters, pairings):
        return
    agree = len(pairings[0].pairs) if pairings else 0
    natives = [p.native_name for p in parameters if not p.hidden]
    first = next(iter(natives), "")
    some = ", ".join(repr(key) for key in list(source.native)[:4])
    ours, theirs = ({name: p.shape for name, p in named.items()} for named in _neutral(source, parameters))
    suggested = suggest_names(ours, theirs)
    line = (
        'Fix: names={"glob of the target": "glob in the file"}, if it is the same model under other names'
        if suggested is None
        else f"Fix: names={suggested}, if it is the same model under other names"
    )
    raise SelectionError(
        f"{source.label} has the weights of another model: {agree} of {len(natives)} names agree\n"
        f"got:      {some}{', ...' if len(source.native) > 4 else ''}\n"
        f"expected: {', '.join(map(repr, natives[:4]))}{', ...' if len(natives) > 4 else ''}\n"
        f"{near(first, source.native)}\n{line}"
    )


def _neutral(source: Source, parameters: Sequence[Parameter]) -> tuple[dict[str, Any], dict[str, Any]]:
    ours = {p.name: p for p in parameters if not p.hidden and p.role not in COUNTERS}
    theirs = {name: value for name, value in source.neutral.items() if isinstance(value, Parameter)}
    return ours, theirs
