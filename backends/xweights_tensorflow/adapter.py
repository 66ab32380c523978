"""Adapter of ``tf.Module``: variables by attribute path, in the order in which the attributes were set.

A variable's own ``name`` ("Variable:0") is neither meaningful nor unique, so a parameter is named by its path:
``self.blocks[0].kernel`` is ``blocks/0/kernel``, as in the torch twin with the same attributes. The axes of a plain
module are unknown: None.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from xweights.core.layout import plain_layout
from xweights.core.parameter import Parameter
from xweights.core.plan import Outline, Plan, group_key
from xweights.core.registry import backend_for, roots
from xweights.errors import TargetError
from xweights_tensorflow.mirrored import storage_for

LONE = "parameter"
"""The name of a variable that is a target by itself."""

_HOLDERS = (tf.Module, list, tuple, dict, Mapping)
# TensorFlow's own bookkeeping, kept among a module's attributes.
_OWN = ("_self_", "_tf_module_", "_tf_api_", "_name_scope", "_obj_reference_counts", "_setattr_tracking")


class ModuleAdapter:
    """Adapter of a module, with the variables in its modules, lists and mappings, and of a lone variable."""

    def __init__(self) -> None:
        # The parameters returned for a module, to be reused: making 1,000 handles costs as much as reading them.
        self._known: weakref.WeakKeyDictionary[Any, dict[str, Parameter]] = weakref.WeakKeyDictionary()
        self._outlines: weakref.WeakKeyDictionary[Any, tuple[list[Parameter], Outline]] = weakref.WeakKeyDictionary()

    def parameters(self, target: Any) -> Sequence[Parameter]:
        if isinstance(target, tf.Variable):
            return [_parameter(LONE, target.name.removesuffix(":0"), target, ())]
        found: dict[int, _FoundVariable] = {}
        _walk(target, "", (), {}, found)
        try:
            cache = self._known.setdefault(target, {})
        except TypeError:  # a module without a hash
            cache = {}
        parameters = {}
        for variable in found.values():
            name, *others = variable.names
            cached = cache.get(name)
            if isinstance(variable.value, Parameter):
                parameters[name] = _rename(variable.value, name, tuple(others), _spell(variable.keys))
            elif (
                cached is not None
                and cached.handle is variable.value
                and cached.aliases == tuple(others)
                and variable.value.shape.is_fully_defined()  # one made with shape=None may have changed
            ):
                parameters[name] = cached
            else:
                parameters[name] = _parameter(name, _spell(variable.keys), variable.value, tuple(others))
                parameters[name].native_aliases = tuple(_spell(variable.names[other]) for other in others)
        cache.clear()
        cache.update(parameters)
        return list(parameters.values())

    def plan(self, target: Any) -> Plan:
        """Return the plan of a module, with what is kept as long as its parameters are the same objects."""
        parameters = list(self.parameters(target))
        # The parameters of Keras objects inside are made anew each time.
        is_plain = tf.executing_eagerly() and all(isinstance(p.handle, tf.Variable) for p in parameters)
        if isinstance(target, tf.Variable) or not is_plain:
            return Plan(lambda: parameters)
        try:
            known, outline = self._outlines.get(target, ([], None))
        except TypeError:  # a module without a hash
            return Plan(lambda: parameters)
        if outline is None or len(known) != len(parameters) or not all(map(is_, known, parameters)):
            outline = Outline([p.with_handle(None) for p in parameters], [group_key(p) for p in parameters])
            self._outlines[target] = (parameters, outline)
        return Plan(lambda: parameters, outline, [p.handle for p in parameters])

    def watch_places(self, target: Any, parameters: Sequence[Parameter]) -> Callable[[], list[str]]:
        """Return a function that names the parameters that were replaced, by themselves or with a module above.

        Keras refuses to replace what a built layer has.
        """
        places: list[_Place] = []
        _find_places(target, {id(p.handle): p.name for p in parameters}, set(), places)

        def find_replaced() -> list[str]:
            replaced: list[str] = []
            for place in places:
                holder = place.holder()
                if holder is None:
                    continue  # a module that is gone altogether has nothing else in its place
                now = {key: child for key, _, child in _children(holder)}
                for key, child, names in place.items:
                    if now.get(key) is not child():
                        replaced += names
            return replaced

        return find_replaced


class _Place(NamedTuple):
    """A module or container, and what it has of the watched: the key, the child, and the names below it."""

    holder: Callable[[], Any]
    items: list[tuple[str, Callable[[], Any], list[str]]]


def _find_places(value: Any, watched: Mapping[int, str], above: set[int], places: list[_Place]) -> list[str]:
    """Collect the places of watched variables below ``value``; return their names."""
    if isinstance(value, tf.Variable):
        return [watched[id(value)]] if id(value) in watched else []
    if _is_keras(value):
        backend = backend_for(value)
        adapter = None if backend is None else backend.adapter(value)
        return [
            watched[id(p.handle)] for p in (adapter.parameters(value) if adapter else ()) if id(p.handle) in watched
        ]
    if not isinstance(value, _HOLDERS) or id(value) in above:
        return []
    above.add(id(value))
    below = [(key, child, _find_places(child, watched, above, places)) for key, _, child in _children(value)]
    above.remove(id(value))
    items = [(key, _reference(child), names) for key, child, names in below if names]
    if items:
        places.append(_Place(_reference(value), items))
    return [name for _, _, names in items for name in names]


def _reference(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:  # a list, a dict
        return lambda: value


class _FoundVariable:
    """A variable (or a parameter of a Keras object), its names in order of discovery, and the path of the first."""

    __slots__ = ("keys", "names", "value")

    def __init__(self, name: str, keys: tuple[str, ...], value: Any) -> None:
        self.names, self.keys, self.value = {name: keys}, keys, value


def _parameter(name: str, native: str, variable: Any, aliases: tuple[str, ...]) -> Parameter:
    shape, storage = variable.shape, storage_for(variable)
    if not shape.is_fully_defined():
        shape = storage.read(variable).shape  # made with shape=None: the shape of its present value
    return Parameter(
        name=name,
        native_name=native,
        layout=plain_layout(tuple(shape)),
        dtype=np.dtype(variable.dtype.as_numpy_dtype),
        storage=storage,
        handle=variable,
        aliases=aliases,
    )


def _walk(
    value: Any, path: str, keys: tuple[str, ...], above: dict[int, None], found: dict[int, _FoundVariable]
) -> None:
    """Collect the variables below ``value``; ``keys`` spell the path in Python: ``.blocks``, ``[0]``, ``.kernel``."""
    if isinstance(value, tf.Variable):
        _record(found, value, path, keys, value)
    elif _is_keras(value):
        backend = backend_for(value)
        adapter = None if backend is None else backend.adapter(value)  # None: an optimizer, a metric
        for parameter in () if adapter is None else adapter.parameters(value):
            array = (
                parameter.handle
                if isinstance(parameter.handle, tf.Variable)
                else getattr(parameter.handle, "_value", parameter.handle)
            )
            for name in (parameter.name, *parameter.aliases):
                _record(found, array, path if parameter.handle is value else f"{path}/{name}", keys, parameter)
    elif type(value).__name__ == "ShardedVariable":
        # Its parts may be no tf.Variables, and would be left out without a word.
        raise TargetError(
            f"{path or 'the target'!r} is a ShardedVariable: parts of it are on several parameter servers\n"
            f"got:      {len(value.variables)} parts, together {tuple(value.shape)}\n"
            "expected: variables of one process, or of one that MirroredStrategy copies\n"
            "Fix: make the model without ParameterServerStrategy's variable_partitioner, or edit its checkpoint"
        )
    elif isinstance(value, _HOLDERS) and id(value) not in above:
        # A module may refer to its parent; a shared one is walked again, for its other names.
        above[id(value)] = None
        for key, spelled, child in _children(value):
            _walk(child, f"{path}/{key}" if path else key, (*keys, spelled), above, found)
        del above[id(value)]


def _children(value: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (key, Python spelling, value) for each item of a module or container."""
    if isinstance(value, tf.Module):
        ignored = getattr(type(value), "_TF_MODULE_IGNORED_PROPERTIES", ())
        for key, child in vars(value).items():
            if key not in ignored and not key.startswith(_OWN):
                yield key, f".{key}", child
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield str(key), f"[{key!r}]", child
    elif hasattr(value, "_fields"):
        for key in value._fields:
            yield key, f".{key}", getattr(value, key)
    else:
        for position, child in enumerate(value):
            yield str(position), f"[{position}]", child


