"""Neutral names for what Keras calls by attribute, by layer name, or by a name that it made up itself."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from keras.src.utils.naming import to_snake_case

# Where Keras and its backends keep their own books. Everything else in a layer's attributes is the user's.
_BOOKS = frozenset(
    {
        "_buffers", "_functional", "_inbound_nodes", "_layers", "_losses", "_metrics", "_modules", "_nodes",
        "_nodes_by_depth", "_non_trainable_variables", "_operations", "_operations_by_depth", "_outbound_nodes",
        "_parameters", "_seed_generators", "_torch_params", "_tracker", "_trainable_variables",
    }
)  # fmt: skip

_snake: dict[type[Any], str] = {}
_numbered = re.compile(r"(.*?)_\d+")


def snake(kind: type[Any]) -> str:
    """Return what Keras makes of a class's name: ``Conv2DTranspose`` -> ``conv2d_transpose``."""
    if kind not in _snake:
        _snake[kind] = to_snake_case(kind.__name__)
    return _snake[kind]


def is_made_up(name: str, kind: type[Any]) -> bool:
    """Return True for a name that Keras may have made: the class in snake case, with ``_n`` or without.

    It is a rule on the string alone, so that a reloaded model, which brings its names along, agrees with a new one.
    """
    base = snake(kind)
    if name == base:
        return True
    found = _numbered.fullmatch(name)
    return found is not None and found[1] == base


def by_name(layers: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the layers of a functional or Sequential model with their paths: ``dense/0``, or the name the user gave.

    The position counts every layer of the class, named ones too, so that naming one layer renames no other.
    """
    seen: Counter[str] = Counter()
    for layer in layers:
        kind = snake(type(layer))
        path = f"{kind}/{seen[kind]}" if is_made_up(layer.name, type(layer)) else layer.name
        seen[kind] += 1
        yield path, layer


def by_attribute(layer: Any, wanted: set[int]) -> dict[int, list[str]]:
    """Return the attribute paths, shortest first, of the objects of ``wanted`` (ids) that a layer holds.

    Shortest first and then in order of definition: torch keeps layers apart from lists of layers, so which of
    the two was defined first isn't known on every Keras backend.
    """
    space = vars(layer)
    places = [*space.items(), *space.get("_modules", {}).items()]  # Keras layers are modules on torch
    found: dict[int, list[str]] = {}
    for key, value in places:
        if key not in _BOOKS and not key.startswith("_self_"):
            _search(value, key, wanted, found, depth=0)
    for paths in found.values():
        paths.sort(key=lambda path: path.count("/"))
    return found


def _search(value: Any, path: str, wanted: set[int], found: dict[int, list[str]], *, depth: int) -> None:
    if id(value) in wanted:
        found.setdefault(id(value), []).append(path)
        return
    if depth > 8:
        return  # a list that contains itself
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        items = value._asdict().items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return
    for key, one in items:
        _search(one, f"{path}/{key}", wanted, found, depth=depth + 1)
