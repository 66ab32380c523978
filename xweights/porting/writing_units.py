"""Putting a source unit's weights into a target unit.

Owns :class:`Writer`. Imports reading, trace and units.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from xweights.ledger import identity
from xweights.parameter import Array, Parameter
from xweights.porting.trace import arrays_of
from xweights.porting.units import Piece, Turn, Unit, translate
from xweights.reading import neutral_view


class Writer:
    """Writes units, and notes what is wrong instead of writing that. ``start`` before each attempt."""

    def __init__(self) -> None:
        self._claims: dict[tuple[Hashable, str], tuple[str, Array]] = {}

    def start(self) -> None:
        """Forget who has written what."""
        self._claims = {}

    def __call__(self, source: Unit, target: Unit, turn: Turn) -> list[str]:
        """Write a unit; return what would be lost."""
        arrays, wrong = self.checked(source, target, turn)
        for role, value in arrays.items():
            piece = target.pieces[role]
            _put(piece, value, piece.parameter)
        return wrong

    def checked(self, source: Unit, target: Unit, turn: Turn) -> tuple[dict[str, Array], list[str]]:
        """Return what there is to write, by role, and what would be lost."""
        arrays, wrong = translate(source, arrays_of(source), target, turn)
        good = {}
        for role, value in arrays.items():
            piece = target.pieces[role]
            parameter = piece.parameter
            if value.dtype != parameter.dtype:
                wrong.append(f"{source.path!r} is {value.dtype.name} and {parameter.name!r} {parameter.dtype.name}")
                continue
            stored = parameter.layout.to_stored(value.reshape(parameter.shape)) if _is_whole(piece) else value
            first, written = self._claims.setdefault((identity(parameter), repr(piece.index)), (source.path, stored))
            if written is stored:
                good[role] = value
            elif not np.array_equal(written, stored, equal_nan=True):
                wrong.append(
                    f"{parameter.name!r} is shared in the target, and {first!r} and {source.path!r}, "
                    "which it would have to hold, differ"
                )
        return good, wrong


def _is_whole(piece: Piece) -> bool:
    return not piece.index and piece.gates is None and piece.order is None and piece.split is None


def _put(piece: Piece, value: Array, parameter: Parameter) -> None:
    if _is_whole(piece):
        neutral = value.reshape(parameter.shape)
    else:
        # Other units may lie in the same array.
        neutral = neutral_view(parameter).copy() if piece.index else np.empty(parameter.shape, parameter.dtype)
        piece.write(value, neutral)
    parameter.storage.write(parameter.handle, parameter.layout.to_stored(neutral))
