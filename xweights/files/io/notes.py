"""What xweights knows of an array beyond its bytes, as JSON that files carry.

A note says only what the key, the shape and the dtype in the file don't say already. It comes from a file that nobody
vouches for, so every word of it is checked against the array it stands beside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xweights.core.dtypes import is_floating
from xweights.core.layout import Layout, Shape, plain_layout
from xweights.core.mappings import last_part
from xweights.core.parameter import Parameter

# The key under which formats keep notes.
NOTE = "xweights"


@dataclass(frozen=True)
class ArrayMetadata:
    """The neutral words for one array: what a Parameter has besides its storage."""

    name: str
    role: str
    layer: str
    layout: Layout
    trainable: bool
    gates: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    native: str | None = None

    @classmethod
    def of(cls, p: Parameter) -> ArrayMetadata:
        """Return what is known of a parameter of any target."""
        return cls(p.name, p.role, p.layer, p.layout, p.trainable, p.gates, p.aliases, p.native_name)

    @classmethod
    def plain(cls, key: str, shape: Shape, dtype: np.dtype[Any]) -> ArrayMetadata:
        """Return what a key and a shape alone say."""
        role = last_part(key)
        layer = key[: len(key) - len(role)].rstrip("/.")
        return cls(key, role, layer, plain_layout(shape), is_floating(dtype), native=key)

    def as_json(self, key: str, dtype: np.dtype[Any]) -> dict[str, Any]:
        """Return what the file's key, shape and dtype don't say already, ready for JSON."""
        usual = ArrayMetadata.plain(key, self.layout.stored, dtype)
        found: dict[str, Any] = {}
        if self.name != key:
            found["name"] = self.name
        if self.role != last_part(self.name):
            found["role"] = self.role
        if self.layer != self.name[: len(self.name) - len(last_part(self.name))].rstrip("/."):
            found["layer"] = self.layer
        if self.layout.axes is not None:
            found["axes"] = self.layout.axes
        if self.layout.split != self.layout.stored:
            found["split"] = self.layout.split
        if self.layout.order != tuple(range(len(self.layout.order))):
            found["order"] = self.layout.order
        if self.layout.outputs is not None:
            found["outputs"] = self.layout.outputs
        if self.trainable != usual.trainable:
            found["trainable"] = self.trainable
        if self.gates is not None:
            found["gates"] = self.gates
        if self.aliases:
            found["aliases"] = self.aliases
        if self.native not in (None, key):
            found["native"] = self.native
        return found

    @classmethod
    def from_json(cls, found: Any, key: str, shape: Shape, dtype: np.dtype[Any]) -> ArrayMetadata:
        """Return the note that a file has for an array; raise ValueError if it doesn't fit."""
        if not isinstance(found, dict):
            raise ValueError(f"its note is a {type(found).__name__}, not an object")  # noqa: TRY004 - the file's fault
        strange = found.keys() - _CHECKS.keys()
        if strange:
            raise ValueError(f"its note has the unknown word {min(strange)!r}")
        for word, value in found.items():
            if not _CHECKS[word](value):
                raise ValueError(f"its note has a wrong {word}: {str(value)[:80]!r}")
        split = tuple(found.get("split", shape))
        order = tuple(found.get("order", range(len(split))))
        axes = tuple(found["axes"]) if "axes" in found else None
        if split != shape and (math.prod(split) != math.prod(shape) or not _splits(shape, split)):
            raise ValueError(f"its note splits the shape {shape} into {split}")
        if sorted(order) != list(range(len(split))):
            raise ValueError(f"its note orders {len(split)} axes as {order}")
        if axes is not None and (len(axes) != len(split) or len(set(axes)) != len(axes)):
            raise ValueError(f"its note names the axes {axes} of {len(split)}")
        outputs = tuple(found["outputs"]) if "outputs" in found else None
        layout = (
            Layout(shape, split, order, axes, outputs)
            if axes is not None or split != shape or order
            else plain_layout(shape)
        )
        name = found.get("name", key)
        usual = ArrayMetadata.plain(name, shape, dtype)
        return cls(
            name=name,
            role=found.get("role", usual.role),
            layer=found.get("layer", usual.layer),
            layout=layout,
            trainable=found.get("trainable", usual.trainable),
            gates=tuple(found["gates"]) if "gates" in found else None,
            aliases=tuple(found.get("aliases", ())),
            native=found.get("native", key),
        )


def _splits(shape: Shape, split: Shape) -> bool:
    """Return whether each stored axis is a run of the split ones (or a dropped axis of length 1)."""
    at = 0
    for length in shape:
        product = 1
        while product < length and at < len(split):
            product *= split[at]
            at += 1
        if product != length:
            return False
    return all(one == 1 for one in split[at:])


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 10_000


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(_text(one) for one in value)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(type(one) is int and one >= 0 for one in value)


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "name": _text, "role": _text, "layer": _text, "native": _text, "dtype": _text, "axes": _texts, "outputs": _texts,
    "gates": _texts, "aliases": _texts, "split": _counts, "order": _counts,
    "trainable": lambda value: isinstance(value, bool), "at": lambda value: type(value) is int,
}  # fmt: skip


def packed(notes: Any) -> str:
    """Return JSON without spaces."""
    return json.dumps(notes, separators=(",", ":"), ensure_ascii=True)
