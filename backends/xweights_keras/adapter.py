"""Adapter for Keras targets: models, layers and single variables.

What is known of a model is kept as long as it is as it was: see ``outline``.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import keras

from xweights.core.layer_rows import on_change
from xweights.core.layout import Layout, plain_layout
from xweights.core.parameter import Parameter
from xweights.core.plan import Plan
from xweights.errors import LayoutError, NotBuiltError, Problems
from xweights_keras.naming import is_made_up
from xweights_keras.outline import LayerOutline, outline_layer
from xweights_keras.parts import find_parts
from xweights_keras.storage.base import dtype_of, in_compiled_step
from xweights_keras.storage.choose import kind_of, storage_for
from xweights_keras.storage.refreshing import Refreshing
from xweights_keras.walk import FoundWeight, Walk, is_keras, join


class KerasAdapter:
    """Finder of the weights of a ``keras.Model``, ``keras.Layer`` or ``keras.Variable``."""

    def __init__(self) -> None:
        self._outlines: weakref.WeakKeyDictionary[Any, LayerOutline] = weakref.WeakKeyDictionary()
        on_change(self._outlines.clear)

    def parameters(self, target: Any) -> Sequence[Parameter]:
        plan = self.plan(target)
        return [_single_parameter(target)] if plan is None else plan.everything

    def plan(self, target: Any) -> Plan | None:
        """Return the plan of a layer; what is kept of it is checked, and made again if it isn't true any more."""
        if isinstance(target, keras.Variable):
            return None
        try:
            outline = self._outlines.get(target)
        except TypeError:  # a layer that defines its own equality and no hash
            parameters = _walk(target)
            return Plan(lambda: parameters)
        plan = None if outline is None else outline.open()
        if plan is None:
            parameters = _walk(target)
            # What a step that is being compiled sees isn't true after it.
            outline = None if in_compiled_step() else outline_layer(target, parameters)
            if outline is None:
                self._outlines.pop(target, None)
            else:
                self._outlines[target] = outline
            plan = Plan(lambda: parameters, outline, [p.handle for p in parameters])
        return Plan(lambda: plan.everything) if plan.outline is not None and in_compiled_step() else plan


def _walk(target: Any) -> list[Parameter]:
    walk = Walk()
    walk.visit(target)
    empty = not walk.weights and (walk.unused or not (target.built or is_keras(type(target))))
    if walk.unbuilt or empty:
        raise _not_built(target, walk.unbuilt or walk.unused)
    _check_initialised([(weight.name, weight.variable) for weight in walk.weights.values()], target)
    statistics = frozenset(walk.statistics)
    parts = find_parts((weight.owner, weight.variable) for weight in walk.weights.values())
    storages: dict[Any, Any] = {}
    refreshing: dict[int, Refreshing] = {}
    parameters = []
    misfits = Problems("declared rows don't fit the arrays of their layers")
    for weight in walk.weights.values():
        if weight.variable is None:
            parameters.append(_module_parameter(weight))
            continue
        kind = kind_of(weight.variable)
        if kind not in storages:
            storages[kind] = storage_for(weight.variable, target, statistics, parts)
        storage: Any = storages[kind]
        if weight.module is not None and type(weight.module.storage) is not type(getattr(storage, "inner", None)):
            parameters.append(_module_parameter(weight))  # parametrized, or else only the torch backend can write it
            continue
        if keeps_copy(weight.owner) and weight.entry is not None and weight.entry.native in ("mean", "variance"):
            key = id(weight.owner)
            if key not in refreshing:
                refreshing[key] = Refreshing(storage, weight.owner, lambda layer: layer.finalize_state())
            storage = refreshing[key]
        parameters.append(_parameter(weight, storage, misfits))
    misfits.check()
    types = {id(w.variable): _qualified_name(w.owner) for w in walk.weights.values() if w.owner is not None}
    for storage in storages.values():
        storage.layer_types = types
    return parameters


def _qualified_name(layer: Any) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def keeps_copy(layer: Any) -> bool:
    """Return True for a Normalization layer: it computes with tensors that finalize_state() makes from its weights."""
    return hasattr(layer, "finalize_state") and hasattr(layer, "input_mean")


def _parameter(weight: FoundWeight, storage: Any, misfits: Problems) -> Parameter:
    layout = _layout(weight, misfits)
    gates = None if weight.entry is None else weight.entry.gates
    native_name = weight.variable.path
    if weight.module is not None:
        layout, gates = weight.module.layout, weight.module.gates
        native_name = _native_name(weight)
    return Parameter(
        name=weight.name,
        native_name=native_name,
        layout=layout,
        dtype=dtype_of(weight.variable),
        storage=storage,
        handle=weight.variable,
        role=weight.role,
        layer=weight.layer,
        gates=gates if layout.axes is not None else None,
        aliases=tuple(weight.aliases),
    )


def _layout(weight: FoundWeight, misfits: Problems) -> Layout:
    """Return the layout of a variable, and note a declared row that doesn't fit it."""
    shape = tuple(int(n) for n in weight.variable.shape)
    if weight.entry is None:
        return plain_layout(shape)
    try:
        return weight.entry.layout(shape)
    except LayoutError as misfit:
        text = f"{weight.variable.path} has the shape {shape}\nrow: {weight.entry.declared}\n{misfit}"
        misfits.add(LayoutError, text, fix="xweights.register_layer(..., replace=True) with axes that fit")
        return plain_layout(shape)


def _module_parameter(weight: FoundWeight) -> Parameter:
    module: Parameter = weight.module
    return Parameter(
        name=weight.name,
        native_name=_native_name(weight),
        layout=module.layout,
        dtype=module.dtype,
        storage=module.storage,
        handle=module.handle,
        role=weight.role,
        layer=weight.layer,
        gates=module.gates,
        aliases=tuple(weight.aliases),
        hidden=module.hidden,
    )


def _native_name(weight: FoundWeight) -> str:
    return join(weight.owner.path or weight.owner.name, weight.module.native_name)


def _single_parameter(variable: Any) -> Parameter:
    name = "parameter" if is_made_up(variable.name, type(variable)) else variable.name
    _check_initialised([(name, variable)], variable)
    return _parameter(FoundWeight(variable, None, name, "", name), storage_for(variable), Problems(name))


def _check_initialised(weights: Sequence[tuple[str, Any]], target: Any) -> None:
    waiting = [name for name, v in weights if v is not None and v._value is None and v._initializer is not None]
    if waiting:
        raise NotBuiltError(
            f"{_describe(target)} was built in a keras.StatelessScope, and its weights have no values yet\n"
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
        f"{_describe(target)} isn't built{listed}\n"
        f"Fix: call it once on a batch, as in {what}(x), or call {what}.build(input_shape), such as (None, 28, 28, 1) "
        "with None for the batch"
    )


def _describe(target: Any) -> str:
    return f"the {type(target).__name__} {target.name!r}"
