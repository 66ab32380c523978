"""Watch a Keras model while it runs: its layers, and the operations of those that compute in a way of their own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from xweights.porting.protocol import LayerRecord, Watcher
from xweights_keras.porting.combining import find_operations, make_rows
from xweights_keras.porting.contractions import PRODUCTS
from xweights_keras.porting.frames import (
    OUTPUT,
    CallStack,
    ClassPatches,
    Frame,
    Handler,
    flatten,
    keep_signature,
    patch_attribute,
)
from xweights_keras.porting.layers import KINDS, as_array
from xweights_keras.porting.operations import Operation, Performer, make_record
from xweights_keras.porting.probing import Use, are_close
from xweights_keras.walk import is_keras

# Kinds that a subclass with a call of its own may not compute as.
_COMPUTED = frozenset(KINDS.values()) - {"rnn", "simple_rnn", "lstm", "gru", "conv_lstm", "attention_scale"}
_COMPUTED -= {"additive_attention", "separable"}
# Functions between the operations of a layer: an operation shows best in their input, before they bend it.
_FUNCTIONS = (
    *("relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "sigmoid", "tanh", "softplus"),
    *("softmax", "log_softmax", "hard_sigmoid", "hard_silu", "hard_swish"),
)


class SuperCall:
    """The call of a Keras class that a subclass makes in a call of its own, and changes the result of."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.definer = _get_definer(_get_keras_class(layer))


def _get_keras_class(layer: Any) -> type[Any]:
    return next(kind for kind in type(layer).__mro__ if is_keras(kind))


def _get_definer(kind: type[Any]) -> type[Any]:
    return next(above for above in kind.__mro__ if "call" in above.__dict__)


def watch_calls(model: Any, calls: CallStack, handlers: Mapping[int, Handler], stack: contextlib.ExitStack) -> None:
    """Watch the calls of every layer until the stack is closed; ``handlers``: by ``id`` of the layer."""
    for layer in model._flatten_layers(include_self=True, recursive=True):
        handler = handlers.get(id(layer))
        patch_attribute(layer, "call", calls.wrap(layer, layer.call, handler), stack)
        if handler is None:
            continue
        for name, value in list(vars(layer).items()):
            if "activation" in name and callable(value) and not isinstance(value, keras.Layer):
                patch_attribute(layer, name, calls.wrap(value, value), stack)
    if handlers:
        for module in (keras.ops, keras.ops.nn, keras.ops.numpy, keras.activations):
            for name in (*_FUNCTIONS, "take", *PRODUCTS):
                function = getattr(module, name, None)
                if function is not None:
                    stack.callback(setattr, module, name, function)
                    watched = calls.wrap(function, function)
                    if name in PRODUCTS:
                        watched = _watch_product(function, watched)
                    setattr(module, name, _watch_take(function, watched) if name == "take" else watched)


