"""Pair units that weren't called: the only one left of its kind, or at the same place in a stack of which others were.

An array of kernels is one parameter, as a table of rows is: if the entries that the sample reached have the same places
in both models, so have the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xweights.porting.matching.forms import fit
from xweights.porting.matching.matching import Matching
from xweights.porting.matching.pairs import Pair
from xweights.porting.matching.rows import place_of, series_of
from xweights.porting.units import LayerUnit, split_columns


def pair_uncalled(matching: Matching, pairs: Mapping[int, Pair], called: set[int]) -> bool:
    """Pair units that weren't called in either model, if there is only one way; the outputs have to prove it.

    Return True if there are others than before.
    """
    known = {id(unit) for _, unit in matching.idle}
    seen = {key: pair for key, pair in pairs.items() if key not in known}
    idle = _list_idle(matching, seen, called)
    changed = _name_all(idle) != _name_all(matching.idle)
    if changed:  # by another attempt, which paired the others in another way
        matching.idle = idle
    done = {id(one.record) for pair in matching.idle for one in pair}
    paired = {id(pair.source) for pair in pairs.values()}
    source_units = [unit for unit in matching.source.units if not {id(unit), id(unit.record)} & (paired | done)]
    target_units = [
        unit
        for unit in matching.target.units
        if id(unit) not in pairs and not {id(unit), id(unit.record)} & (done | matching.skipped)
    ]
    forced = {}
    for unit in target_units:
        fitting = [source for source in source_units if source.form == unit.form]
        if not fitting and unit.kind not in ("rows", "embedding"):  # which are told by the rows that are used
            fitting = [source for source in source_units if fit(source, unit)]
        rivals = [target for target in target_units if fitting and target.form == fitting[0].form]
        rivals = rivals or [target for target in target_units if fitting and fit(fitting[0], target)]
        if len(fitting) == 1 and len(rivals) == 1 and matching.allowed(fitting[0], unit):
            forced[id(unit)] = fitting[0]
    matching.unseen.update(forced)
    return bool(forced) or changed


def has_idle_twin(matching: Matching, unit: LayerUnit) -> bool:
    """Return True if at a unit's place in a stack, the source has units that the sample didn't reach."""
    return unit.kind == "dense" and any(
        source.kind == "dense"
        and not matching.is_called(source)
        and ("place" in source.attributes or "place" in unit.attributes)
        and place_of(source) == place_of(unit)
        and source.form[1][0] == unit.form[1][0]
        for source in matching.source.units
    )


def _name_all(idle: Sequence[tuple[LayerUnit, LayerUnit]]) -> list[tuple[int, int, str]]:
    return [(id(source.record), id(unit.record), next(iter(unit.slices.values())).place) for source, unit in idle]


def _list_idle(matching: Matching, pairs: Mapping[int, Pair], called: set[int]) -> list[tuple[LayerUnit, LayerUnit]]:
    """Return pairs of units that weren't called, by the pairs at other places of the same stacks."""
    waiting = [unit for unit in matching.target.units if not {id(unit)} & (pairs.keys() | called | matching.skipped)]
    return [pair for unit in waiting for pair in _find_idle(unit, matching, pairs)]


def _find_idle(unit: LayerUnit, matching: Matching, pairs: Mapping[int, Pair]) -> list[tuple[LayerUnit, LayerUnit]]:
    place, series = place_of(unit), series_of(unit)
    siblings = [
        pair
        for pair in pairs.values()
        if pair.seen and pair.target.record is not unit.record and series_of(pair.target) == series
    ]
    stacked = "place" in unit.attributes or any("place" in pair.source.attributes for pair in siblings)
    if place is None or not siblings or not stacked:
        return []
    if any(place_of(pair.source) != place_of(pair.target) for pair in siblings):
        return []
    # In the opposite order the place in the middle is the same, so one place alone proves nothing.
    seen = {place_of(pair.target) for pair in siblings}
    places = {place_of(one) for one in matching.target.units if series_of(one) == series}
    if len(seen) == 1 and len(places) > 2:
        return []
    first = [pair for pair in siblings if pair.target.record is siblings[0].target.record]
    found = []
    for sibling in first:
        twins = [
            source
            for source in matching.source.units
            if series_of(source) == series_of(sibling.source) and place_of(source) == place
        ]
        if len(twins) != 1 or not matching.allowed(twins[0], unit):
            return []
        columns = next(iter(sibling.target.slices.values())).columns
        part = next(iter(sibling.source.slices.values())).columns
        twin = twins[0] if part is None else split_columns(twins[0], part)
        found.append((twin, unit if columns is None else split_columns(unit, columns)))
    return found
