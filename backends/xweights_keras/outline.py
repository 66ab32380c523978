"""What is kept of a Keras model from call to call, and the check that it is still true.

Kept are names, layouts and groups, with weak references to every layer and variable. At each call these are compared
with what the model has now: layers and variables by identity, and by value what is plain among the attributes of a
layer, since names, axes, groups and selections follow from it. A loop over 1,000 layers would cost as much as
editing them, so one call in C reads all that is compared of a layer, and each fact is compared for many layers at once.

Nothing is kept of models that several processes share, and of those with a ``torch.nn.Module`` inside of a layer: they
are walked at each call.
"""

from __future__ import annotations

import operator
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, compress, repeat, zip_longest
from operator import attrgetter, is_, itemgetter
from typing import Any

import keras

from xweights.core.parameter import Parameter, is_shared
from xweights.core.plan import Outline, Plan, are_same, find_referred, group_key, refer_to
from xweights.core.protocols import GroupStorage
from xweights_keras.naming import find_attribute_paths, find_places, is_internal
from xweights_keras.walk import is_graph, is_keras, is_module_wrapper

_LISTS = ("_trainable_variables", "_non_trainable_variables", "_layers")
# The value, which only on JAX an assignment replaces, and what names and refusals follow from.
_FACTS = ("_value", "_name", "_path", "_shape", "_dtype", "_trainable", "_overwrite_with_gradient")
# How many layers are looked at together, so that what is read of them is still in the processor's cache when it is
# compared: the attributes of 1,000 layers are more than fits there.
_TOGETHER = 50
_PLAIN = (str, int, float, bool, type(None))
_OBJECTS = (keras.Layer, keras.Variable, keras.DTypePolicy)

# What Keras keeps in each layer, whatever its class: no name follows from it.
_INTERNAL = frozenset(key for key in vars(keras.Layer(name="any")) if key.startswith("_")) - {"_trainable"}

# So it is with a third of what Keras' own layers have; less to read is less time.
_SETTINGS = re.compile(r"^(autocast|supports_jit)$|(_|^)(constraint|initializer|regularizer)$")

_type: Callable[[Any], Any] = type
_space: Callable[[Any], Any] = attrgetter("__dict__")  # half the time of `vars`
_lists: Callable[[Any], Any] = itemgetter(*_LISTS)
_facts: Callable[[Any], Any] = itemgetter(*_FACTS)
_get: Callable[..., Any] = dict.get
_IS_TORCH = keras.backend.backend() == "torch"
# New in Python 3.11, and twice as fast as its stand-in.
_call: Callable[..., Any] = getattr(operator, "call", lambda function, *arguments: function(*arguments))


class LayerOutline(Outline):
    """The outline of a layer or model, with the references that it is checked by."""

    def __init__(self, layers: list[Any], parameters: Sequence[Parameter]) -> None:
        super().__init__([p.with_handle(None) for p in parameters], [group_key(p) for p in parameters])
        self._count = len(layers)
        variables = [p.handle for p in parameters]
        known = _Known()
        known.find_places([*layers, *variables])
        pieces = [layers[at : at + _TOGETHER] for at in range(0, len(layers), _TOGETHER)]
        self._attributes = [_Attributes(piece, known) for piece in pieces]
        self._graphs = [at for at, layer in enumerate(layers) if is_graph(layer)]
        self._orders = [_expect(layers[at].layers, known) for at in self._graphs]
        self._known = list(map(weakref.ref, known.objects))
        owned = [_find_owned(layer) for layer in layers]
        self._searched = [(at, owned[at]) for at, layer in enumerate(layers) if _has_containers(layer, owned[at])]
        self._places = [find_places(layers[at], wanted) for at, wanted in self._searched]
        self._facts, natives = _read_facts(variables)
        self._natives = [] if keras.backend.backend() == "jax" else list(map(refer_to, natives))
        members: dict[int, tuple[GroupStorage, list[int]]] = {}
        for position, key in enumerate(self.keys):
            if key is not None:
                members.setdefault(id(key[0]), (key[0], []))[1].append(position)
        self._members = list(members.values())
        self._states = self._read_states(variables)

    def open(self) -> Plan | None:
        """Return a plan on the variables that the model has now; None if anything is not as it was."""
        known: list[Any] = find_referred(self._known)
        # Not with `in`, for which variables would be compared with None, entry by entry.
        if any(map(is_, known, repeat(None))):
            return None
        layers, variables = known[: self._count], known[self._count : self._count + len(self.likes)]
        if not self._have_same_attributes(layers, known) or not self._have_same_facts(variables):
            return None
        return Plan(
            lambda: [like.with_handle(v) for like, v in zip(self.likes, variables, strict=True)], self, variables
        )

    def _have_same_attributes(self, layers: list[Any], known: list[Any]) -> bool:
        starts = range(0, len(layers), _TOGETHER)
        return (
            all(
                attributes.are_same(layers[start : start + _TOGETHER], known)
                for start, attributes in zip(starts, self._attributes, strict=True)
            )
            and all(expected(layers[at].layers, known) for at, expected in zip(self._graphs, self._orders, strict=True))
            # What a layer owns is what it was, so that ids tell one from the other.
            and [find_places(layers[at], wanted) for at, wanted in self._searched] == self._places
        )

    def _have_same_facts(self, variables: list[Any]) -> bool:
        facts, natives = _read_facts(variables)
        return (
            facts == self._facts
            and (not self._natives or are_same(self._natives, natives))
            and self._read_states(variables) == self._states
        )

    def _read_states(self, variables: list[Any]) -> list[list[Any]]:
        return [storage.group_state([variables[at] for at in members]) for storage, members in self._members]


