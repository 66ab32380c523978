"""Find the values for a target's parameters in whatever a user passes: a list, a mapping, a file of a training run."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xweights.core.dtypes import COUNTERS, SAVED_COUNTERS
from xweights.core.mappings import flatten_mapping, last_part
from xweights.core.names import NameIndex, Names, find_named, renamer, suggest_names
from xweights.core.parameter import Parameter
from xweights.core.params import Params
from xweights.core.readings import Reading
from xweights.core.registry import backend_for
from xweights.core.values import host_array
from xweights.edit.load_report import Adapted, LoadReport
from xweights.edit.pairing import Pair, Pairing, Source, pair, refuse_foreign
from xweights.edit.sources import open_sources, try_parts
from xweights.errors import ArgumentError, Problems, SelectionError, ShapeError, got_expected, near

_PLAIN = Reading((), (), {})
_SHOWN = 8


@dataclass
class FoundValues:
    """The values for the selected parameters, and what was left over."""

    pairs: list[Pair]
    source: str = "values"
    part: str = ""
    reading: Reading = _PLAIN
    left: dict[str, str | None] = field(default_factory=dict)
    missing: dict[str, str | None] = field(default_factory=dict)
    other_parts: dict[str, str] = field(default_factory=dict)

    def report(
        self,
        taken: dict[str, tuple[str, ...]],
        skipped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
        adapted: dict[str, Adapted],
    ) -> LoadReport:
        """Return the report of what was written."""
        plain = not self.reading.source and not self.reading.target
        return LoadReport(
            self.source,
            self.part,
            "" if plain else str(self.reading),
            taken,
            self.left,
            self.missing,
            skipped,
            self.other_parts,
            adapted,
        )


def find_values(
    target: Any,
    values: Any,
    chosen: Sequence[Parameter],
    everything: Sequence[Parameter],
    *,
    strict: bool,
    names: Names | None,
    part: str | None,
    problems: Problems,
    optional: Container[Any] = (),
) -> FoundValues:
    """Return the values for the selected parameters; add to ``problems`` what is missing, unknown or ambiguous.

    ``optional`` has the identities of parameters that may well have no value.
    """
    opened = None if part is None and _fits_flat(values, everything, names) else open_sources(values, target, part)
    if opened is None:
        if part is not None:
            raise ArgumentError("part= names a part of a file, or of a training run's nested mapping")
        unknown: list[str] = []
        scratch = Problems(problems.headline)
        pairs = _match(values, chosen, everything, strict, renamer(names), scratch, unknown, optional)
        if unknown and not names and not isinstance(values, Params):
            # Names of wrappers, of tied arrays, or of what a parametrization computes from?
            flat = flatten_mapping(values)
            found = _find_in_mapping(Source(flat, flat), target, chosen, everything, strict, optional)
            if found is not None:
                return found
        problems.extend(scratch)
        return FoundValues(pairs)
    pairings, taken_part, values_of_part = try_parts(opened, target, everything, names)
    refuse_foreign(values_of_part, everything, pairings)
    pairing = pairings[0]
    found = FoundValues(
        _selected(pairing, chosen, everything),
        opened.name,
        taken_part,
        pairing.reading,
        left_over(pairing, values_of_part),
        other_parts=opened.other_parts(taken_part),
    )
    found.missing = missing(pairing, chosen, optional)
    unexcused = [name for name, reason in found.missing.items() if reason is None]
    if strict and unexcused:
        shown = ", ".join(map(repr, unexcused[:_SHOWN])) + (", ..." if len(unexcused) > _SHOWN else "")
        reading = f"{pairing.reading}, " if pairing.reading.source or pairing.reading.target else ""
        problems.add(
            SelectionError,
            f"{opened.name} has no value for {len(unexcused):,} of {len(chosen):,} parameters: {shown}\n"
            f"read:     {reading}{len(pairing.pairs):,} names agree"
            + (f"\n{near(unexcused[0], found.left)}" if found.left else ""),
            fix="strict=False to write those that are there, where= to select them, or names= for other names",
        )
    return found


def _fits_flat(values: Any, everything: Sequence[Parameter], names: Names | None) -> bool:
    """Return whether a nested mapping has the target's full names, and so isn't a training run's."""
    if not isinstance(values, Mapping) or isinstance(values, Params):
        return False
    try:
        flat = flatten_mapping(values)
    except ArgumentError:
        return False
    rename = renamer(names)
    known = {rename(name) for p in everything for name in (p.name, *p.aliases)} | {p.native_name for p in everything}
    return flat.keys() <= known


