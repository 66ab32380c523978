"""Units: the parts of layers, in a canonical form that is the same in every framework.

Everything here is pure: it works on arrays in neutral order and writes nothing.

A dense layer, an einsum that is a matrix product and one projection of an attention layer are the same unit, ``dense``
with a kernel (in, out). So no recipe is needed for each pair of layers, only the way from each layer to its units
(``recipes``) and back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights.core.parameter import Parameter
from xweights.porting.protocol import LayerRecord, View

Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ParamSlice:
    """The part of a parameter that is an array of a unit.

    It is ``view(neutral)[index].reshape(split).transpose(order).take(gates).reshape(shape)``, and of that the
    ``columns`` along its last axis, if only some belong to the unit.
    """

    parameter: Parameter
    shape: Shape
    index: Index = ()
    split: Shape | None = None
    order: tuple[int, ...] | None = None
    # (axis, order): the gates along this axis are brought into the canonical order.
    gates: tuple[int, tuple[int, ...]] | None = None
    view: View | None = None
    columns: slice | Array | None = None

    @property
    def place(self) -> str:
        """Which part of the parameter it is, whichever way it is turned, so that two slices of one are told apart."""
        if self.columns is None and self.view is None:
            return repr(self.index)
        if math.prod(self.shape) == self.parameter.size:
            return repr(())
        columns = self.columns
        if self.view is None and columns is not None:
            ends = (columns.start, columns.stop - 1) if isinstance(columns, slice) else (columns.min(), columns.max())
            return f"{self.index} columns {ends[0]} to {ends[1]}, {self.shape[-1]}"
        entries = self.read(np.arange(self.parameter.size).reshape(self.parameter.shape))
        return f"entries {entries.min()} to {entries.max()}, {entries.size}"

    def read(self, neutral: Array) -> Array:
        """Return the canonical array; a view where strides allow."""
        if self.view is not None:
            neutral = self.view(neutral)
        part = neutral[self.index] if self.index else neutral
        part = part if self.split is None else part.reshape(self.split)
        part = part if self.order is None else part.transpose(self.order)
        if self.gates is not None:
            part = part.take(self.gates[1], axis=self.gates[0])
        if self.columns is None:
            return part.reshape(self.shape)
        return part.reshape(*self.shape[:-1], -1)[..., self.columns]

    def write(self, canonical: Array, neutral: Array) -> None:
        """Write a canonical array to its part of a neutral one."""
        if self.view is not None or self.columns is not None:
            # Where each entry comes from says where it goes to.
            places = self.read(np.arange(neutral.size, dtype=np.int64).reshape(neutral.shape))
            flat = neutral.reshape(-1)
            assert np.shares_memory(flat, neutral), "a neutral array to be written is contiguous"
            flat[places.reshape(-1)] = canonical.reshape(-1)
            return
        region = neutral[self.index] if self.index else neutral
        split = region.shape if self.split is None else self.split
        order = tuple(range(len(split))) if self.order is None else self.order
        permuted = canonical.reshape([split[axis] for axis in order])
        if self.gates is not None:
            permuted = permuted.take(np.argsort(self.gates[1]), axis=self.gates[0])
        region[...] = permuted.transpose(np.argsort(order)).reshape(region.shape)


# The value that stands for an array that a layer doesn't have.
ABSENT = {"bias": 0.0, "recurrent_bias": 0.0, "beta": 0.0, "gamma": 1.0}
# Two names for what a norm multiplies with, in the tables of layers and in operations.
ALIASES = {"scale": "gamma", "gamma": "scale"}
# Kinds whose two biases are only ever added.
SUMMED = frozenset({"simple_rnn", "lstm"})
RECURRENT = SUMMED | {"gru", "gru_reset_before"}
# Kinds whose arrays have one entry per feature, so that a permutation of the features permutes them.
VECTORS = frozenset({"batch_norm", "layer_norm", "rms_norm", "prelu", "normalization", "multiply"})
# The array whose shape is part of a unit's form: the first of these that it has.
_MAIN = ("kernel", "embeddings", "rows", "moving_mean", "gamma", "beta", "scale", "alpha", "mean")


@dataclass(frozen=True, slots=True, eq=False)
class LayerUnit:
    """The smallest part that is ported as a whole: a layer, or a part of a composite one.

    ``part`` names the part (``query``, ``l0_reverse``) and is "" for a layer that is one unit. ``channels`` are the
    slices of the layer's input and output that belong to this unit, where it has only some.
    """

    kind: str
    record: LayerRecord
    slices: Mapping[str, ParamSlice]
    part: str = ""
    call: str = ""  # the name of its arrays among the inputs and outputs of the layer
    channels: tuple[slice, slice] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The name in reports; for a layer that is the whole model, its class."""
        if not self.record.path and not self.part:
            return f"({type(self.record.layer).__name__})"
        return f"{self.record.path}/{self.part}".strip("/") if self.part else self.record.path

    @property
    def form(self) -> tuple[Any, ...]:
        """The properties that two units must have in common to be twins, whatever their names."""
        if self.kind == "other":
            sizes = sorted(math.prod(param_slice.shape) for param_slice in self.slices.values())
            return ("other", *sizes)
        main = next(role for role in _MAIN if role in self.slices)
        return (self.kind, self.slices[main].shape)

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters that contain its arrays."""
        return list({id(param_slice.parameter): param_slice.parameter for param_slice in self.slices.values()}.values())


def split_columns(unit: LayerUnit, columns: slice | Array) -> LayerUnit:
    """Return the part of a dense unit that computes some columns of its output."""

    def cut(param_slice: ParamSlice) -> ParamSlice:
        count = np.arange(param_slice.shape[-1])[columns].size
        return replace(param_slice, shape=(*param_slice.shape[:-1], count), columns=columns)

    return replace(unit, slices={role: cut(param_slice) for role, param_slice in unit.slices.items()})


def can_pair(source: LayerUnit, target: LayerUnit) -> bool:
    """Return True if the two could be twins by their own kinds and shapes."""
    if source.form == target.form:
        return bool(source.attributes.get("groups", 1) == target.attributes.get("groups", 1))
    if "other" in (source.kind, target.kind):
        # A user's class that replaces a layer the other framework lacks: equal sizes are the only evidence.
        source_sizes, target_sizes = ([math.prod(p.shape) for p in unit.slices.values()] for unit in (source, target))
        return sorted(source_sizes) == sorted(target_sizes) and _match_roles(source, target) is not None
    return False


def _match_roles(source: LayerUnit, target: LayerUnit) -> dict[str, str] | None:
    """Return the source's role for each role of the target; None if it isn't clear."""
    if set(source.slices) == set(target.slices):
        return {role: role for role in target.slices}
    sizes = [math.prod(param_slice.shape) for param_slice in target.slices.values()]
    matched = {}
    for role, param_slice in target.slices.items():
        size = math.prod(param_slice.shape)
        equal = [
            source_role for source_role, source_slice in source.slices.items() if math.prod(source_slice.shape) == size
        ]
        if role in equal:
            matched[role] = role
        elif len(equal) == 1 and sizes.count(size) == 1:
            matched[role] = equal[0]
        else:
            return None
    return matched if len(set(matched.values())) == len(matched) else None


@dataclass(frozen=True, slots=True)
class FeaturePermutation:
    """The order of the target's features: entry j is entry ``rows[j]`` (input) or ``columns[j]`` (output)."""

    rows: Array | None = None
    columns: Array | None = None
    # (source's, target's): the rows of two tables that are the same one.
    shift: tuple[int, int] | None = None
    # (batch, time): the rows of the input run over time first. This doesn't concern the weights.
    swapped: tuple[int, int] | None = None
    # What is added to each row of a table.
    addend: Array | None = None


