"""How a ``tf.Module`` is walked: by attribute path, in the order in which the attributes were set.

Owns :class:`ModuleAdapter`. Imports TensorFlow, NumPy, the core and this package's ``storage``.

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

from xweights.axes import plain_layout
from xweights.backend import backend_for, roots
from xweights.errors import TargetError
from xweights.parameter import Parameter
from xweights_tensorflow.storage import VARIABLES

LONE = "parameter"
"""The name of a variable that is a target by itself."""

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
        found: dict[int, tuple[list[str], str, Any]] = {}
        for path, native, value in _walk(target, "", "", []):
            for name, spelled, one in _leaves(path, native, value):
                names, _, _ = found.setdefault(id(_array(one)), ([], spelled, one))
                names.append(name)
        try:
            known = self._known.setdefault(target, {})
        except TypeError:  # a module without a hash
            known = {}
        fresh = {}
        for names, spelled, one in found.values():
            name, aliases = names[0], tuple(dict.fromkeys(names[1:]))
            old = known.get(name)
            if isinstance(one, Parameter):
                fresh[name] = _renamed(one, name, aliases)
            elif old is not None and old.handle is one and old.aliases == aliases and old.native_name == spelled:
                # (a variable made with shape=None may have another shape by now)
                fresh[name] = old if one.shape.is_fully_defined() else _parameter(name, spelled, one, aliases)
            else:
                fresh[name] = _parameter(name, spelled, one, aliases)
        known.clear()
        known.update(fresh)
        return list(fresh.values())


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


def _array(found: Any) -> Any:
    return found.handle if isinstance(found, Parameter) else found


def _walk(value: Any, path: str, native: str, above: list[int]) -> Iterator[tuple[str, str, Any]]:
    """Yield (path, native spelling, variable or foreign object) for everything below ``value``."""
    if isinstance(value, tf.Variable):
        yield path, native, value
    elif _is_keras(value):
        yield path, native, value
    elif isinstance(value, (tf.Module, list, tuple, dict, Mapping)) and id(value) not in above:
        # A module may know its parent; a shared one is walked again, for its other names.
        above.append(id(value))
        for key, spelled, one in _children(value):
            joined = key if not path else f"{path}/{key}"
            yield from _walk(one, joined, spelled.lstrip(".") if not native else native + spelled, above)
        above.pop()


def _children(value: Any) -> Iterator[tuple[str, str, Any]]:
    if isinstance(value, tf.Module):
        ignored = getattr(type(value), "_TF_MODULE_IGNORED_PROPERTIES", ())
        for key, one in vars(value).items():
            if key not in ignored and not key.startswith(_OWN):
                yield key, f".{key}", one
    elif isinstance(value, (dict, Mapping)):
        for key, one in value.items():
            yield str(key), f"[{key!r}]", one
    elif hasattr(value, "_fields"):
        for key in value._fields:
            yield key, f".{key}", getattr(value, key)
    else:
        for position, one in enumerate(value):
            yield str(position), f"[{position}]", one


def _is_keras(value: Any) -> bool:
    if type(value).__module__ in ("builtins", "numpy"):
        return False
    family = set(roots(type(value)))
    if "tf_keras" in family:
        raise keras_2(value)
    return "keras" in family


def _leaves(path: str, native: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield the parameters of a Keras object inside a module, under its attribute path; a variable as it is."""
    if isinstance(value, tf.Variable):
        yield path, native, value
        return
    backend = backend_for(value)
    adapter = None if backend is None else backend.adapter(value)
    for one in () if adapter is None else adapter.parameters(value):
        for name in (one.name, *one.aliases):
            yield (path if name == LONE else f"{path}/{name}"), native, one


def _renamed(one: Parameter, name: str, aliases: tuple[str, ...]) -> Parameter:
    lone = one.name == LONE
    return Parameter(
        name=name,
        native_name=name if lone else one.native_name,
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
