"""Attention computed again from what was recorded, to say in which setting two models differ.

Everything here is pure; arrays are those of one example.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.similarity import distance

# Rounding of sums that another library makes in another order, and of an angle in 32 bits.
_LIMIT = 1e-4
_BASES = (1e4, 5e5, 1e6, 1e5, 2e6, 5e6, 1e7)
# Of scores: Gemma 2 has one.
_CAPS: tuple[float | None, ...] = (None, 50.0, 30.0)
# Longer sequences than this cost seconds.
LONGEST = 512
# So many tokens show what attention with a causal mask is: they don't see the others.
_ENOUGH = 64


Product = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Attention:
    """How attention is computed. ``base``: that of the rotation of positions; ``cap``: that of scores; or None."""

    heads: int
    scale: float
    causal: bool = False
    base: float | None = None
    interleaved: bool = False
    cap: float | None = None

    def compute(self, query: Array, key: Array, value: Array) -> Array:
        """Return the values (length, heads * size), averaged by how well their keys fit the queries."""
        size = query.shape[1] // self.heads
        groups = key.shape[1] // size
        queries = query.reshape(len(query), self.heads, size).swapaxes(0, 1)
        keys = key.reshape(len(key), groups, size).swapaxes(0, 1)
        values = value.reshape(len(value), groups, -1).swapaxes(0, 1)
        if self.base is not None:
            queries, keys = (_rotate(array, self.base, self.interleaved) for array in (queries, keys))
        keys, values = (np.repeat(array, self.heads // groups, axis=0) for array in (keys, values))
        scores = queries @ keys.swapaxes(1, 2) * self.scale
        if self.cap is not None:
            scores = np.tanh(scores / self.cap) * self.cap
        if self.causal:
            scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        averaged: Array = scores / scores.sum(axis=-1, keepdims=True) @ values
        return averaged.swapaxes(0, 1).reshape(len(query), -1)

    def distance(self, product: Product, output: Array) -> float:
        """Return how far an output is from what is computed so."""
        length = min(_ENOUGH, len(output)) if self.causal else len(output)
        query, key, value = (array[:length] if self.causal else array for array in product)
        return distance(self.compute(query, key, value), output[:length])


def _rotate(array: Array, base: float, interleaved: bool) -> Array:
    length, size = array.shape[1:]
    angles = np.arange(length)[:, None] * base ** (-np.arange(0, size, 2) / size)
    first, second = (
        (array[..., ::2], array[..., 1::2]) if interleaved else (array[..., : size // 2], array[..., size // 2 :])
    )
    turned = first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)
    return np.stack(turned, axis=-1).reshape(array.shape) if interleaved else np.concatenate(turned, axis=-1)


def explain_attention(
    products: Sequence[Product], heads: Sequence[int], expected: Array, got: Array
) -> tuple[str, str] | None:
    """Return the setting in which two attentions of the same numbers differ, as a kind and in words; or None.

    Args:
        products: Queries, keys and values, in each way in which they may be told apart.
        heads: The numbers of heads that are possible.
        expected: What the attention of the source puts out, (length, width).
        got: What that of the target does.
    """
    for product in products:
        if product[0].shape != expected.shape:
            continue
        wide = (product[0].astype(np.float64), product[1].astype(np.float64), product[2].astype(np.float64))
        for how in _iter_attentions(wide, heads):
            if how.distance(wide, expected) <= _LIMIT:
                return _explain(how, wide, got)
    return None


def _iter_attentions(product: Product, heads: Sequence[int]) -> Iterator[Attention]:
    query, key, value = product
    rotations: list[tuple[float | None, bool]] = [(None, False)]
    rotations += [(base, interleaved) for interleaved in (False, True) for base in _BASES]
    for cap, causal, count, (base, interleaved) in itertools.product(_CAPS, (True, False), heads, rotations):
        size = query.shape[1] // count
        if query.shape[1] % count or key.shape[1] % size or count % (key.shape[1] // size):
            continue
        if value.shape[1] % (key.shape[1] // size) or (causal and len(query) != len(key)) or (base and size % 2):
            continue
        for scale in (size**-0.5, 1.0, 1 / size):
            yield Attention(count, scale, causal, base, interleaved, cap)


def _explain(how: Attention, product: Product, got: Array) -> tuple[str, str] | None:
    def error(other: Attention) -> float:
        return other.distance(product, got)

    other = replace(how, causal=not how.causal)
    if len(product[0]) == len(product[1]) and error(other) <= _LIMIT:
        masks = ["a causal mask" if one.causal else "no mask" for one in (how, other)]
        return "mask", f"attention before it differs: {masks[0]} against {masks[1]}"
    cap = _minimize(lambda cap: error(replace(how, cap=cap)), 50.0) if how.cap is None else None
    if error(replace(how, cap=cap)) <= _LIMIT:
        said = ["not at all" if one is None else f"capped at {one:.3g}" for one in (how.cap, cap)]
        return "scale", f"attention before it differs: its products are {said[0]} against {said[1]}"
    scale = _minimize(lambda scale: error(replace(how, scale=scale)), how.scale)
    if error(replace(how, scale=scale)) <= _LIMIT:
        return "scale", f"attention before it differs: the scale of its products is {how.scale:.4g} against {scale:.4g}"
    if how.base is not None:
        if error(replace(how, base=None)) <= _LIMIT:
            return "rotation", "attention before it differs: positions aren't rotated"
        if error(replace(how, interleaved=not how.interleaved)) <= _LIMIT:
            pairs = ["neighbours" if one else "halves" for one in (how.interleaved, not how.interleaved)]
            return "rotation", f"attention before it differs: positions are rotated in {pairs[0]} against {pairs[1]}"
        base = _minimize(lambda base: error(replace(how, base=base)), how.base)
        if error(replace(how, base=base)) <= _LIMIT:
            return (
                "rotation",
                f"attention before it differs: the base of rotations is {how.base:.6g} against {base:.6g}",
            )
    return None


def _minimize(error: Callable[[float], float], start: float) -> float:
    """Return the number, within a factor of 64 of ``start``, for which an error is least."""
    steps = np.linspace(-1, 1, 49)
    errors = [error(start * 64**step) for step in steps]
    nearest = int(np.argmin(errors))
    low, high = steps[max(nearest - 1, 0)], steps[min(nearest + 1, len(steps) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(32):  # the golden section
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if error(start * 64**a) < error(start * 64**b):
            high = b
        else:
            low = a
    return float(start * 64 ** ((low + high) / 2))
