"""Settings that are part of a port and no weights: eps, strides, groups, activations.

Owns :func:`differences` and :func:`activations_between`. Imports protocol, reports and units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from xweights.porting.protocol import ATTRIBUTES, TRAINING, LayerRecord
from xweights.porting.reports import Difference
from xweights.porting.units import Unit

# Settings of layers without weights that two of the same kind can differ in.
_PLAIN = ("slope", "approximate", "alpha")


def differences(pairs: Sequence[tuple[Unit, Unit]]) -> list[Difference]:
    """Return the settings in which paired units differ."""
    found = []
    for source, target in pairs:
        for name in (*ATTRIBUTES, *TRAINING):
            mine, theirs = source.attributes.get(name), target.attributes.get(name)
            known = name in source.attributes and name in target.attributes
            if known and not _equal(mine, theirs):
                found.append(Difference(source.path, target.path, name, mine, theirs, training=name in TRAINING))
    return list(dict.fromkeys(found))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        # 1 - 0.01 isn't 0.99 in binary; and an eps that went through float32 is still the same eps.
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=0.0)
    return bool(one == other)


Between = list[tuple[LayerRecord, LayerRecord, list[Difference]]]


def plain_differences(
    source: Sequence[LayerRecord], target: Sequence[LayerRecord], pairs: Sequence[tuple[Unit, Unit]]
) -> Between:
    """Return the layers without weights that stand between the same paired layers and differ in a setting."""
    twins = {id(one.record): other.record for one, other in pairs}
    mine, theirs = list(_segments(source, set(twins))), list(_segments(target, {id(one) for one in twins.values()}))
    by_end = dict(theirs)
    found: Between = []
    for key, segment in mine:
        other = by_end.get(id(twins[key]) if key is not None else None, [])
        for one, twin in zip(_doing(segment), _doing(other), strict=False):
            unequal = [
                Difference(one.path, twin.path, name, one.attributes[name], twin.attributes[name])
                for name in _PLAIN
                if name in one.attributes
                and name in twin.attributes
                and one.attributes["does"] == twin.attributes["does"]
                and not _equal(one.attributes[name], twin.attributes[name])
            ]
            if unequal:
                found.append((one, twin, unequal))
    return found


def _segments(events: Sequence[LayerRecord], ends: set[int]) -> Iterator[tuple[int | None, list[LayerRecord]]]:
    """Yield the layers without weights before each paired layer, by that layer; those after the last one by None."""
    segment: list[LayerRecord] = []
    for record in events:
        if id(record) in ends:
            yield id(record), segment
            segment = []
        elif record.kind == "plain":
            segment.append(record)
    yield None, segment


def _doing(segment: Sequence[LayerRecord]) -> list[LayerRecord]:
    return [one for one in segment if any(name in one.attributes for name in _PLAIN)]
