"""The row of a layer table: one array of a layer type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from xweights.core.layout import Layout, Shape, layout_of, plain_layout
from xweights.errors import LayoutError


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a layer table: a layer's name for one of its arrays, and its meaning.

    ``native`` is the attribute (``weight_ih_l0``), ``name`` the neutral path inside the layer (``l0/kernel``) whose
    last part is the role, ``pattern`` the axes as :func:`xweights.core.layout.layout_of` reads them (None: unknown).
    ``outputs``: the axes that the layer's output has, where their names don't say it.
    """

    native: str
    name: str
    pattern: str | None
    sizes: Mapping[str, int] = field(default_factory=dict)
    gates: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None

    def layout(self, shape: Shape) -> Layout:
        """Return the layout for an array of the stored ``shape``; without axes where the pattern doesn't fit."""
        if self.pattern is None:
            return plain_layout(shape)
        try:
            layout = layout_of(self.pattern, shape, **self.sizes)
            return layout if self.outputs is None else replace(layout, outputs=self.outputs)
        except LayoutError:
            # A subclass may have changed the array's shape: its axes are then unknown, never guessed.
            return plain_layout(shape)
