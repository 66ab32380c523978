"""Find the order of a layer's output features where the two models reshape them differently.

Channels become pixels in one order or the other (PixelShuffle, depth_to_space), or are shuffled between groups: what a
reshape and a transpose make of them. Only those orders are tried, and only for the layer right before a place where
both models have the same numbers in another order; the rest of the model has to prove one of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xweights.core.dtypes import Array
from xweights.porting.matching.attempt import Attempt
from xweights.porting.matching.matching import Matching
from xweights.porting.matching.pairs import Divergence
from xweights.porting.matching.similarity import distance, input_tolerance
from xweights.porting.units import LayerUnit

_MAKERS = ("dense", "conv", "conv_transpose")
# As many layers of one model may have another order.
MOST = 16


def find_reordered(matching: Matching, attempt: Attempt) -> LayerUnit | None:
    """Return the unit of the target before the first divergence, if what follows is the same in another order."""
    divergence = next(iter(attempt.divergences), None)
    if divergence is None or not attempt.makers or not _is_reordered(matching, attempt, divergence):
        return None
    maker = attempt.makers.get(id(divergence.target), attempt.makers[0])
    kernel = maker.kind in _MAKERS and maker.attributes.get("groups", 1) == 1
    return maker if kernel and id(maker) not in matching.columns else None


def list_orders(features: int) -> Iterator[Array]:
    """Yield the orders that features have as the other axis first, for each way of making two axes of them."""
    for length in range(2, features // 2 + 1):
        if features % length == 0:
            yield np.arange(features).reshape(length, -1).T.reshape(-1)


def _is_reordered(matching: Matching, attempt: Attempt, divergence: Divergence) -> bool:
    if divergence.location == "end":
        pairs = zip(attempt.got.values(), matching.expected.values(), strict=False)
        return any(_have_same_entries(got, expected) for got, expected in pairs)
    call = divergence.call
    if divergence.location != "input" or call is None or call.input is None or divergence.output is None:
        return False
    return _have_same_entries(divergence.output, call.input)


def _have_same_entries(got: Array, expected: Array) -> bool:
    if got.size != expected.size or got.dtype.kind != "f" or expected.dtype.kind != "f":
        return False
    return distance(np.sort(got, axis=None), np.sort(expected, axis=None)) <= input_tolerance(got, expected)
