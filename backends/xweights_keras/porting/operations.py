"""Operations of layers that compute with variables in a way of their own: their records, and their inputs and outputs.

An operation is what a known layer would compute with the variable: a scale, a product with a kernel, a lookup, or rows
that are added or joined as they are. While the model runs, its input is found by two more calls of its layer alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import plain_layout
from xweights.core.parameter import Parameter
from xweights.porting.protocol import LayerRecord, View, Watcher
from xweights_keras.porting.contractions import Contraction
from xweights_keras.porting.frames import OUTPUT, Frame, Point, ProbeError
from xweights_keras.porting.layers import tensor_like, to_host
from xweights_keras.porting.probing import move_back, move_last, table_shape
from xweights_keras.porting.products import KernelShape, recover_input

# By so many units in the last place of the largest number a difference of two sums is off.
_ROUNDING = 8
# Where a layer is called once more and goes another way than it did when it was observed.
_UNSEEN = (ProbeError, ValueError, IndexError)


@dataclass(eq=False)
class Operation:
    """One use of variables in a layer.

    ``variables``: by role. ``start`` and ``length``: the axes of the array at ``point`` that are its features.
    ``argument``: the number of the layer's argument that is the input. ``repeats``: of so many leading axes, each entry
    is the same lookup. ``residual``: something else is added to it at that point. ``taken``: it is a call of
    ``keras.ops.take``, whose arguments and output are those of the operation, or likewise of a product: the
    ``contraction``, of which this is one ``part``.
    """

    layer: Any
    kind: str
    variables: dict[str, Any]
    point: Point | None
    start: int = 0
    length: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)
    argument: int | None = None
    kernel: KernelShape | None = None
    shift: int = 0
    factor: float = 1.0
    repeats: int = 0
    residual: bool = False
    taken: bool = False
    contraction: Contraction | None = None
    part: int = 0

    def read_taken(self, leaves: Sequence[Any]) -> Array | None:
        """Return the input of a call that is the operation itself."""
        assert self.argument is not None, "a call has arguments"
        given = to_host(leaves[self.argument])
        if given is None:
            return None
        if self.contraction is None:
            return given.reshape(-1)
        rows = self.contraction.read_input(given, self.part)
        return rows.argmax(axis=-1) if self.kind == "embedding" else rows

    def read_result(self, array: Array) -> Array:
        """Return the output of a call that is the operation itself."""
        if self.contraction is None:
            return array.reshape(-1, array.shape[-1])
        result: Array = self.contraction.read_output(array, self.part) + self._bias(array.dtype)
        return result

    def write_result(self, array: Array, value: Array) -> None:
        """Write another output into that of the call."""
        if self.contraction is None:
            array[...] = value.reshape(array.shape)
        elif value.size == self.contraction.read_output(array, self.part).size:
            self.contraction.write_output(array, self.part, value - self._bias(array.dtype))

    def _bias(self, dtype: Any) -> Any:
        bias = None if self.contraction is None or "bias" not in self.variables else to_host(self.variables["bias"])
        if bias is None or self.contraction is None:
            return np.zeros((), dtype)
        return self.contraction.view_bias(bias, self.part).astype(dtype)

    def read_input(self, frame: Frame) -> Array | None:
        """Return the input in neutral form; None for rows."""
        if self.kind == "rows" or self.point is None:
            return None
        if self.argument is not None:
            given = to_host(frame.leaves[self.argument])
            return None if given is None else self._shape_argument(given)
        if self.kind == "embedding":
            return self._recover_ids(frame)
        if self.kernel is not None:
            kernel = self.variables["kernel"]
            return recover_input(self.kernel, lambda value: self.read(frame, [(kernel, value)]))
        nothing = self._at(frame, 0.0)
        if self.attributes["offset"]:
            return move_last(nothing, self.start, self.length)
        once = self._at(frame, 1.0)
        return move_last(once - nothing if self.residual else once, self.start, self.length)

    def _shape_argument(self, given: Array) -> Array:
        if self.kind == "embedding":
            ids: Array = given.reshape(-1) + np.asarray(self.shift, given.dtype)
            return ids
        if self.kind == "conv":
            return np.moveaxis(given, self.start, -1)
        if self.kernel is not None:
            return given.reshape(-1, self.kernel.inputs)
        return move_last(given, self.start, self.length)

    def _recover_ids(self, frame: Frame) -> Array:
        """Return the rows that are looked up: what comes out of a table in which each row has its own number."""
        table = self.variables["embeddings"]
        count, features = table_shape(tuple(table.shape))
        numbers = np.repeat(np.arange(count, dtype=np.float32)[:, None], features, axis=1)
        found = self.read(frame, [(table, numbers.reshape(tuple(table.shape)))]) - self.read_without(frame)
        rows = self._drop_repeats(move_last(found, self.start, 1), found.shape)
        ids: Array = np.rint(rows[:, 0]).astype(np.int64)
        return ids

    def _drop_repeats(self, rows: Array, shape: tuple[int, ...]) -> Array:
        return rows[: len(rows) // self._count_repeats(shape)]

    def _count_repeats(self, shape: tuple[int, ...]) -> int:
        return math.prod([length for axis, length in enumerate(shape) if axis != self.start][: self.repeats])

    def read_output(self, array: Array, rest: Array | None) -> Array:
        """Return what stands at the point, less the rest, in neutral form."""
        array = array if rest is None else array - rest
        array = array if self.factor == 1 else array / np.asarray(self.factor, array.dtype)
        if self.kind == "conv":
            return np.moveaxis(array, self.start, -1)
        return self._drop_repeats(move_last(array, self.start, self.length), array.shape)

    def refine(self, result: Array, given: Array | None, array: Array) -> Array:
        """Return the output of a scale in all its digits: beside what is added to it, a small one has few of them."""
        if not self.residual or self.kind != "multiply" or given is None or given.shape != result.shape:
            return result
        scale = to_host(self.variables["gamma"])
        if scale is None or scale.size != given.shape[-1]:
            return result
        product: Array = (given * scale.reshape(-1)).astype(result.dtype)
        rounding = _ROUNDING * np.finfo(np.float32).eps * float(np.abs(array).max(initial=0))
        return product if np.abs(product - result).max(initial=0) <= rounding / abs(self.factor) else result

    def restore(self, value: Array, like: Array, rest: Array | None) -> Array | None:
        """Return a neutral output as it stands at the point; None if it doesn't fit."""
        repeats = self._count_repeats(like.shape)
        if value.size * repeats != like.size:
            return None
        value = value if repeats == 1 else np.tile(value, (repeats, 1))
        if self.kind == "conv":
            moved = [*like.shape[: self.start], *like.shape[self.start + 1 :], like.shape[self.start]]
            array = np.moveaxis(value.reshape(moved), -1, self.start)
        else:
            array = move_back(value, self.start, self.length, like.shape)
        array = array if self.factor == 1 else array * np.asarray(self.factor, array.dtype)
        return (array if rest is None else array + rest).astype(like.dtype)

    def read_rest(self, frame: Frame) -> Array | None:
        """Return what is added to the operation, if anything is."""
        return self.read_without(frame) if self.residual else None

    def read_without(self, frame: Frame) -> Array:
        """Return what stands at the point while the variables are zero."""
        return self.read(frame, self._list_zeros())

    def _at(self, frame: Frame, value: float) -> Array:
        (main, nothing), *others = self._list_zeros()
        return self.read(frame, [(main, nothing + np.float32(value)), *others])

    def _list_zeros(self) -> list[tuple[Any, Array]]:
        return [(variable, np.zeros(tuple(variable.shape), np.float32)) for variable in self.variables.values()]

    def read(self, frame: Frame, values: Sequence[tuple[Any, Any]]) -> Array:
        assert self.point is not None, "only an operation with a point has arrays"
        array = to_host(frame.evaluate(values, self.point.call)[self.point.tensor])
        if array is None:
            raise ProbeError("no array")
        return array


