"""Tensors of any bits in a module, and the parameter that the backend makes of one."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from xweights_torch import backend
from xweights_torch.dtypes import BITS, NUMPY_OF

DTYPES = sorted(NUMPY_OF, key=str)
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def parameter_of(module, name=None):
    parameters = backend.adapter(module).parameters(module)
    return parameters[0] if name is None else next(p for p in parameters if p.name == name)


def bits(tensor):
    tensor = tensor.detach()
    return tensor.clone() if tensor.is_complex() else tensor.view(BITS[tensor.itemsize]).clone()


def special(dtype, shape=(4, 6)):
    """Draw zeros of both signs, subnormals, infinities and NaNs with payloads, in the dtype's own bits."""
    rng = np.random.default_rng(5)
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape)


class Holder(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.w = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
