"""Neutral names from attribute paths and layer names, with the names that Keras made up replaced."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Any, NamedTuple

from keras.src.utils.naming import to_snake_case

# Attributes that Keras and its backends keep for themselves. All others of a layer are the user's.
_INTERNAL = frozenset(
    {
        "_buffers", "_functional", "_inbound_nodes", "_layers", "_losses", "_metrics", "_modules", "_nodes",
        "_nodes_by_depth", "_non_trainable_variables", "_operations", "_operations_by_depth", "_outbound_nodes",
        "_parameters", "_seed_generators", "_torch_params", "_tracker", "_trainable_variables",
    }
)  # fmt: skip

_CONTAINERS = (dict, list, tuple)
_DEEPEST = 8  # a list may contain itself

_snake: dict[type[Any], str] = {}
_numbered = re.compile(r"(.*?)_\d+")


def to_snake(kind: type[Any]) -> str:
    """Return a class's name as Keras writes it in snake case: ``Conv2DTranspose`` -> ``conv2d_transpose``."""
    if kind not in _snake:
        _snake[kind] = to_snake_case(kind.__name__)
    return _snake[kind]


def is_made_up(name: str, kind: type[Any]) -> bool:
    """Return True for a name that Keras may have made: the class in snake case, with ``_n`` or without.

    The rule looks only at the string, so that a reloaded model, which has its saved names, agrees with a new one.
    """
    base = to_snake(kind)
    if name == base:
        return True
    match = _numbered.fullmatch(name)
    return match is not None and match[1] == base


def name_layers(layers: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the layers of a functional or Sequential model with their paths: ``dense/0``, or the name the user gave.

    The position counts every layer of the class, named ones too, so that naming one layer renames no other.
    """
    seen: Counter[str] = Counter()
    for layer in layers:
        kind = to_snake(type(layer))
        path = f"{kind}/{seen[kind]}" if is_made_up(layer.name, type(layer)) else layer.name
        seen[kind] += 1
        yield path, layer


def is_internal(attribute: str) -> bool:
    """Return whether Keras or its backend keeps an attribute for itself."""
    return attribute in _INTERNAL or attribute.startswith("_self_")


class Places(NamedTuple):
    """Where in a mapping or list the objects are that are searched for, and the same of each mapping or list in it."""

    keys: list[Any]
    ids: list[int]
    inside: list[tuple[Any, Any]]


def _attributes_of(layer: Any) -> list[tuple[str, Any]]:
    space = vars(layer)
    return [*space.items(), *space.get("_modules", {}).items()]  # Keras layers are modules on torch


def find_attribute_paths(layer: Any, wanted: set[int]) -> dict[int, list[str]]:
    """Return the attribute paths, shortest first, of the objects of ``wanted`` (ids) that a layer holds.

    Paths of one length are in order of definition. The length goes first because torch stores layers apart from lists
    of layers, so it isn't known on every Keras backend which of the two was defined first.
    """
    paths_by_id: dict[int, list[str]] = {}
    for key, value in _attributes_of(layer):
        if not is_internal(key):
            _search(value, key, wanted, paths_by_id, depth=0)
    for paths in paths_by_id.values():
        paths.sort(key=lambda path: path.count("/"))
    return paths_by_id


def find_places(layer: Any, wanted: set[int]) -> Places:
    """Return what :func:`find_attribute_paths` follows from, which is made and compared in a fifth of the time."""
    return _read_places({key: value for key, value in _attributes_of(layer) if not is_internal(key)}, wanted, -1)


def _read_places(container: Any, wanted: set[int], depth: int) -> Places:
    keys: Sequence[Any]
    if isinstance(container, tuple) and hasattr(container, "_asdict"):
        container = container._asdict()
    if isinstance(container, dict):
        keys, items = [f"{key}" for key in container], list(container.values())
    else:
        keys, items = range(len(container)), container
    ids = list(map(id, items))
    are_wanted = list(map(wanted.__contains__, ids))
    inside = []
    if depth < _DEEPEST and any(issubclass(kind, _CONTAINERS) for kind in set(map(type, items))):
        for key, item, is_wanted in zip(keys, items, are_wanted, strict=True):
            if isinstance(item, _CONTAINERS) and not is_wanted:
                found = _read_places(item, wanted, depth + 1)
                if found.keys or found.inside:
                    inside.append((key, found))
    return Places(list(compress(keys, are_wanted)), list(compress(ids, are_wanted)), inside)


def _search(value: Any, path: str, wanted: set[int], paths_by_id: dict[int, list[str]], *, depth: int) -> None:
    if id(value) in wanted:
        paths_by_id.setdefault(id(value), []).append(path)
        return
    if depth > _DEEPEST:
        return
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        items = value._asdict().items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        _search(item, f"{path}/{key}", wanted, paths_by_id, depth=depth + 1)