def make_record(operation: Operation, parameters: dict[int, Parameter], path: str) -> LayerRecord:
    """Return the record of an operation. ``parameters``: by ``id`` of the variable.

    ``path`` is that of the layer; if it is empty, the name of the first variable is taken.
    """
    by_role = {role: _as_stored(parameters[id(v)]) for role, v in operation.variables.items()}
    first = next(iter(by_role.values()))
    path = path or first.name
    if "place" in operation.attributes:
        path = f"{path}/{operation.part}"
    return LayerRecord(
        operation.kind,
        path,
        by_role,
        operation.attributes,
        operation,
        views={role: _make_view(operation, role) for role in by_role},
    )


def _as_stored(parameter: Parameter) -> Parameter:
    layout = plain_layout(parameter.layout.stored)
    return parameter if layout == parameter.layout else parameter.replace(layout=layout)


def _make_view(operation: Operation, role: str) -> View:
    contraction, part = operation.contraction, operation.part
    if contraction is not None:
        read = contraction.view if role in ("kernel", "embeddings") else contraction.view_bias
        return lambda neutral: read(neutral, part)
    if role in ("rows", "embeddings"):
        return lambda neutral: neutral.reshape(table_shape(neutral.shape))
    if role == "kernel":
        return (lambda neutral: neutral) if operation.kernel is None else operation.kernel.from_variable
    return lambda neutral: neutral.reshape(-1)


