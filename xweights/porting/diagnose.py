"""Diagnose why two layers diverge: the likely cause in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.attributes import compare_plain_layers, compare_settings, describe_unlike_padding
from xweights.porting.causes import describe_padding, find_padding
from xweights.porting.diagnose_inputs import diagnose_activation, diagnose_input
from xweights.porting.matching.folds import NORMS
from xweights.porting.matching.matching import Matching
from xweights.porting.matching.pairs import Divergence, Pair
from xweights.porting.matching.similarity import trim_zeros
from xweights.porting.matching.trace import read_arrays
from xweights.porting.recipes import GATES
from xweights.porting.refusal import name_some
from xweights.porting.reports import Finding
from xweights.porting.units import RECURRENT, LayerUnit, translate

Arrays = Mapping[str, Array]
# The two kinds of GRU have equal shapes, and no weights that make one the other.
_RESETS = {
    "gru": "resets after its product (reset_after=True)",
    "gru_reset_before": "resets before its product (reset_after=False)",
}


def diagnose(divergence: Divergence, matching: Matching, pairs: Sequence[Pair]) -> Finding:
    """Return a divergence as a finding with its likely cause."""
    unit, call = divergence.target, divergence.call
    layer = unit.path if unit is not None else "(end of the model)"
    twin = call.unit.path if call is not None else ""
    if divergence.location == "pairing":
        return Finding(
            layer if unit is not None else twin, twin, divergence.text, divergence.error, "pairing", "pairing"
        )
    changed = _find_changed_before(divergence, pairs)
    if changed is not None:
        layer, twin = changed.target.path, changed.source.path
        kind, cause = _diagnose_layer(divergence, changed.target, changed.source, matching, pairs)
    elif divergence.location == "output" and unit is not None and call is not None:
        kind, cause = _diagnose_layer(divergence, unit, call.unit, matching, pairs)
    else:
        layer, kind, cause = _diagnose_between(divergence, layer, unit, matching, pairs)
    return Finding(layer, twin, cause, divergence.error, divergence.location, kind)


def _find_changed_before(divergence: Divergence, pairs: Sequence[Pair]) -> Pair | None:
    """Return the first unit with other weights than its twin's among those whose output wasn't seen."""
    unit = divergence.target
    position = next((index for index, pair in enumerate(pairs) if pair.target is unit), len(pairs))
    own = pairs[position] if position < len(pairs) else None
    if divergence.location == "output" and own is not None and own.seen and _has_changed(own):
        return own
    # Of a fused unit the parts are paired.
    parts = [pair for pair in pairs if own is None and unit is not None and pair.target.record is unit.record]
    if divergence.location == "output" and any(_has_changed(pair) for pair in parts):
        return next(pair for pair in parts if _has_changed(pair))
    unseen = [pair for pair in pairs if pair.error is None]
    # A unit of the same layer may come after it, and a layer that is never called has no position.
    before = [pair for pair in pairs[:position] if pair.error is None]
    inside = [pair for pair in unseen if unit is not None and pair.target.record is unit.record]
    never = [pair for pair in unseen if not pair.seen]
    return next((pair for pair in (*before, *inside, *never) if _has_changed(pair)), None)


def _has_changed(pair: Pair) -> bool:
    got = read_arrays(pair.target)
    expected, _ = translate(pair.source, read_arrays(pair.source), pair.target, pair.permutation, got)
    return any(not np.array_equal(value, got[role]) for role, value in expected.items())


def _diagnose_layer(
    divergence: Divergence, unit: LayerUnit, source: LayerUnit, matching: Matching, pairs: Sequence[Pair]
) -> tuple[str, str]:
    pair = next((candidate for candidate in pairs if candidate.target is unit), None)
    source_arrays = read_arrays(source)
    got = read_arrays(unit)
    expected, lost = dict(source_arrays), list[str]()
    if pair is not None:
        expected, lost = translate(source, source_arrays, unit, pair.permutation, got)
    if lost:
        return "bias" if "bias" in lost[0] else "weights", lost[0]
    for role, value in expected.items():
        if not np.array_equal(value, got[role]):
            diagnosis = _diagnose_weights(role, value, got, unit, matching)
            if diagnosis is not None:
                return diagnosis
    fused = _diagnose_fused(unit, pairs)
    if fused is not None:
        return fused
    unequal = [difference for difference in compare_settings([(source, unit)]) if not difference.training]
    if unequal:
        names = ", ".join(f"{difference.name} {difference.expected} against {difference.got}" for difference in unequal)
        return unequal[0].name, names
    unequal_roles = [role for role, value in expected.items() if not np.array_equal(value, got[role])]
    if unequal_roles:
        return "weights", f"other weights: {', '.join(unequal_roles)}"
    origins = matching.list_origins(source)
    if unit.kind == "conv" and origins[0].kind in NORMS and source.attributes.get("padding") != "valid":
        return "fold", f"{origins[0].path!r} before it can't be folded into a layer that pads: its zeros aren't shifted"
    if unit.kind in ("conv", "conv_transpose"):
        padding = _diagnose_padding(divergence, unit, source, expected)
        if padding is not None:
            return "padding", padding
    call = divergence.call
    got_output, expected_output = divergence.output, None if call is None else call.output
    if got_output is not None and expected_output is not None and got_output.dtype != expected_output.dtype:
        return "dtype", f"it computes in {got_output.dtype}, its twin in {expected_output.dtype}"
    return "unknown", "the same weights, settings and input, and another output"


def _diagnose_padding(
    divergence: Divergence, unit: LayerUnit, source: LayerUnit, arrays: Mapping[str, Array]
) -> str | None:
    """Return how the padding of two convolutions with the same weights and input differs, or None if it doesn't."""
    settings = source.attributes.get("padding"), unit.attributes.get("padding")
    call, output = divergence.call, divergence.output
    if unit.kind == "conv_transpose" or call is None or call.input is None or call.output is None or output is None:
        return f"the same weights and input: padding differs ({settings[0]} against {settings[1]})"
    inner = trim_zeros(call.input)
    found = [
        find_padding(inner, arrays["kernel"], arrays.get("bias"), each.attributes, seen)
        for each, seen in ((source, call.output), (unit, output))
    ]
    if found[0] is None or found[1] is None:
        if settings[0] == settings[1]:
            return None
        return f"the same weights and input: padding differs ({settings[0]} against {settings[1]})"
    if found[0] == found[1]:
        return None
    shown = [describe_padding(padding) for padding in found if padding is not None]
    return f"the same weights and input: padding differs, zeros around the image {shown[0]} against {shown[1]}"


