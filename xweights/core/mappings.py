"""Mappings of arrays as targets."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, MutableMapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import plain_layout
from xweights.core.numpy_backend import NumpyStorage
from xweights.core.parameter import Parameter
from xweights.core.protocols import Storage
from xweights.core.registry import backend_for
from xweights.errors import (
    ArgumentError,
    TargetError,
)


@runtime_checkable
class KnowsAxes(Protocol):
    """A mapping of arrays that knows what they are: `Params`, which is built on this file."""

    @property
    def axes(self) -> Mapping[str, Any]: ...
    @property
    def roles(self) -> Mapping[str, str | None]: ...
    @property
    def gates(self) -> Mapping[str, Any]: ...


def leaves(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return what a nested mapping holds by ``/``-joined names; refuse keys that aren't strings, and equal names."""
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise ArgumentError(f"the names of weights are strings\ngot: {key!r} ({type(key).__name__})")
        inside = leaves(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value}
        twice = next((name for name in inside if name in found), None)
        if twice is not None:
            raise ArgumentError(f"two arrays have the name {twice!r}: one nested, one with / in its key")
        found |= inside
    return found


def last_part(name: str) -> str:
    """Return the role that a bare name suggests: its last part, by ``/`` or ``.``."""
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[-1]


NUMPY = NumpyStorage()


class _Fleeting(NumpyStorage):
    """Arrays of a mapping that makes them anew at each look, as an open .npz file does."""

    def refusal(self, handle: Array, *, writing: bool) -> str | None:
        return (
            "its mapping makes the array anew at each look, so the edit would be lost; pass dict(...)"
            if writing
            else None
        )


FLEETING = _Fleeting()


def places(target: Any) -> list[tuple[MutableMapping[str, Any], str, Any]]:
    """Return (mapping, key, value) of each leaf of a target that its owner could replace by another object."""
    if isinstance(target, (list, tuple)):
        return [place for one in target for place in places(one)]
    found: list[tuple[MutableMapping[str, Any], str, Any]] = []
    if isinstance(target, Mapping):
        for key, value in target.items():
            if isinstance(value, Mapping):
                found += places(value)
            elif isinstance(target, MutableMapping):
                found.append((target, key, value))
    return found


def mapping_parameters(target: Mapping[str, Any]) -> list[Parameter]:
    """Return the arrays of a mapping as parameters, an array that it holds twice once."""
    found: dict[Hashable, Parameter] = {}
    known: Any = target if isinstance(target, KnowsAxes) else None  # a Params
    named = leaves(target)
    lasting = isinstance(target, (dict, KnowsAxes)) or all(
        target[k] is v for k, v in list(named.items())[:1] if k in target
    )
    for name, value in named.items():
        storage, host = _leaf_storage(name, value)
        key = (type(storage), storage.identity(value))
        if key in found:
            found[key].aliases += (name,)
            continue
        if storage is NUMPY and not lasting:
            storage = FLEETING
        axes = None if known is None else known.axes[name]
        found[key] = Parameter(
            name=name,
            native_name=name,
            layout=plain_layout(host.shape, axes),
            dtype=host.dtype,
            storage=storage,
            handle=value,
            role=last_part(name) if known is None else known.roles[name],
            layer=name[: len(name) - len(last_part(name))].rstrip("/."),
            gates=None if known is None else known.gates[name],
        )
    return list(found.values())


def _leaf_storage(name: str, value: Any) -> tuple[Storage, Array]:
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biufV" or value.dtype.names:
            raise TargetError(f"{name!r} holds no real numbers\ngot: an array of {value.dtype}")
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
