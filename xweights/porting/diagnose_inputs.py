"""Diagnose why a layer isn't given what its twin is given: what lies between the layers that have weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.causes import find_activations
from xweights.porting.matching.matching import Matching
from xweights.porting.matching.pairs import Divergence
from xweights.porting.matching.scaling import SCALED, find_scaling
from xweights.porting.matching.trace import UnitCall
from xweights.porting.recomputing import LONGEST, Product, explain_attention


def diagnose_input(divergence: Divergence, matching: Matching) -> tuple[str, str] | None:
    """Return what was computed otherwise before a layer, in words: what was checked comes first."""
    divergence = _without_border(divergence)
    return (
        diagnose_activation(divergence, matching)
        or _diagnose_gate(divergence, matching)
        or _diagnose_attention(divergence, matching)
        or _diagnose_numbers(divergence)
    )


def diagnose_activation(divergence: Divergence, matching: Matching) -> tuple[str, str] | None:
    """Return the two functions that lead from the layer before to the inputs of two twins, if they differ."""
    call, got = divergence.call, divergence.output
    if call is None or got is None or call.input is None:
        return None
    before = next((one for one in matching.calls if one.number == call.number - 1), None)
    if before is None or before.output is None or before.output.size != got.size or got.size != call.input.size:
        return None
    start = before.output.reshape(call.input.shape)
    wanted, found = find_activations(start, call.input), find_activations(start, got.reshape(call.input.shape))
    if not wanted or not found or set(wanted) & set(found):
        return None
    return "activation", f"the activation before it differs: {wanted[0]} against {found[0]}"


def _diagnose_gate(divergence: Divergence, matching: Matching) -> tuple[str, str] | None:
    """Return the two functions of a gate, the product of which with another layer's output a twin is given."""
    call, got = divergence.call, divergence.output
    if call is None or got is None or call.input is None or got.shape != call.input.shape:
        return None
    for gate, factor in _iter_gates(_list_dense_before(call, matching), call.input.shape):
        wanted, found = find_activations(gate, call.input, factor), find_activations(gate, got, factor)
        if wanted and found and not set(wanted) & set(found):
            return "activation", f"the activation of the gate before it differs: {wanted[0]} against {found[0]}"
    return None


def _iter_gates(outputs: Sequence[Array], shape: tuple[int, ...]) -> Iterator[tuple[Array, Array]]:
    if len(outputs) > 1 and outputs[-1].shape == outputs[-2].shape == shape:
        yield outputs[-2], outputs[-1]
        yield outputs[-1], outputs[-2]
    if outputs and outputs[-1].shape == (shape[0], 2 * shape[-1]):
        halves = np.split(outputs[-1], 2, axis=1)
        yield halves[0], halves[1]
        yield halves[1], halves[0]


def _list_dense_before(call: UnitCall, matching: Matching) -> list[Array]:
    """Return the outputs of the dense units of the source that were called before, for as many rows."""
    rows = 0 if call.input is None else call.input.shape[0]
    outputs = [one.output for one in matching.calls if one.number < call.number and one.unit.kind == "dense"]
    return [output for output in outputs if output is not None and output.ndim == 2 and output.shape[0] == rows]


def _normalize(outputs: Sequence[Array], call: UnitCall, matching: Matching) -> list[Array]:
    """Return each output, or what a norm that is given it makes of it, as of queries and keys."""
    found = list(outputs)
    for one in matching.calls:
        if one.unit.kind not in ("rms_norm", "layer_norm") or one.input is None or one.output is None:
            continue
        for place, output in enumerate(outputs):
            sizes = {output.size, one.input.size, one.output.size}
            if one.number < call.number and len(sizes) == 1 and np.array_equal(one.input.ravel(), output.ravel()):
                found[place] = one.output.reshape(output.shape)
    return found