def _diagnose_weights(
    role: str, value: Array, got: Arrays, unit: LayerUnit, matching: Matching
) -> tuple[str, str] | None:
    """Return why the weights of a unit differ, or None if that is unknown."""
    actual = got[role]
    if actual.shape != value.shape:
        return None
    if role.endswith("bias") and not actual.any():
        return "bias", f"its {role} is all zero: dropped"
    if unit.kind == "lstm" or unit.kind.startswith("gru"):
        order = _find_gate_order(value, actual, unit.kind, axis=value.ndim - 2)
        if order is not None:
            return "gates", f"the gates of its {role} are swapped: {' '.join(order)}"
    if unit.kind in ("embedding", "rows") and value.ndim == 2:
        rows = _find_order(value, actual, 0)
        if rows is not None:
            shifts = {int(shift) for shift in (rows - np.arange(rows.size)) % rows.size}
            moved = f"shifted by {shifts.pop()}" if len(shifts) == 1 else "in another order"
            return "rows", f"its rows are {moved}"
        shift = _find_shift(value, actual)
        if shift:
            return "rows", f"its rows are shifted by {shift}"
        if not actual.any():
            return "weights", f"its {role} is all zero: left at its start"
    for name, confused in _iter_confusions(value):
        if confused.shape == actual.shape and _are_equal(confused, actual):
            return "transposed", f"its {role} is {name}"
    if unit.kind == "dense" and role == "kernel":
        diagnosis = _diagnose_permutation(value, actual, unit, matching)
        if diagnosis is not None:
            return diagnosis
    for other in matching.source.units:
        other_arrays = read_arrays(other)
        if other.kind == unit.kind and role in other_arrays and _are_equal(other_arrays[role], actual):
            return "pairing", f"it holds the weights of {other.path!r}: wrong pairing"
    if unit.kind in RECURRENT and role.endswith("bias") and _are_equal(_add_biases(got), value):
        return None
    if actual.size and value.any() and actual.any():
        ratio = float(np.vdot(value, actual) / np.vdot(value, value))
        if np.allclose(actual, ratio * value, rtol=1e-4, atol=1e-6 * float(np.abs(value).max())):
            return "scaled", f"its {role} is {ratio:.4g} times its twin's"
    return None


