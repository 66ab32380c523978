"""Values of a graph while it is written: their names in the code, and the order in which each is kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xweights.errors import Problems
from xweights.porting.skeletons.graph import BatchTimes, Graph, Length, Operand, Operation, Shape
from xweights.porting.skeletons.naming import to_identifier
from xweights.porting.skeletons.orders import Order, moves, plain, with_channels
from xweights.porting.skeletons.weights import Stored

# What the code calls by these names.
_GLOBALS = frozenset(
    {
        "self", "inputs", "batch", "block", "np", "base64", "zlib", "table", "attention", "resizing", "keras", "layers",
        "ops", "torch", "nn", "functional", "float", "range", "super",
    }
)  # fmt: skip


def _short_name(operation: Operation) -> str:
    """Return what a value is called: the last part of its layer's path, where there is one."""
    parts = [part.strip("_") for part in re.split(r"[./]", operation.layer) if part.strip("_")]
    if not parts:
        return operation.name
    return "_".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


class ValueWriter:
    """What a writer of graphs knows of values."""

    channels_last: bool
    reserved: Callable[[str], bool]

    def __init__(self, graph: Graph, problems: Problems) -> None:
        self.graph = graph
        self.problems = problems
        self.shapes = {operation.name: operation.shape for operation in graph.operations}
        self.dtypes = {operation.name: operation.dtype for operation in graph.operations}
        self.orders: dict[str, Order] = {}
        self.code_of: dict[str, str] = {}
        self.images: set[str] = set()
        self.layers: dict[str, str] = {}
        self.attributes: dict[Any, str] = {}
        self.stored: dict[str, list[Stored]] = {}
        self.owners: dict[str, Any] = {}
        self.free: set[str] = set()
        self.lines: list[str] = []
        self.helpers: dict[str, str] = {}
        self.taken = set(_GLOBALS)
        self.input_names: list[tuple[str, Any]] = []
        self.input_orders: list[Order] = []
        self.result = ""
        self.output_orders: list[Order] = []
        self.users: dict[str, list[Operation]] = {}
        for operation in graph.operations:
            for name in operation.inputs:
                if isinstance(name, str):
                    self.users.setdefault(name, []).append(operation)

    # Names.

    def attribute(self, path: str, key: Any = None) -> str:
        """Return the attribute under which a layer or array of the original is kept; ``key`` tells two uses apart."""
        key = path if key is None else key
        if key not in self.attributes:
            name = to_identifier(path) or "layer"
            while self.reserved(name) or name in self.attributes.values():
                name += "_"
            self.attributes[key] = name
        return self.attributes[key]

    def variable(self, name: str) -> str:
        """Return a variable's name that isn't taken."""
        fresh, number = to_identifier(name), 1
        while fresh in self.taken:
            number += 1
            fresh = f"{to_identifier(name)}_{number}"
        self.taken.add(fresh)
        return fresh

    # Values.

    def let(self, operation: Operation, code: str, order: Order, *, image: bool = False) -> None:
        """Add a line that makes an operation's value."""
        name = self.variable(_short_name(operation))
        self.lines.append(f"{name} = {code}")
        self.alias(operation, name, order, image=image)

    def alias(self, operation: Operation, code: str, order: Order, *, image: bool = False) -> None:
        """Let an operation's value be what some code is, without a line of its own."""
        self.code_of[operation.name] = code
        self.orders[operation.name] = order
        if image:
            self.images.add(operation.name)

    def take(self, name: Operand, order: Order | None = None) -> str:
        """Return the code of a value with its axes in an order; None: as they are."""
        if not isinstance(name, str):
            return self.number(name)
        wanted = plain(len(self.shapes[name])) if order is None else order
        kept = self.orders[name]
        if kept == wanted:
            return self.code_of[name]
        shape = self.shapes[name]
        if sum(length != 1 for length in shape) <= 1:
            return self.reshape(self.code_of[name], tuple(shape[axis] for axis in wanted))
        if [axis for axis in kept if shape[axis] != 1] == [axis for axis in wanted if shape[axis] != 1]:
            return self.reshape(self.code_of[name], tuple(shape[axis] for axis in wanted))
        return self.transpose(self.code_of[name], moves(kept, wanted))

    def number(self, value: Any) -> str:
        """Return the code of a number."""
        if isinstance(value, BatchTimes):
            return self.length(value)
        if isinstance(value, float) and not np.isfinite(value):
            return f'float("{value}")'
        return repr(value)

    def length(self, length: Length) -> str:
        """Return the code of a length."""
        if isinstance(length, BatchTimes):
            return "batch" if length.factor == 1 else f"batch * {length.factor}"
        return str(length)

    def dims(self, shape: Shape, *, free: bool = False) -> str:
        """Return the code of a shape; with ``free`` the length that depends on the batch may be -1."""
        if free and sum(isinstance(length, BatchTimes) for length in shape) == 1:
            lengths = ["-1" if isinstance(length, BatchTimes) else str(length) for length in shape]
        else:
            lengths = [self.length(length) for length in shape]
        return f"({', '.join(lengths)}{',' if len(lengths) == 1 else ''})"

    def rank(self, name: Operand) -> int:
        """Return the number of axes of a value."""
        return len(self.shapes[name]) if isinstance(name, str) else 0

    def reshape(self, code: str, shape: Shape) -> str:
        """Return the code of a reshape."""
        raise NotImplementedError

    def transpose(self, code: str, axes: Order) -> str:
        """Return the code of a permutation of axes."""
        raise NotImplementedError

    def channels(self, rank: int, axis: int) -> Order:
        """Return the order in which this framework keeps an image."""
        return with_channels(rank, axis, last=self.channels_last)

    def aligned(self, names: Sequence[Operand]) -> tuple[list[str], Order]:
        """Return the code of values that are combined entry by entry, in one order and of one rank, and that order."""
        rank = max(self.rank(name) for name in names)
        whole = [name for name in names if isinstance(name, str) and self.rank(name) == rank]
        # The value that would cost most to move decides.
        order = self.orders[max(whole, key=lambda name: (sum(n != 1 for n in self.shapes[name]), name in self.images))]
        return [self.spread(name, order) for name in names], order

    def spread(self, name: Operand, order: Order) -> str:
        """Return the code of a value that broadcasts against one that is kept in ``order``."""
        missing = len(order) - self.rank(name)
        if not isinstance(name, str) or self.rank(name) == 0:
            return self.take(name)
        if missing == 0:
            return self.take(name, order)
        rest = tuple(axis - missing for axis in order if axis >= missing)
        if all(axis < missing for axis in order[:missing]):
            return self.take(name, rest)
        shape: Shape = (*(1,) * missing, *self.shapes[name])
        here = self.take(name)
        if sum(length != 1 for length in shape) <= 1:
            return self.reshape(here, tuple(shape[axis] for axis in order))
        return self.transpose(self.reshape(here, shape), order)
