"""What a model does with a sample, layer by layer."""

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
from xweights.porting.recipes import NoCounterpartError, units_of
from xweights.porting.units import LayerUnit


@dataclass(eq=False)
class TracedModel:
    """One of the two models, seen as units. ``refused``: the layers that have no counterpart, and why."""

    model: Any
    porting: Porting
    records: list[LayerRecord]
    units: list[LayerUnit] = field(default_factory=list)
    refused: list[tuple[LayerRecord, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for record in self.records:
            try:
                self.units += units_of(record)
            except NoCounterpartError as why:
                self.refused.append((record, str(why)))

    @cached_property
    def by_record(self) -> Mapping[int, list[LayerUnit]]:
        """The units of each layer."""
        found: dict[int, list[LayerUnit]] = {}
        for unit in self.units:
            found.setdefault(id(unit.record), []).append(unit)
        return found

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Every parameter that some unit lies in."""
        return list({id(p): p for unit in self.units for p in unit.parameters}.values())


def side_of(model: Any, what: str) -> TracedModel:
    """Return a model as units. Raise TargetError or NotBuiltError."""
    porting = porting_for(model, what)
    return TracedModel(model, porting, porting.records(model))


def arrays_of(unit: LayerUnit) -> dict[str, Array]:
    """Return the canonical arrays of a unit as they are now; views where strides allow."""
    return {role: piece.read(neutral_view(piece.parameter)) for role, piece in unit.pieces.items()}


@dataclass(eq=False)
class UnitCall:
    """One call of a unit: its place in the order of calls, what it was given and what it made, if that was seen."""

    unit: LayerUnit
    number: int
    input: Array | None = None
    output: Array | None = None


def seen_by(unit: LayerUnit, arrays: Arrays, end: int) -> Array | None:
    """Return what of a layer's inputs (``end`` 0) or outputs (1) belongs to one of its units."""
    array = arrays.get(unit.call)
    if array is not None and unit.channels is not None:
        return array[..., unit.channels[end]]
    return array


def grids_in(arrays: Iterable[Array | None], *, channels_first: bool) -> set[Grid]:
    """Return the images among these: how many positions, how many channels."""
    found = set()
    for array in arrays:
        if array is not None and array.ndim > 2:
            channels = array.shape[1 if channels_first else -1]
            found.add((math.prod(array.shape[1:]) // max(channels, 1), channels))
    return found


class Recorder:
    """Keeps what every unit is given and makes. A watcher of the source."""

    def __init__(self, side: TracedModel) -> None:
        self.side = side
        self.calls: list[UnitCall] = []
        self.events: list[LayerRecord] = []  # every layer in call order, those without weights too
        self.grids: set[Grid] = set()
        self._open: dict[int, list[list[UnitCall]]] = {}

    def enter(self, record: LayerRecord, inputs: Arrays) -> None:
        self.events.append(record)
        self._note(record, inputs)
        made = []
        for unit in self.side.by_record.get(id(record), ()):
            if unit.call in inputs:
                call = UnitCall(unit, len(self.calls), _kept(seen_by(unit, inputs, 0)))
                self.calls.append(call)
                made.append(call)
        self._open.setdefault(id(record), []).append(made)

    def leave(self, record: LayerRecord, outputs: Arrays) -> None:
        self._note(record, outputs)
        for call in self._open[id(record)].pop():
            call.output = _kept(seen_by(call.unit, outputs, 1))

    def joined(self) -> list[UnitCall]:
        """Return the calls, those of a recurrent cell in a loop as one call on the whole sequence."""
        found: list[UnitCall] = []
        loops: dict[int, UnitCall] = {}
        for call in self.calls:
            if not call.unit.record.attributes.get("cell"):
                found.append(call)
            elif id(call.unit) not in loops:
                loops[id(call.unit)] = call
                found.append(call)
            else:
                whole = loops[id(call.unit)]
                whole.input, whole.output = _after(whole.input, call.input), _after(whole.output, call.output)
        return found

    def _note(self, record: LayerRecord, arrays: Arrays) -> None:
        # What has weights comes in neutral form; what hasn't, as its framework has it.
        self.grids |= grids_in(
            arrays.values(), channels_first=record.kind in ("plain", "other") and self.side.porting.channels_first
        )


def _after(array: Array | None, step: Array | None) -> Array | None:
    return None if array is None or step is None else np.concatenate([array, step], axis=1)


def _kept(array: Array | None) -> Array | None:
    # The framework may write into it at its next layer.
    return None if array is None else np.array(array)
