"""The shapes that are measured, as models of each framework and as arrays.

``many`` is 1,000 weights of 10,000 entries (40 MB), where the cost per call dominates. ``mid`` is 12 of 4.2 million
(201 MB), where memory does. They are the kernels of Linear and Dense layers: torch stores the transpose of the neutral
order. ``bert`` is the 199 arrays of a BERT-base (438 MB): kernels, biases, tables and norms of all sizes.
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


@dataclass(frozen=True)
class Bert(Shape):
    """The arrays of a BERT with ``count`` blocks of a hidden size of ``side``."""

    words: int

    @property
    def layers(self) -> list[tuple[str, tuple[int, ...]]]:
        """The kind of each layer, and its sizes."""
        wide = self.side
        block = [*[("dense", (wide, wide))] * 4, ("norm", (wide,)), ("dense", (wide, 4 * wide))]
        block += [("dense", (4 * wide, wide)), ("norm", (wide,))]
        tables = [("table", (length, wide)) for length in (self.words, 512, 2)]
        return [*tables, ("norm", (wide,)), *block * self.count, ("dense", (wide, wide))]


MANY = Shape("many", 1000, 100)
MID = Shape("mid", 12, 2048)
BERT = Bert("bert", 12, 768, words=30522)
QUICK = (Shape("many", 100, 100), Shape("mid", 3, 1024))
QUICK_BERT = Bert("bert", 2, 64, words=500)


def shapes(quick: bool) -> tuple[Shape, Shape]:
    """Return the shapes, or (``quick``) small ones that only show that the benchmarks run."""
    return QUICK if quick else (MANY, MID)


def shapes_with_bert(quick: bool) -> tuple[Shape, ...]:
    """Return the shapes for the calls whose goals name a whole model, too."""
    return (*shapes(quick), QUICK_BERT if quick else BERT)


def torch_model(shape: Shape) -> Any:
    """Return ``count`` linear layers, or the layers of a BERT."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if isinstance(shape, Bert):
        kinds = {"dense": nn.Linear, "norm": nn.LayerNorm, "table": nn.Embedding}
        return nn.Sequential(*(kinds[kind](*sizes) for kind, sizes in shape.layers))
    return nn.Sequential(*(nn.Linear(shape.side, shape.side, bias=False) for _ in range(shape.count)))


def keras_model(shape: Shape) -> Any:
    """Return ``count`` dense layers, or the layers of a BERT."""
    import keras

    keras.utils.set_random_seed(0)

    def make(kind: str, sizes: tuple[int, ...]) -> Any:
        if kind == "dense":
            layer, into = keras.layers.Dense(sizes[1]), (None, sizes[0])
        elif kind == "norm":
            layer, into = keras.layers.LayerNormalization(), (None, sizes[0])
        else:
            layer, into = keras.layers.Embedding(*sizes), (None,)
        layer.build(into)
        return layer

    class Stack(keras.Model):  # type: ignore[misc]  # (a Sequential of 1,000 is too deep for Python's recursion)
        def __init__(self) -> None:
            super().__init__()
            if isinstance(shape, Bert):
                self.blocks = [make(kind, sizes) for kind, sizes in shape.layers]
                self.built = True
                return
            self.blocks = [keras.layers.Dense(shape.side, use_bias=False) for _ in range(shape.count)]
            for block in self.blocks:
                block.build((None, shape.side))
            self.built = True

    return Stack()


def arrays(shape: Shape, *, offset: int | None = None) -> list[Array]:
    """Return new values in neutral order; ``offset``: the bytes between a multiple of 64 and their addresses."""
    source = np.random.default_rng(0)
    values = [source.standard_normal(sizes, np.float32) for sizes in _neutral(shape)]
    return values if offset is None else [copy_at_offset(array, offset) for array in values]


def _neutral(shape: Shape) -> list[tuple[int, ...]]:
    """Return the shape of each array in neutral order, in the order of a model's parameters."""
    if not isinstance(shape, Bert):
        return [(shape.side, shape.side)] * shape.count
    parts = {"dense": lambda sizes: [sizes, sizes[1:]], "norm": lambda sizes: [sizes, sizes], "table": lambda s: [s]}
    return [part for kind, sizes in shape.layers for part in parts[kind](sizes)]


def copy_at_offset(array: Array, offset: int) -> Array:
    """Return a copy whose address is ``offset`` bytes after a multiple of 64."""
    room = np.empty(array.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def masks(shape: Shape) -> list[Array]:
    """Return bool arrays in neutral order, half of them True."""
    source = np.random.default_rng(1)
    return [source.random(sizes, np.float32) < 0.5 for sizes in _neutral(shape)]


def name_values(model: Any, values: Sequence[Array]) -> dict[str, Array]:
    """Return the values under the neutral names of a model's parameters."""
    import xweights as xw

    return {p.name: value for p, value in zip(xw.parameters(model), values, strict=True)}
