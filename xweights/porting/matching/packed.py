"""Find the calls of the source that make up a fused unit of the target, and the fused ones that a unit is part of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.candidates import Candidate, Columns, Split
from xweights.porting.matching.packing import (
    Packing,
    as_slice,
    find_columns,
    get_name,
    list_combinations,
    list_packings,
    list_splits,
    rank_in,
)
from xweights.porting.matching.rows import RowMatch, match_rows
from xweights.porting.matching.similarity import distance, input_tolerance
from xweights.porting.matching.trace import UnitCall
from xweights.porting.units import UNPERMUTED, LayerUnit, split_columns

Heads = Callable[[int], list[int]]
# The packing of each fused layer so far, by the widths of its parts.
Known = Mapping[tuple[int, ...], Packing]


def find_joined(
    unit: LayerUnit, array: Array, pool: Sequence[UnitCall], heads: Heads, known: Known, *, rows: bool = False
) -> Iterator[Candidate]:
    """Yield the ways in which calls of the source with the same input make up a fused unit of the target.

    ``rows``: with some rows of the input in common is enough.
    """
    total = unit.form[1][1]
    same = _list_same_input(array, [call for call in pool if call.unit.form[1][1] < total], rows=rows)
    for chosen in list_combinations([call.unit.form[1][1] for call, _, _ in same], total):
        calls = [same[index][0] for index in chosen]
        match = same[chosen[0]][2]
        if match is not None and not all(match.is_like(same[index][2]) for index in chosen):
            continue
        widths = tuple(call.unit.form[1][1] for call in calls)
        names = [get_name(call.unit) for call in calls]
        for packing in _prefer(list_packings(widths, heads(min(widths)), names), known.get(widths)):
            columns = [as_slice(part) for part in find_columns(widths, packing)]
            parts = tuple(zip(calls, columns, strict=True))
            joined = UnitCall(calls[0].unit, calls[0].number, calls[0].input, join_outputs(parts, total))
            split = Split(np.arange(total), widths, packing)
            error = same[chosen[0]][1]
            packed = packing.describe(names)
            yield Candidate(joined, UNPERMUTED, error, parts=parts, split=split, packing=packed, rows=match)


def find_parts(
    unit: LayerUnit,
    array: Array,
    pool: Sequence[UnitCall],
    heads: Heads,
    known: Known,
    taken: Mapping[int, Split],
    *,
    rows: bool = False,
) -> list[Candidate]:
    """Return the parts of fused calls of the source with the same input that a unit of the target may be."""
    width = unit.form[1][1]
    found: list[tuple[tuple[bool, ...], Candidate]] = []
    seen: set[tuple[int, tuple[int, ...], bytes]] = set()
    larger = [call for call in pool if call.unit.form[1][1] > width]
    for call, error, match in _list_same_input(array, larger, rows=rows):
        total = call.unit.form[1][1]
        before = taken.get(call.number)
        for widths, place in list_splits(total, width):
            wanted = rank_in(get_name(unit), len(widths))
            packings = [packing for packing in list_packings(widths, heads(min(widths))) if _is_in_order(packing)]
            for packing in _prefer(packings, known.get(widths)):
                columns = find_columns(widths, packing)[place]
                if before is not None and (before.widths != widths or before.packing != packing):
                    continue
                if before is not None and before.columns[columns].any():
                    continue
                key = (call.number, widths, columns.tobytes())
                if key in seen:
                    continue
                seen.add(key)
                part = split_columns(call.unit, as_slice(columns))
                output = None if call.output is None else call.output[..., columns]
                candidate = Candidate(
                    UnitCall(part, call.number, call.input, output),
                    UNPERMUTED,
                    error,
                    whole=call,
                    split=Split(columns, widths, packing),
                    packing=_describe_part(place, packing),
                    rows=match,
                )
                found.append(
                    ((wanted not in (None, place), known.get(widths) != packing, packing.groups > 1), candidate)
                )
    return [candidate for _, candidate in sorted(found, key=lambda one: one[0])]


def take_columns(candidate: Candidate, taken: dict[int, Split]) -> bool:
    """Note the columns of a fused call that a candidate takes; return True if all of them have twins now."""
    assert candidate.whole is not None and candidate.split is not None
    split = candidate.split
    number, total = candidate.whole.number, candidate.whole.unit.form[1][1]
    if number not in taken:
        taken[number] = Split(np.zeros(total, np.bool_), split.widths, split.packing)
    taken[number].columns[split.columns] = True
    return bool(taken[number].columns.all())


def join_outputs(parts: Sequence[tuple[UnitCall, Columns]], total: int) -> Array | None:
    """Return the output of a fused unit from those of its parts."""
    outputs = [call.output for call, _ in parts]
    first = outputs[0]
    if first is None or any(output is None for output in outputs):
        return None
    joined = np.empty((*first.shape[:-1], total), first.dtype)
    for output, (_, columns) in zip(outputs, parts, strict=True):
        joined[..., columns] = output
    return joined


def _list_same_input(
    array: Array, calls: Sequence[UnitCall], *, rows: bool
) -> list[tuple[UnitCall, float, RowMatch | None]]:
    same: dict[int, tuple[UnitCall, float, RowMatch | None]] = {}
    for call in calls:
        if call.input is None or id(call.unit) in same:
            continue
        if rows:
            match = match_rows(array.reshape(-1, array.shape[-1]), call.input)
            if match is not None:
                same[id(call.unit)] = (call, match.error, match)
        elif call.input.size == array.size:
            shaped = array.reshape(call.input.shape)
            error = distance(shaped, call.input)
            if error <= input_tolerance(shaped, call.input):
                same[id(call.unit)] = (call, error, None)
    return list(same.values())


def _prefer(packings: list[Packing], first: Packing | None) -> list[Packing]:
    return sorted(packings, key=lambda packing: packing != first)


def _is_in_order(packing: Packing) -> bool:
    # Other orders are other places.
    return packing.order == tuple(range(len(packing.order)))


def _describe_part(place: int, packing: Packing) -> str:
    text = f"part {place + 1} of {len(packing.order)}"
    return text if packing.groups == 1 else f"{text} in each of {packing.groups} groups"