UNPERMUTED = FeaturePermutation()


def translate(
    source: LayerUnit,
    arrays: Mapping[str, Array],
    target: LayerUnit,
    permutation: FeaturePermutation = UNPERMUTED,
    kept: Mapping[str, Array] | None = None,
) -> tuple[dict[str, Array], list[str]]:
    """Return the target's canonical arrays by role, and a sentence for each loss.

    ``kept`` are the target's present arrays, from which rows come that a table of the source doesn't have.
    """
    by_role = dict(arrays)
    lost: list[str] = []
    for name, other in ALIASES.items():
        if name in by_role and other in target.slices and name not in target.slices and other not in by_role:
            by_role[other] = by_role.pop(name)
    if "other" in (source.kind, target.kind):
        roles = _match_roles(source, target) or {}
        by_role = {role: arrays[source_role] for role, source_role in roles.items()}
    if permutation.addend is not None:
        by_role = {role: value + permutation.addend for role, value in by_role.items()}
    if permutation.shift is not None:
        return _shift_rows(source, by_role, target, permutation.shift, kept or {})
    if source.kind in SUMMED and "recurrent_bias" in by_role and "recurrent_bias" not in target.slices:
        by_role["bias"] = _add_biases(by_role.get("bias"), by_role.pop("recurrent_bias"))
    for role in [role for role in by_role if role not in target.slices]:
        value = by_role.pop(role)
        if role not in ABSENT or (value != ABSENT[role]).any():
            lost.append(f"{source.path!r} has {_with_article(role)} that {target.path!r} has no place for")
    translated = {}
    for role, param_slice in target.slices.items():
        if role in by_role:
            value = by_role[role]
        elif role in ABSENT:
            value = np.full(param_slice.shape, ABSENT[role], next(iter(arrays.values())).dtype)
        else:
            lost.append(f"{source.path!r} has no {role} for {target.path!r}")
            continue
        value = value.reshape(param_slice.shape) if value.size == math.prod(param_slice.shape) else value
        if value.shape != param_slice.shape:
            lost.append(f"the {role} of {source.path!r} is {value.shape}, that of {target.path!r} {param_slice.shape}")
            continue
        translated[role] = permute(role, value, target.kind, permutation)
    return translated, lost


