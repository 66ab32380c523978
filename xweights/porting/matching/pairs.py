"""Pairs of units, and where two models diverge: the results of an attempt."""

from __future__ import annotations

from dataclasses import dataclass

from xweights.core.dtypes import Array
from xweights.porting.matching.trace import UnitCall
from xweights.porting.units import UNPERMUTED, FeaturePermutation, LayerUnit


@dataclass(eq=False)
class Divergence:
    """A divergence of the two models: in a unit's ``output``, before it (its ``input``), or at the ``end`` of both."""

    location: str
    target: LayerUnit | None
    call: UnitCall | None
    error: float
    text: str = ""
    output: Array | None = None


@dataclass(eq=False)
class Pair:
    """Two units that belong together, and the evidence."""

    source: LayerUnit
    target: LayerUnit
    permutation: FeaturePermutation = UNPERMUTED
    evidence: str = ""
    error: float | None = None
    rivals: int = 0
    seen: bool = True
    packing: str = ""
    absorbed: tuple[LayerUnit, ...] = ()  # rows of the source that are a part of the target's table
