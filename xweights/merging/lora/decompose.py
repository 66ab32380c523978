"""Two factors of a given rank that come closest to a matrix."""

from __future__ import annotations

import numpy as np

from xweights.core.dtypes import Array


def decompose(matrix: Array, rank: int) -> tuple[Array, Array, float]:
    """Return factors (n, rank) and (rank, m) in float64, and the relative error of their product (Frobenius norm).

    The truncated singular value decomposition, the best there is of this rank (Eckart and Young, 1936); each factor
    takes the square roots of the singular values. The largest entry of each row of the second factor is positive, so
    that the signs are the same everywhere.
    """
    u, values, v = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    rank = min(rank, len(values))
    norm = float(np.linalg.norm(values))
    error = float(np.linalg.norm(values[rank:])) / norm if norm else 0.0
    u, values, v = u[:, :rank], values[:rank], v[:rank]
    signs = np.where(np.take_along_axis(v, np.abs(v).argmax(axis=1)[:, None], axis=1) < 0, -1.0, 1.0)
    roots = np.sqrt(values)
    return u * (roots * signs[:, 0]), (roots[:, None] * signs) * v, error
