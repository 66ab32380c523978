"""Initializers by their usual names, with the same bytes in every framework.

Fans are counted by axis names, however a framework stores a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from xweights.core.blocks import BLOCK
from xweights.core.casting import as_number, cast_exactly, check_finite, largest, round_to
from xweights.core.dtypes import Array, is_floating
from xweights.core.names import Names, renamer
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.selection import DEFAULT_KERNELS
from xweights.core.values import host_array, need_axes, operand
from xweights.errors import ArgumentError, DtypeError, LayoutError, ShapeError, near
from xweights.rules.base import Initializer, Rule, need_floating
from xweights.rules.noise import check_seed, drawing_dtype, generator

# Standard deviation of a standard normal truncated at two standard deviations.
TRUNCATED_STD = 0.87962566103423978

# name: (scale, mode, distribution) of the variance-scaling family, under torch's names and Keras'.
VARIANCE_SCALING: dict[str, tuple[float, str, str]] = {
    "glorot_uniform": (1.0, "fan_avg", "uniform"),
    "glorot_normal": (1.0, "fan_avg", "truncated_normal"),
    "xavier_uniform": (1.0, "fan_avg", "uniform"),
    "xavier_normal": (1.0, "fan_avg", "normal"),
    "he_uniform": (2.0, "fan_in", "uniform"),
    "he_normal": (2.0, "fan_in", "truncated_normal"),
    "kaiming_uniform": (2.0, "fan_in", "uniform"),
    "kaiming_normal": (2.0, "fan_in", "normal"),
    "lecun_uniform": (1.0, "fan_in", "uniform"),
    "lecun_normal": (1.0, "fan_in", "truncated_normal"),
}

OPTIONS: dict[str, tuple[str, ...]] = {
    "zeros": (), "ones": (), "constant": ("value",), "uniform": ("low", "high"), "normal": ("mean", "std"),
    "truncated_normal": ("mean", "std"), "orthogonal": ("gain",), "identity": ("gain",),
    "variance_scaling": ("scale", "mode", "distribution"), **dict.fromkeys(VARIANCE_SCALING, ()),
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Init(Rule):
    """Replace the weights by initial ones. Exact: drawn on the host in float64 or float32, rounded once.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.Init("ones"), where="w"); w["w"]
        array([1., 1.])
    """

    default_where = DEFAULT_KERNELS
    initializer: Initializer
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    names: Names | None = None

    @property
    def takes_long(self) -> bool:
        # A user's function runs on the thread that called, one parameter after the other.
        return not callable(self.initializer)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        renamer(self.names)
        if callable(self.initializer):
            return
        if not isinstance(self.initializer, str) or self.initializer not in OPTIONS:
            raise ArgumentError(f"no initializer is named {self.initializer!r}\n{near(str(self.initializer), OPTIONS)}")
        unknown = [name for name in self.options if name not in OPTIONS[self.initializer]]
        if unknown:
            options = ", ".join(OPTIONS[self.initializer]) or "no options"
            raise ArgumentError(f"{self.initializer!r} has no option {unknown[0]!r}\nit takes: {options}")

    def operands(self, parameter: Parameter) -> tuple[Array, ...]:
        source = generator(self.seed, renamer(self.names)(parameter.name))
        return (initial_weights(self.initializer, parameter, source, self.options),)

    def __call__(self, w: Any, ops: Ops, parameter: Parameter, *operands: Any, shared: Any = None) -> Any:
        return ops.fill(w, operands[0])


def initial_weights(
    initializer: Initializer, parameter: Parameter, source: np.random.Generator, options: Mapping[str, Any]
) -> Array:
    """Return the initial weights of one parameter, in neutral order and its dtype."""
    if callable(initializer):
        name = getattr(initializer, "__name__", repr(initializer))
        returned = initializer(parameter.shape, source, **options)
        returned = host_array(returned, what=f"what {name} returned")
        if is_floating(returned.dtype) and parameter.floating:
            # Initial values are usually drawn in float64; rounding them once is meant.
            returned = cast_exactly(returned, parameter.dtype, what=f"what {name} returned", cast=True)
        value = np.broadcast_to(operand(returned, parameter, what=f"what {name} returned"), parameter.shape)
        check_finite(value, f"what {name} returned for {parameter.name!r}")
        return value
    if initializer in ("zeros", "ones", "constant"):
        if initializer == "constant" and "value" not in options:
            raise ArgumentError("'constant' needs value=\nFix: init(target, 'constant', seed=0, value=0.5)")
        number = {"zeros": 0, "ones": 1}.get(initializer, options.get("value"))
        return np.broadcast_to(as_number(number, parameter.dtype), parameter.shape)
    need_floating(parameter, f"init {initializer!r}")
    return _draw(initializer, parameter, source, options)


def _draw(name: str, parameter: Parameter, source: np.random.Generator, options: Mapping[str, Any]) -> Array:
    shape = parameter.shape
    if name == "uniform":
        return _uniform(source, parameter, options.get("low", -0.05), options.get("high", 0.05))
    if name in ("normal", "truncated_normal"):
        make = _normal if name == "normal" else _truncated_normal
        return make(source, parameter, options.get("mean", 0.0), options.get("std", 0.05))
    if name == "orthogonal":
        return _round(_orthogonal(parameter, source, options.get("gain", 1.0)), parameter)
    if name == "identity":
        if len(shape) != 2:
            raise ShapeError(f"'identity' needs a matrix\n{parameter.name!r} has the shape {shape}")
        return _round(np.eye(*shape) * float(options.get("gain", 1.0)), parameter)
    scale, mode, distribution = VARIANCE_SCALING.get(name, (1.0, "fan_in", "truncated_normal"))
    scale, mode = float(options.get("scale", scale)), options.get("mode", mode)
    distribution = options.get("distribution", distribution)
    fan_in, fan_out = fans(parameter)
    by_mode = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    if mode not in by_mode:
        raise ArgumentError(f"mode= is one of {', '.join(by_mode)}\ngot: {mode!r}")
    if not scale > 0:
        raise ArgumentError(f"scale= must be positive\ngot: {scale!r}")
    variance = scale / max(1.0, by_mode[mode])
    if distribution == "uniform":
        limit = math.sqrt(3.0 * variance)
        return _uniform(source, parameter, -limit, limit)
    if distribution == "normal":
        return _normal(source, parameter, 0.0, math.sqrt(variance))
    if distribution == "truncated_normal":
        return _truncated_normal(source, parameter, 0.0, math.sqrt(variance) / TRUNCATED_STD)
    raise ArgumentError(f"distribution= is uniform, normal or truncated_normal\ngot: {distribution!r}")


def _uniform(source: np.random.Generator, p: Parameter, low: float, high: float) -> Array:
    if not low < high:
        raise ArgumentError(f"low must be smaller than high\ngot: low={low!r}, high={high!r}")
    draw = partial(source.random, dtype=drawing_dtype(p.dtype).type)
    return _fill(p, lambda part: draw(out=part), low, high - low)


def _normal(source: np.random.Generator, p: Parameter, mean: float, std: float) -> Array:
    if not std >= 0:
        raise ArgumentError(f"std= must be >= 0\ngot: {std!r}")
    draw = partial(source.standard_normal, dtype=drawing_dtype(p.dtype).type)
    return _fill(p, lambda part: draw(out=part), mean, std)


def _truncated_normal(source: np.random.Generator, p: Parameter, mean: float, std: float) -> Array:
    """Return normal numbers truncated at two standard deviations: numbers outside are drawn again."""
    if not std >= 0:
        raise ArgumentError(f"std= must be >= 0\ngot: {std!r}")
    dtype = drawing_dtype(p.dtype)
    draw = partial(source.standard_normal, dtype=dtype.type)
    numbers = np.empty(p.size, dtype)
    places = [np.empty(0, np.intp)]
    for start in range(0, p.size, BLOCK):
        part = numbers[start : start + BLOCK]
        draw(out=part)
        places.append(np.flatnonzero(np.abs(part) > 2) + start)
    outside = np.concatenate(places)
    while outside.size:
        numbers[outside] = draw(outside.size)
        outside = outside[np.abs(numbers[outside]) > 2]
    position = iter(range(0, p.size, BLOCK))

    def copy(part: Array) -> None:
        start = next(position)
        part[...] = numbers[start : start + part.size]

    return _fill(p, copy, mean, std)


def _fill(p: Parameter, draw: Callable[[Array], Any], shift: float, scale: float) -> Array:
    """Return ``shift + scale * x`` in the dtype of a parameter, x drawn block by block, in flat neutral order.

    Computed in float64 and rounded once; in blocks, because whole arrays of it would take six times the memory.
    """
    filled = np.empty(p.shape, p.dtype)
    flat = filled.reshape(-1)
    drawn = np.empty(min(flat.size, BLOCK), drawing_dtype(p.dtype))
    wide = np.empty(drawn.size, np.float64)
    for start in range(0, flat.size, BLOCK):
        out = flat[start : start + BLOCK]
        part, product = drawn[: out.size], wide[: out.size]
        draw(part)
        np.multiply(part, scale, out=product, dtype=np.float64)
        np.add(product, shift, out=product)
        out[...] = _round(product, p)
    return filled


def _round(drawn: Array, p: Parameter) -> Array:
    """Return what was drawn, rounded once to the dtype of a parameter; refuse numbers that it can't hold."""
    rounded = round_to(drawn, p.dtype)
    if not np.isfinite(rounded).all():
        furthest = drawn.flat[int(np.argmax(np.abs(drawn)))]
        raise DtypeError(
            f"{p.name!r}: what was drawn overflows {p.dtype.name}\n"
            f"got:      {float(furthest):.6g}\n"
            f"expected: at most {largest(p.dtype):.6g}\n"
            "Fix: a smaller std=, scale= or gain=, or narrower limits"
        )
    return rounded