class Performer:
    """Runner of operations under watch: of one layer, while it is called."""

    def __init__(self, records: Sequence[LayerRecord], watcher: Watcher) -> None:
        self._watcher = watcher
        self._by_call: dict[int | None, list[LayerRecord]] = {}
        for record in records:
            if not (record.attributes.get("unused") or record.attributes.get("constant")):
                point = record.layer.point
                self._by_call.setdefault(None if point is None else point.call, []).append(record)

    def call(self, frame: Frame) -> Any:
        """Call the layer, with its operations that show in its output."""
        for record in self._by_call.get(None, ()):  # nobody can see when they happen
            self._watcher.enter(record, {"": None})
            self._watcher.leave(record, {"": None})
        records = self._by_call.get(OUTPUT, [])
        output = frame.call()
        if not records:
            return output
        leaves = self._perform(frame, records, OUTPUT)
        return keras.tree.pack_sequence_as(frame.output, leaves)

    def before(self, frame: Frame, leaves: list[Any]) -> list[Any]:
        """Return the arguments of an inner call, with the operations that show in them."""
        call = len(frame.calls)
        records = self._by_call.get(call)
        if not records:
            return leaves
        for record in [record for record in records if record.layer.taken]:
            self._watcher.enter(record, {"": record.layer.read_taken(leaves)})
        seen = [record for record in records if not record.layer.taken]
        return self._perform(frame, seen, call) if seen else leaves

    def after(self, frame: Frame, output: Any) -> Any:
        """Return the output of an inner call, which may be an operation itself."""
        taken = [record for record in self._by_call.get(len(frame.calls), ()) if record.layer.taken]
        array = to_host(output) if taken else None
        changed = False
        for record in taken:
            value = self._watcher.leave(record, {"": None if array is None else record.layer.read_result(array)})
            if value is not None and array is not None and value.size:
                array = array if changed else np.array(array)
                record.layer.write_result(array, value)
                changed = True
        return tensor_like(array, output) if changed and array is not None else output

    def _perform(self, frame: Frame, records: Sequence[LayerRecord], call: int) -> list[Any]:
        replaced: dict[int, Any] = {}
        for record in records:
            operation: Operation = record.layer
            assert operation.point is not None, "its call is known"
            if operation.kind == "rows":
                self._watcher.enter(record, {"": None})
                self._watcher.leave(record, {"": None})
                replaced.clear()
                continue
            replaced = self._perform_seen(frame, record, operation, operation.point)
        leaves = frame.evaluate([], call)
        return [replaced.get(place, leaf) for place, leaf in enumerate(leaves)]

    def _perform_seen(self, frame: Frame, record: LayerRecord, operation: Operation, point: Point) -> dict[int, Any]:
        """Report one operation; return the tensor that replaces its result, by its number."""
        try:
            given = operation.read_input(frame)
        except _UNSEEN:
            given = None
        self._watcher.enter(record, {"": given})
        try:
            leaf = frame.evaluate([], point.call)[point.tensor]
            array, rest = to_host(leaf), operation.read_rest(frame)
            result = None if array is None else operation.refine(operation.read_output(array, rest), given, array)
        except _UNSEEN:
            array = result = None
        value = self._watcher.leave(record, {"": result})
        if value is None or array is None:
            return {}
        restored = operation.restore(value, array, rest)
        return {} if restored is None else {point.tensor: tensor_like(restored, leaf)}
