"""Operations of an exported torch program as neutral operations: the walk, and what handlers are made of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from xweights.errors import PortError
from xweights.porting.skeletons.graph import Operation


@dataclass(frozen=True)
class Value:
    """A value of the program that depends on its inputs or parameters."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Weight:
    """A parameter, or a buffer that is saved, before any operation has used it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


Handler = Callable[["ProgramReader", "Call"], Any]
HANDLERS: dict[str, Handler] = {}


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Enter a handler of torch's operations of these names into the table."""

    def enter(handler: Handler) -> Handler:
        for name in names:
            HANDLERS[name] = handler
        return handler

    return enter


@dataclass(frozen=True)
class Call:
    """One call: its arguments by name, as the operation's schema has them, and what torch says of its result."""

    node: Any
    name: str
    args: Mapping[str, Any]
    meta: Any

    def __getitem__(self, key: str) -> Any:
        return self.args[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Return an argument, or a default where the schema has none of that name."""
        value = self.args.get(key, default)
        return default if value is None else value

    @property
    def function(self) -> str:
        """The name of the operation."""
        return str(self.node.target._schema.name).removeprefix("aten::")

    @property
    def base(self) -> str:
        """The name of the operation, without the line that says that it changes its argument."""
        name = self.function
        return name if name in HANDLERS else name.removesuffix("_")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(int(n) for n in self.meta.shape)

    @property
    def dtype(self) -> str:
        """The type of the result."""
        return name_of_dtype(self.meta.dtype)

    @property
    def path(self) -> str:
        """The path of the module that made the call."""
        stack = list((self.node.meta.get("nn_module_stack") or {}).values())
        return str(stack[-1][0]).removeprefix("model").removeprefix(".") if stack else ""


def name_of_dtype(dtype: torch.dtype) -> str:
    """Return the neutral name of a type."""
    return str(dtype).removeprefix("torch.")


class ProgramReader:
    """Reader of one exported program; ``operations`` are what it has read."""

    def __init__(self, program: Any, keys: Sequence[Any]) -> None:
        self.program = program
        self.keys = keys
        self.operations: list[Operation] = []
        self.values: dict[Any, Any] = {}
        self.weights: dict[str, Value] = {}
        self.constants = 0
        # A name that is made up may not be one that the program has for another value.
        self.taken = {str(node.name) for node in program.graph.nodes}
        self.made = {"x", *(str(key) if isinstance(key, str) else f"x{key}" for key in keys)}
        self.unknown: dict[str, str] = {}

    def read(self) -> list[Operation]:
        """Return the operations of the whole program."""
        signature = self.program.graph_signature
        state = {**self.program.state_dict, **self.program.constants}
        keys = iter(self.keys)
        kept = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        lifted = getattr(signature, "inputs_to_lifted_tensor_constants", {})
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                name = kept.get(node.name) or lifted.get(node.name)
                meta = node.meta.get("val")
                if name is None:
                    self._input(node, meta, next(keys, None))
                elif name in self.program.state_dict and meta.dtype.is_floating_point and name not in lifted:
                    self.values[node] = Weight(
                        name.removeprefix("model."), tuple(meta.shape), name_of_dtype(meta.dtype)
                    )
                else:
                    self.values[node] = state[name].detach()
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                outputs = [self.value(self._resolve(item)) for item in node.args[0] if item is not None]
                names = tuple(output.name for output in outputs)
                self.operations.append(Operation("results", "output", names, {"keys": None}))
        return self.operations

    def _input(self, node: Any, meta: Any, key: Any) -> None:
        if not isinstance(meta, torch.Tensor):
            self.values[node] = meta
            return
        name = str(key) if isinstance(key, str) else ("x" if key is None else f"x{key}")
        value = Value(name, tuple(meta.shape), name_of_dtype(meta.dtype))
        self.operations.append(Operation(name, "input", (), {"key": key}, value.shape, value.dtype))
        self.values[node] = value

    def _resolve(self, item: Any) -> Any:
        if isinstance(item, torch.fx.Node):
            return self.values[item]
        if isinstance(item, (list, tuple)):
            return [self._resolve(part) for part in item]
        return item

    def _call(self, node: Any) -> Any:
        args = [self._resolve(arg) for arg in node.args]
        kwargs = {key: self._resolve(arg) for key, arg in node.kwargs.items()}
        target = node.target
        if target is operator.getitem:
            return args[0][args[1]] if args[0] is not None else None
        schema = getattr(target, "_schema", None)
        if schema is None:
            raise PortError(f"the program calls {target}, which is no operation of torch")
        if not any(isinstance(arg, (Value, Weight)) for arg in _flat([*args, *kwargs.values()])):
            kwargs.pop("device", None)
            with torch.no_grad():
                return target(*args, **kwargs)
        named = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
        named |= dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
        name = schema.name.removeprefix("aten::")
        handler = HANDLERS.get(name) or HANDLERS.get(name.removesuffix("_"))
        call = Call(node, str(node.name), named, node.meta.get("val"))
        if handler is None:
            where = f" in {call.path!r}" if call.path else ""
            raise PortError(f"torch's {name}{where} has no recipe for code")
        return handler(self, call)

    # What handlers use.

    def value(self, item: Any) -> Value:
        """Return a weight or a constant as a value that operations can take."""
        if isinstance(item, Value):
            return item
        if isinstance(item, Weight):
            if item.name not in self.weights:
                name = f"{item.name}_"
                self.operations.append(
                    Operation(name, "parameter", (), {"name": item.name}, item.shape, item.dtype, item.name)
                )
                self.weights[item.name] = Value(name, item.shape, item.dtype)
            return self.weights[item.name]
        if isinstance(item, torch.Tensor):
            array = item.detach().to(torch.float32) if item.dtype == torch.bfloat16 else item.detach()
            return self.constant(array.cpu().numpy())
        if isinstance(item, (bool, int, float)):
            return self.constant(np.asarray(item))
        raise PortError(f"{item!r} is no array")

    def constant(self, array: Any) -> Value:
        """Return an array of numbers as a value."""
        self.constants += 1
        name = f"constant_{self.constants}"
        self.operations.append(Operation(name, "constant", (), {"value": array}, array.shape, str(array.dtype)))
        return Value(name, tuple(array.shape), str(array.dtype))

    def add(
        self,
        call: Call,
        kind: str,
        inputs: Sequence[Any],
        shape: Sequence[int] | None = None,
        dtype: str | None = None,
        *,
        layer: str = "",
        **options: Any,
    ) -> Value:
        """Add an operation; without a shape its value is the call's result."""
        name, number = call.name, 1
        while name in self.made or (number > 1 and name in self.taken):
            number += 1
            name = f"{call.name}_{number}"
        self.made.add(name)
        operands = tuple(self._operand(item) for item in inputs)
        shape = call.shape if shape is None else tuple(shape)
        dtype = dtype or (call.dtype if isinstance(call.meta, torch.Tensor) else "float32")
        self.operations.append(Operation(name, kind, operands, options, tuple(shape), dtype, layer))
        return Value(name, tuple(shape), dtype)

    def _operand(self, item: Any) -> Any:
        if isinstance(item, (bool, int, float)):
            return item
        if isinstance(item, torch.Tensor) and item.ndim == 0:
            return item.item()
        return self.value(item).name

    def reshape(self, call: Call, value: Any, shape: Sequence[int]) -> Value:
        """Return a value in another shape."""
        x: Value = self.value(value)
        if x.shape == tuple(shape):
            return x
        return self.add(call, "reshape", [x], shape, x.dtype)

    def permute(self, call: Call, value: Any, order: Sequence[int]) -> Value:
        """Return a value with its axes in another order."""
        x: Value = self.value(value)
        if list(order) == list(range(len(order))):
            return x
        shape = [x.shape[axis] for axis in order]
        return self.add(call, "permute", [x], shape, x.dtype, order=tuple(order))

    def binary(self, call: Call, function: str, a: Any, b: Any, dtype: str | None = None) -> Value:
        """Return what a function of two values makes."""
        shapes = [getattr(item, "shape", ()) for item in (a, b)]
        shape = np.broadcast_shapes(*(tuple(s) for s in shapes))
        return self.add(call, "binary", [a, b], shape, dtype, function=function)

    def unary(self, call: Call, function: str, value: Any) -> Value:
        """Return what a function of one value makes."""
        value = self.value(value)
        return self.add(call, "unary", [value], value.shape, value.dtype, function=function)

    def reduce(self, call: Call, function: str, value: Any, axes: Sequence[int], *, keepdims: bool) -> Value:
        """Return a reduction over axes."""
        value = self.value(value)
        axes = tuple(sorted(axis % max(len(value.shape), 1) for axis in axes))
        shape = [1 if a in axes else n for a, n in enumerate(value.shape) if keepdims or a not in axes]
        dtype = "int64" if function == "argmax" else ("bool" if function in ("any", "all") else value.dtype)
        return self.add(call, "reduce", [value], shape, dtype, function=function, axes=axes, keepdims=keepdims)

    def slice(self, call: Call, value: Any, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """Return a part of an axis."""
        x: Value = self.value(value)
        axis %= len(x.shape)
        length = x.shape[axis]
        if (start, stop, step) == (0, length, 1):
            return x
        index: list[Any] = [(0, None, 1)] * len(x.shape)
        index[axis] = (start, None if stop >= length else stop, step)
        shape = list(x.shape)
        shape[axis] = len(range(start, min(stop, length), step))
        return self.add(call, "slice", [x], shape, x.dtype, index=tuple(index))

    def concatenate(self, call: Call, values: Sequence[Any], axis: int) -> Value:
        """Return values joined along an axis."""
        parts = [part for part in map(self.value, values) if 0 not in part.shape]
        axis %= len(parts[0].shape)
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.add(call, "concatenate", parts, shape, parts[0].dtype, axis=axis)

    def matmul(self, call: Call, a: Any, b: Any) -> Value:
        """Return the product of two matrices, or stacks of them."""
        a, b = self.value(a), self.value(b)
        if len(b.shape) == 1:
            column = self.matmul(call, a, self.reshape(call, b, (*b.shape, 1)))
            return self.reshape(call, column, column.shape[:-1])
        if len(a.shape) == 1:
            row = self.matmul(call, self.reshape(call, a, (1, *a.shape)), b)
            return self.reshape(call, row, (*row.shape[:-2], row.shape[-1]))
        shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return self.add(call, "matmul", [a, b], shape, a.dtype)


def _flat(items: Any) -> list[Any]:
    if isinstance(items, (list, tuple)):
        return [part for item in items for part in _flat(item)]
    return [items]
