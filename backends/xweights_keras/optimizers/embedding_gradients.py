"""The gradients of embeddings, which Keras on TensorFlow keeps as rows that aren't added up.

Where a batch has a word twice, Keras 3.15 squares (or clips) both gradients of its row before it adds them up: Adam's
velocity gets g1 ** 2 + g2 ** 2, every other backend gives it (g1 + g2) ** 2. Measured on Adam: weights 6e-2 apart
after three steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras

from xweights.optimizers.state import OptimizerGroup, OptimizerState

# Rules that use a gradient as it is: it is added to something dense first.
_LINEAR = frozenset({"sgd", "lion"})


def rows_of(group: OptimizerGroup, *, clipped: bool, micro_steps: int) -> str | None:
    """Return how Keras' own optimizer takes the gradients of a group's embeddings: "apart", or None if added up."""
    if keras.backend.backend() != "tensorflow" or micro_steps > 1:  # what is accumulated is dense
        return None
    embeds = any(name.rpartition("/")[2] == "embeddings" for name in group.names)
    return "apart" if embeds and (clipped or group.rule not in _LINEAR) else None


def marked(state: OptimizerState) -> OptimizerState:
    """Return the state of an optimizer of Keras' own with a word for how it takes the gradients of embeddings."""
    groups = []
    for group in state.groups:
        rows = rows_of(group, clipped=state.clip is not None, micro_steps=state.micro_steps)
        groups.append(replace(group, variant={**group.variant, "rows": rows}) if rows else group)
    return replace(state, groups=tuple(groups))


def dense(gradients: Sequence[Any]) -> list[Any]:
    """Return gradients with the rows of embeddings added up."""
    made = list(gradients)
    for place, one in enumerate(made):
        if type(one).__name__ == "IndexedSlices":
            import tensorflow as tf

            made[place] = tf.convert_to_tensor(one)
    return made