def _watch_take(function: Callable[..., Any], watched: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is watched where rows of a variable itself are taken."""

    def take(x: Any, indices: Any, axis: Any = None) -> Any:
        if isinstance(x, keras.Variable) and len(x.shape) == 2 and axis == 0:
            return watched(x, keras.ops.convert_to_tensor(indices), axis=axis)
        return function(x, indices, axis)

    return keep_signature(take, function)


def _watch_product(function: Callable[..., Any], watched: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is watched where a variable itself is a factor."""

    def product(*args: Any, **named: Any) -> Any:
        factors = [value for value in (*args, *named.values()) if isinstance(value, keras.Variable)]
        return (watched if len(factors) == 1 else function)(*args, **named)

    return keep_signature(product, function)


def watch_operations(model: Any, records: Sequence[LayerRecord], watcher: Watcher, stack: contextlib.ExitStack) -> None:
    """Report the operations among the records to a watcher until the stack is closed."""
    by_layer: dict[int, list[LayerRecord]] = {}
    for record in records:
        if isinstance(record.layer, Operation):
            by_layer.setdefault(id(record.layer.layer), []).append(record)
    performers = {key: Performer(listed, watcher) for key, listed in by_layer.items()}
    if performers:
        calls = CallStack(
            lambda frame, leaves: performers[id(frame.layer)].before(frame, leaves),
            lambda frame, output: performers[id(frame.layer)].after(frame, output),
        )
        watch_calls(model, calls, {key: performer.call for key, performer in performers.items()}, stack)


def observe_calls(model: Any, records: Sequence[LayerRecord], call: Callable[[], Any]) -> list[LayerRecord]:
    """Call a model and return its records as they were seen to compute, in the order of their first calls."""
    observer = _Observer()
    with contextlib.ExitStack() as stack:
        patches = ClassPatches(stack)
        handlers: dict[int, Handler] = {}
        for record in records:
            if not record.parameters or record.refused is not None or isinstance(record.layer, Operation):
                continue
            if record.kind == "other":
                handlers[id(record.layer)] = observer.handle(record)
            elif record.kind in _COMPUTED and not is_keras(type(record.layer)):
                handlers[id(record.layer)] = observer.handle(record)
                observer.watch_super(record.layer, patches)
        watch_calls(model, observer.calls, handlers, stack)
        call()
    return observer.sort(records)


class _Observer:
    def __init__(self) -> None:
        self.calls = CallStack()
        self._found: dict[int, list[tuple[float, LayerRecord]]] = {}
        self._super: dict[int, tuple[Frame, Any]] = {}
        self._unseen: set[int] = set()  # called inside a loop of the framework, where nothing has values

    def handle(self, record: LayerRecord) -> Handler:
        """Return the handler of a layer that may compute in a way of its own."""

        def handler(frame: Frame) -> Any:
            output = frame.call()
            if id(record) not in self._found and _is_eager(frame):
                self._found[id(record)] = list(self._judge(record, frame))
            elif record.kind == "other":
                self._unseen.add(id(record))
            return output

        return handler

    def watch_super(self, layer: Any, patches: ClassPatches) -> None:
        """Note the call of the Keras class inside the call of a subclass."""
        definer = SuperCall(layer).definer
        original = patches.get_original(definer, layer)

        def call(*args: Any, **named: Any) -> Any:
            output = original(*args, **named)
            self._super.setdefault(id(layer), (Frame(layer, original, args, named), output))
            return output

        patches.add(definer, layer, call)

    def _judge(self, record: LayerRecord, frame: Frame) -> Iterator[tuple[float, LayerRecord]]:
        number = self.calls.numbers[id(frame.layer)]
        if record.kind != "other":
            with self.calls.inside(None):
                if _computes_as_class(frame, frame.output):
                    yield number, record
                    return
                inner = self._super.get(id(frame.layer))
                if inner is not None and _computes_as_class(*inner):
                    yield number, replace(record, layer=SuperCall(frame.layer))
                    return
        parameters = {id(p.handle): p for p in record.parameters.values()}
        operations = find_operations(frame, [p.handle for p in record.parameters.values()])
        for operation in operations:
            if all(_is_constant(frame.layer, v) for v in operation.variables.values()):
                operation.attributes["constant"] = True
            place: float = number
            if operation.attributes.get("unused"):
                place = math.inf
            elif operation.point is not None and frame.calls:
                after = operation.point.call == OUTPUT
                place = frame.calls[-1].number + 0.5 if after else frame.calls[operation.point.call].number - 0.5
            alone = len(operations) == 1 and not frame.layer._layers
            yield place, make_record(operation, parameters, record.path if alone else "")

    def sort(self, records: Sequence[LayerRecord]) -> list[LayerRecord]:
        """Return the records in the order of their first calls; those that weren't called come last."""
        placed: list[tuple[float, LayerRecord]] = []
        for record in records:
            number = self.calls.numbers.get(id(record.layer), math.inf)
            unseen = id(record) in self._unseen
            rest = [(number, each) for each in (_list_rows(record) if unseen else [record])]
            placed += self._found.get(id(record), rest)
        return [record for _, record in sorted(placed, key=lambda pair: pair[0])]


def _list_rows(record: LayerRecord) -> list[LayerRecord]:
    """Return the parameters of a layer that nothing is known of, each as rows that are used when it is called."""
    parameters = {id(p.handle): p for p in record.parameters.values()}
    operations = [make_rows(record.layer, Use(p.handle, "unknown")) for p in record.parameters.values()]
    return [make_record(operation, parameters, "") for operation in operations]


def _is_eager(frame: Frame) -> bool:
    leaves = [leaf for leaf in [*frame.leaves, *flatten(frame.output)] if keras.ops.is_tensor(leaf)]
    return all(as_array(leaf) is not None for leaf in leaves)


def _computes_as_class(frame: Frame, output: Any) -> bool:
    """Return True if the Keras class of a layer computes the same from its variables and settings."""
    base = _get_keras_class(frame.layer)
    # An instance of the class itself, with the attributes of the layer: none of the subclass' methods is called.
    plain = object.__new__(base)
    object.__setattr__(plain, "__dict__", frame.layer.__dict__)
    try:
        with keras.StatelessScope(initialize_variables=False):
            expected = _get_definer(base).__dict__["call"](plain, *frame.args, **frame.named)
    except Exception:  # noqa: BLE001 - any error of a call that the class doesn't take
        return False
    pairs = list(zip(flatten(expected), flatten(output), strict=False))
    arrays = [(as_array(one), as_array(other)) for one, other in pairs]
    return all(one is not None and other is not None and are_close(one, other) for one, other in arrays)


def _is_constant(layer: Any, variable: Any) -> bool:
    """Return True for a variable that isn't trained, and that the layer computes when it is made.

    A layer that is made again has the same values. Values that are all equal may be statistics before any training.
    """
    if variable.trainable:
        return False
    value = as_array(variable)
    if value is None or (value == value.reshape(-1)[:1]).all():
        return False
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    place = next(number for number, each in enumerate(own) if each is variable)
    try:
        again = type(layer).from_config(layer.get_config())
        again.build_from_config(layer.get_build_config())
        other = as_array([*again._trainable_variables, *again._non_trainable_variables][place])
    except Exception:  # noqa: BLE001 - any error of a class that can't be made again
        return False
    return other is not None and other.shape == value.shape and np.array_equal(other, value)