class _Known:
    """The objects that an outline refers to, each once: wherever one is expected, its place here is kept."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self._places: dict[int, int] = {}
        self._shared: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def find_places(self, objects: Iterable[Any]) -> tuple[int, ...]:
        """Return the places of objects, new ones among them."""
        places = []
        for one in objects:
            if id(one) not in self._places:
                self._places[id(one)] = len(self.objects)
                self.objects.append(one)
            places.append(self._places[id(one)])
        return tuple(places)

    def share(self, facts: Iterable[Any]) -> tuple[Any, ...]:
        """Return facts as a tuple, the same for equal ones."""
        alike = tuple(facts)
        return self._shared.setdefault(alike, alike)


class _Attributes:
    """What some layers of a model had when they were first looked at."""

    def __init__(self, layers: list[Any], known: _Known) -> None:
        spaces = _spaces_of(layers)
        self._types = list(map(_type, layers))
        self._sizes = list(map(len, spaces))  # an attribute more or less
        chosen = [_keys_of(space, layer) for space, layer in zip_longest(spaces, layers)]
        self._readers = list(map(_pick_alike, chosen))
        values = self._read(spaces)
        keys = list(chain.from_iterable(chosen))
        are_plain = list(map(_is_plain, values))
        are_objects = [isinstance(value, _OBJECTS) for value in values]
        are_lists = [key in _LISTS for key in keys]
        are_others = [not any(kinds) for kinds in zip(are_plain, are_objects, are_lists, strict=True)]
        self._pick_plain, self._pick_objects, self._pick_lists, self._pick_others = (
            _pick_alike(tuple(compress(range(len(values)), these)))
            for these in (are_plain, are_objects, are_lists, are_others)
        )
        self._plain = self._pick_plain(values)
        self._kinds = known.share(map(_type, self._plain))
        self._other_kinds = known.share(map(_type, self._pick_others(values)))
        lists = self._pick_lists(values)
        self._lengths = list(map(len, lists))
        self._are_objects = _expect(self._pick_objects(values), known)
        self._are_owned = _expect(list(chain.from_iterable(lists)), known)

    def _read(self, spaces: list[dict[str, Any]]) -> list[Any]:
        return list(chain.from_iterable(map(_call, self._readers, spaces)))

    def are_same(self, layers: list[Any], known: list[Any]) -> bool:
        """Return whether layers have all of it now."""
        spaces = _spaces_of(layers)
        if list(map(_type, layers)) != self._types or list(map(len, spaces)) != self._sizes:
            return False
        try:
            values = self._read(spaces)
        except KeyError:
            return False
        plain = self._pick_plain(values)
        # Types first, since a variable or an array can't be compared with a number. What is the same object is equal
        # without a look at it.
        if tuple(map(_type, plain)) != self._kinds or plain != self._plain:
            return False
        lists = self._pick_lists(values)
        return (
            list(map(len, lists)) == self._lengths
            and self._are_objects(self._pick_objects(values), known)
            and self._are_owned(list(chain.from_iterable(lists)), known)
            # What was a function may be a list of layers now.
            and tuple(map(_type, self._pick_others(values))) == self._other_kinds
        )


def _expect(objects: Sequence[Any], known: _Known) -> Callable[[Sequence[Any], list[Any]], bool]:
    """Return a function that tells whether others are the same, given all that are known. It keeps none alive."""
    count, pick = len(objects), _pick(known.find_places(objects))
    return lambda now, known: len(now) == count and all(map(is_, now, pick(known)))


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
    return [*spaces, *filter(None, map(_get, spaces, repeat("_modules")))] if _IS_TORCH else spaces


def _keys_of(space: dict[str, Any], layer: Any) -> tuple[str, ...]:
    """Return which attributes of a layer, or of what torch keeps for it (``layer`` is None), are read at each call.

    Another name of a layer may be in any attribute. Of one that Keras itself defines, without layers in it, those are
    read from which names, axes or refusals follow.
    """
    is_known = layer is not None and is_keras(type(layer)) and not layer._layers
    rest = (
        key
        for key, value in space.items()
        if isinstance(value, _OBJECTS)
        or not (key in _INTERNAL or is_internal(key) or (is_known and (_SETTINGS.search(key) or not _is_plain(value))))
    )
    return tuple(rest) if layer is None else (*_LISTS, *rest)


def _read_facts(variables: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return what names and refusals of variables follow from, one behind the other, and their native values."""
    facts = list(chain.from_iterable(map(_facts, map(_space, variables))))
    natives = facts[:: len(_FACTS)]
    del facts[:: len(_FACTS)]
    return facts, natives


def _find_owned(layer: Any) -> set[int]:
    return set(map(id, chain.from_iterable(_lists(vars(layer)))))


def _has_containers(layer: Any, owned: set[int]) -> bool:
    """Return whether a layer has variables or layers in lists or mappings, or twice: it is looked through each time."""
    paths = find_attribute_paths(layer, owned)
    return bool(owned - paths.keys()) or any(len(found) > 1 or "/" in found[0] for found in paths.values())


def _pick(keys: tuple[Any, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function, in C but for less than two keys, that returns items of a list or mapping as a tuple."""
    return itemgetter(*keys) if len(keys) > 1 else lambda items: tuple(items[key] for key in keys)


# Layers of one kind share theirs, so that less of what a check reads has to be fetched into the processor's cache.
_pick_alike = lru_cache(maxsize=1024)(_pick)


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))
