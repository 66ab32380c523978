"""Find the k-th smallest magnitude of a stream, exactly and in bounded memory.

Magnitudes are ordered as their bits are, so they are counted digit by digit, 16 bits at a time: two passes for float32,
four for float64, and a table of 65,536 counts, however long the stream. (A sample that brackets the k-th value, which
pruning takes, needs random access to the entries, which a streamed file doesn't offer.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from xweights.core.dtypes import Array

_DIGIT = 16
_COUNTS = 1 << _DIGIT


def order_statistics(blocks: Iterable[Array], ranks: Sequence[int]) -> list[tuple[Any, int]]:
    """Return (the k-th smallest magnitude, how many are smaller) for each k, 1-based; iterate ``blocks`` repeatedly.

    Example:
        >>> import numpy as np
        >>> [(float(edge), below) for edge, below in order_statistics([np.array([3.0, -1.0, 1.0])], [2, 3])]
        [(1.0, 0), (3.0, 2)]
    """
    remaining = list(ranks)  # the rank among entries that begin with the same digits
    prefixes = [0] * len(ranks)  # the digits so far
    below = [0] * len(ranks)
    digits = 1
    done = 0
    dtype: np.dtype[Any] = np.dtype(np.float64)
    while done < digits:
        counts = {prefix: np.zeros(_COUNTS, np.int64) for prefix in prefixes}
        for block in blocks:
            dtype = block.dtype
            width = 8 * dtype.itemsize
            digits = width // _DIGIT
            bits = np.abs(block).view(f"u{dtype.itemsize}")
            shift = np.asarray(width - _DIGIT * (done + 1), bits.dtype)
            for prefix, count in counts.items():
                matching = bits
                if done:
                    matching = bits[(bits >> (shift + bits.dtype.type(_DIGIT))) == prefix]
                digit = (matching >> shift) & bits.dtype.type(_COUNTS - 1)
                np.add(count, np.bincount(digit.astype(np.int64), minlength=_COUNTS), out=count)
        for i, prefix in enumerate(prefixes):
            sums = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(sums, remaining[i]))
            smaller = int(sums[digit - 1]) if digit else 0
            below[i] += smaller
            remaining[i] -= smaller
            prefixes[i] = prefix << _DIGIT | digit
        done += 1
    edges = np.array(prefixes, f"u{dtype.itemsize}").view(dtype)
    return list(zip(edges, below, strict=True))
