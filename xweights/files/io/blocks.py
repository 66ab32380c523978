"""A block of an array in a file as an array of its own, read without the rest where the format allows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.shards import Ranges
from xweights.files.io.records import Record, SlicedLocation


@dataclass(frozen=True, slots=True, eq=False)
class BlockLocation:
    """Location of the entries of another record in some ranges of its stored axes."""

    whole: ClassVar[bool] = True

    record: Record
    ranges: Ranges

    def read(self, record: Record) -> Array:
        array = np.empty(record.shape, record.dtype)
        self.fill(array)
        return array

    def read_into(self, record: Record, out: Array, start: int) -> None:
        if not start and out.size == record.size:
            self.fill(out.reshape(record.shape))
        else:
            out[...] = self.read(record).reshape(-1)[start : start + out.size]

    def fill(self, out: Array) -> None:
        """Fill a C-contiguous array of the block's shape."""
        location = self.record.location
        if math.prod(out.shape) and isinstance(location, SlicedLocation):
            location.read_block(self.record, self.ranges, out)


def make_block(record: Record, ranges: Ranges) -> Record | None:
    """Return a block of an array as a record; None where the array can only be read as a whole."""
    if not isinstance(record.location, SlicedLocation):
        return None
    shape = tuple(last - first for first, last in ranges)
    return replace(record, shape=shape, location=BlockLocation(record, ranges))
