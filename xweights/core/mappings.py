"""Mappings of arrays as targets."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from xweights.core.dtypes import Array, is_complex
from xweights.core.layout import plain_layout
from xweights.core.numpy_groups import HostArrays
from xweights.core.parameter import Parameter
from xweights.core.parts import find_parts, is_array, is_run, show_parts
from xweights.core.protocols import Storage
from xweights.core.registry import backend_for
from xweights.errors import ArgumentError, SelectionError, TargetError


@runtime_checkable
class HasAxes(Protocol):
    """A mapping of arrays that has their axes, roles and gates, such as `Params`."""

    @property
    def axes(self) -> Mapping[str, Any]: ...
    @property
    def roles(self) -> Mapping[str, str | None]: ...
    @property
    def gates(self) -> Mapping[str, Any]: ...


def flatten_mapping(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping's values by ``/``-joined name; refuse keys that aren't strings, and equal names."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise ArgumentError(f"the names of weights are strings\ngot: {key!r} ({type(key).__name__})")
        inner = flatten_mapping(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value}
        twice = next((name for name in inner if name in flat), None)
        if twice is not None:
            raise ArgumentError(f"two arrays have the name {twice!r}: one nested, one with / in its key")
        flat |= inner
    return flat


def last_part(name: str) -> str:
    """Return the role that a bare name suggests: its last part, by ``/`` or ``.``."""
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[-1]


NUMPY = HostArrays()


class _TransientArrays(HostArrays):
    """Arrays of a mapping that makes them again at each access, as an open .npz file does."""

    def refusal(self, handle: Array, *, writing: bool) -> str | None:
        return (
            "its mapping makes the array again at each access, so the edit would be lost; pass dict(...)"
            if writing
            else None
        )


TRANSIENT = _TransientArrays()


def replaceable_entries(target: Any) -> list[tuple[MutableMapping[str, Any], str, Any]]:
    """Return (mapping, key, value) of each array of a target that its owner could replace by another object."""
    if isinstance(target, (list, tuple)):
        return [entry for item in target for entry in replaceable_entries(item)]
    entries: list[tuple[MutableMapping[str, Any], str, Any]] = []
    if isinstance(target, Mapping):
        for key, value in target.items():
            if isinstance(value, Mapping):
                entries += replaceable_entries(value)
            elif isinstance(target, MutableMapping):
                entries.append((target, key, value))
    return entries


def mapping_parameters(target: Mapping[str, Any]) -> list[Parameter]:
    """Return the arrays of a mapping as parameters; an array that it holds twice comes once."""
    by_identity: dict[Hashable, Parameter] = {}
    annotated: Any = target if isinstance(target, HasAxes) else None
    flat = _weights_of_run(target) if annotated is None and _is_more_than_arrays(target) else flatten_mapping(target)
    is_stable = isinstance(target, (dict, HasAxes)) or all(
        target[k] is v for k, v in list(flat.items())[:1] if k in target
    )
    for name, value in flat.items():
        storage, host = _storage_of(name, value)
        key = (type(storage), storage.identity(value))
        if key in by_identity:
            by_identity[key].aliases += (name,)
            by_identity[key].native_aliases += (name,)
            continue
        if storage is NUMPY and not is_stable:
            storage = TRANSIENT
        axes = None if annotated is None else annotated.axes[name]
        by_identity[key] = Parameter(
            name=name,
            native_name=name,
            layout=plain_layout(host.shape, axes),
            dtype=host.dtype,
            storage=storage,
            handle=value,
            role=last_part(name) if annotated is None else annotated.roles[name],
            layer=name[: len(name) - len(last_part(name))].rstrip("/."),
            gates=None if annotated is None else annotated.gates[name],
        )
    return list(by_identity.values())


def _is_more_than_arrays(target: Mapping[str, Any]) -> bool:
    """Return whether a mapping is what a training run saved: not of arrays alone, or with an optimizer's state."""
    if not is_run(target):
        return False
    return _has_other_leaves(target) or any(part.kind == "optimizer" for part in find_parts(target))


def _has_other_leaves(tree: Any) -> bool:
    if isinstance(tree, Mapping):
        return any(map(_has_other_leaves, tree.values()))
    return not is_array(tree)


def _weights_of_run(target: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arrays of the one part that holds weights of what a training run saved."""
    parts = find_parts(target)
    weights = [part for part in parts if part.kind == "weights"]
    if len(weights) != 1:
        shown = "\n".join(f"  {line}" for line in show_parts(parts).splitlines())
        fix = f"\nFix: pass the one that is meant: target[{weights[0].name!r}]" if weights else ""
        raise SelectionError(f"this mapping has {len(weights)} parts that hold weights\n{shown}{fix}")
    return weights[0].arrays


def _storage_of(name: str, value: Any) -> tuple[Storage, Array]:
    if isinstance(value, np.ndarray):
        if (value.dtype.kind not in "biufV" and not is_complex(value.dtype)) or value.dtype.names:
            raise TargetError(f"{name!r} holds no numbers of a kind that weights have\ngot: an array of {value.dtype}")
        return NUMPY, value
    backend = backend_for(value)
    if backend is None or isinstance(value, np.generic):
        raise TargetError(
            f"{name!r} can't be edited in place\n"
            f"got:      {type(value).__module__}.{type(value).__qualname__}\n"
            "expected: a NumPy array (or a tensor or variable of an installed framework)"
        )
    try:
        return backend.storage(value), backend.to_host(value)
    except TargetError as wrong:
        raise TargetError(f"{name!r}: {wrong}") from None
