"""Conversion between torch tensors and NumPy arrays, bit for bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

from xweights.core.dtypes import Array
from xweights_torch.tables.newer import float8_e8m0fnu

# Dtypes that Tensor.numpy() supports.
PLAIN = {
    torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64,
    torch.int8: np.int8, torch.int16: np.int16, torch.int32: np.int32, torch.int64: np.int64,
    torch.uint8: np.uint8, torch.uint16: np.uint16, torch.uint32: np.uint32, torch.uint64: np.uint64,
    torch.bool: np.bool_, torch.complex64: np.complex64, torch.complex128: np.complex128,
}  # fmt: skip

# Dtypes that have to be converted as integers.
_BY_BITS = {
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn, torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2: ml_dtypes.float8_e5m2, torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
}  # fmt: skip
if float8_e8m0fnu is not None:
    _BY_BITS[float8_e8m0fnu] = ml_dtypes.float8_e8m0fnu

NUMPY_OF: dict[torch.dtype, np.dtype[Any]] = {dtype: np.dtype(scalar) for dtype, scalar in (PLAIN | _BY_BITS).items()}
# By name, because Dynamo can look up strings but no NumPy dtypes.
TORCH_OF: dict[str, torch.dtype] = {numpy.name: dtype for dtype, numpy in NUMPY_OF.items()}

# Same-width integers to move bits through: a float that passes through arithmetic, or through a compiler's wider
# registers, may lose the payload of a NaN.
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_HOST_BITS = {1: np.dtype(np.int8), 2: np.dtype(np.int16)}

# Types whose arithmetic NumPy does at full speed, in place, on one core (float8: torch has no arithmetic for it).
FAST_IN_NUMPY = frozenset(PLAIN) - {torch.float16} | (frozenset(_BY_BITS) - {torch.bfloat16})


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the NumPy dtype of a torch one; bare bytes for one without a counterpart (quantized types)."""
    return NUMPY_OF.get(dtype) or np.dtype(f"V{dtype.itemsize}")


def host_view(tensor: torch.Tensor) -> Array:
    """Return the values on the host: on the CPU a writable view of the tensor's own memory."""
    dtype = tensor.dtype
    if dtype in _BY_BITS:
        return tensor.detach().view(BITS[dtype.itemsize]).numpy(force=True).view(NUMPY_OF[dtype])
    # force=True detaches, and copies only where it must: from a device, or a lazy conjugate.
    array: Array = tensor.numpy(force=True)
    return array


def is_lazy_view(tensor: torch.Tensor) -> bool:
    """Return True for a tensor whose memory holds the conjugate, or the negative, of its values."""
    return tensor.is_conj() or tensor.is_neg()


def plain_bits(array: Array) -> Array:
    """Return an ml_dtypes array as integers of its width (which NumPy copies faster), others unchanged."""
    if array.dtype.kind == "V" or array.dtype in _AS_INTEGERS:
        return array.view(_HOST_BITS[array.dtype.itemsize])
    return array


_SHARED = frozenset(np.dtype(scalar) for scalar in PLAIN.values())
_AS_INTEGERS = frozenset(np.dtype(scalar) for scalar in _BY_BITS.values())


def from_host(array: Array) -> torch.Tensor:
    """Return a host array as a CPU tensor that shares its memory where it can; only to be read."""
    if array.dtype in _SHARED and array.flags.carray:
        return torch.from_numpy(array)
    dtype = TORCH_OF[array.dtype.name]
    array = plain_bits(np.asarray(array))
    # torch has no negative strides, and warns about read-only arrays.
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype else tensor.view(dtype)
