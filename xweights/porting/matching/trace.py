"""Trace a model on a sample: record the inputs and outputs of every unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.edit.read import neutral_view
from xweights.porting.matching.similarity import Grid
from xweights.porting.protocol import Arrays, LayerRecord, Porting, porting_for
from xweights.porting.recipes import NoCounterpartError, make_units
from xweights.porting.units import LayerUnit


@dataclass(eq=False)
class TracedModel:
    """One of the two models as units. ``refused``: the layers without a counterpart, and why."""

    model: Any
    porting: Porting
    records: list[LayerRecord]
    units: list[LayerUnit] = field(default_factory=list)
    refused: list[tuple[LayerRecord, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for record in self.records:
            try:
                self.units += make_units(record)
            except NoCounterpartError as why:
                self.refused.append((record, str(why)))

    @cached_property
    def by_record(self) -> Mapping[int, list[LayerUnit]]:
        """The units of each layer."""
        units: dict[int, list[LayerUnit]] = {}
        for unit in self.units:
            units.setdefault(id(unit.record), []).append(unit)
        return units

    def count_layers(self) -> int:
        """Return the number of layers with weights."""
        return sum(bool(record.parameters) for record in self.records)

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Every parameter that contains a unit's arrays."""
        return list({id(p): p for unit in self.units for p in unit.parameters}.values())


def trace_model(model: Any, what: str) -> TracedModel:
    """Return a model as units; raise TargetError or NotBuiltError."""
    porting = porting_for(model, what)
    return TracedModel(model, porting, porting.records(model))


def read_arrays(unit: LayerUnit) -> dict[str, Array]:
    """Return the present canonical arrays of a unit; views where strides allow."""
    return {role: param_slice.read(neutral_view(param_slice.parameter)) for role, param_slice in unit.slices.items()}


def add_rows(tables: Iterable[LayerUnit]) -> Array:
    """Return the sum of the rows of tables of one row."""
    total: Array = np.sum([next(iter(read_arrays(table).values())).reshape(-1) for table in tables], axis=0)
    return total


# An input is compared with so many arrays before it: query, key and value of attention are given one.
_LATEST = 4


@dataclass(eq=False)
class UnitCall:
    """One call of a unit: its number in the order of calls, its input and its output, if they were seen."""

    unit: LayerUnit
    number: int
    input: Array | None = None
    output: Array | None = None


def select_array(unit: LayerUnit, arrays: Arrays, end: int) -> Array | None:
    """Return the part of a layer's inputs (``end`` 0) or outputs (1) that belongs to one of its units."""
    array = arrays.get(unit.call)
    if array is not None and unit.channels is not None:
        return array[..., unit.channels[end]]
    return array


def find_grids(arrays: Iterable[Array | None], *, channels_first: bool) -> set[Grid]:
    """Return the images among the arrays, as (number of positions, number of channels)."""
    grids = set()
    for array in arrays:
        if array is not None and array.ndim > 2:
            channels = array.shape[1 if channels_first else -1]
            grids.add((math.prod(array.shape[1:]) // max(channels, 1), channels))
            if array.ndim > 3:  # flattened step by step: one of the spatial axes, and the channels
                space = array.shape[2:] if channels_first else array.shape[1:-1]
                grids |= {(length, channels) for length in space if length > 1}
    return grids


class Recorder:
    """Recorder of the inputs and outputs of every unit. A watcher of the source."""

    def __init__(self, traced: TracedModel) -> None:
        self.traced = traced
        self.calls: list[UnitCall] = []
        self.events: list[LayerRecord] = []  # every layer in call order, including those without weights
        self.grids: set[Grid] = set()
        self._open: dict[int, list[list[UnitCall]]] = {}
        self._latest: list[Array] = []

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        self.events.append(record)
        self._add_grids(record, inputs)
        calls = []
        for unit in self.traced.by_record.get(id(record), ()):
            if unit.call in inputs:
                call = UnitCall(unit, len(self.calls), self._keep(select_array(unit, inputs, 0)))
                self.calls.append(call)
                calls.append(call)
        self._open.setdefault(id(record), []).append(calls)

    def leave(self, record: LayerRecord, outputs: Arrays) -> None:
        self._add_grids(record, outputs)
        for call in self._open[id(record)].pop():
            call.output = self._keep(select_array(call.unit, outputs, 1))

    def join_loops(self) -> list[UnitCall]:
        """Return the calls, with those of a recurrent cell in a loop as one call on the whole sequence."""
        joined: list[UnitCall] = []
        loops: dict[int, UnitCall] = {}
        for call in self.calls:
            if not call.unit.record.attributes.get("cell"):
                joined.append(call)
            elif id(call.unit) not in loops:
                loops[id(call.unit)] = call
                joined.append(call)
            else:
                loop = loops[id(call.unit)]
                loop.input, loop.output = _append(loop.input, call.input), _append(loop.output, call.output)
        return joined

    def _keep(self, array: Array | None) -> Array | None:
        """Return a copy, or one that exists: what a layer puts out is often the input of the next ones."""
        if array is None:
            return None
        for kept in self._latest:
            if kept.shape == array.shape and kept.dtype == array.dtype and np.array_equal(kept, array):
                return kept
        copy = np.array(array)  # the framework may write to it at its next layer
        self._latest = [copy, *self._latest[: _LATEST - 1]]
        return copy

    def _add_grids(self, record: LayerRecord, arrays: Arrays) -> None:
        # Arrays of layers with weights are in neutral form, the others in their framework's.
        self.grids |= find_grids(
            arrays.values(), channels_first=record.kind in ("plain", "other") and self.traced.porting.channels_first
        )


def _append(array: Array | None, step: Array | None) -> Array | None:
    return None if array is None or step is None else np.concatenate([array, step], axis=1)
