"""Gradients of embeddings, which Keras on TensorFlow keeps as rows that aren't summed.

If an index occurs twice in a batch, Keras 3.15 squares (or clips) both gradients of its row before it sums them: Adam's
velocity gets g1 ** 2 + g2 ** 2, and (g1 + g2) ** 2 on every other backend. Measured with Adam: weights differ by 6e-2
after three steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras

from xweights.optimizers.state import OptimizerGroup, OptimizerState

# Rules that are linear in the gradient, or add it to something dense first.
_LINEAR = frozenset({"sgd", "lion"})


def rows_of(group: OptimizerGroup, *, clipped: bool, micro_steps: int) -> str | None:
    """Return how Keras' own optimizer takes the gradients of a group's embeddings: "apart", or None if summed."""
    if keras.backend.backend() != "tensorflow" or micro_steps > 1:  # accumulated gradients are dense
        return None
    embeds = any(name.rpartition("/")[2] == "embeddings" for name in group.names)
    return "apart" if embeds and (clipped or group.rule not in _LINEAR) else None


def add_rows_variant(state: OptimizerState) -> OptimizerState:
    """Return the state of one of Keras' own optimizers with the variant "rows" where embedding gradients need it."""
    groups = []
    for group in state.groups:
        rows = rows_of(group, clipped=state.clip is not None, micro_steps=state.micro_steps)
        groups.append(replace(group, variant={**group.variant, "rows": rows}) if rows else group)
    return replace(state, groups=tuple(groups))


def densify(gradients: Sequence[Any]) -> list[Any]:
    """Return gradients with the rows of embeddings summed."""
    dense = list(gradients)
    for position, gradient in enumerate(dense):
        if type(gradient).__name__ == "IndexedSlices":
            import tensorflow as tf

            dense[position] = tf.convert_to_tensor(gradient)
    return dense
