"""A Keras model called on symbolic tensors, with every known layer and operation recorded on a tape.

A layer that is in no table is entered: its own ``call`` runs on the symbolic tensors, down to layers that are known and
to operations of ``keras.ops``. This makes subclassed models and layers of other packages readable as well.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from xweights.errors import PortError
from xweights.porting.skeletons.graph import Operation

_ARITHMETIC = tuple(
    f"__{name}__"
    for name in (
        "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod",
        "pow", "rpow", "matmul", "rmatmul", "neg", "abs", "getitem", "lt", "le", "gt", "ge",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One call of an operation or layer, with its arguments by name."""

    operation: Any
    name: str
    args: Mapping[str, Any]
    path: str = ""

    def __getitem__(self, key: str) -> Any:
        return self.args[key]


Handler = Callable[["Tape", Call], Any]
OPERATIONS: dict[str, Handler] = {}
LAYERS: dict[str, Handler] = {}


def handles(*names: str, layer: bool = False) -> Callable[[Handler], Handler]:
    """Enter a handler of operations, or layers, of these classes into the table. It returns a value, or several."""

    def enter(handler: Handler) -> Handler:
        for name in names:
            (LAYERS if layer else OPERATIONS)[name] = handler
        return handler

    return enter


class Tape:
    """Record of a model's operations. Symbolic tensors are known by identity."""

    def __init__(self, names: Mapping[int, str], paths: Mapping[int, str]) -> None:
        self.names = names
        self.paths = paths
        self.operations: list[Operation] = []
        self.values: dict[int, str] = {}
        self.tensors: dict[str, Any] = {}
        self.made: dict[str, int] = {}
        self.used: dict[int, Any] = {}
        self.paused = False
        self.entered: set[str] = set()
        self.thread = threading.get_ident()

    # What handlers use.

    def fresh(self, name: str) -> str:
        """Return an unused name."""
        number = self.made.get(name, 0) + 1
        self.made[name] = number
        return name if number == 1 else self.fresh(f"{name}_{number}")

    def enter(self, name: str, tensor: Any) -> Any:
        """Note the name of a symbolic tensor."""
        self.values[id(tensor)] = name
        self.tensors[name] = tensor
        return tensor

    def name_of(self, item: Any) -> Any:
        """Return the operand that an argument is: the name of its value, or a number."""
        if isinstance(item, keras.KerasTensor):
            if id(item) not in self.values:
                raise PortError("the model takes a symbolic tensor that no input leads to")
            return self.values[id(item)]
        if isinstance(item, keras.Variable):
            return self.name_of(self.symbol(item))
        if isinstance(item, (bool, int, float)):
            return item
        array = np.asarray(keras.ops.convert_to_numpy(item)) if not isinstance(item, np.ndarray) else item
        if array.ndim == 0:
            return array.item()
        name = self.fresh("constant")
        self.operations.append(Operation(name, "constant", (), {"value": array}, array.shape, str(array.dtype)))
        return name

    def symbol(self, variable: Any) -> Any:
        """Return the symbolic tensor that stands for a variable."""
        if id(variable) not in self.used:
            if id(variable) not in self.names:
                return variable.value
            name = self.names[id(variable)]
            tensor = keras.KerasTensor(tuple(variable.shape), dtype=variable.dtype)
            made = self.fresh(f"{name}_")
            self.operations.append(
                Operation(made, "parameter", (), {"name": name}, tuple(variable.shape), str(variable.dtype), name)
            )
            self.used[id(variable)] = self.enter(made, tensor)
        return self.used[id(variable)]

    def add(
        self,
        call: Call,
        kind: str,
        inputs: Sequence[Any],
        shape: Sequence[int],
        dtype: str,
        *,
        layer: str = "",
        **options: Any,
    ) -> Any:
        """Add an operation; return the symbolic tensor that it makes."""
        name = self.fresh(call.name)
        operands = tuple(self.name_of(item) for item in inputs)
        shape = tuple(int(n) for n in shape)
        self.operations.append(Operation(name, kind, operands, options, shape, dtype, layer))
        return self.enter(name, keras.KerasTensor(shape, dtype=dtype))

    def array(self, item: Any) -> Any:
        """Return an argument as something with a shape and a type."""
        if isinstance(item, keras.Variable):
            return self.symbol(item)
        if isinstance(item, (bool, int, float)):
            return np.asarray(item, "float32" if isinstance(item, float) else None)
        return item if hasattr(item, "shape") else np.asarray(item)

    def reshape(self, call: Call, x: Any, shape: Sequence[int]) -> Any:
        """Return a value in another shape."""
        x = self.array(x)
        if tuple(x.shape) == tuple(shape):
            return x
        return self.add(call, "reshape", [x], shape, dtype_of(x))

    def permute(self, call: Call, x: Any, order: Sequence[int]) -> Any:
        """Return a value with its axes in another order."""
        x = self.array(x)
        if list(order) == list(range(len(order))):
            return x
        shape = [x.shape[axis] for axis in order]
        return self.add(call, "permute", [x], shape, dtype_of(x), order=tuple(order))

    def binary(self, call: Call, function: str, a: Any, b: Any, dtype: str | None = None) -> Any:
        """Return what a function of two values makes."""
        shape = np.broadcast_shapes(*(tuple(getattr(item, "shape", ())) for item in (a, b)))
        first = a if hasattr(a, "shape") else b
        return self.add(call, "binary", [a, b], shape, dtype or dtype_of(first), function=function)

    def unary(self, call: Call, function: str, x: Any) -> Any:
        """Return what a function of one value makes."""
        x = self.array(x)
        return self.add(call, "unary", [x], x.shape, dtype_of(x), function=function)

    def reduce(self, call: Call, function: str, x: Any, axes: Sequence[int], *, keepdims: bool) -> Any:
        """Return a reduction over axes."""
        x = self.array(x)
        axes = tuple(sorted(axis % len(x.shape) for axis in axes))
        shape = [1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes]
        dtype = {"argmax": "int32", "any": "bool", "all": "bool"}.get(function, dtype_of(x))
        return self.add(call, "reduce", [x], shape, dtype, function=function, axes=axes, keepdims=keepdims)

    def slice(self, call: Call, x: Any, axis: int, start: int, stop: int, step: int = 1) -> Any:
        """Return a part of an axis."""
        x = self.array(x)
        index: list[Any] = [(0, None, 1)] * len(x.shape)
        length = x.shape[axis]
        if (start, stop, step) == (0, length, 1):
            return x
        index[axis] = (start, None if stop >= length else stop, step)
        shape = list(x.shape)
        shape[axis] = len(range(start, min(stop, length), step))
        return self.add(call, "slice", [x], shape, dtype_of(x), index=tuple(index))

    def concatenate(self, call: Call, parts: Sequence[Any], axis: int) -> Any:
        """Return values joined along an axis."""
        arrays = [self.array(part) for part in parts]
        arrays = [part for part in arrays if 0 not in part.shape]
        if len(arrays) == 1:
            return arrays[0]
        axis %= len(arrays[0].shape)
        shape = list(arrays[0].shape)
        shape[axis] = sum(part.shape[axis] for part in arrays)
        return self.add(call, "concatenate", arrays, shape, dtype_of(arrays[0]), axis=axis)

    # What the patches call.

    def record(self, operation: Any, args: Any, kwargs: Any) -> Any:
        """Record a call of an operation or layer, or enter a layer that isn't known."""
        kind = type(operation).__name__
        is_layer = isinstance(operation, keras.Layer)
        table = LAYERS if is_layer else OPERATIONS
        handler = next((table[c.__name__] for c in type(operation).__mro__ if c.__name__ in table and _is_own(c)), None)
        if is_layer and handler is None:
            return operation.call(*args, **kwargs)
        if handler is None and kind not in self.entered:
            # It may be made of others: it is entered, unless that leads back to it.
            self.entered.add(kind)
            try:
                return operation.call(*args, **kwargs)
            finally:
                self.entered.discard(kind)
        if handler is None:
            raise PortError(f"keras.ops' {kind} has no recipe for code")
        bound = inspect.signature(operation.call).bind(*args, **kwargs)
        bound.apply_defaults()
        path = self.paths.get(id(operation), operation.name) if is_layer else ""
        # The name of an operation is numbered through all that the process has made.
        name = path if is_layer else kind.lower()
        result = handler(self, Call(operation, name, dict(bound.arguments), path))
        if result is NotImplemented:
            return operation.call(*args, **kwargs)
        return result