def check_tied(pair: Pair, problems: Problems) -> None:
    """Add a problem if two values for one tied parameter differ."""
    for key, value in pair.same:
        if value is not pair.values[0] and not _are_equal(pair.values[0], value):
            problems.add(
                SelectionError, f"{pair.keys[0]!r} and {key!r} are one tied parameter, and their values differ"
            )


def _are_equal(a: Any, b: Any) -> bool:
    first, second = (value.read() if isinstance(value, Parameter) else host_array(value) for value in (a, b))
    return bool(first.shape == second.shape and np.array_equal(first, second, equal_nan=first.dtype.kind in "fc"))


def left_over(pairing: Pairing, source: Source) -> dict[str, str | None]:
    """Return the keys that nothing was taken from, each array once and none by a further name of a taken one."""
    used = {id(value) for found in pairing.pairs for value in (*found.values, *(value for _, value in found.same))}
    left: dict[str, str | None] = {}
    for key, reason in pairing.left.items():
        value = source.native.get(key, source.neutral.get(key))
        if not isinstance(value, Parameter) or id(value) not in used:
            used.add(id(value))
            left[key] = reason
    return left


def _selected(pairing: Pairing, chosen: Sequence[Parameter], everything: Sequence[Parameter]) -> list[Pair]:
    """Return the pairs of the selected parameters, in the target's order.

    If all are selected, so is what the framework's state has beyond them: the pruned part of a normalized weight.
    """
    position_of = {p.identity(): position for position, p in enumerate(chosen)}
    if all(p.hidden or p.identity() in position_of for p in everything):
        return list(pairing.pairs)
    positions = []
    for found in pairing.pairs:
        of = found.parameter if found.of is None else found.of
        position = position_of.get(found.parameter.identity(), position_of.get(of.identity(), -1))
        if position >= 0:
            positions.append((position, found))
    return [found for _, found in sorted(positions, key=lambda pair: pair[0])]


def missing(pairing: Pairing, chosen: Sequence[Parameter], optional: Container[Any] = ()) -> dict[str, str | None]:
    """Return the parameters that get no value, by name, each with the reason why that is no fault, or None."""
    covered = pairing.covered
    return {
        p.name: pairing.excused.get(p.identity())
        for p in chosen
        if p.identity() not in covered
        and (p.role not in COUNTERS or p.identity() in pairing.excused)
        and p.identity() not in optional
    }


def _find_in_mapping(
    source: Source,
    target: Any,
    chosen: Sequence[Parameter],
    everything: Sequence[Parameter],
    strict: bool,
    optional: Container[Any],
) -> FoundValues | None:
    """Return what a framework's own state, or one behind a prefix, has for the target; None for any other mapping.

    A key that nothing is known of may be a mistake in a mapping that was written by hand.
    """
    wanted = {p.identity() for p in everything if not p.hidden and p.role not in COUNTERS}
    pairings = pair(source, target, everything, None, wanted)
    if len(pairings) != 1:
        return None
    (pairing,) = pairings
    behind = pairing.reading.source or pairing.reading.target
    unknown = [
        key
        for key, reason in pairing.left.items()
        if reason is None and last_part(key) not in SAVED_COUNTERS and pairing.reading.rename(key) is not None
    ]
    left_in_model = missing(pairing, chosen, optional)
    is_complete = None not in left_in_model.values()
    if is_complete:
        unknown = [key for key in unknown if not _is_beside_weights(key, source.native[key])]
    if unknown or not pairing.pairs or (strict and not is_complete):
        return None
    if behind and 2 * len(pairing.pairs) < min(len(everything), len(source.native)):
        return None
    return FoundValues(
        _selected(pairing, chosen, everything), reading=pairing.reading, left=pairing.left, missing=left_in_model
    )


def _is_beside_weights(key: str, value: Any) -> bool:
    """Return whether a value is what a training script puts flat beside a state dict: an epoch, a name, None."""
    return isinstance(value, (int, float, str, type(None))) and not {".", "/"} & set(key)