def _add_biases(got: Arrays) -> Array:
    return got.get("bias", np.zeros(1)) + got.get("recurrent_bias", np.zeros(1))


def _are_equal(first: Array, second: Array) -> bool:
    return first.shape == second.shape and bool(np.array_equal(first, second))


def _find_gate_order(value: Array, actual: Array, kind: str, *, axis: int) -> list[str] | None:
    names = GATES[kind]
    for order in itertools.permutations(range(len(names))):
        if order != tuple(range(len(names))) and _are_equal(value.take(order, axis=axis), actual):
            return [names[index] for index in order]
    return None


def _iter_confusions(value: Array) -> Iterator[tuple[str, Array]]:
    """Yield a kernel with its axes confused in the usual ways, each with a description."""
    if value.ndim < 2:
        return
    *space, first, second = range(value.ndim)
    yield "transposed", value.transpose(*space, second, first)
    if len(space) > 1:
        yield "turned in space", value.transpose(*space[::-1], first, second)
        yield "reversed in all axes", value.transpose(tuple(range(value.ndim))[::-1])
    if space:
        yield "flipped in space", np.flip(value, axis=tuple(space))


def _diagnose_permutation(value: Array, actual: Array, unit: LayerUnit, matching: Matching) -> tuple[str, str] | None:
    """Return which permutation of rows or columns leads from one kernel to the other, or None."""
    for axis, axis_name in ((0, "rows"), (1, "columns")):
        order = _find_order(value, actual, axis)
        if order is None:
            continue
        if axis == 0 and any(
            np.array_equal(order, flat_order) for flat_order in _iter_flat_orders(order.size, matching)
        ):
            return "flatten", "its rows are in the order of an image flattened the other way (channels first or last)"
        if axis == 1 and any(
            np.array_equal(order, flat_order) for flat_order in _iter_flat_orders(order.size, matching)
        ):
            return "flatten", "its columns are in the order of an image reshaped the other way (channels first or last)"
        return "heads", f"its {axis_name} are permuted: heads or features in another order"
    return None


def _diagnose_fused(unit: LayerUnit, pairs: Sequence[Pair]) -> tuple[str, str] | None:
    """Return that the columns of a fused kernel are those of its parts in another order, if they are."""
    parts = [
        pair for pair in pairs if pair.packing and pair.target.path == unit.path and "kernel" in pair.target.slices
    ]
    if len(parts) < 2:
        return None
    kernels: tuple[list[Array], list[Array]] = ([], [])
    for pair in parts:
        got = read_arrays(pair.target)
        expected, _ = translate(pair.source, read_arrays(pair.source), pair.target, pair.permutation, got)
        if "kernel" not in expected:
            return None
        kernels[0].append(expected["kernel"])
        kernels[1].append(got["kernel"])
    order = _find_order(np.concatenate(kernels[0], axis=1), np.concatenate(kernels[1], axis=1), 1)
    return None if order is None else ("heads", "the columns of its parts are permuted: packed in another order")