def _shift_rows(
    source: LayerUnit,
    arrays: Mapping[str, Array],
    target: LayerUnit,
    shift: tuple[int, int],
    kept: Mapping[str, Array],
) -> tuple[dict[str, Array], list[str]]:
    """Return a table whose rows from ``shift[1]`` on are the source's from ``shift[0]`` on; the others are kept."""
    (role, param_slice), value = next(iter(target.slices.items())), next(iter(arrays.values()))
    first_source, first_target = shift
    ahead = min(value.shape[0] - first_source, param_slice.shape[0] - first_target)
    lost = []
    if ahead < value.shape[0] - first_source:
        lost.append(
            f"{source.path!r} has {value.shape[0] - first_source} rows from the first that is used on, and "
            f"{target.path!r} has place for {ahead}"
        )
    table = np.array(kept[role]) if role in kept else np.zeros(param_slice.shape, value.dtype)
    table[first_target : first_target + ahead] = value[first_source : first_source + ahead]
    return {role: table}, lost


def permute(role: str, value: Array, kind: str, permutation: FeaturePermutation) -> Array:
    """Return a canonical array of the source in the order of the target's features."""
    if kind == "conv" and role == "kernel" and permutation.rows is not None:
        value = value.reshape(-1, value.shape[-1])[permutation.rows].reshape(value.shape)
    if kind in ("conv", "conv_transpose") and permutation.columns is not None:
        return value.take(permutation.columns, axis=-2 if kind == "conv_transpose" and role == "kernel" else -1)
    if kind == "dense" or kind in RECURRENT:
        if role == "kernel" and permutation.rows is not None:
            value = value[permutation.rows]
        if permutation.columns is not None:
            value = value[..., permutation.columns]
    elif permutation.rows is not None and value.shape == permutation.rows.shape:
        value = value[permutation.rows]
    return value


def _add_biases(bias: Array | None, recurrent: Array) -> Array:
    if bias is None:
        return recurrent
    # A bias that is all zero adds nothing, and an addition would turn the other's -0.0 into +0.0.
    if not bias.any():
        return recurrent
    return bias + recurrent if recurrent.any() else bias


def _with_article(role: str) -> str:
    return f"an {role}" if role[0] in "aeiou" else f"a {role}"
