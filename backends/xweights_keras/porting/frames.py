"""Calls of layers that can be repeated with other values of their variables.

A layer that computes with a variable of its own doesn't show how: ``x * self.gamma`` on a tensor of the framework
passes by ``keras.ops``. But Keras can call it with another value (``keras.StatelessScope``) without a change to the
layer, and what becomes of its output tells what it computes. The layers that it calls itself aren't called again: they
return what they returned, and the first one whose input is another one than before is where the variable shows first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import numpy as np

from xweights.core.dtypes import Array
from xweights_keras.porting.layers import as_array

# The place of a layer's output among the calls that it makes.
OUTPUT = -1


class Point(NamedTuple):
    """A tensor in a layer's call: that of an inner call (its number), or of the output; and which of the tensors."""

    call: int
    tensor: int


class ProbeError(Exception):
    """A call with other values went another way, or failed."""


class _Reached(BaseException):
    """Stop a repeated call. It is no Exception, because frameworks catch those to change their message."""

    def __init__(self, point: Point | None, leaves: Sequence[Any] = ()) -> None:
        super().__init__(point)
        self.point, self.leaves = point, leaves


class _ReadingScope(keras.StatelessScope):  # type: ignore[misc] # Keras has no types
    """A scope that notes which variables are read."""

    def __init__(self) -> None:
        super().__init__(initialize_variables=False)
        self.read: dict[int, None] = {}

    def get_current_value(self, variable: Any) -> Any:
        """Return the value that the scope has for a variable."""
        self.read.setdefault(id(variable))
        return super().get_current_value(variable)


@dataclass(eq=False)
class InnerCall:
    """A call that a layer makes."""

    key: Any
    number: int
    leaves: list[Any]
    output: Any