def _diagnose_attention(divergence: Divergence, matching: Matching) -> tuple[str, str] | None:
    """Return the setting in which two attentions differ, whose outputs two twins are given."""
    call, got = divergence.call, divergence.output
    if call is None or got is None or call.input is None or got.shape != call.input.shape or got.ndim != 2:
        return None
    examples = _count_examples(matching.sample)
    length = call.input.shape[0] // max(examples, 1)
    if examples < 1 or call.input.shape[0] % examples or length > LONGEST:
        return None
    width = call.input.shape[1]
    before = _list_dense_before(call, matching)[-3:]
    outputs = [output[:length] for output in before]
    heads = matching.list_heads(width)
    products: list[Product] = []
    if len(outputs) == 3 and outputs[1].shape == outputs[2].shape:
        query, key, value = (output[:length] for output in _normalize(before, call, matching))
        products += [(outputs[0], outputs[1], outputs[2]), (outputs[0], outputs[2], outputs[1]), (query, key, value)]
    if outputs and outputs[-1].shape[1] == 3 * width:
        first, second, third = np.split(outputs[-1], 3, axis=1)
        products.append((first, second, third))
        for count in heads:  # of each head side by side
            parts = np.moveaxis(outputs[-1].reshape(length, count, 3, -1), 2, 0).reshape(3, length, -1)
            products.append((parts[0], parts[1], parts[2]))
    return explain_attention(products, heads, call.input[:length], got[:length])


def _count_examples(sample: Any) -> int:
    if isinstance(sample, Mapping):
        sample = tuple(sample.values())
    if isinstance(sample, (tuple, list)):
        return max((_count_examples(part) for part in sample), default=0)
    return int(np.shape(sample)[0]) if np.ndim(sample) else 0


def _diagnose_numbers(divergence: Divergence) -> tuple[str, str] | None:
    call, got = divergence.call, divergence.output
    if call is None or got is None or call.input is None:
        return None
    expected: Any = call.input
    if got.shape != expected.shape:
        if got.ndim > 2 and got.ndim == expected.ndim and got.shape[1:] == expected.shape[1:]:
            return "input", f"it is given {got.shape[0]} inputs at once where its twin is given {expected.shape[0]}"
        if got.ndim > 2 and got.shape[-1] == expected.shape[-1]:
            return (
                "padding",
                f"it is given {got.shape[1:-1]} where its twin is given {expected.shape[1:-1]}: padding differs",
            )
        return "input", f"it is given {got.shape} where its twin is given {expected.shape}"
    if got.ndim > 1 and np.allclose(np.sort(got, axis=-1), np.sort(expected, axis=-1), rtol=1e-4, atol=1e-5):
        return "flatten", "it is given the same numbers in another order: flattened, joined or shuffled otherwise"
    scaling = find_scaling(expected, got)
    if scaling is not None:
        return "input", f"{SCALED}: {scaling.describe()}"
    if divergence.error < 0.05:
        return "activation", "it is given nearly the same: an activation variant (gelu by tanh or erf), or another eps"
    return "activation", "it is given other numbers: the activation or padding before it differs"


def _without_border(divergence: Divergence) -> Divergence:
    """Return a divergence of two inputs of one size, if one of them has zeros around it that the other has not yet."""
    call, got = divergence.call, divergence.output
    if call is None or call.input is None or got is None or got.ndim != call.input.ndim or got.ndim < 3:
        return divergence
    larger, smaller = (got, call.input) if got.size > call.input.size else (call.input, got)
    spare = [a - b for a, b in zip(larger.shape, smaller.shape, strict=True)]
    if spare[0] or spare[-1] or min(spare) < 0 or not 0 < max(spare) <= 8:
        return divergence
    whole = np.count_nonzero(larger)
    for start in np.ndindex(*(margin + 1 for margin in spare)):
        inner = larger[tuple(slice(at, at + length) for at, length in zip(start, smaller.shape, strict=True))]
        if np.count_nonzero(inner) == whole:
            if larger is got:
                return replace(divergence, output=inner)
            return replace(divergence, call=replace(call, input=inner))
    return divergence
