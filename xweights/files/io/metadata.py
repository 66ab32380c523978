"""Metadata of an array (neutral name, role, layout, gates, ...), stored in files as JSON.

Only facts that don't follow from the key, the shape and the dtype in the file are stored. Files are untrusted, so every
field is checked against the array that it describes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from xweights.core.dtypes import is_complex, is_floating, is_never_trained
from xweights.core.layout import Layout, Shape, plain_layout
from xweights.core.mappings import last_part
from xweights.core.parameter import Parameter

# The key under which formats keep array metadata.
METADATA_KEY = "xweights"


@dataclass(frozen=True)
class ArrayMetadata:
    """The neutral description of one array: everything that a Parameter has apart from its storage.

    ``native_aliases`` are the array's other keys in the file; the file itself tells them, so they aren't in the JSON.
    """

    name: str
    role: str
    layer: str
    layout: Layout
    trainable: bool
    gates: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    native: str | None = None
    native_aliases: tuple[str, ...] = ()

    @classmethod
    def of(cls, p: Parameter) -> ArrayMetadata:
        """Return the metadata of a parameter of any target."""
        return cls(p.name, p.role, p.layer, p.layout, p.trainable, p.gates, p.aliases, p.native_name)

    @classmethod
    def plain(cls, key: str, shape: Shape, dtype: np.dtype[Any]) -> ArrayMetadata:
        """Return the metadata that follows from a key, a shape and a dtype alone."""
        role = last_part(key)
        layer = key[: len(key) - len(role)].rstrip("/.")
        return cls(key, role, layer, plain_layout(shape), _is_trained(role, dtype), native=key)

    def with_alias(self, key: str) -> ArrayMetadata:
        """Return the metadata of an array that the file has under one key more."""
        # Where the file's note names the array, it names its aliases, too; otherwise the keys are its names.
        described = self.name != self.native or self.aliases != self.native_aliases
        native = tuple(dict.fromkeys((*self.native_aliases, key)))
        return replace(self, aliases=self.aliases if described else native, native_aliases=native)

    def as_json(self, key: str, dtype: np.dtype[Any]) -> dict[str, Any]:
        """Return the fields that don't follow from the file's key, shape and dtype, ready for JSON."""
        default = ArrayMetadata.plain(key, self.layout.stored, dtype)
        fields: dict[str, Any] = {}
        if self.name != key:
            fields["name"] = self.name
        if self.role != last_part(self.name):
            fields["role"] = self.role
        if self.layer != self.name[: len(self.name) - len(last_part(self.name))].rstrip("/."):
            fields["layer"] = self.layer
        if self.layout.axes is not None:
            fields["axes"] = self.layout.axes
        if self.layout.split != self.layout.stored:
            fields["split"] = self.layout.split
        if self.layout.order != tuple(range(len(self.layout.order))):
            fields["order"] = self.layout.order
        if self.layout.outputs is not None:
            fields["outputs"] = self.layout.outputs
        if self.trainable != default.trainable:
            fields["trainable"] = self.trainable
        if self.gates is not None:
            fields["gates"] = self.gates
        if self.aliases:
            fields["aliases"] = self.aliases
        if self.native not in (None, key):
            fields["native"] = self.native
        return fields

    @classmethod
    def from_json(cls, fields: Any, key: str, shape: Shape, dtype: np.dtype[Any]) -> ArrayMetadata:
        """Return the metadata that a file has for an array; raise ValueError if it doesn't fit."""
        if not isinstance(fields, dict):
            raise ValueError(f"its note is a {type(fields).__name__}, not an object")  # noqa: TRY004 - the file's fault
        unknown = fields.keys() - _CHECKS.keys()
        if unknown:
            raise ValueError(f"its note has the unknown word {min(unknown)!r}")
        for field, value in fields.items():
            if not _CHECKS[field](value):
                raise ValueError(f"its note has a wrong {field}: {str(value)[:80]!r}")
        split = tuple(fields.get("split", shape))
        order = tuple(fields.get("order", range(len(split))))
        axes = tuple(fields["axes"]) if "axes" in fields else None
        outputs = tuple(fields["outputs"]) if "outputs" in fields else None
        layout = _make_layout(shape, split, order, axes, outputs)
        name = fields.get("name", key)
        default = ArrayMetadata.plain(name, shape, dtype)
        return cls(
            name=name,
            role=fields.get("role", default.role),
            layer=fields.get("layer", default.layer),
            layout=layout,
            trainable=fields.get("trainable", default.trainable),
            gates=tuple(fields["gates"]) if "gates" in fields else None,
            aliases=tuple(fields.get("aliases", ())),
            native=fields.get("native", key),
        )


@lru_cache(maxsize=64)  # 1,000 arrays have a few layouts; no more is kept of what a file says
def _make_layout(
    shape: Shape, split: Shape, order: tuple[int, ...], axes: tuple[str, ...] | None, outputs: tuple[str, ...] | None
) -> Layout:
    """Return the layout that a note describes; raise ValueError if it doesn't fit the shape."""
    if split != shape and (math.prod(split) != math.prod(shape) or not _can_split(shape, split)):
        raise ValueError(f"its note splits the shape {shape} into {split}")
    if sorted(order) != list(range(len(split))):
        raise ValueError(f"its note orders {len(split)} axes as {order}")
    if axes is not None and (len(axes) != len(split) or len(set(axes)) != len(axes)):
        raise ValueError(f"its note names the axes {axes} of {len(split)}")
    if axes is not None or split != shape or order:
        return Layout(shape, split, order, axes, outputs)
    return plain_layout(shape)


@lru_cache(maxsize=64)  # 1,000 arrays have a few roles and one dtype
def _is_trained(role: str, dtype: np.dtype[Any]) -> bool:
    return (is_floating(dtype) or is_complex(dtype)) and not is_never_trained(role)


def _can_split(shape: Shape, split: Shape) -> bool:
    """Return whether each stored axis is a run of split axes (or a dropped axis of length 1)."""
    position = 0
    for length in shape:
        product = 1
        while product < length and position < len(split):
            product *= split[position]
            position += 1
        if product != length:
            return False
    return all(axis == 1 for axis in split[position:])


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 10_000


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(text) for text in value)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(type(count) is int and count >= 0 for count in value)


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_text, "role": _is_text, "layer": _is_text, "native": _is_text, "dtype": _is_text, "axes": _are_texts,
    "outputs": _are_texts, "gates": _are_texts, "aliases": _are_texts, "split": _are_counts, "order": _are_counts,
    "trainable": lambda value: isinstance(value, bool), "at": lambda value: type(value) is int,
}  # fmt: skip


def compact_json(value: Any) -> str:
    """Return a value as JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)