def _is_own(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "keras"


def first(call: Call) -> Any:
    """Return the first argument of a call."""
    return next(iter(call.args.values()))


def dtype_of(x: Any) -> str:
    """Return the name of a value's type."""
    return str(keras.backend.standardize_dtype(x.dtype))


_LOCK = threading.Lock()


@contextlib.contextmanager
def recording(tape: Tape) -> Iterator[None]:
    """Let all calls on symbolic tensors of this thread be recorded on a tape, and variables be symbolic there."""
    with _LOCK, contextlib.ExitStack() as stack:

        def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
            old = getattr(owner, name)
            own = name in vars(owner)
            setattr(owner, name, make(old))
            stack.callback(lambda: setattr(owner, name, old) if own else delattr(owner, name))

        def is_on() -> bool:
            return not tape.paused and threading.get_ident() == tape.thread

        def symbolic(old: Any) -> Any:
            @functools.wraps(old)
            def call(self: Any, *args: Any, **kwargs: Any) -> Any:
                return tape.record(self, args, kwargs) if is_on() else old(self, *args, **kwargs)

            return call

        def with_symbols(old: Any) -> Any:
            @functools.wraps(old)
            def call(*args: Any, **kwargs: Any) -> Any:
                if is_on():
                    args, kwargs = keras.tree.map_structure(
                        lambda x: tape.symbol(x) if isinstance(x, keras.Variable) else x, (args, kwargs)
                    )
                return old(*args, **kwargs)

            return call

        def arithmetic(name: str) -> Callable[[Any], Any]:
            def make(old: Any) -> Any:
                def call(self: Any, *args: Any) -> Any:
                    if not is_on():
                        return old(self, *args)
                    return getattr(keras.KerasTensor, name)(tape.symbol(self), *args)

                return call

            return make

        # A layer that is entered may return what no node can hold, and its model keeps no trace of this call.
        home = sys.modules[keras.Layer.__module__]
        if hasattr(home, "Node"):  # older releases make none there
            replace(home, "Node", lambda old: lambda *args, **kwargs: None if is_on() else old(*args, **kwargs))
        replace(keras.Operation, "symbolic_call", symbolic)
        replace(keras.Layer, "symbolic_call", symbolic)
        for name in _ARITHMETIC:
            if hasattr(keras.KerasTensor, name) and hasattr(keras.Variable, name):
                replace(keras.Variable, name, arithmetic(name))
        for module in _modules_of_operations():
            for name, function in list(vars(module).items()):
                if inspect.isfunction(function) and not name.startswith("_") and name not in _LEFT_ALONE:
                    replace(module, name, with_symbols)
        for module in _modules_of_backend():
            for name, function in list(vars(module).items()):
                if inspect.isfunction(function) and name not in _LEFT_ALONE and hasattr(keras.ops, name):
                    replace(module, name, functools.partial(_redirected, name, is_on))
        yield


def _redirected(name: str, is_on: Callable[[], bool], old: Any) -> Any:
    """Return a function of the backend that leaves symbolic tensors to the operation of the same name."""

    @functools.wraps(old)
    def call(*args: Any, **kwargs: Any) -> Any:
        if is_on() and any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs))):
            return getattr(keras.ops, name)(*args, **kwargs)
        return old(*args, **kwargs)

    return call


def _modules_of_backend() -> list[Any]:
    """Return the modules of the backend that some layers of Keras call past its operations."""
    from keras.src import backend

    names = ("numpy", "nn", "math", "core")
    modules = [getattr(backend, name, None) for name in names]
    # Preprocessing layers take them from the package of the backend that they choose.
    modules += [backend, sys.modules.get(backend.core.__name__.rpartition(".")[0])]
    return [module for module in modules if module is not None]


_LEFT_ALONE = ("any_symbolic_tensors", "convert_to_numpy", "is_tensor", "shape", "dtype", "result_type")


def _modules_of_operations() -> list[Any]:
    """Return the modules in which code finds Keras' functions."""
    modules = [keras.ops, inspect.getmodule(keras.Operation.__call__)]
    from keras.src import ops  # the layers of Keras itself take them from here

    modules.append(ops)
    return [module for module in dict.fromkeys(modules) if module is not None and hasattr(module, "add")]
