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
    last part is the role unless ``role`` is another, ``pattern`` the axes as :func:`xweights.core.layout.layout_of`
    reads them (None: unknown; several with ``|`` between them: the first that fits).
    ``outputs``: the axes that the layer's output has, where their names don't say it.
    ``declared``: the words with which a user or a package declared the row; an array that it doesn't fit is an error.
    """

    native: str
    name: str
    pattern: str | None
    sizes: Mapping[str, int] = field(default_factory=dict)
    gates: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    role: str | None = None
    declared: str | None = None

    def layout(self, shape: Shape) -> Layout:
        """Return the layout for an array of the stored ``shape``; without axes where the pattern doesn't fit.

        Raises LayoutError where the pattern of a declared row doesn't fit.
        """
        if self.pattern is None:
            return plain_layout(shape)
        reasons = []
        for pattern in self.pattern.split("|"):
            try:
                layout = layout_of(pattern.strip(), shape, **self.sizes)
            except LayoutError as misfit:
                reasons.append(str(misfit))
                continue
            # Weights have no examples: their batch is an axis of length 1, kept because others are as long as a batch.
            if dict(zip(layout.axes or (), layout.shape, strict=False)).get("batch", 1) == 1:
                return layout if self.outputs is None else replace(layout, outputs=self.outputs)
            reasons.append(f"the pattern {pattern.strip()!r} wants a batch of length 1, the array is {shape}")
        if self.declared is not None:
            raise LayoutError("\n".join(reasons))
        # A subclass may have changed the array's shape: its axes are then unknown, never guessed.
        return plain_layout(shape)
