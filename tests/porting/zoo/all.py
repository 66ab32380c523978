"""The whole zoo: importing this fills ``PAIRS``."""

from __future__ import annotations

from zoo import attention, conv, dense, norms, recurrent
from zoo.making import PAIRS, Pair, arrays, distance, fill, floats, outputs, sides

SHELVES = (attention, conv, dense, norms, recurrent)

__all__ = ["PAIRS", "SHELVES", "Pair", "arrays", "distance", "fill", "floats", "outputs", "sides"]
