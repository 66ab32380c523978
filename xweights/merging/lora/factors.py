"""An adapter in memory or in a file: the factors of each weight, and the arrays that it replaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.layout import Axes, Shape
from xweights.core.parameter import Parameter
from xweights.errors import LayoutError, ShapeError, got_expected

Kind = Literal["linear", "embedding", "conv", "neutral"]

# The axes of a product, in the order in which PEFT's factors give it.
_AXES: dict[Kind, Axes] = {"linear": ("out", "in"), "embedding": ("dim", "vocab")}
_SPACE: dict[int, Axes] = {1: ("t",), 2: ("h", "w"), 3: ("d", "h", "w")}


@dataclass(frozen=True, eq=False)
class Factors:
    """The two factors of one weight: it becomes ``w + scaling * (left @ right)``.

    Attributes:
        left, right: Functions that return the matrices (n, rank) and (rank, m).
        shape: The shape of the product, in the adapter's own order.
        kind: What layer they are of: "linear", "embedding", "conv" (PEFT), or "neutral": in the order of the weight.
        dtype: The dtype of the product.
        rank, scaling: As the adapter states them.
        magnitude: The function that returns DoRA's magnitudes, one for each output; None without.
    """

    left: Callable[[], Array]
    right: Callable[[], Array]
    shape: Shape
    kind: Kind
    dtype: np.dtype[Any]
    rank: int
    scaling: float
    magnitude: Callable[[], Array] | None = None

    @property
    def axes(self) -> Axes | None:
        """The names of the product's axes, in its order; None for a product in the order of the weight."""
        if self.kind == "conv":
            return ("out", "in", *_SPACE[len(self.shape) - 2])
        return _AXES.get(self.kind)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter: what it does to which weight, by the weight's name in the base.

    Attributes:
        label: The file, or "the adapter".
        factors: Factors by the name of the weight.
        added: What is added to a bias, with its scaling.
        replaced: Arrays that are trained as a whole, and take the place of the base's own.
        transposed: Whether unknown square weights are stored as (in, out): PEFT's ``fan_in_fan_out``.
        native: Whether names and arrays are as torch has them, rather than neutral.
    """

    label: str
    factors: Mapping[str, Factors]
    added: Mapping[str, tuple[Parameter, float]] = field(default_factory=dict)
    replaced: Mapping[str, Parameter] = field(default_factory=dict)
    transposed: bool = False
    native: bool = True

    @property
    def names(self) -> list[str]:
        """The names of all weights that the adapter changes."""
        return [*self.factors, *self.added, *self.replaced]


def find_order(factors: Factors, p: Parameter, transposed: bool) -> tuple[int, ...]:
    """Return the permutation that brings a product to the stored order of its weight.

    By the names of axes where the weight's are known; else by its shape, as torch stores it.

    Raises:
        LayoutError, ShapeError: the product isn't one of this weight.
    """
    stored, shape = p.layout.stored, factors.shape
    plain = tuple(range(len(shape)))
    if factors.kind == "neutral":
        if shape != p.shape:
            raise _misfit(p, shape, p.shape)
        return p.layout.inverse
    axes, known = factors.axes, p.layout.stored_axes
    if axes is not None and known is not None and sorted(axes) == sorted(known):
        order = tuple(axes.index(axis) for axis in known)
    elif known is not None and p.layout.axes is not None and factors.kind != "conv" and _is_named(known, factors.kind):
        raise LayoutError(f"{p.name!r} has the axes ({', '.join(known)})\nexpected: ({', '.join(axes or ())})")
    else:
        order = plain if factors.kind != "embedding" else (1, 0)
        if factors.kind == "linear" and (shape != stored or transposed) and shape[::-1] == stored:
            order = (1, 0)
    if tuple(shape[axis] for axis in order) != stored:
        raise _misfit(p, shape, stored)
    return order


def _is_named(known: Axes, kind: Kind) -> bool:
    """Return whether the axes of a weight are those of another kind of layer."""
    return ("vocab" in known) != (kind == "embedding")


def _misfit(p: Parameter, got: Shape, expected: Shape) -> ShapeError:
    return ShapeError(f"the factors of {p.name!r} make another shape\n{got_expected(got, expected)}")