@dataclass(eq=False)
class Frame:
    """One call of a layer: its arguments, and the calls of other layers that it has made so far."""

    layer: Any
    function: Callable[..., Any]
    args: tuple[Any, ...]
    named: Mapping[str, Any]
    calls: list[InnerCall] = field(default_factory=list)
    output: Any = None
    _position: int | None = None
    _until: int | None = None
    _given: Mapping[int, Any] = field(default_factory=dict)

    @property
    def is_repeated(self) -> bool:
        """True while the call is made again."""
        return self._position is not None

    @property
    def leaves(self) -> list[Any]:
        """The arguments of the call."""
        return flatten((self.args, self.named))

    def tensors(self) -> Iterator[tuple[int, Array]]:
        """Yield the arguments that are arrays, with their numbers."""
        for number, leaf in enumerate(self.leaves):
            array = as_array(leaf) if keras.ops.is_tensor(leaf) else None
            if array is not None:
                yield number, array

    def call(self) -> Any:
        """Call the layer, and return and keep its output."""
        self.output = self.function(*self.args, **self.named)
        return self.output

    def find_change(
        self, values: Sequence[tuple[Any, Any]], given: Mapping[int, Any] | None = None
    ) -> tuple[Point, Array] | None:
        """Call again with other values of variables; return the first tensor that is another, None if all are equal.

        ``given``: what inner calls return instead of what they returned, by number.
        """
        self._given = given or {}
        try:
            output = self._repeat(values, None)
        except _Reached as reached:
            if reached.point is None:
                raise ProbeError("another layer is called") from None
            return reached.point, _to_float(reached.leaves[reached.point.tensor])
        finally:
            self._given = {}
        leaves = flatten(output)
        changed = _first_change(flatten(self.output), leaves)
        return None if changed is None else (Point(OUTPUT, changed), _to_float(leaves[changed]))

    def evaluate(self, values: Sequence[tuple[Any, Any]], call: int) -> list[Any]:
        """Call again with other values of variables; return the tensors of an inner call, or those of the output."""
        try:
            output = self._repeat(values, call)
        except _Reached as reached:
            if reached.point is None:
                raise ProbeError("another layer is called") from None
            return list(reached.leaves)
        if call != OUTPUT:
            raise ProbeError("a layer isn't called")
        if not values:  # with others it isn't what the layer puts out
            self.output = output
        return flatten(output)

    def read(self, values: Sequence[tuple[Any, Any]], point: Point) -> Array:
        """Return the array at a point for other values of variables."""
        leaves = self.evaluate(values, point.call)
        if point.tensor >= len(leaves):
            raise ProbeError("there are fewer tensors")
        return _to_float(leaves[point.tensor])

    def list_reads(self) -> dict[int, int]:
        """Return the order in which the call reads variables, by their ``id``."""
        scope = _ReadingScope()
        with contextlib.suppress(_Reached, ProbeError):  # what was read until then is in order
            self._repeat([], None, scope)
        return {key: place for place, key in enumerate(scope.read)}

    def _repeat(self, values: Sequence[tuple[Any, Any]], until: int | None, scope: Any = None) -> Any:
        self._position, self._until = 0, until
        try:
            with scope or keras.StatelessScope(state_mapping=list(values), initialize_variables=False):
                return self.function(*self.args, **self.named)
        except Exception as error:
            raise ProbeError(f"{type(error).__name__}: {error}") from error
        finally:
            self._position = self._until = None

    def answer(self, key: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Return what an inner call returned before; stop the repeated call if its input is another one."""
        assert self._position is not None, "only a repeated call asks"
        place = self._position
        self._position += 1
        leaves = flatten((args, named))
        if place == self._until:
            raise _Reached(Point(place, 0), leaves)
        if place >= len(self.calls) or self.calls[place].key is not key:
            raise _Reached(None)
        if self._until is None:
            changed = _first_change(self.calls[place].leaves, leaves)
            if changed is not None:
                raise _Reached(Point(place, changed), leaves)
        return self._given.get(place, self.calls[place].output)


# What happens when a layer is called: it gets the frame and returns the output.
Handler = Callable[[Frame], Any]
# What happens before an inner call: it gets the frame and the arguments of that call, and returns those to use.
Before = Callable[[Frame, list[Any]], list[Any]]
# What happens after it: it gets the frame and the output, and returns the one to use.
After = Callable[[Frame, Any], Any]


class CallStack:
    """The layers that are computing. Those with a handler, the owners of variables, get a frame."""

    def __init__(self, before: Before | None = None, after: After | None = None) -> None:
        self.numbers: dict[int, int] = {}  # of the first call, by id of the key
        self._count = 0
        self._frames: list[Frame | None] = []
        self._before, self._after = before, after

    def wrap(self, key: Any, function: Callable[..., Any], handler: Handler | None = None) -> Callable[..., Any]:
        """Return a function that does the same under watch."""

        def call(*args: Any, **named: Any) -> Any:
            above = self._frames[-1] if self._frames else None
            if above is not None:
                if above.is_repeated:
                    return above.answer(key, args, named)
                leaves = flatten((args, named))
                replaced = leaves if self._before is None else self._before(above, leaves)
                if replaced is not leaves:
                    args, named = keras.tree.pack_sequence_as((args, named), replaced)
            number = self._count
            self._count += 1
            self.numbers.setdefault(id(key), number)
            frame = None if handler is None else Frame(key, function, args, named)
            with self.inside(frame):
                output = function(*args, **named) if frame is None or handler is None else handler(frame)
            if above is not None:
                if self._after is not None:
                    output = self._after(above, output)
                above.calls.append(InnerCall(key, number, leaves, output))
            return output

        return keep_signature(call, function)

    @contextlib.contextmanager
    def inside(self, frame: Frame | None) -> Iterator[None]:
        """Count calls as those of a frame; without one they are nobody's."""
        self._frames.append(frame)
        try:
            yield
        finally:
            self._frames.pop()


def flatten(value: Any) -> list[Any]:
    """Return the leaves of nested arguments or outputs."""
    return list(keras.tree.flatten(value))


def keep_signature(call: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that stands for another, and that inspection takes for it."""
    call.__name__ = getattr(function, "__name__", "call")
    call.__wrapped__ = function  # type: ignore[attr-defined] # as functools.wraps does
    return call


def patch_attribute(layer: Any, name: str, value: Any, stack: contextlib.ExitStack) -> None:
    """Set an attribute of a layer without its tracker, until the stack is closed."""
    space = layer.__dict__
    stack.callback(space.__setitem__, name, space[name]) if name in space else stack.callback(space.pop, name, None)
    space[name] = value


class ClassPatches:
    """Other functions for the ``call`` of classes, for some of their instances: what ``super().call()`` finds."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._tables: dict[type[Any], dict[int, Callable[..., Any]]] = {}
        self._originals: dict[type[Any], Any] = {}

    def get_original(self, definer: type[Any], layer: Any) -> Callable[..., Any]:
        """Return the class' own function, bound to a layer."""
        original: Callable[..., Any] = self._originals.get(definer, definer.__dict__["call"]).__get__(layer)
        return original

    def add(self, definer: type[Any], layer: Any, function: Callable[..., Any]) -> None:
        """Call a function instead of the class' own, for one layer, until the stack is closed."""
        if definer not in self._tables:
            table: dict[int, Callable[..., Any]] = {}
            self._tables[definer] = table
            self._originals[definer] = original = definer.__dict__["call"]

            def call(self: Any, *args: Any, **named: Any) -> Any:
                replaced = table.get(id(self))
                return original(self, *args, **named) if replaced is None else replaced(*args, **named)

            self._stack.callback(setattr, definer, "call", original)
            setattr(definer, "call", call)  # noqa: B010 - types know no attribute of a class that they don't know
        self._tables[definer][id(layer)] = function


def _to_float(leaf: Any) -> Array:
    array = as_array(leaf)
    if array is None:
        raise ProbeError("no array")
    return array.astype(np.float64)


def _first_change(former: Sequence[Any], leaves: Sequence[Any]) -> int | None:
    """Return the number of the first tensor that is another, beyond rounding."""
    for number, (one, other) in enumerate(zip(former, leaves, strict=False)):
        if one is other or not (keras.ops.is_tensor(one) and keras.ops.is_tensor(other)):
            continue
        first, second = _to_float(one), _to_float(other)
        if first.shape != second.shape:
            raise ProbeError("other shapes")
        limit = 1e-5 * float(np.abs(np.nan_to_num(first)).max(initial=0.0))
        if not (np.abs(first - second) <= limit).all():
            return number
    return None
