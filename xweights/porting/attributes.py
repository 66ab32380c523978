"""Settings that are part of a port and no weights: eps, strides, groups, activations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from xweights.porting.protocol import ATTRIBUTES, TRAINING, LayerRecord
from xweights.porting.reports import Difference
from xweights.porting.units import LayerUnit

# Settings of layers without weights that two of the same kind can differ in.
_PLAIN = ("slope", "approximate", "alpha")


def differences(pairs: Sequence[tuple[LayerUnit, LayerUnit]]) -> list[Difference]:
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


def unlike_padding(source: LayerUnit, target: LayerUnit) -> str | None:
    """Return how two convolutions pad, where that isn't known to be the same; only a sample shows it then."""
    if source.kind not in ("conv", "conv_transpose") or "padding" not in source.attributes:
        return None
    mine, theirs = _padding(source), _padding(target)
    if mine == theirs and mine is not None:
        return None
    shown = source.attributes.get("padding"), target.attributes.get("padding")
    return f"the padding of {target.path!r} is {shown[1]}, that of {source.path!r} {shown[0]}: pass sample="


def _padding(unit: LayerUnit) -> tuple[int, ...] | None:
    """Return how many zeros are put on each side; None where it is more on one, or depends on the size of the image."""
    given = unit.attributes.get("padding")
    size = unit.pieces["kernel"].shape[:-2]
    if given == "valid":
        return (0,) * len(size)
    if isinstance(given, tuple):
        return given
    spread = unit.attributes.get("dilation", (1,) * len(size))
    reach = [(one - 1) * step for one, step in zip(size, spread, strict=True)]
    strided = any(one != 1 for one in unit.attributes.get("strides", ()))
    if given != "same" or unit.kind != "conv" or strided or any(one % 2 for one in reach):
        return None
    return tuple(one // 2 for one in reach)


_ACTIVATIONS = frozenset(
    {
        "relu", "relu6", "gelu", "leaky_relu", "elu", "selu", "silu", "tanh", "sigmoid", "softmax", "softplus",
        "hard_sigmoid", "hard_silu",
    }
)  # fmt: skip


def unlike_activations(source: Sequence[LayerRecord], target: Sequence[LayerRecord]) -> list[str]:
    """Return where two chains of equal layers have other activations after a layer."""
    found = []
    for (one, mine), (other, theirs) in zip(_activations(source), _activations(target), strict=False):
        if mine != theirs:
            shown = [" ".join(words) or "no activation" for words in (mine, theirs)]
            found.append(f"after {other!r} there is {shown[1]}, after {one!r} {shown[0]}")
    return found


def _activations(order: Sequence[LayerRecord]) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = [("the input", [])]
    for record in order:
        if record.parameters:
            fused = record.attributes.get("fused", "linear")
            found.append((record.path, [] if fused == "linear" else [fused]))
        elif record.attributes.get("does") in _ACTIVATIONS:
            variant = "_tanh" if record.attributes.get("approximate") == "tanh" else ""
            found[-1][1].append(f"{record.attributes['does']}{variant}")
    return found


Between = list[tuple[LayerRecord, LayerRecord, list[Difference]]]


def plain_differences(
    source: Sequence[LayerRecord], target: Sequence[LayerRecord], pairs: Sequence[tuple[LayerUnit, LayerUnit]]
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