def _match(
    values: Any,
    chosen: Sequence[Parameter],
    everything: Sequence[Parameter],
    strict: bool,
    rename: Any,
    problems: Problems,
    unknown: list[str],
    optional: Container[Any],
) -> list[Pair]:
    """Return the pairs of a list by position, of a mapping by full names; list the names that nothing has."""
    if not isinstance(values, (Mapping, list, tuple, ValuesView, Iterator)):
        backend = backend_for(values)
        is_model = backend is not None and backend.adapter(values) is not None
        fix = "\nFix: set_params(target, xweights.get_params(model))" if is_model else ""
        raise ArgumentError(
            f"values= is a mapping by name, Params, a list or a file\ngot: {type(values).__name__}{fix}"
        )
    if not isinstance(values, Mapping):
        listed = list(values)
        if len(listed) != len(chosen):
            problems.add(
                ShapeError,
                "a list of values goes by position\n"
                + got_expected(f"{len(listed)} values", f"{len(chosen)} parameters"),
                fix="use names, which can't shift",
            )
            return []
        return [Pair(p, (), (value,)) for p, value in zip(chosen, listed, strict=True)]
    flat: Mapping[str, Any] = values if isinstance(values, Params) else flatten_mapping(values)
    by_key: dict[str, Parameter] = {}
    chosen_ids = {id(p) for p in chosen}
    by_twin_name: dict[str, list[Parameter]] = {}
    for p in everything:
        for name in (p.name, *p.aliases):
            by_twin_name.setdefault(rename(name), []).append(p)
    by_native = {} if isinstance(values, Params) else {p.native_name: p for p in everything}
    index = NameIndex(everything)
    for key in flat:
        matches = by_twin_name.get(key, [])
        try:
            matches = matches or find_named(key, index)
        except SelectionError as wrong:
            problems.add(SelectionError, str(wrong))
            continue
        if key in by_native and not any(p is by_native[key] for p in matches):
            matches = [*matches, by_native[key]]
        if len(matches) > 1:
            meant = ", ".join(f"{p.name!r} (native {p.native_name!r})" for p in matches)
            problems.add(
                SelectionError, f"{key!r} could mean {len(matches)} parameters\n{meant}", fix="pass Params, or names="
            )
        elif not matches:
            if last_part(key) not in COUNTERS:
                unknown.append(key)
                problems.add(
                    SelectionError, f"{key!r} is no parameter of the target\n{near(key, [p.name for p in everything])}"
                )
        elif id(matches[0]) not in chosen_ids:
            if strict:
                problems.add(SelectionError, f"{key!r} is not selected by where=", fix="leave it out, or widen where=")
        else:
            by_key[key] = matches[0]
    pairs: dict[int, Pair] = {}
    for key, p in by_key.items():
        if id(p) in pairs:
            first = pairs[id(p)]
            if first.values[0] is not flat[key]:
                pairs[id(p)] = Pair(p, first.keys, first.values, same=(*first.same, (key, flat[key])))
        else:
            pairs[id(p)] = Pair(p, (key,), (flat[key],))
    lost: dict[str, tuple[int, ...]] = {}
    if strict:
        for p in chosen:
            if id(p) not in pairs and p.role not in COUNTERS and p.identity() not in optional:
                lost[p.name] = p.shape
        suggested = suggest_names(lost, {key: np.shape(flat[key]) for key in unknown}) if unknown else None
        if suggested is not None:
            problems.add_fix(f"names={suggested}, if these are the same layers under other names")
        texts = [f"{name!r} {shape}" for name, shape in lost.items()]
        if len(texts) > _SHOWN:
            texts = [f"{len(lost):,} of {len(chosen):,} parameters: {', '.join(texts[:_SHOWN])}, ..."]
        else:
            texts = [f"{text}\n{near(name, flat)}" for text, name in zip(texts, lost, strict=True)]
        # A misspelt key, or a dict with one array of many, is told before all that follows from it.
        for text in texts:
            problems.add(
                SelectionError,
                f"there is no value for {text}",
                fix="strict=False to write a subset",
                consequence=bool(by_key or unknown),
            )
    return [pairs[id(p)] for p in chosen if id(p) in pairs]
