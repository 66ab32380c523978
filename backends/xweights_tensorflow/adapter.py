"""How a ``tf.Module`` is walked: by attribute path, in the order in which the attributes were set.

A variable's own ``name`` ("Variable:0") says nothing and is not unique, so a parameter's name is the way to it:
``self.blocks[0].kernel`` is ``blocks/0/kernel``, as in the torch twin with the same attributes. A plain module says
nothing about axes: they are None.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xweights.core.layout import plain_layout
from xweights.core.parameter import Parameter
from xweights.core.registry import backend_for, roots
from xweights.errors import TargetError
from xweights_tensorflow.storage import VARIABLES

LONE = "parameter"
"""The name of a variable that is a target by itself."""

_HOLDERS = (tf.Module, list, tuple, dict, Mapping)
# TensorFlow's own bookkeeping, kept among a module's attributes.
_OWN = ("_self_", "_tf_module_", "_tf_api_", "_name_scope", "_obj_reference_counts", "_setattr_tracking")


class ModuleAdapter:
    """Finds the variables of modules, lists and mappings below a module, and a lone variable."""

    def __init__(self) -> None:
        # What was handed out for a module, to hand out again: making 1,000 handles costs as much as reading them.
        self._known: weakref.WeakKeyDictionary[Any, dict[str, Parameter]] = weakref.WeakKeyDictionary()

    def parameters(self, target: Any) -> Sequence[Parameter]:
        if isinstance(target, tf.Variable):
            return [_parameter(LONE, target.name.removesuffix(":0"), target, ())]
        found: dict[int, _Found] = {}
        _walk(target, "", (), {}, found)
        try:
            known = self._known.setdefault(target, {})
        except TypeError:  # a module without a hash
            known = {}
        fresh = {}
        for one in found.values():
            name, *others = one.names
            old = known.get(name)
            if isinstance(one.value, Parameter):
                fresh[name] = _renamed(one.value, name, tuple(others), "".join(one.keys).lstrip("."))
            elif (
                old is not None
                and old.handle is one.value
                and old.aliases == tuple(others)
                and one.value.shape.is_fully_defined()  # one made with shape=None may have another shape by now
            ):
                fresh[name] = old
            else:
                fresh[name] = _parameter(name, "".join(one.keys).lstrip("."), one.value, tuple(others))
        known.clear()
        known.update(fresh)
        return list(fresh.values())


class _Found:
    """A variable (or a parameter of a Keras object), its names in order of discovery, and the way to the first."""

    __slots__ = ("keys", "names", "value")

    def __init__(self, name: str, keys: tuple[str, ...], value: Any) -> None:
        self.names, self.keys, self.value = {name: None}, keys, value


def _parameter(name: str, native: str, variable: Any, aliases: tuple[str, ...]) -> Parameter:
    shape = variable.shape
    if not shape.is_fully_defined():
        shape = VARIABLES.read(variable).shape  # made with shape=None: what it holds now
    return Parameter(
        name=name,
        native_name=native,
        layout=plain_layout(tuple(shape)),
        dtype=np.dtype(variable.dtype.as_numpy_dtype),
        storage=VARIABLES,
        handle=variable,
        aliases=aliases,
    )


def _walk(value: Any, path: str, keys: tuple[str, ...], above: dict[int, None], found: dict[int, _Found]) -> None:
    """Collect the variables below ``value``. ``keys`` spell the way in Python: ``.blocks``, ``[0]``, ``.kernel``."""
    if isinstance(value, tf.Variable):
        _note(found, value, path, keys, value)
    elif _is_keras(value):
        backend = backend_for(value)
        adapter = None if backend is None else backend.adapter(value)  # None: an optimizer, a metric
        for one in () if adapter is None else adapter.parameters(value):
            array = one.handle if isinstance(one.handle, tf.Variable) else getattr(one.handle, "_value", one.handle)
            for name in (one.name, *one.aliases):
                _note(found, array, path if one.handle is value else f"{path}/{name}", keys, one)
    elif isinstance(value, _HOLDERS) and id(value) not in above:
        # A module may know its parent; a shared one is walked again, for its other names.
        above[id(value)] = None
        for key, spelled, one in _children(value):
            _walk(one, f"{path}/{key}" if path else key, (*keys, spelled), above, found)
        del above[id(value)]


def _children(value: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (key, Python spelling, value) for what a module or container holds."""
    if isinstance(value, tf.Module):
        ignored = getattr(type(value), "_TF_MODULE_IGNORED_PROPERTIES", ())
        for key, one in vars(value).items():
            if key not in ignored and not key.startswith(_OWN):
                yield key, f".{key}", one
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield str(key), f"[{key!r}]", one
    elif hasattr(value, "_fields"):
        for key in value._fields:
            yield key, f".{key}", getattr(value, key)
    else:
        for position, one in enumerate(value):
            yield str(position), f"[{position}]", one


def _note(found: dict[int, _Found], array: Any, name: str, keys: tuple[str, ...], value: Any) -> None:
    known = found.get(id(array))
    if known is None:
        found[id(array)] = _Found(name, keys, value)
    else:
        known.names[name] = None


_keras_types: dict[type[Any], bool] = {}


def _is_keras(value: Any) -> bool:
    kind = type(value)
    if kind not in _keras_types:
        family = set(roots(kind))
        if "tf_keras" in family:
            raise keras_2(value)
        _keras_types[kind] = "keras" in family
    return _keras_types[kind]


def _renamed(one: Parameter, name: str, aliases: tuple[str, ...], native: str) -> Parameter:
    lone = not name.endswith(one.name)  # a Keras variable that is an attribute itself
    return Parameter(
        name=name,
        native_name=native if lone else one.native_name,
        role=name.rpartition("/")[2] if lone else one.role,
        layer=name.rpartition("/")[0] if lone else f"{name.removesuffix(one.name)}{one.layer}".rstrip("/"),
        gates=one.gates,
        aliases=aliases,
        layout=one.layout,
        dtype=one.dtype,
        hidden=one.hidden,
        storage=one.storage,
        handle=one.handle,
    )


def keras_2(value: Any) -> TargetError:
    """Return the error for an object of Keras 2."""
    return TargetError(
        "tf_keras is Keras 2, whose objects xweights doesn't edit\n"
        f"got:      {type(value).__module__}.{type(value).__qualname__}\n"
        "expected: a Keras 3 model or layer, a tf.Module or a tf.Variable\n"
        "Fix: build the model with `import keras` (Keras 3), or pass {v.path: v for v in model.variables}"
    )
