"""Putting a source unit's weights into a target unit."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.hold_registry import identity
from xweights.core.parameter import Parameter
from xweights.edit.read import neutral_view
from xweights.porting.matching.trace import arrays_of
from xweights.porting.units import FeaturePermutation, LayerUnit, ParamSlice, translate


@dataclass(frozen=True, eq=False)
class _Claim:
    """Who has written an array first. The values are made again when they are asked for, which is rare."""

    source: LayerUnit
    target: LayerUnit
    role: str
    turn: FeaturePermutation

    def stored(self) -> Array:
        """Return what was written."""
        arrays, _ = translate(self.source, arrays_of(self.source), self.target, self.turn)
        return _stored(self.target.pieces[self.role], arrays[self.role])


class Writer:
    """Writes units, and notes what is wrong instead of writing that. ``start`` before each attempt."""

    def __init__(self) -> None:
        self._claims: dict[tuple[Hashable, str], _Claim] = {}

    def start(self) -> None:
        """Forget who has written what."""
        self._claims = {}

    def __call__(self, source: LayerUnit, target: LayerUnit, turn: FeaturePermutation) -> list[str]:
        """Write a unit; return what would be lost."""
        arrays, wrong = self.checked(source, target, turn)
        for role, value in arrays.items():
            piece = target.pieces[role]
            _put(piece, value, piece.parameter)
        return wrong

    def checked(
        self, source: LayerUnit, target: LayerUnit, turn: FeaturePermutation
    ) -> tuple[dict[str, Array], list[str]]:
        """Return what there is to write, by role, and what would be lost."""
        arrays, wrong = translate(source, arrays_of(source), target, turn)
        good = {}
        for role, value in arrays.items():
            piece = target.pieces[role]
            parameter = piece.parameter
            if value.dtype != parameter.dtype:
                wrong.append(f"{source.path!r} is {value.dtype.name} and {parameter.name!r} {parameter.dtype.name}")
                continue
            claim = (identity(parameter), repr(piece.index))
            if claim not in self._claims:
                self._claims[claim] = _Claim(source, target, role, turn)
                good[role] = value
            elif not np.array_equal(self._claims[claim].stored(), _stored(piece, value), equal_nan=True):
                wrong.append(
                    f"{parameter.name!r} is shared in the target, and {self._claims[claim].source.path!r} and "
                    f"{source.path!r}, which it would have to hold, differ"
                )
        return good, wrong


def _is_whole(piece: ParamSlice) -> bool:
    return not piece.index and piece.gates is None and piece.order is None and piece.split is None


def _stored(piece: ParamSlice, value: Array) -> Array:
    neutral = np.zeros(piece.parameter.shape, value.dtype)
    piece.write(value, neutral)
    return piece.parameter.layout.to_stored(neutral)


def _put(piece: ParamSlice, value: Array, parameter: Parameter) -> None:
    if _is_whole(piece):
        neutral = value.reshape(parameter.shape)
    else:
        # Other units may lie in the same array.
        neutral = neutral_view(parameter).copy() if piece.index else np.empty(parameter.shape, parameter.dtype)
        piece.write(value, neutral)
    parameter.write(parameter.layout.to_stored(neutral))
