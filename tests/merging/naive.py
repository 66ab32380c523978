"""Reference implementations of the merge methods: the published definitions on whole arrays in float64.

Only the generator of xweights is used, for the numbers of the random methods.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from xweights.rules.noise import generator

Array = np.ndarray[Any, Any]


def average(xs: list[Array], weights: tuple[float, ...]) -> Array:
    return np.average(np.stack(xs).astype(np.float64), axis=0, weights=weights)


def lerp(a: Array, b: Array, t: float) -> Array:
    return (1 - t) * a.astype(np.float64) + t * b


def ema(xs: list[Array], decay: float) -> Array:
    shadow = xs[0].astype(np.float64)
    for x in xs[1:]:
        shadow = decay * shadow + (1 - decay) * x
    return shadow


def slerp(a: Array, b: Array, t: float) -> Array:
    a, b = a.astype(np.float64), b.astype(np.float64)
    angle = math.acos(float(np.sum(a * b)) / float(np.linalg.norm(a)) / float(np.linalg.norm(b)))
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def model_stock(base: Array, xs: list[Array]) -> Array:
    """Apply eq. 2 and 4 of the paper: t from the mean angle between the fine-tuned weights, seen from the base."""
    base, k = base.astype(np.float64), len(xs)
    cosines = []
    for a, b in itertools.combinations([x.astype(np.float64) - base for x in xs], 2):
        cosines.append(float(np.sum(a * b)) / float(np.linalg.norm(a) * np.linalg.norm(b)))
    cosine = sum(cosines) / len(cosines)
    t = k * cosine / ((k - 1) * cosine + 1)
    return t * sum(x.astype(np.float64) for x in xs) / k + (1 - t) * base


def trim(vector: Array, density: float) -> Array:
    """Keep the int(density n) largest; among equal ones those later in flat order."""
    flat = vector.reshape(-1)
    kept = max(1, int(density * flat.size)) if density else 0
    order = sorted(range(flat.size), key=lambda i: (abs(flat[i]), i))
    result = np.zeros_like(flat)
    for i in order[flat.size - kept :]:
        result[i] = flat[i]
    return result.reshape(vector.shape)


def drop_outliers(vector: Array, density: float, gamma: float) -> Array:
    flat = vector.reshape(-1)
    kept, top = int(density * flat.size), int(gamma * flat.size)
    bottom = max(0, flat.size - kept - top)
    order = sorted(range(flat.size), key=lambda i: (abs(flat[i]), i))
    result = np.zeros_like(flat)
    for i in order[bottom : bottom + kept]:
        result[i] = flat[i]
    return result.reshape(vector.shape)


def dare(vector: Array, density: float, seed: int, name: str, i: int) -> Array:
    drawn = generator(seed, name, i).random(vector.shape, dtype=np.float32)
    return np.where(drawn < density, vector / density, 0.0)


def magprune(vector: Array, density: float, epsilon: float, seed: int, name: str, i: int, *, unit_axis: int) -> Array:
    """Rank each unit's entries by magnitude, unit by unit; divide the kept ones by their probability."""
    drawn = generator(seed, name, i).random(vector.shape, dtype=np.float32)
    result = np.zeros_like(vector)
    for unit in range(vector.shape[unit_axis]):
        here = tuple(unit if axis == unit_axis else slice(None) for axis in range(vector.ndim))
        row = vector[here].reshape(-1)
        chance = np.empty(row.size)
        for rank, index in enumerate(np.argsort(np.abs(row), kind="stable")):
            chance[index] = density - epsilon + 2 * epsilon * rank / (row.size - 1)
        keep = drawn[here].reshape(-1) < chance
        result[here] = np.where(keep, row / chance, 0.0).reshape(vector[here].shape)
    return result


def keep_sum_of_magnitudes(before: Array, after: Array) -> Array:
    return after * (np.abs(before).sum() / np.abs(after).sum())


def elect(vectors: list[Array], weights: tuple[float, ...], *, normalize: bool) -> Array:
    """Take, entry by entry, the sign of the sum, and the sum (or mean) of the values with that sign."""
    result = np.zeros(vectors[0].size)
    for index in range(result.size):
        values = [weight * float(v.reshape(-1)[index]) for v, weight in zip(vectors, weights, strict=True)]
        sign = 1 if sum(values) >= 0 else -1
        agreeing = [(value, weight) for value, weight in zip(values, weights, strict=True) if value * sign > 0]
        share = sum(weight for _, weight in agreeing) if normalize else 1
        result[index] = sum(value for value, _ in agreeing) / (share or 1)
    return result.reshape(vectors[0].shape)


def weighted_sum(vectors: list[Array], weights: tuple[float, ...]) -> Array:
    return sum((weight * v for v, weight in zip(vectors, weights, strict=True)), np.zeros_like(vectors[0]))
