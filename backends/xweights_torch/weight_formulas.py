"""The formulas by which torch.nn.utils computes a weight from several arrays, for arrays of a file.

torch's own functions compute them, so that the values have the same bits as in the module that the file was saved of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from xweights.core.dtypes import Array
from xweights.errors import ShapeError, got_expected
from xweights_torch.dtypes import from_host, host_view
from xweights_torch.tables.spellings import Product


def usual_dim(owner: Any) -> int:
    """Return the axis of the outputs, which torch's spectral norms take by default."""
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return 1 if isinstance(owner, transposed) else 0


def evaluate(product: Product, arrays: Sequence[Array], *, path: str, dim: int) -> Array:
    """Compute a weight from the arrays of a file by torch's own functions."""
    queue = [from_host(array) for array in arrays]
    with torch.no_grad():
        return host_view(_evaluate_parts(product, queue, path, dim))


def _evaluate_parts(product: Product, queue: list[torch.Tensor], path: str, dim: int) -> torch.Tensor:
    values = [
        _evaluate_parts(part, queue, path, dim) if isinstance(part, Product) else queue.pop(0) for part in product.parts
    ]
    if product.kind == "weight_norm":
        g, v = values
        return _normalize_by_norm(g, v, path)
    if product.kind == "spectral_norm":
        w, u, v = values
        return _normalize_by_sigma(w, u, v, path, dim)
    original, mask = values
    return _apply_mask(original, mask, path)


def _normalize_by_norm(g: torch.Tensor, v: torch.Tensor, path: str) -> torch.Tensor:
    """Return g * v / ||v||, as torch/nn/utils/weight_norm.py does; the shape of g tells over which axes the norm is."""
    dims = [axis for axis, length in enumerate(g.shape) if length > 1] or [
        axis for axis, length in enumerate(v.shape) if length == 1
    ]
    if g.ndim == 0 or g.ndim == v.ndim == 0:
        dim = -1
    elif g.ndim == v.ndim and dims and g.numel() == g.shape[dims[0]] == v.shape[dims[0]]:
        dim = dims[0]
    else:
        raise ShapeError(
            f"{path!r} can't be computed from a weight norm's g and v\n"
            + got_expected(f"g {tuple(g.shape)}, v {tuple(v.shape)}", "g with the length of one axis of v, else 1")
        )
    return torch._weight_norm(v, g, dim)


def _normalize_by_sigma(w: torch.Tensor, u: torch.Tensor, v: torch.Tensor, path: str, dim: int) -> torch.Tensor:
    """Return w / (u . W v), as torch/nn/utils/spectral_norm.py does in eval mode; W is w with one axis as its rows."""
    lengths = (u.numel(), v.numel())
    fitting = [
        axis
        for axis in sorted(range(w.ndim), key=lambda axis: axis != dim)
        if (w.shape[axis], w.numel() // max(w.shape[axis], 1)) == lengths
    ]
    if u.ndim != 1 or v.ndim != 1 or not fitting:
        raise ShapeError(
            f"{path!r} can't be computed from a spectral norm's weight and vectors\n"
            + got_expected(
                f"weight {tuple(w.shape)}, u {tuple(u.shape)}, v {tuple(v.shape)}",
                "u with the length of one axis, v with that of all others",
            )
        )
    products = [torch.mv(w.movedim(axis, 0).reshape(len(u), -1), v) for axis in fitting]
    # Of a square weight the shapes don't tell the axis, but u is W v, normalized: of the other axis it would be
    # no more alike than two random vectors.
    alike = [float(torch.vdot(u, x).abs() / x.norm()) for x in products]
    if alike[0] < 0.9 < max(alike[1:], default=0.0):
        axis = fitting[alike.index(max(alike))]
        raise ShapeError(
            f"{path!r} can't be computed: its spectral norm seems to be over axis {axis}, not {fitting[0]}\n"
            f"Fix: torch.nn.utils.spectral_norm(layer, dim={axis}), load the file into it, then remove_spectral_norm"
        )
    # The product by torch's own function is made from the same matrix, so it has the same bits as the layer's.
    return w / torch.vdot(u, products[0])


def _apply_mask(original: torch.Tensor, mask: torch.Tensor, path: str) -> torch.Tensor:
    """Return mask * original, as BasePruningMethod.apply_mask does."""
    if original.shape != mask.shape:
        raise ShapeError(
            f"{path!r} can't be computed from a pruned weight and its mask\n"
            + got_expected(f"mask {tuple(mask.shape)}", f"{tuple(original.shape)}, as the weight")
        )
    return mask.to(dtype=original.dtype) * original
