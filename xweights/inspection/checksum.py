"""A short digest of all the weights of a target, the same in every framework."""

from __future__ import annotations

from typing import Any

import numpy as np

from xweights.core.blocks import blocks
from xweights.core.dtypes import COUNTERS
from xweights.core.selection import WhereLike
from xweights.edit.read import neutral_view, open_for_reading


def checksum(target: Any, *, where: WhereLike = ...) -> str:
    """Return 16 hexadecimal digits that are equal for twins with equal weights, whatever framework holds them.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        where: Default: all.

    Exact: names, dtypes, shapes and bits count, in neutral order and sorted by name (BLAKE2b, 64 bits). Counters such
    as ``num_batches_tracked`` and the order of the parameters don't count.
    Raises TargetError, SelectionError, TraceError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.checksum({"b": np.zeros(2)}) == xw.checksum({"b": np.zeros(2)})
        True
    """
    chosen = [p for p in open_for_reading(target, where) if p.role not in COUNTERS]
    import hashlib  # loads OpenSSL, which takes a tenth of the time of importing NumPy

    digest = hashlib.blake2b(digest_size=8)
    for p in sorted(chosen, key=lambda p: p.name):
        view = neutral_view(p)
        digest.update(f"{p.name}\0{p.dtype.name}\0{view.shape}\0".encode())
        for block in blocks(view.shape):
            # Little-endian bytes in C order: the same on every machine.
            part = np.ascontiguousarray(view[block])
            digest.update(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()