def _spell(keys: tuple[str, ...]) -> str:
    return "".join(keys).lstrip(".")


def _record(found: dict[int, _FoundVariable], array: Any, name: str, keys: tuple[str, ...], value: Any) -> None:
    entry = found.get(id(array))
    if entry is None:
        found[id(array)] = _FoundVariable(name, keys, value)
    else:
        entry.names.setdefault(name, keys)


_keras_types: dict[type[Any], bool] = {}


def _is_keras(value: Any) -> bool:
    kind = type(value)
    if kind not in _keras_types:
        family = set(roots(kind))
        if "tf_keras" in family:
            raise keras_2_error(value)
        _keras_types[kind] = "keras" in family
    return _keras_types[kind]


def _rename(parameter: Parameter, name: str, aliases: tuple[str, ...], native: str) -> Parameter:
    lone = not name.endswith(parameter.name)  # a Keras variable that is itself an attribute
    return Parameter(
        name=name,
        native_name=native if lone else parameter.native_name,
        role=name.rpartition("/")[2] if lone else parameter.role,
        layer=name.rpartition("/")[0] if lone else f"{name.removesuffix(parameter.name)}{parameter.layer}".rstrip("/"),
        gates=parameter.gates,
        aliases=aliases,
        layout=parameter.layout,
        dtype=parameter.dtype,
        hidden=parameter.hidden,
        storage=parameter.storage,
        handle=parameter.handle,
    )


def keras_2_error(value: Any) -> TargetError:
    """Return the error for an object of Keras 2."""
    return TargetError(
        "tf_keras is Keras 2, whose objects xweights doesn't edit\n"
        f"got:      {type(value).__module__}.{type(value).__qualname__}\n"
        "expected: a Keras 3 model or layer, a tf.Module or a tf.Variable\n"
        "Fix: build the model with `import keras` (Keras 3), or pass {v.path: v for v in model.variables}"
    )
