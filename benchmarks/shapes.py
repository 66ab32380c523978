"""The two shapes that are measured, as models of each framework and as arrays.

``many`` is 1,000 weights of 10,000 entries (40 MB), where the cost per call dominates. ``mid`` is 12 of 4.2 million
(201 MB), where memory does. They are the kernels of Linear and Dense layers: torch stores the transpose of the neutral
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shape:
    """``count`` square matrices of ``side``."""

    name: str
    count: int
    side: int

    @property
    def mib(self) -> float:
        """Return the size of all matrices in float32."""
        return self.count * self.side**2 * 4 / (1 << 20)


MANY = Shape("many", 1000, 100)
MID = Shape("mid", 12, 2048)
QUICK = (Shape("many", 100, 100), Shape("mid", 3, 1024))


def shapes(quick: bool) -> tuple[Shape, Shape]:
    """Return the shapes, or (``quick``) small ones that only show that the benchmarks run."""
    return QUICK if quick else (MANY, MID)


def torch_model(shape: Shape) -> Any:
    """Return ``count`` linear layers."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(shape.side, shape.side, bias=False) for _ in range(shape.count)))


def keras_model(shape: Shape) -> Any:
    """Return ``count`` dense layers."""
    import keras

    keras.utils.set_random_seed(0)

    class Stack(keras.Model):  # type: ignore[misc]  # (a Sequential of 1,000 is too deep for Python's recursion)
        def __init__(self) -> None:
            super().__init__()
            self.blocks = [keras.layers.Dense(shape.side, use_bias=False) for _ in range(shape.count)]
            for block in self.blocks:
                block.build((None, shape.side))
            self.built = True

    return Stack()


def arrays(shape: Shape, *, offset: int | None = None) -> list[Array]:
    """Return new matrices; ``offset``: the bytes between a multiple of 64 and their addresses."""
    source = np.random.default_rng(0)
    matrices = [source.standard_normal((shape.side, shape.side), np.float32) for _ in range(shape.count)]
    return matrices if offset is None else [copy_at_offset(array, offset) for array in matrices]


def copy_at_offset(array: Array, offset: int) -> Array:
    """Return a copy whose address is ``offset`` bytes after a multiple of 64."""
    room = np.empty(array.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def masks(shape: Shape) -> list[Array]:
    """Return bool matrices, half of them True."""
    source = np.random.default_rng(1)
    return [source.random((shape.side, shape.side), np.float32) < 0.5 for _ in range(shape.count)]


def name_values(model: Any, values: Sequence[Array]) -> dict[str, Array]:
    """Return the values under the neutral names of a model's parameters."""
    import xweights as xw

    return {p.name: value for p, value in zip(xw.parameters(model), values, strict=True)}
