"""The arithmetic of a LoRA merge: ``w + scaling * (left @ right)``, with the bits that PEFT's own merge has.

PEFT multiplies in the dtype of the factors (16-bit ones in float32), scales, rounds to that dtype, and adds in the
wider dtype of both, rounding once to that of the base.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xweights.core.casting import round_to
from xweights.core.dispatch import ops_for
from xweights.core.dtypes import Array
from xweights.core.values import host_array

_FLOAT32 = np.dtype(np.float32)
# Entries of a block of the product, so that its three arrays stay in the cache of a core.
_BLOCK = 1 << 15
# Above this rank no library adds one product after the other.
_SEQUENTIAL = 192


def multiply_factors(left: Array, right: Array, scaling: float, like: Any) -> Array:
    """Return ``scaling * (left @ right)`` in the dtype of the factors, on the host.

    Args:
        left: (n, rank).
        right: (rank, m).
        scaling: Rounded to the dtype in which they are multiplied.
        like: A native array. Its framework multiplies, as it does in PEFT and in Keras; for NumPy the sum is taken in
            the order of the ranks with fused multiply-adds, which is what those libraries' kernels do on CPUs.
    """
    dtype = np.result_type(left.dtype, right.dtype)
    wide = _FLOAT32 if dtype.itemsize < 4 else dtype
    left, right = (np.ascontiguousarray(part.astype(wide, copy=False)) for part in (left, right))
    if not isinstance(like, np.ndarray):
        ops = ops_for(like)
        native = ops.matmul(ops.constant(left, like), ops.constant(right, like))
        product = host_array(native).copy()
    elif wide == _FLOAT32 and right.shape[0] <= _SEQUENTIAL:
        product = _multiply_fused(left, right)
    else:
        product = np.asarray(left @ right)
    product *= np.asarray(scaling, wide)
    return round_to(product, dtype)


def add_product(base: Array, product: Array) -> Array:
    """Return ``base + product`` in the dtype of ``base``, in new memory."""
    wide = base.dtype if base.dtype == product.dtype else np.result_type(base.dtype, product.dtype, _FLOAT32)
    total = base.astype(wide)
    total += product
    return round_to(total, base.dtype)


def apply_magnitude(base: Array, product: Array, magnitude: Array) -> Array:
    """Return DoRA's weight, ``magnitude * v / |v|`` for each row ``v`` of ``base + product``, in the dtype of ``base``.

    Liu et al., arXiv:2402.09353. Computed in float64 and rounded once.
    """
    rows = base.astype(np.float64) + product.astype(np.float64)
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    with np.errstate(all="ignore"):
        return round_to(rows * (magnitude.astype(np.float64).reshape(-1, 1) / norms), base.dtype)


def _multiply_fused(left: Array, right: Array) -> Array:
    """Return ``left @ right`` as the sum of the ranks in order, each product added with a single rounding.

    A product of two float32 is exact in float64, and so is nearly every sum there before it is rounded to float32:
    twice, which matters once in 2**29. Measured: the bits of torch.matmul on x86 for up to 192 ranks.
    """
    n, ranks = left.shape
    m = right.shape[1]
    product = np.zeros((n, m), np.float32)
    columns, rows = left.astype(np.float64), right.astype(np.float64)
    step = max(1, _BLOCK // max(m, 1))
    wide = np.empty((min(step, n), m))
    for start in range(0, n, step):
        block = product[start : start + step]
        buffer = wide[: len(block)]
        for rank in range(ranks):
            np.multiply(columns[start : start + step, rank, None], rows[rank], out=buffer)
            np.add(buffer, block, out=buffer)
            np.copyto(block, buffer, casting="same_kind")
    return product
