"""Folds: units of the source as they are after a norm was folded into the layer beside it, or taken out of it.

A norm in inference multiplies and adds, so it can be computed by the layer before or behind it, and a layer without a
norm is the same layer with a norm that changes nothing. Everything here is pure: the arrays of a folded unit are
computed from those of the units that it stands for whenever they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.porting.matching.trace import read_arrays
from xweights.porting.protocol import LayerRecord
from xweights.porting.units import LayerUnit, ParamSlice

# Layers that a norm before or behind them is folded into, by the axis of their kernels along which their outputs are.
OUTPUTS = {"dense": -1, "conv": -1, "conv_transpose": -2}
# Norms that multiply and add the same numbers whatever the input is.
NORMS = frozenset({"batch_norm", "normalization"})


@dataclass(frozen=True, eq=False)
class Fold:
    """A unit that stands for others of the source: ``origins``, and what was done to them, in a few words.

    ``fits`` returns whether a unit of the target needs it in this form.
    """

    unit: LayerUnit
    origins: tuple[LayerUnit, ...]
    text: str
    fits: Callable[[LayerUnit], bool]


def is_foldable(norm: LayerUnit) -> bool:
    """Return True for a norm whose statistics are among its arrays."""
    needed = {"moving_mean", "moving_variance"} if norm.kind == "batch_norm" else {"mean", "variance"}
    return norm.kind in NORMS and needed <= norm.slices.keys()


def fold_behind(layer: LayerUnit, norm: LayerUnit) -> LayerUnit:
    """Return a layer with the norm that follows it folded into it."""

    def scale_kernel(_: Array) -> Array:
        arrays, (factor, _offset) = read_arrays(layer), read_norm(norm)
        if OUTPUTS[layer.kind] == -2:
            factor = factor[:, np.newaxis]
        return _cast(arrays["kernel"] * factor, arrays["kernel"])

    def move_bias(_: Array) -> Array:
        arrays, (factor, offset) = read_arrays(layer), read_norm(norm)
        return _cast(arrays.get("bias", 0.0) * factor + offset, arrays["kernel"])

    kernel, width = layer.slices["kernel"], count_outputs(layer)
    slices = {
        "kernel": ParamSlice(kernel.parameter, kernel.shape, view=scale_kernel),
        "bias": ParamSlice(_statistic(norm), (width,), view=move_bias),
    }
    return replace(layer, slices=slices)


def fold_before(read: Callable[[], tuple[Array, Array]], layer: LayerUnit) -> LayerUnit:
    """Return a layer with a norm before it folded into it; a convolution that pads doesn't compute the same.

    ``read`` returns the numbers that the norm multiplies with and adds.
    """

    def spread(values: Array) -> Array:
        """Return one number for each input as the kernel has its inputs: (inputs of a group, outputs)."""
        *_, channels, filters = layer.slices["kernel"].shape
        groups = values.size // channels
        return np.repeat(values.reshape(groups, channels).T, filters // groups, axis=1)

    def scale_kernel(_: Array) -> Array:
        kernel, (factor, _offset) = read_arrays(layer)["kernel"], read()
        return _cast(kernel * spread(factor), kernel)

    def add_bias(_: Array) -> Array:
        arrays, (_factor, offset) = read_arrays(layer), read()
        kernel = arrays["kernel"].astype(np.float64)
        moved = (kernel * spread(offset)).reshape(-1, kernel.shape[-1]).sum(axis=0)
        return _cast(arrays.get("bias", 0.0) + moved, arrays["kernel"])

    kernel, width = layer.slices["kernel"], count_outputs(layer)
    slices = {
        "kernel": ParamSlice(kernel.parameter, kernel.shape, view=scale_kernel),
        "bias": ParamSlice(kernel.parameter, (width,), view=add_bias),
    }
    return replace(layer, slices=slices)


def drop_bias(layer: LayerUnit) -> LayerUnit:
    """Return a layer without its bias."""
    return replace(layer, slices={"kernel": layer.slices["kernel"]})


def move_bias_into_mean(layer: LayerUnit, norm: LayerUnit) -> LayerUnit:
    """Return the norm that follows a layer as it is if the layer has no bias: the mean is less by the bias."""
    mean = norm.slices["moving_mean"]

    def shift(_: Array) -> Array:
        kept = read_arrays(norm)["moving_mean"]
        return _cast(kept.astype(np.float64) - read_arrays(layer)["bias"], kept)

    return replace(norm, slices={**norm.slices, "moving_mean": ParamSlice(mean.parameter, mean.shape, view=shift)})


def make_idle(layer: LayerUnit, norm: LayerUnit, *, bias: bool) -> LayerUnit:
    """Return a norm of the same kind as a target's that changes nothing, or only adds the bias of the layer before."""
    kernel = layer.slices["kernel"].parameter
    width = count_features(norm)
    eps = float(norm.attributes.get("eps", 0.0))
    values: dict[str, float | None] = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0 - eps}
    if norm.kind == "normalization":
        values = {"mean": 0.0, "variance": 1.0}
    if bias:
        values["beta" if "beta" in norm.slices else "moving_mean"] = None
    sign = 1.0 if "beta" in norm.slices else -1.0

    def read(value: float | None, _: Array) -> Array:
        dtype = kernel.dtype
        return np.full(width, value, dtype) if value is not None else _cast(sign * read_arrays(layer)["bias"], dtype)

    slices = {role: ParamSlice(kernel, (width,), view=partial(read, value)) for role, value in values.items()}
    # A record of its own, because it is none of the source's layers: no settings of it are compared.
    return LayerUnit(norm.kind, LayerRecord(norm.kind, layer.path, {}), slices)


def read_norm(norm: LayerUnit) -> tuple[Array, Array]:
    """Return the numbers that a norm multiplies with and adds, in float64."""
    arrays: Mapping[str, Array] = {role: array.astype(np.float64) for role, array in read_arrays(norm).items()}
    if norm.kind == "normalization":
        # keras.layers.Normalization: (x - mean) / max(sqrt(variance), epsilon).
        factor = 1.0 / np.maximum(np.sqrt(arrays["variance"]), 1e-7)
        return factor, -arrays["mean"] * factor
    factor = arrays.get("gamma", np.ones(())) / np.sqrt(arrays["moving_variance"] + float(norm.attributes["eps"]))
    return factor, arrays.get("beta", np.zeros(())) - arrays["moving_mean"] * factor


def count_outputs(layer: LayerUnit) -> int:
    """Return the number of features that a layer puts out."""
    return layer.slices["kernel"].shape[OUTPUTS[layer.kind]]


def count_features(norm: LayerUnit) -> int:
    """Return the number of features of a norm."""
    return math.prod(next(iter(norm.slices.values())).shape)


def has_bias(layer: LayerUnit) -> bool:
    """Return True if a layer adds a bias that isn't zero."""
    return "bias" in layer.slices and bool(read_arrays(layer)["bias"].any())


def _statistic(norm: LayerUnit) -> Parameter:
    return norm.slices["moving_mean" if norm.kind == "batch_norm" else "mean"].parameter


def _cast(value: Array, like: Array | np.dtype[np.generic]) -> Array:
    return np.asarray(value).astype(getattr(like, "dtype", like))
