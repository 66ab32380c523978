"""The neutral graph of a model's recorded run: what every reader makes and every writer takes.

The axes of all values are those of the framework that was recorded; a writer decides in which order its framework keeps
them (see ``orders``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.errors import PortError


@dataclass(frozen=True)
class BatchTimes:
    """A length that is a multiple of the number of examples."""

    factor: int


Length = int | BatchTimes
Shape = tuple[Length, ...]
Operand = str | int | float | bool


@dataclass(frozen=True)
class Operation:
    """One operation: the value ``name`` is made by ``kind`` from values and numbers.

    ``layer`` is the path of the layer that the operation belongs to, if any. ``dtype`` is "float32", "int64", ...
    """

    name: str
    kind: str
    inputs: tuple[Operand, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: Shape = ()
    dtype: str = "float32"
    layer: str = ""


# Every kind of operation, and its options. "axis" of an image's operation is the axis of its channels; "weights" are
# the names of a layer's parameters by role, and "axes" the letters of a kernel's axes: (o)utputs, (i)nputs, space.
KINDS: Mapping[str, tuple[str, ...]] = {
    "input": ("key",),
    "parameter": ("name",),
    "constant": ("value",),
    "output": ("keys",),
    # Layers
    "dense": ("weights", "axes", "units"),
    "embedding": ("weights",),
    "conv": ("weights", "axes", "axis", "filters", "size", "strides", "dilation", "groups", "padding"),
    "conv_transpose": ("weights", "axes", "axis", "filters", "size", "strides", "dilation", "crop"),
    "batch_norm": ("weights", "axis", "eps", "momentum"),
    "layer_norm": ("weights", "axes", "eps"),
    "group_norm": ("weights", "axis", "groups", "eps"),
    "rms_norm": ("weights", "eps"),
    "dropout": ("rate",),
    # Functions of images
    "convolve": ("axes", "axis", "strides", "dilation", "groups", "padding"),  # by a kernel that was computed
    "max_pool": ("axis", "size", "strides", "padding"),
    "average_pool": ("axis", "size", "strides"),
    "resize": ("axis", "size", "mode", "align"),
    # Functions
    "activation": ("does",),
    "unary": ("function",),
    "binary": ("function",),
    "where": (),
    "clip": ("low", "high"),
    "cast": (),
    "full": (),
    "range": (),
    "softmax": ("axis", "log"),
    "reduce": ("function", "axes", "keepdims"),
    "cumsum": ("axis",),
    "matmul": (),
    "einsum": ("equation",),
    "attention": ("scale", "causal"),
    # Functions that move numbers
    "reshape": (),
    "permute": ("order",),
    "broadcast": (),
    "slice": ("index",),  # an integer or (start, stop, step) for each axis
    "concatenate": ("axis",),
    "pad": ("padding", "mode", "value"),
    "flip": ("axes",),
    "repeat": ("axis", "times"),
    "take": ("axis",),
    "take_along": ("axis",),
}


@dataclass(frozen=True)
class Graph:
    """The operations of a run in order, with the shape of each parameter by its name."""

    operations: tuple[Operation, ...]
    parameters: Mapping[str, tuple[int, ...]]
    trainable: frozenset[str] = frozenset()


def merge_runs(first: Sequence[Operation], second: Sequence[Operation], batches: tuple[int, int]) -> list[Operation]:
    """Merge two runs on batches of two sizes: a length that differs is a multiple of the batch."""
    if [operation.kind for operation in first] != [operation.kind for operation in second]:
        raise PortError("the model computes otherwise on a batch of another size")
    merge = _Merging(batches)
    return [made for one, other in zip(first, second, strict=True) for made in merge.operations(one, other)]


class _Merging:
    def __init__(self, batches: tuple[int, int]) -> None:
        self.batches = batches

    def operations(self, one: Operation, other: Operation) -> list[Operation]:
        if one.kind != "constant" or np.array_equal(one.options["value"], other.options["value"], equal_nan=True):
            return [self.operation(one, other)]
        # An array of numbers that has rows for each example.
        shape = self.value(one.shape, other.shape, one.name)
        a, b = one.options["value"], other.options["value"]
        if a.ndim == 1 and all(np.array_equal(array, np.arange(array.size)) for array in (a, b)):
            return [replace(one, kind="range", options={}, shape=shape)]
        axes = tuple(axis for axis, length in enumerate(shape) if isinstance(length, BatchTimes))
        if axes == (0,) and isinstance(shape[0], BatchTimes) and shape[0].factor > 1:
            return self._tables(one, a, b, shape[0].factor)
        row = a[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(a.ndim))]
        if not axes or not all(np.array_equal(np.broadcast_to(row, array.shape), array) for array in (a, b)):
            raise PortError(f"{one.name!r} has numbers that are others on a batch of another size")
        rows = replace(one, name=f"{one.name}_row", options={"value": row}, shape=row.shape)
        return [rows, Operation(one.name, "broadcast", (rows.name,), {}, shape, one.dtype)]

    def _tables(self, one: Operation, a: Array, b: Array, rows: int) -> list[Operation]:
        """Return the operations that repeat a table of several rows for each example."""
        table = a[None, :rows]
        if not all(
            np.array_equal(
                array.reshape(-1, *table.shape[1:]), np.broadcast_to(table, (len(array) // rows, *table.shape[1:]))
            )
            for array in (a, b)
        ):
            raise PortError(f"{one.name!r} has numbers that are others on a batch of another size")
        first = replace(one, name=f"{one.name}_rows", options={"value": table}, shape=table.shape)
        shape = (BatchTimes(1), *table.shape[1:])
        spread = Operation(f"{one.name}_tables", "broadcast", (first.name,), {}, shape, one.dtype)
        return [
            first,
            spread,
            Operation(one.name, "reshape", (spread.name,), {}, (BatchTimes(rows), *a.shape[1:]), one.dtype),
        ]

    def operation(self, one: Operation, other: Operation) -> Operation:
        return Operation(
            one.name,
            one.kind,
            self.value(one.inputs, other.inputs, one.name),
            {key: self.value(value, other.options[key], one.name) for key, value in one.options.items()},
            self.value(one.shape, other.shape, one.name),
            one.dtype,
            one.layer,
        )

    def value(self, one: Any, other: Any, name: str) -> Any:
        if isinstance(one, (tuple, list)):
            if not isinstance(other, (tuple, list)) or len(one) != len(other):
                raise PortError(f"{name!r} has another form on a batch of another size")
            return tuple(self.value(a, b, name) for a, b in zip(one, other, strict=True))
        if isinstance(one, Mapping):
            return {key: self.value(value, other[key], name) for key, value in one.items()}
        if isinstance(one, int) and not isinstance(one, bool) and one != other:
            factor, rest = divmod(one, self.batches[0])
            if rest or factor * self.batches[1] != other:
                raise PortError(f"{name!r} has {one} where it has {other} on a batch of another size")
            return BatchTimes(factor)
        return one


def prune(operations: Sequence[Operation]) -> list[Operation]:
    """Return the operations that an output depends on, and all inputs."""
    wanted: set[str] = set()
    kept: list[Operation] = []
    for operation in reversed(operations):
        if operation.kind in ("input", "output") or operation.name in wanted:
            wanted.update(name for name in operation.inputs if isinstance(name, str))
            kept.append(operation)
    return kept[::-1]


class Reading:
    """What a reader hands over beside the graph: how the model is run and what its parameters are."""

    def __init__(
        self,
        graph: Graph,
        arrays: Mapping[str, Callable[[], Array]],
        run: Callable[[Mapping[str, Array] | None, Any], list[Array]],
    ) -> None:
        self.graph = graph
        self.arrays = arrays
        self.run = run


def names_in(operations: Sequence[Operation]) -> Iterator[str]:
    """Yield the parameters that operations use."""
    for operation in operations:
        if operation.kind == "parameter":
            yield operation.options["name"]
        yield from (name for name in operation.options.get("weights", {}).values() if name is not None)
