"""Compare the settings of two models that aren't weights: eps, strides, groups, activations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from xweights.porting.protocol import ATTRIBUTES, TRAINING, LayerRecord
from xweights.porting.reports import Difference
from xweights.porting.units import LayerUnit

# Settings in which two layers of the same kind without weights can differ.
_PLAIN = ("slope", "approximate", "alpha")


def compare_settings(pairs: Sequence[tuple[LayerUnit, LayerUnit]]) -> list[Difference]:
    """Return the settings in which paired units differ."""
    differing = []
    for source, target in pairs:
        for name in (*ATTRIBUTES, *TRAINING):
            expected, got = source.attributes.get(name), target.attributes.get(name)
            comparable = name in source.attributes and name in target.attributes
            if comparable and not _are_equal(expected, got):
                differing.append(Difference(source.path, target.path, name, expected, got, training=name in TRAINING))
    return list(dict.fromkeys(differing))


def _are_equal(first: Any, second: Any) -> bool:
    if isinstance(first, tuple) and isinstance(second, tuple) and len(first) != len(second):
        # A convolution over one axis in the place of one over two: the axes that it doesn't have are 1.
        first, second = (tuple(step for step in steps if step != 1) for steps in (first, second))
    if isinstance(first, float) and isinstance(second, float):
        # 1 - 0.01 isn't 0.99 in binary, and an eps that went through float32 is still the same eps.
        return math.isclose(first, second, rel_tol=1e-6, abs_tol=0.0)
    return bool(first == second)


def describe_unlike_padding(source: LayerUnit, target: LayerUnit) -> str | None:
    """Return how two convolutions pad if only a sample can show whether it is the same, else None."""
    if source.kind not in ("conv", "conv_transpose") or "padding" not in source.attributes:
        return None
    source_padding, target_padding = _resolve_padding(source), _resolve_padding(target)
    if source_padding == target_padding and source_padding is not None:
        return None
    shown = source.attributes.get("padding"), target.attributes.get("padding")
    return f"the padding of {target.path!r} is {shown[1]}, that of {source.path!r} {shown[0]}: pass sample="


def _resolve_padding(unit: LayerUnit) -> tuple[int, ...] | None:
    """Return the number of zeros on each side; None if the sides differ, or if it depends on the size of the image."""
    padding = unit.attributes.get("padding")
    size = unit.slices["kernel"].shape[:-2]
    if padding == "valid":
        return (0,) * len(size)
    if isinstance(padding, tuple):
        return padding
    spread = unit.attributes.get("dilation", (1,) * len(size))
    reach = [(length - 1) * step for length, step in zip(size, spread, strict=True)]
    strided = any(stride != 1 for stride in unit.attributes.get("strides", ()))
    if padding != "same" or unit.kind != "conv" or strided or any(extent % 2 for extent in reach):
        return None
    return tuple(extent // 2 for extent in reach)


_ACTIVATIONS = frozenset(
    {
        "relu", "relu6", "gelu", "leaky_relu", "elu", "selu", "silu", "tanh", "sigmoid", "softmax", "softplus",
        "hard_sigmoid", "hard_silu",
    }
)  # fmt: skip


def compare_activations(source: Sequence[LayerRecord], target: Sequence[LayerRecord]) -> list[str]:
    """Return descriptions of the layers after which two chains of equal layers have different activations."""
    differing = []
    for (source_layer, expected), (target_layer, got) in zip(
        _list_activations(source), _list_activations(target), strict=False
    ):
        if expected != got:
            shown = [" ".join(names) or "no activation" for names in (expected, got)]
            differing.append(f"after {target_layer!r} there is {shown[1]}, after {source_layer!r} {shown[0]}")
    return differing


def _list_activations(order: Sequence[LayerRecord]) -> list[tuple[str, list[str]]]:
    activations: list[tuple[str, list[str]]] = [("the input", [])]
    for record in order:
        if record.parameters:
            fused = record.attributes.get("fused", "linear")
            activations.append((record.path, [] if fused == "linear" else [fused]))
        elif record.attributes.get("does") in _ACTIVATIONS:
            variant = "_tanh" if record.attributes.get("approximate") == "tanh" else ""
            activations[-1][1].append(f"{record.attributes['does']}{variant}")
    return activations


PlainDifferences = list[tuple[LayerRecord, LayerRecord, list[Difference]]]


def compare_plain_layers(
    source: Sequence[LayerRecord], target: Sequence[LayerRecord], pairs: Sequence[tuple[LayerUnit, LayerUnit]]
) -> PlainDifferences:
    """Return the layers without weights that are between the same paired layers and differ in a setting."""
    twins = {id(source_unit.record): target_unit.record for source_unit, target_unit in pairs}
    source_segments, target_segments = (
        list(_iter_segments(source, set(twins))),
        list(_iter_segments(target, {id(record) for record in twins.values()})),
    )
    by_end = dict(target_segments)
    differing: PlainDifferences = []
    for key, source_segment in source_segments:
        target_segment = by_end.get(id(twins[key]) if key is not None else None, [])
        for layer, twin in zip(
            _select_with_settings(source_segment), _select_with_settings(target_segment), strict=False
        ):
            unequal = [
                Difference(layer.path, twin.path, name, layer.attributes[name], twin.attributes[name])
                for name in _PLAIN
                if name in layer.attributes
                and name in twin.attributes
                and layer.attributes["does"] == twin.attributes["does"]
                and not _are_equal(layer.attributes[name], twin.attributes[name])
            ]
            if unequal:
                differing.append((layer, twin, unequal))
    return differing


def _iter_segments(events: Sequence[LayerRecord], ends: set[int]) -> Iterator[tuple[int | None, list[LayerRecord]]]:
    """Yield the layers without weights before each paired layer, with its id; those after the last with None."""
    segment: list[LayerRecord] = []
    for record in events:
        if id(record) in ends:
            yield id(record), segment
            segment = []
        elif record.kind == "plain":
            segment.append(record)
    yield None, segment


def _select_with_settings(segment: Sequence[LayerRecord]) -> list[LayerRecord]:
    return [record for record in segment if any(name in record.attributes for name in _PLAIN)]