def _orthogonal(parameter: Parameter, source: Any, gain: float) -> Array:
    """Return an orthogonal matrix (Saxe et al., arXiv:1312.6120): inputs flattened, signs from the diagonal of R."""
    shape = parameter.shape
    if len(shape) < 2:
        raise ShapeError(f"'orthogonal' needs at least two axes\n{parameter.name!r} has the shape {shape}")
    last = 1
    if len(shape) > 2:
        axes = need_axes(parameter, "'orthogonal' of more than two axes")
        last = len(parameter.outputs)
        if axes[-last:] != parameter.outputs:
            last = 1
    columns = math.prod(shape[-last:])
    rows = parameter.size // max(columns, 1)
    tall = source.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return np.asarray((q if rows >= columns else q.T).reshape(shape) * float(gain))


def fans(parameter: Parameter) -> tuple[float, float]:
    """Return (fan in, fan out) by axis names: inputs and outputs, each times the spatial axes.

    Transposed convolutions count as the convolution whose gradient they are, as in Keras and torch; depthwise kernels
    count ``in`` and ``mult``, as in Keras; packed projections (``qkv``) count as separate ones.
    """
    axes = need_axes(parameter, "variance scaling")
    if len(axes) < 2:
        raise LayoutError(
            f"variance scaling needs inputs and outputs\n{parameter.name!r} has the axes ({', '.join(axes)})\n"
            "Fix: 'zeros', 'normal' or 'uniform' for vectors"
        )
    sizes = dict(zip(axes, parameter.shape, strict=True))
    inside = math.prod(sizes[axis] for axis in parameter.inputs)
    outside = math.prod(sizes[axis] for axis in parameter.outputs)
    spatial = parameter.size / max(inside * outside * sizes.get("qkv", 1), 1)
    if axes[-2:] == ("out", "in"):
        inside, outside = outside, inside
    return float(inside * spatial), float(outside * spatial)
