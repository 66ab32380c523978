"""Units: what layers are made of, in one canonical form that is the same in every framework.

All of it is pure: it works on arrays in neutral order and writes nothing.

A dense layer, an einsum that is a matrix product and one projection of an attention layer are the same unit, ``dense``
with a kernel (in, out). So two frameworks need no recipe for each pair of layers, only the way from each layer to its
units (``recipes``) and back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.core.parameter import Parameter
from xweights.porting.protocol import LayerRecord

Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class ParamSlice:
    """Where an array of a unit lies: ``neutral[index].reshape(split).transpose(order).take(gates).reshape(shape)``."""

    parameter: Parameter
    shape: Shape
    index: Index = ()
    split: Shape | None = None
    order: tuple[int, ...] | None = None
    # (axis, order): the gates along this axis are brought into the canonical order.
    gates: tuple[int, tuple[int, ...]] | None = None

    def read(self, neutral: Array) -> Array:
        """Return the canonical array; a view where strides allow."""
        part = neutral[self.index] if self.index else neutral
        part = part if self.split is None else part.reshape(self.split)
        part = part if self.order is None else part.transpose(self.order)
        if self.gates is not None:
            part = part.take(self.gates[1], axis=self.gates[0])
        return part.reshape(self.shape)

    def write(self, canonical: Array, neutral: Array) -> None:
        """Put a canonical array into its place in a neutral one."""
        place = neutral[self.index] if self.index else neutral
        split = place.shape if self.split is None else self.split
        order = tuple(range(len(split))) if self.order is None else self.order
        turned = canonical.reshape([split[axis] for axis in order])
        if self.gates is not None:
            turned = turned.take(np.argsort(self.gates[1]), axis=self.gates[0])
        place[...] = turned.transpose(np.argsort(order)).reshape(place.shape)


# What an array that a layer hasn't got stands for.
ABSENT = {"bias": 0.0, "recurrent_bias": 0.0, "beta": 0.0, "gamma": 1.0}
# Kinds whose two biases are only ever added up.
SUMMED = frozenset({"simple_rnn", "lstm"})
# Kinds whose arrays lie along the features one by one, so that a permutation of the features permutes them.
VECTORS = frozenset({"batch_norm", "layer_norm", "rms_norm", "prelu", "normalization"})
# The array whose shape says what a unit is, by kind; the first one that it has.
_MAIN = ("kernel", "embeddings", "moving_mean", "gamma", "beta", "scale", "alpha", "mean")


@dataclass(frozen=True, slots=True, eq=False)
class LayerUnit:
    """The smallest thing that is ported as one: a layer, or a part of a composite one.

    ``part`` names the part (``query``, ``l0_reverse``) and is "" for a layer that is one unit. ``channels`` are the
    slices of the layer's input and output that belong to this unit, where it has only some.
    """

    kind: str
    record: LayerRecord
    pieces: Mapping[str, ParamSlice]
    part: str = ""
    call: str = ""  # the name of its arrays among the inputs and outputs of the layer
    channels: tuple[slice, slice] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """What it is called in reports; a layer that is a model by itself by its class."""
        if not self.record.path and not self.part:
            return f"({type(self.record.layer).__name__})"
        return f"{self.record.path}/{self.part}".strip("/") if self.part else self.record.path

    @property
    def form(self) -> tuple[Any, ...]:
        """What two units must have in common to be twins, whatever they are called."""
        if self.kind == "other":
            sizes = sorted(math.prod(piece.shape) for piece in self.pieces.values())
            return ("other", *sizes)
        main = next(role for role in _MAIN if role in self.pieces)
        return (self.kind, self.pieces[main].shape)

    @property
    def parameters(self) -> list[Parameter]:
        """The native arrays that it lies in."""
        return list({id(piece.parameter): piece.parameter for piece in self.pieces.values()}.values())


def fit(source: LayerUnit, target: LayerUnit) -> bool:
    """Return True if the two could be twins: equal kinds and shapes."""
    if source.form == target.form:
        return bool(source.attributes.get("groups", 1) == target.attributes.get("groups", 1))
    if "other" in (source.kind, target.kind):
        # A class of the user's own that stands for a layer the other framework lacks: equal sizes are all there is.
        mine, theirs = ([math.prod(p.shape) for p in one.pieces.values()] for one in (source, target))
        return sorted(mine) == sorted(theirs) and _roles(source, target) is not None
    return False


def _roles(source: LayerUnit, target: LayerUnit) -> dict[str, str] | None:
    """Return the source's role for each role of the target; None where that isn't clear."""
    if set(source.pieces) == set(target.pieces):
        return {role: role for role in target.pieces}
    sizes = [math.prod(piece.shape) for piece in target.pieces.values()]
    found = {}
    for role, piece in target.pieces.items():
        size = math.prod(piece.shape)
        equal = [one for one, other in source.pieces.items() if math.prod(other.shape) == size]
        if role in equal:
            found[role] = role
        elif len(equal) == 1 and sizes.count(size) == 1:
            found[role] = equal[0]
        else:
            return None
    return found if len(set(found.values())) == len(found) else None


@dataclass(frozen=True, slots=True)
class FeaturePermutation:
    """How the target's features lie: entry j is entry ``rows[j]`` (of what comes in), ``columns[j]`` (goes out)."""

    rows: Array | None = None
    columns: Array | None = None
    # (batch, time): the rows of what comes in run over time first. It is no matter of the weights.
    swapped: tuple[int, int] | None = None


