"""Equal batches and equal dropout masks in every framework."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from xweights.core.casting import is_number
from xweights.core.dtypes import Array
from xweights.errors import ArgumentError
from xweights.rules.noise import check_seed, generator


def batches(
    count: int, size: int, *, seed: int, epochs: int | None = None, drop_last: bool = False, skip: int = 0
) -> Iterator[Array]:
    """Yield the row indices of each batch, reshuffled in each epoch: the same in every framework.

    Args:
        count: Number of rows of the data.
        size: Rows in a batch; the last batch of an epoch may have fewer.
        seed: The same seed gives the same batches everywhere.
        epochs: Number of epochs; None: without end.
        drop_last: Leave out a last batch with fewer rows.
        skip: Number of batches to skip first, as after a hand-off.

    Exact: the same integers on every machine. Raises ArgumentError.

    Example:
        >>> import xweights as xw
        >>> [len(rows) for rows in xw.batches(10, 4, seed=0, epochs=1)]
        [4, 4, 2]
    """
    check_seed(seed)
    for name, value, least in (("count", count, 1), ("size", size, 1), ("skip", skip, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{name}= is a whole number >= {least}\ngot: {value!r}")
    if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0):
        raise ArgumentError(f"epochs= is a whole number >= 0, or None for no end\ngot: {epochs!r}")
    if drop_last and size > count:
        raise ArgumentError(f"drop_last=True leaves no batch\ncount: {count}\nsize:  {size}")
    return _batches(count, size, seed, epochs, drop_last, skip)


def _batches(count: int, size: int, seed: int, epochs: int | None, drop_last: bool, skip: int) -> Iterator[Array]:
    per_epoch = count // size if drop_last else -(-count // size)
    epoch, first = divmod(skip, per_epoch)
    while epochs is None or epoch < epochs:
        # Random bits, sorted: the algorithm of a library's own shuffle may change between versions.
        bits = generator(seed, "batches", epoch).bit_generator.random_raw(count)
        order = np.argsort(bits, kind="stable")
        for batch in range(first, per_epoch):
            yield order[batch * size : (batch + 1) * size]
        epoch, first = epoch + 1, 0


def dropout_mask(shape: tuple[int, ...], rate: float, *, seed: int, name: str, step: int) -> Array:
    """Return a dropout mask: 0 with probability ``rate``, else 1 / (1 - rate); the same in every framework.

    Args:
        shape: Shape of the activations, channels last. The mask is float32.
        rate: 0 <= rate < 1.
        seed: The same seed gives the same masks everywhere.
        name: Name of the layer: each layer has its own masks.
        step: Training step: each step has its own masks.

    Exact: the same bits everywhere. Multiply the activations by it in a layer of your own: the dropout of a framework
    draws from a stream that no other framework can reproduce. Raises ArgumentError.
    Source: Srivastava et al. 2014 (inverted form).

    Example:
        >>> import xweights as xw
        >>> xw.dropout_mask((4,), 0.5, seed=0, name="drop", step=1).max().item()
        2.0
    """
    check_seed(seed)
    if not is_number(rate) or not 0 <= rate < 1:
        raise ArgumentError(f"rate= is a number, 0 <= rate < 1\ngot: {rate!r}")
    if not isinstance(name, str):
        raise ArgumentError(f"name= is the name of a layer\ngot: {name!r}")
    # 1.0 and a tensor are other texts than 1, and the masks would be those of another key without a word.
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)):
        raise ArgumentError(f"step= is a whole number\ngot: {step!r}\nFix: int(step)")
    draws: Any = generator(seed, name, step).random(shape, dtype=np.float32)
    return np.where(draws < np.float32(rate), np.float32(0), np.float32(1 / (1 - rate)))
