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
        self._claims: dict[tuple[Hashable, str], str] = {}

    def start(self) -> None:
        """Forget who has written what."""
        self._claims = {}

    def __call__(self, source: Unit, target: Unit, turn: Turn) -> list[str]:
        """Write a unit; return what would be lost."""
        given = arrays_of(source)
        arrays, wrong = translate(source, given, target, turn)
        for role, value in arrays.items():
            piece = target.pieces[role]
            parameter = piece.parameter
            if value.dtype != parameter.dtype:
                wrong.append(f"{source.path!r} is {value.dtype.name} and {parameter.name!r} {parameter.dtype.name}")
                continue
            claim = (identity(parameter), repr(piece.index))
            if claim in self._claims:
                if not np.array_equal(piece.read(neutral_view(parameter)), value, equal_nan=True):
                    wrong.append(
                        f"{parameter.name!r} is shared in the target, and {self._claims[claim]!r} and {source.path!r}, "
                        "which it would have to hold, differ"
                    )
                continue
            self._claims[claim] = source.path
            _put(piece, value, parameter)
        return wrong


def _put(piece: Piece, value: Array, parameter: Parameter) -> None:
    straight = not piece.index and piece.split is None and piece.order is None and piece.gates is None
    if straight:
        neutral = value.reshape(parameter.shape)
    else:
        # Other units may lie in the same array.
        neutral = neutral_view(parameter).copy() if piece.index else np.empty(parameter.shape, parameter.dtype)
        piece.write(value, neutral)
    parameter.storage.write(parameter.handle, parameter.layout.to_stored(neutral))