STRAIGHT = FeaturePermutation()


def translate(
    source: LayerUnit, arrays: Mapping[str, Array], target: LayerUnit, turn: FeaturePermutation = STRAIGHT
) -> tuple[dict[str, Array], list[str]]:
    """Return the target's canonical arrays by role, and what would be lost (each a sentence)."""
    given = dict(arrays)
    lost: list[str] = []
    if "other" in (source.kind, target.kind):
        roles = _roles(source, target) or {}
        given = {role: arrays[one] for role, one in roles.items()}
    if source.kind in SUMMED and "recurrent_bias" in given and "recurrent_bias" not in target.pieces:
        given["bias"] = _sum(given.get("bias"), given.pop("recurrent_bias"))
    for role in [role for role in given if role not in target.pieces]:
        value = given.pop(role)
        if role not in ABSENT or (value != ABSENT[role]).any():
            lost.append(f"{source.path!r} has {_a(role)} that {target.path!r} has no place for")
    made = {}
    for role, piece in target.pieces.items():
        if role in given:
            value = given[role]
        elif role in ABSENT:
            value = np.full(piece.shape, ABSENT[role], next(iter(arrays.values())).dtype)
        else:
            lost.append(f"{source.path!r} has no {role} for {target.path!r}")
            continue
        value = value.reshape(piece.shape) if value.size == math.prod(piece.shape) else value
        if value.shape != piece.shape:
            lost.append(f"the {role} of {source.path!r} is {value.shape}, that of {target.path!r} {piece.shape}")
            continue
        made[role] = permute(role, value, target.kind, turn)
    return made, lost


def permute(role: str, value: Array, kind: str, turn: FeaturePermutation) -> Array:
    """Return a canonical array of the source as the target's features lie."""
    if kind == "dense":
        if role == "kernel" and turn.rows is not None:
            value = value[turn.rows]
        if turn.columns is not None:
            value = value[..., turn.columns]
    elif turn.rows is not None and value.shape == turn.rows.shape:
        value = value[turn.rows]
    return value


def _sum(bias: Array | None, recurrent: Array) -> Array:
    if bias is None:
        return recurrent
    # A bias that is all zero adds nothing, and an addition would turn the other's -0.0 into +0.0.
    if not bias.any():
        return recurrent
    return bias + recurrent if recurrent.any() else bias


def _a(role: str) -> str:
    return f"an {role}" if role[0] in "aeiou" else f"a {role}"