def _find_order(value: Array, actual: Array, axis: int) -> Array | None:
    expected_rows, actual_rows = np.moveaxis(value, axis, 0), np.moveaxis(actual, axis, 0)
    if expected_rows.shape != actual_rows.shape or expected_rows.shape[0] > 1 << 15:
        return None
    positions = {row.tobytes(): position for position, row in enumerate(np.ascontiguousarray(expected_rows))}
    order = [positions.get(row.tobytes(), -1) for row in np.ascontiguousarray(actual_rows)]
    if -1 in order or len(set(order)) != len(order) or order == sorted(order):
        return None
    return np.asarray(order)


def _find_shift(value: Array, actual: Array) -> int:
    """Return by how many rows a table is shifted whose ends have no twin, 0 if it isn't."""
    changed = np.flatnonzero((value != actual).any(axis=1))
    if len(changed) < 2 or value.shape != actual.shape:
        return 0
    middle = changed[len(changed) // 2]
    for place in np.flatnonzero((value == actual[middle]).all(axis=1)):
        shift = int(middle - place)
        moved = changed[np.isin(changed - shift, changed)]
        if len(moved) > 1 and np.array_equal(actual[moved], value[moved - shift]):
            return shift
    return 0


def _iter_flat_orders(size: int, matching: Matching) -> Iterator[Array]:
    for positions, channels in matching.grids:
        if positions * channels == size:
            at = np.arange(size)
            yield at.reshape(positions, channels).T.ravel()
            yield at.reshape(channels, positions).T.ravel()
    for channels in range(2, math.isqrt(size) * 2 + 1):
        if size % channels == 0:
            yield np.arange(size).reshape(-1, channels).T.ravel()


def _diagnose_between(
    divergence: Divergence, layer: str, unit: LayerUnit | None, matching: Matching, pairs: Sequence[Pair]
) -> tuple[str, str, str]:
    """Return the layer and the cause of a divergence that began before a layer, among those without weights."""
    twins = [(pair.source, pair.target) for pair in pairs]
    for _, twin, unequal in compare_plain_layers(matching.events, matching.target_events, twins):
        difference = unequal[0]
        kind = "activation"
        return twin.path, kind, f"activation variant: {difference.name} {difference.expected} against {difference.got}"
    variant = diagnose_input(divergence, matching)
    if variant is not None:
        return layer, *variant
    if divergence.text:
        for pair in pairs[-1:]:
            text = describe_unlike_padding(pair.source, pair.target)
            if text is not None and divergence.error == math.inf:
                return pair.target.path, "padding", f"{divergence.text}: {text.partition(': pass')[0]}"
        return layer, "outputs", f"{divergence.text}, and every layer before it agrees"
    if divergence.call is None:
        other = _describe_other_gru(unit, matching)
        return layer, "pairing", other or f"the source has no layer of this kind and shape left: {_describe_form(unit)}"
    return layer, "input", "it isn't given what its twin is given: something without weights before it differs"


def _describe_other_gru(unit: LayerUnit | None, matching: Matching) -> str:
    """Return that the source has a GRU of the other kind where the target has this one, empty if it hasn't."""
    if unit is None or unit.kind not in _RESETS:
        return ""
    others = (other for other in matching.source.units if other.kind in _RESETS and other.kind != unit.kind)
    twin = next((other for other in others if other.form[1:] == unit.form[1:]), None)
    return "" if twin is None else f"it {_RESETS[unit.kind]}, its twin {twin.path!r} {_RESETS[twin.kind]}"


def _describe_form(unit: LayerUnit | None) -> str:
    return "" if unit is None else f"{unit.kind} {unit.form[1:]}"


def note_variants(suspects: Sequence[Divergence], matching: Matching) -> list[str]:
    """Return a note on activations that differ by less than the tolerance, with this sample."""
    found: dict[str, list[str]] = {}
    for suspect in suspects:
        diagnosis = diagnose_activation(suspect, matching)
        if diagnosis is not None and suspect.target is not None:
            found.setdefault(diagnosis[1], []).append(suspect.target.path)
    return [
        f"before {name_some(paths)} {text}, by less than the tolerance with this sample"
        for text, paths in found.items()
    ]
