"""What is kept of a Keras model from call to call, and the check that it is still true.

Kept are names, layouts and groups, with weak references to every layer and variable. At each call these are compared
with what the model has now: layers and variables by identity, and by value everything plain that a layer has as an
attribute, since names, axes, groups and selections follow from it. A loop over 1,000 layers would cost as much as
editing them, so each fact is compared for all at once, in C.

Nothing is kept of models that several processes share, and of those with a ``torch.nn.Module`` inside of a layer: they
are walked at each call.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, compress, repeat
from operator import is_, itemgetter, methodcaller
from typing import Any

import keras

from xweights.core.parameter import Parameter, is_shared
from xweights.core.plan import Outline, Plan, are_same, find_referred, group_key, refer_to
from xweights.core.protocols import GroupStorage
from xweights_keras.naming import find_attribute_paths, is_internal
from xweights_keras.walk import is_graph, is_module_wrapper

_lists = itemgetter("_trainable_variables", "_non_trainable_variables", "_layers")
# What names, selections and refusals follow from. Of JAX an assignment replaces the value, elsewhere nothing does.
_facts = itemgetter("_name", "_path", "_shape", "_dtype", "_trainable", "_overwrite_with_gradient")
_value = itemgetter("_value")
_PLAIN = (str, int, float, bool, type(None))
_OBJECTS = (keras.Layer, keras.Variable, keras.DTypePolicy)

# What Keras keeps in each layer, whatever its class: no name follows from it.
_INTERNAL = frozenset(key for key in vars(keras.Layer(name="any")) if key.startswith("_")) - {"_trainable"}

_type: Callable[[Any], Any] = type
_space: Callable[[Any], Any] = vars
_get: Callable[..., Any] = dict.get
# New in Python 3.11, and twice as fast as its stand-in.
_call: Callable[..., Any] = getattr(operator, "call", lambda function, *arguments: function(*arguments))


class LayerOutline(Outline):
    """The outline of a layer or model, with the references that it is checked by."""

    def __init__(self, layers: list[Any], parameters: Sequence[Parameter]) -> None:
        super().__init__([p.with_handle(None) for p in parameters], [group_key(p) for p in parameters])
        self._layers = list(map(weakref.ref, layers))
        self._types = list(map(_type, layers))
        spaces = _spaces_of(layers)
        # An attribute more or less. One in place of another that isn't looked at changes no name: variables and layers
        # are in the lists above, too, and the order of attributes counts only where `_find_paths` compares it.
        self._sizes = list(map(len, spaces))
        self._getters = list(map(_getter_of, spaces))
        values = list(chain.from_iterable(map(_call, self._getters, spaces)))
        self._are_objects = [isinstance(value, _OBJECTS) for value in values]
        self._are_plain = [not is_object for is_object in self._are_objects]
        self._objects = list(map(weakref.ref, compress(values, self._are_objects)))
        self._plain = list(compress(values, self._are_plain))
        self._kinds = list(map(_type, self._plain))
        self._lengths, owned = _read_lists(layers)
        self._owned = list(map(weakref.ref, owned))
        self._graphs = [at for at, layer in enumerate(layers) if is_graph(layer)]
        self._order = [[weakref.ref(inner) for inner in layers[at].layers] for at in self._graphs]
        self._searched = [at for at, layer in enumerate(layers) if _has_containers(layer)]
        self._paths = [_find_paths(layers[at]) for at in self._searched]
        variables = [p.handle for p in parameters]
        self._variables = list(map(weakref.ref, variables))
        self._facts = list(map(_facts, map(_space, variables)))
        self._natives = (
            [] if keras.backend.backend() == "jax" else list(map(refer_to, map(_value, map(_space, variables))))
        )
        members: dict[int, tuple[GroupStorage, list[int]]] = {}
        for position, key in enumerate(self.keys):
            if key is not None:
                members.setdefault(id(key[0]), (key[0], []))[1].append(position)
        self._members = list(members.values())
        self._states = self._read_states(variables)

    def open(self) -> Plan | None:
        """Return a plan on the variables that the model has now; None if anything is not as it was."""
        layers: list[Any] = find_referred(self._layers)
        variables: list[Any] = find_referred(self._variables)
        if _has_none(layers) or _has_none(variables) or list(map(_type, layers)) != self._types:
            return None
        if not self._have_same_attributes(layers) or not self._have_same_variables(variables):
            return None
        return Plan(
            lambda: [like.with_handle(v) for like, v in zip(self.likes, variables, strict=True)], self, variables
        )

    def _have_same_attributes(self, layers: list[Any]) -> bool:
        lengths, owned = _read_lists(layers)
        spaces = _spaces_of(layers)
        if lengths != self._lengths or list(map(len, spaces)) != self._sizes:
            return False
        try:
            values = list(chain.from_iterable(map(_call, self._getters, spaces)))
        except KeyError:
            return False
        plain = list(compress(values, self._are_plain))
        return (
            are_same(self._owned, owned)
            and are_same(self._objects, list(compress(values, self._are_objects)))
            # Types first, since a variable or an array can't be compared with a number.
            and list(map(_type, plain)) == self._kinds
            and plain == self._plain
            and all(are_same(kept, layers[at].layers) for at, kept in zip(self._graphs, self._order, strict=True))
            and all(_find_paths(layers[at]) == kept for at, kept in zip(self._searched, self._paths, strict=True))
        )

    def _have_same_variables(self, variables: list[Any]) -> bool:
        spaces = list(map(_space, variables))
        return (
            list(map(_facts, spaces)) == self._facts
            and (not self._natives or are_same(self._natives, list(map(_value, spaces))))
            and self._read_states(variables) == self._states
        )

    def _read_states(self, variables: list[Any]) -> list[list[Any]]:
        return [storage.group_state([variables[at] for at in members]) for storage, members in self._members]


def outline_layer(target: Any, parameters: Sequence[Parameter]) -> LayerOutline | None:
    """Return the outline of a layer or model with these parameters; None where only a walk can tell what it has."""
    layers = list(_iter_layers(target))
    if any(map(is_shared, parameters)):
        return None  # other processes have a part in each call
    if any(map(is_module_wrapper, layers)) or not all(isinstance(p.handle, keras.Variable) for p in parameters):
        return None
    try:
        return LayerOutline(layers, parameters)
    except (KeyError, TypeError):  # a layer that keeps its variables elsewhere, or objects without weak references
        return None


def _iter_layers(target: Any) -> Iterator[Any]:
    """Yield a layer and all in it once, those included that only an attribute has."""
    seen: set[int] = set()
    waiting = [target]
    while waiting:
        layer = waiting.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        yield layer
        waiting.extend(layer._layers)
        waiting.extend(layer.layers if is_graph(layer) else ())
        waiting.extend(value for value in vars(layer).values() if isinstance(value, keras.Layer))


def _spaces_of(layers: list[Any]) -> list[dict[str, Any]]:
    """Return the attributes of layers. On torch a layer is a module, and has its layers in `_modules`."""
    spaces = list(map(_space, layers))
    modules = [inner for inner in map(_get, spaces, repeat("_modules")) if inner]
    return spaces + modules if modules else spaces


def _read_lists(layers: list[Any]) -> tuple[list[int], list[Any]]:
    """Return the variables and layers that layers keep, and how many each has of each kind."""
    lists = list(chain.from_iterable(map(_lists, map(_space, layers))))
    return list(map(len, lists)), list(chain.from_iterable(lists))


def _has_containers(layer: Any) -> bool:
    """Return whether a layer has variables or layers in lists or mappings: it is looked through at each call."""
    paths = _find_paths(layer)
    owned = set(map(id, chain.from_iterable(_lists(vars(layer)))))
    return bool(owned - paths.keys()) or any("/" in path for found in paths.values() for path in found)


def _find_paths(layer: Any) -> dict[int, list[str]]:
    return find_attribute_paths(layer, set(map(id, chain.from_iterable(_lists(vars(layer))))))


def _getter_of(space: dict[str, Any]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """Return a function in C that reads the attributes of one layer that are compared."""
    keys = [
        key
        for key, value in space.items()
        if isinstance(value, _OBJECTS) or (key not in _INTERNAL and not is_internal(key) and _is_plain(value))
    ]
    # Of one key it would return no tuple.
    return itemgetter(*(keys * 2)[: max(2, len(keys))]) if keys else _no_keys


_no_keys = methodcaller("fromkeys", ())


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


def _has_none(values: list[Any]) -> bool:
    # Not with `in`, for which variables would be compared with None, entry by entry.
    return any(map(is_, values, repeat(None)))
