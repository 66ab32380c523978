"""Why two layers part: the likely cause in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.attributes import differences, plain_differences, unlike_padding
from xweights.porting.matching.candidates import RECURRENT
from xweights.porting.matching.search import Divergence, Matching, Pair
from xweights.porting.matching.trace import arrays_of
from xweights.porting.recipes import GATES
from xweights.porting.reports import Finding
from xweights.porting.units import LayerUnit, translate

Arrays = Mapping[str, Array]


def finding_of(divergence: Divergence, matching: Matching, pairs: Sequence[Pair]) -> Finding:
    """Return a divergence with its likely cause."""
    unit, call = divergence.target, divergence.call
    layer = unit.path if unit is not None else "(end of the model)"
    twin = call.unit.path if call is not None else ""
    if divergence.place == "pairing":
        return Finding(
            layer if unit is not None else twin, twin, divergence.text, divergence.error, "pairing", "pairing"
        )
    changed = _changed_before(divergence, pairs)
    if changed is not None:
        layer, twin = changed.target.path, changed.source.path
        word, cause = _inside(divergence, changed.target, changed.source, matching, pairs)
    elif divergence.place == "output" and unit is not None and call is not None:
        word, cause = _inside(divergence, unit, call.unit, matching, pairs)
    else:
        layer, word, cause = _between(divergence, layer, unit, matching, pairs)
    return Finding(layer, twin, cause, divergence.error, divergence.place, word)


def _changed_before(divergence: Divergence, pairs: Sequence[Pair]) -> Pair | None:
    """Return the first unit with other weights than its twin among those whose output nobody saw."""
    unit = divergence.target
    place = next((number for number, pair in enumerate(pairs) if pair.target is unit), len(pairs))
    own = pairs[place] if place < len(pairs) else None
    if divergence.place == "output" and own is not None and own.seen and _changed(own):
        return own
    unseen = [pair for pair in pairs if pair.error is None]
    # A unit of the same layer may come after it; and a layer that is never called has no place.
    before = [pair for pair in pairs[:place] if pair.error is None]
    inside = [pair for pair in unseen if unit is not None and pair.target.record is unit.record]
    never = [pair for pair in unseen if not pair.seen]
    return next((pair for pair in (*before, *inside, *never) if _changed(pair)), None)


def _changed(pair: Pair) -> bool:
    expected, _ = translate(pair.source, arrays_of(pair.source), pair.target, pair.turn)
    got = arrays_of(pair.target)
    return any(not np.array_equal(value, got[role]) for role, value in expected.items())


def _inside(
    divergence: Divergence, unit: LayerUnit, source: LayerUnit, matching: Matching, pairs: Sequence[Pair]
) -> tuple[str, str]:
    pair = next((one for one in pairs if one.target is unit), None)
    given = arrays_of(source)
    expected, _ = translate(source, given, unit, pair.turn) if pair is not None else (given, [])
    got = arrays_of(unit)
    for role, value in expected.items():
        if not np.array_equal(value, got[role]):
            found = _weights(role, value, got, unit, matching)
            if found is not None:
                return found
    unequal = [one for one in differences([(source, unit)]) if not one.training]
    if unequal:
        names = ", ".join(f"{one.name} {one.expected} against {one.got}" for one in unequal)
        return unequal[0].name, names
    others = [role for role, value in expected.items() if not np.array_equal(value, got[role])]
    if others:
        return "weights", f"other weights: {', '.join(others)}"
    if unit.kind in ("conv", "conv_transpose"):
        mine, theirs = source.attributes.get("padding"), unit.attributes.get("padding")
        return "padding", f"the same weights and input: padding differs ({mine} against {theirs})"
    call = divergence.call
    made, wanted = divergence.output, None if call is None else call.output
    if made is not None and wanted is not None and made.dtype != wanted.dtype:
        return "dtype", f"it computes in {made.dtype}, its twin in {wanted.dtype}"
    return "unknown", "the same weights, settings and input, and another output"


def _weights(role: str, value: Array, got: Arrays, unit: LayerUnit, matching: Matching) -> tuple[str, str] | None:
    """Say how the weights of a unit came to differ, if that can be told."""
    mine = got[role]
    if role.endswith("bias") and not mine.any():
        return "bias", f"its {role} is all zero: dropped"
    if unit.kind == "lstm" or unit.kind.startswith("gru"):
        order = _gates(value, mine, unit.kind, axis=value.ndim - 2)
        if order is not None:
            return "gates", f"the gates of its {role} are swapped: {' '.join(order)}"
    for name, turned in _turns(value):
        if turned.shape == mine.shape and _close(turned, mine):
            return "transposed", f"its {role} is {name}"
    if unit.kind == "dense" and role == "kernel":
        found = _rows(value, mine, unit, matching)
        if found is not None:
            return found
    for other in matching.source.units:
        theirs = arrays_of(other)
        if other.kind == unit.kind and role in theirs and _close(theirs[role], mine):
            return "pairing", f"it holds the weights of {other.path!r}: wrong pairing"
    if unit.kind in RECURRENT and role.endswith("bias") and _close(_both(got), value):
        return None
    if mine.size and value.any() and mine.any():
        ratio = float(np.vdot(value, mine) / np.vdot(value, value))
        if np.allclose(mine, ratio * value, rtol=1e-4, atol=1e-6 * float(np.abs(value).max())):
            return "scaled", f"its {role} is {ratio:.4g} times its twin's"
    return None


def _both(got: Arrays) -> Array:
    return got.get("bias", np.zeros(1)) + got.get("recurrent_bias", np.zeros(1))


def _close(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one, other))


def _gates(value: Array, mine: Array, kind: str, *, axis: int) -> list[str] | None:
    names = GATES[kind]
    for order in itertools.permutations(range(len(names))):
        if order != tuple(range(len(names))) and _close(value.take(order, axis=axis), mine):
            return [names[place] for place in order]
    return None


def _turns(value: Array) -> Iterator[tuple[str, Array]]:
    """Yield what a kernel becomes if its axes are confused."""
    if value.ndim < 2:
        return
    *space, first, second = range(value.ndim)
    yield "transposed", value.transpose(*space, second, first)
    if len(space) > 1:
        yield "turned in space", value.transpose(*space[::-1], first, second)
        yield "reversed in all axes", value.transpose(tuple(range(value.ndim))[::-1])
    if space:
        yield "flipped in space", np.flip(value, axis=tuple(space))


def _rows(value: Array, mine: Array, unit: LayerUnit, matching: Matching) -> tuple[str, str] | None:
    """Say which permutation of rows or columns leads from one kernel to the other."""
    for axis, what in ((0, "rows"), (1, "columns")):
        order = _order(value, mine, axis)
        if order is None:
            continue
        if axis == 0 and any(np.array_equal(order, one) for one in _flat_orders(order.size, matching)):
            return "flatten", "its rows are in the order of an image flattened the other way (channels first or last)"
        if axis == 1 and any(np.array_equal(order, one) for one in _flat_orders(order.size, matching)):
            return "flatten", "its columns are in the order of an image reshaped the other way (channels first or last)"
        return "heads", f"its {what} are permuted: heads or features in another order"
    return None


def _order(value: Array, mine: Array, axis: int) -> Array | None:
    one, other = np.moveaxis(value, axis, 0), np.moveaxis(mine, axis, 0)
    if one.shape != other.shape or one.shape[0] > 1 << 15:
        return None
    places = {row.tobytes(): place for place, row in enumerate(np.ascontiguousarray(one))}
    order = [places.get(row.tobytes(), -1) for row in np.ascontiguousarray(other)]
    if -1 in order or len(set(order)) != len(order) or order == sorted(order):
        return None
    return np.asarray(order)


def _flat_orders(size: int, matching: Matching) -> Iterator[Array]:
    for positions, channels in matching.grids:
        if positions * channels == size:
            at = np.arange(size)
            yield at.reshape(positions, channels).T.ravel()
            yield at.reshape(channels, positions).T.ravel()
    for channels in range(2, math.isqrt(size) * 2 + 1):
        if size % channels == 0:
            yield np.arange(size).reshape(-1, channels).T.ravel()


def _between(
    divergence: Divergence, layer: str, unit: LayerUnit | None, matching: Matching, pairs: Sequence[Pair]
) -> tuple[str, str, str]:
    """Say what happened before a layer, among those without weights."""
    twins = [(pair.source, pair.target) for pair in pairs]
    for _, twin, unequal in plain_differences(matching.events, matching.target_events, twins):
        one = unequal[0]
        word = "activation"
        return twin.path, word, f"activation variant: {one.name} {one.expected} against {one.got}"
    variant = _variant(divergence)
    if variant is not None:
        return layer, *variant
    if divergence.text:
        for pair in pairs[-1:]:
            text = unlike_padding(pair.source, pair.target)
            if text is not None and divergence.error == math.inf:
                return pair.target.path, "padding", f"{divergence.text}: {text.partition(': pass')[0]}"
        return layer, "outputs", f"{divergence.text}, and every layer before it agrees"
    if divergence.call is None:
        return layer, "pairing", f"the source has no layer of this kind and shape left: {_form(unit)}"
    return layer, "input", "it isn't given what its twin is given: something without weights before it differs"


def _form(unit: LayerUnit | None) -> str:
    return "" if unit is None else f"{unit.kind} {unit.form[1:]}"


def _variant(divergence: Divergence) -> tuple[str, str] | None:
    call, got = divergence.call, divergence.output
    if call is None or got is None or call.input is None:
        return None
    expected: Any = call.input
    if got.shape != expected.shape:
        if got.ndim > 2 and got.shape[-1] == expected.shape[-1]:
            return (
                "padding",
                f"it is given {got.shape[1:-1]} where its twin is given {expected.shape[1:-1]}: padding differs",
            )
        return "input", f"it is given {got.shape} where its twin is given {expected.shape}"
    if got.ndim == 2 and np.allclose(np.sort(got, axis=1), np.sort(expected, axis=1), rtol=1e-4, atol=1e-5):
        return "flatten", "it is given the same numbers in another order: flattened or joined otherwise"
    if divergence.error < 0.05:
        return "activation", "it is given nearly the same: an activation variant (gelu by tanh or erf), or another eps"
    return "activation", "it is given other numbers: the activation or padding before it differs"
