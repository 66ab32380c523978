"""Array math of torch for rules: in eager code, under torch.compile, on any device.

Nothing here depends on values, so all of it can be traced. Operands are tensors of the weights' dtype, never Python
numbers, which give other bits in float16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from xweights.core.dtypes import Array
from xweights.core.layout import Shape
from xweights_torch.dtypes import BITS, TORCH_OF, from_host

Tensor = torch.Tensor

# Zeros that no compiler can fold: it sees a tensor that is passed in at run time. A zero made inside of a graph would
# be folded, and the fence with it. On the CPU for tensors on other devices too: a 0-d operand may be there.
_ZERO = {dtype: torch.zeros((), dtype=dtype) for dtype in BITS.values()}


class TorchOps:
    """Array math on torch tensors; multiply, add, fill and set_at edit in place."""

    name = "torch"

    # edits
    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        # A compiler decides by itself what happens in place, and a new tensor can be fenced before it is stored.
        if torch.compiler.is_compiling():
            return torch.mul(x, y)
        x.mul_(y)
        return x

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return torch.add(x, y)
        x.add_(y)
        return x

    def clip(self, x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
        # torch.clamp won't do: with tensor bounds it replaces -0.0 by a bound of +0.0, with Python numbers it rewrites
        # the payload of a bfloat16 NaN. Choosing among bits does neither.
        bits = BITS[x.element_size()]
        new = x.view(bits)
        if high is not None:
            new = torch.where(x > high, high.view(bits), new)
        if low is not None:
            new = torch.where(x < low, low.view(bits), new)
        return new.view(x.dtype)

    def keep(self, x: Tensor, mask: Tensor) -> Tensor:
        bits = _as_bits(x)
        return torch.where(mask, bits, torch.zeros((), dtype=bits.dtype, device=x.device)).view(x.dtype)

    def choose(self, x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        return torch.where(mask, _as_bits(x), _as_bits(y)).view(x.dtype)

    def fill(self, x: Tensor, value: Tensor) -> Tensor:
        x.copy_(value)
        return x

    def set_at(self, x: Tensor, index: tuple[Any, ...], value: Tensor) -> Tensor:
        if len(index) == 1 and isinstance(index[0], (np.ndarray, Tensor)) and tuple(index[0].shape) == tuple(x.shape):
            return self._set_where(x, index[0], value)
        plain, flipped = without_negative_steps(index, x.shape)
        if flipped:
            value = value.expand(x[plain].shape).flip(flipped)
        x[plain] = value
        return x

    def _set_where(self, x: Tensor, mask: Array | Tensor, value: Tensor) -> Tensor:
        where = torch.as_tensor(mask, device=x.device)
        if value.numel() == 1:
            return torch.where(where, _as_bits(value.reshape(())), _as_bits(x)).view(x.dtype)
        # As many values as there are True entries, in C order: no shape depends on the mask, so it can be traced.
        return _as_bits(x).masked_scatter(where, _as_bits(value.contiguous())).view(x.dtype)

    def fence(self, x: Tensor) -> Tensor:
        # Of complex numbers compilers generate no code: they call torch's own kernels.
        if not torch.compiler.is_compiling() or x.is_complex():
            return x
        # A compiler that computes in a wider type, or fuses a multiply with an add, has to round before it can take the
        # bits. It stays one kernel; a custom op would also work, but splits it in two.
        bits = BITS[x.element_size()]
        return torch.bitwise_xor(x.view(bits), _ZERO[bits]).view(x.dtype)

    # measures
    def sum_squares(self, x: Tensor, axes: tuple[int, ...] | None) -> Tensor:
        wide = x.to(torch.float64)
        squares = wide * wide
        if axes is None:
            return squares.sum()
        return squares.sum(dim=axes, keepdim=True) if axes else squares

    def largest_singular_value(self, x: Tensor) -> Tensor:
        if 0 in x.shape:
            return torch.zeros((), dtype=torch.float64, device=x.device)
        values: Tensor = torch.linalg.svdvals(x.to(torch.float64))
        return values.max()

    def rank(self, x: Tensor) -> Tensor:
        return torch.argsort(torch.argsort(x, dim=-1, stable=True), dim=-1)

    def abs(self, x: Tensor) -> Tensor:
        return torch.abs(x)

    def sqrt(self, x: Tensor) -> Tensor:
        return torch.sqrt(x)

    def divide(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.divide(x, y)

    def minimum(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.minimum(x, y)

    def sum(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        # torch takes no axes to mean all axes.
        return torch.sum(x, dim=axes, keepdim=True, dtype=x.dtype) if axes else x.clone()

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.matmul(x, y)

    def greater(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.gt(x, y)

    def where(self, mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(mask, x, y)

    def cast(self, x: Tensor, dtype: np.dtype[Any]) -> Tensor:
        return x.to(TORCH_OF[dtype.name])

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        return x.reshape(shape)

    def transpose(self, x: Tensor, order: tuple[int, ...]) -> Tensor:
        return x.permute(order)

    def concatenate(self, xs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(xs))

    def differentiable(
        self, value: Callable[..., Tensor], gradient: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]
    ) -> Tensor:
        result: Tensor = _Differentiable.apply(value, gradient, *tensors)  # type: ignore[no-untyped-call]
        return result

    # host arrays
    def constant(self, value: Array, like: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # A number made by a rule while it is traced, where NumPy arrays are fake ones without flags.
            return torch.as_tensor(value, device=like.device)
        return from_host(value).to(like.device)

    def buffer(self, value: Array, like: Tensor) -> Tensor:
        return from_host(value).to(like.device, copy=True)

    def refill(self, buffer: Tensor, value: Array) -> None:
        with torch.no_grad():
            buffer.copy_(from_host(value))

    def current(self, buffer: Tensor) -> Tensor:
        return buffer


def _as_bits(x: Tensor) -> Tensor:
    """Return the bits of real numbers as integers, and complex numbers, which nothing computes with, as they are."""
    return x if x.is_complex() else x.view(BITS[x.element_size()])


class _Differentiable(torch.autograd.Function):
    """A scalar with a custom gradient."""

    @staticmethod
    def forward(ctx: Any, value: Callable[..., Tensor], gradient: Callable[..., Any], *tensors: Tensor) -> Tensor:
        ctx.gradient = gradient
        ctx.save_for_backward(*tensors)
        return value(*tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.gradient(upstream, *ctx.saved_tensors))


def without_negative_steps(index: tuple[Any, ...], shape: Sequence[int]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Return the index with all slice steps positive, and the axes of the result that must then be flipped."""
    plain: list[Any] = []
    flipped: list[int] = []
    axis = 0
    for item, length in zip(index, shape, strict=False):
        if isinstance(item, slice) and item.step is not None and item.step < 0:
            positions = range(length)[item]
            plain.append(slice(positions[-1], positions[0] + 1, -item.step) if positions else slice(0, 0))
            flipped.append(axis)
        else:
            plain.append(torch.as_tensor(item) if isinstance(item, np.ndarray) else item)
        axis += isinstance(item, slice)
    return tuple(plain), tuple(flipped)
