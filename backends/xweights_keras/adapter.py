"""Keras targets: models, layers and single variables, walked and named.

What it found is kept for each model, weakly, for as long as the model's layers, variables and attribute paths are the
same.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import keras

from xweights.core.layout import Layout, plain_layout
from xweights.core.parameter import Parameter
from xweights.core.protocols import Storage
from xweights.errors import NotBuiltError
from xweights_keras.naming import is_made_up
from xweights_keras.storage.base import dtype_of
from xweights_keras.storage.choose import storage_for
from xweights_keras.storage.refreshing import Refreshing
from xweights_keras.walk import Found, Walk, is_keras, join, signature


class KerasAdapter:
    """Finds the weights of a ``keras.Model``, ``keras.Layer`` or ``keras.Variable``."""

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[Any, tuple[list[Any], list[Parameter]]] = weakref.WeakKeyDictionary()

    def parameters(self, target: Any) -> Sequence[Parameter]:
        if isinstance(target, keras.Variable):
            found = [_single(target)]
        else:
            now = signature(target)
            kept = self._known(target)
            if kept is None or kept[0] != now:
                kept = (now, _walked(target))
                with suppress(TypeError):  # a layer that defines its own equality and no hash
                    self._kept[target] = kept
            found = list(kept[1])
        return found

    def _known(self, target: Any) -> tuple[list[Any], list[Parameter]] | None:
        try:
            return self._kept.get(target)
        except TypeError:
            return None


def _walked(target: Any) -> list[Parameter]:
    walk = Walk()
    walk.visit(target)
    empty = not walk.found and (walk.unused or not (target.built or is_keras(type(target))))
    if walk.unbuilt or empty:
        raise _not_built(target, walk.unbuilt or walk.unused)
    _check_initialised([(one.name, one.variable) for one in walk.found.values()], target)
    statistics = frozenset(walk.statistics)
    storages: dict[type[Any], Storage] = {}
    refreshing: dict[int, Refreshing] = {}
    found = []
    for one in walk.found.values():
        if one.variable is None:
            found.append(_of_module(one))
            continue
        kind = type(one.variable._value)
        if kind not in storages:
            storages[kind] = storage_for(one.variable, target, statistics)
        storage: Any = storages[kind]
        if one.module is not None and type(one.module.storage) is not type(getattr(storage, "inner", None)):
            found.append(_of_module(one))  # parametrized, or otherwise only the torch backend's to write
            continue
        if keeps_copy(one.owner) and one.entry is not None and one.entry.native in ("mean", "variance"):
            key = id(one.owner)
            if key not in refreshing:
                refreshing[key] = Refreshing(storage, one.owner, lambda layer: layer.finalize_state())
            storage = refreshing[key]
        found.append(_parameter(one, storage))
    return found


def keeps_copy(layer: Any) -> bool:
    """Return True for a Normalization layer, which computes with tensors that finalize_state() makes of its weights."""
    return hasattr(layer, "finalize_state") and hasattr(layer, "input_mean")


def _parameter(one: Found, storage: Any) -> Parameter:
    shape = tuple(int(n) for n in one.variable.shape)
    layout: Layout = plain_layout(shape) if one.entry is None else one.entry.layout(shape)
    gates = None if one.entry is None else one.entry.gates
    native_name = one.variable.path
    if one.module is not None:
        layout, gates = one.module.layout, one.module.gates
        native_name = _native(one)
    return Parameter(
        name=one.name,
        native_name=native_name,
        layout=layout,
        dtype=dtype_of(one.variable),
        storage=storage,
        handle=one.variable,
        role=one.role,
        layer=one.layer,
        gates=gates if layout.axes is not None else None,
        aliases=tuple(one.aliases),
    )


def _of_module(one: Found) -> Parameter:
    module: Parameter = one.module
    return Parameter(
        name=one.name,
        native_name=_native(one),
        layout=module.layout,
        dtype=module.dtype,
        storage=module.storage,
        handle=module.handle,
        role=one.role,
        layer=one.layer,
        gates=module.gates,
        aliases=tuple(one.aliases),
        hidden=module.hidden,
    )


def _native(one: Found) -> str:
    return join(one.owner.path or one.owner.name, one.module.native_name)


def _single(variable: Any) -> Parameter:
    name = "parameter" if is_made_up(variable.name, type(variable)) else variable.name
    _check_initialised([(name, variable)], variable)
    return _parameter(Found(variable, None, name, "", name), storage_for(variable))


def _check_initialised(found: Sequence[tuple[str, Any]], target: Any) -> None:
    waiting = [name for name, one in found if one is not None and one._value is None and one._initializer is not None]
    if waiting:
        raise NotBuiltError(
            f"{_shown(target)} was built in a keras.StatelessScope, and its weights have no values yet\n"
            f"waiting: {', '.join(waiting[:8])}{', ...' if len(waiting) > 8 else ''}\n"
            "Fix: leave the scope, which initialises them unless it was made with initialize_variables=False"
        )


def _not_built(target: Any, missing: Sequence[tuple[str, Any]]) -> NotBuiltError:
    what = "model" if isinstance(target, keras.Model) else "layer"
    inside = [f"  - {path} ({type(layer).__name__})" for path, layer in missing if layer is not target]
    if len(inside) > 12:
        inside[12:] = [f"  - ... and {len(inside) - 12} more"]
    listed = ", and these in it have no weights yet:\n" + "\n".join(inside) if inside else " and has no weights yet"
    return NotBuiltError(
        f"{_shown(target)} isn't built{listed}\n"
        f"Fix: call it once on a batch, as in {what}(x), or call {what}.build(input_shape), such as (None, 28, 28, 1) "
        "with None for the batch"
    )


def _shown(target: Any) -> str:
    return f"the {type(target).__name__} {target.name!r}"
