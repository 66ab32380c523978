"""Adapter of a network: its layers by name, each layer's arrays by the layer table."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from xweights.backend import Entry, Parameter
from xweights_toy.framework import Network
from xweights_toy.layers import TABLE
from xweights_toy.storage import Slot, SlotStorage

STORAGE = SlotStorage()


class ToyAdapter:
    """Adapter that returns the same handle for the same array each time."""

    def __init__(self) -> None:
        self._parameters: weakref.WeakKeyDictionary[Network, list[Parameter]] = weakref.WeakKeyDictionary()

    def parameters(self, target: Network) -> Sequence[Parameter]:
        if target not in self._parameters:
            self._parameters[target] = [
                parameter(Slot(layer, int(row.native)), name, row)
                for name, layer in target.layers.items()
                for row in TABLE[layer.kind]
            ]
        return self._parameters[target]


def parameter(slot: Slot, layer: str, row: Entry) -> Parameter:
    """Return the neutral parameter of one array."""
    return Parameter(
        name=f"{layer}/{row.name}",
        native_name=f"{layer}.arrays[{row.native}]",
        layout=row.layout(slot.array.shape),
        dtype=slot.array.dtype,
        storage=STORAGE,
        handle=slot,
    )
