"""Keras' functions as neutral operations."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from xweights.errors import PortError
from xweights_keras.skeleton.tape import Call, Tape, dtype_of, first, handles

_UNARY = {
    "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Rsqrt": "rsqrt", "Absolute": "abs", "Abs": "abs",
    "Negative": "negative",
    "Sin": "sin", "Cos": "cos", "Erf": "erf", "Reciprocal": "reciprocal", "Floor": "floor", "Ceil": "ceil",
    "Round": "round", "Sign": "sign", "LogicalNot": "logical_not", "Square": "square", "Log1p": "log1p",
    "Expm1": "expm1", "Isnan": "isnan", "Isinf": "isinf",
}  # fmt: skip
_BINARY = {
    "Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Divide": "divide", "TrueDivide": "divide",
    "FloorDivide": "floor_divide", "Mod": "mod", "Maximum": "maximum", "Minimum": "minimum", "Equal": "equal",
    "NotEqual": "not_equal", "Less": "less", "LessEqual": "less_equal", "Greater": "greater",
    "GreaterEqual": "greater_equal", "LogicalAnd": "logical_and", "LogicalOr": "logical_or", "Power": "power",
    "BitwiseAnd": "logical_and", "BitwiseOr": "logical_or",
}  # fmt: skip
_ACTIVATIONS = {
    "Relu": "relu", "Relu6": "relu6", "Silu": "silu", "Sigmoid": "sigmoid", "Tanh": "tanh", "HardSilu": "hard_silu",
    "HardSigmoid": "hard_sigmoid", "Selu": "selu", "LogSigmoid": "log_sigmoid", "Softplus": "softplus",
    "Softsign": "softsign",
}  # fmt: skip


def _spec(call: Call) -> Any:
    """Return shape and type of what an operation makes, as Keras infers them."""
    return call.operation.compute_output_spec(*call.args.values())


def _same(tape: Tape, call: Call, kind: str, **options: Any) -> Any:
    x = tape.array(first(call))
    return tape.add(call, kind, [x], x.shape, dtype_of(x), **options)


@handles(*_UNARY)
def _unary(tape: Tape, call: Call) -> Any:
    return _same(tape, call, "unary", function=_UNARY[type(call.operation).__name__])


@handles(*_BINARY)
def _binary(tape: Tape, call: Call) -> Any:
    a, b = list(call.args.values())[:2]
    spec = call.operation.compute_output_spec(*(_known(tape, item) for item in (a, b)))
    kind = type(call.operation).__name__
    if kind.startswith("Bitwise") and dtype_of(spec) != "bool":
        raise PortError("a bitwise operation of integers has no recipe for code")
    return tape.add(call, "binary", [a, b], spec.shape, dtype_of(spec), function=_BINARY[kind])


def _known(tape: Tape, item: Any) -> Any:
    return tape.symbol(item) if isinstance(item, keras.Variable) else item


@handles(*_ACTIVATIONS)
def _activation(tape: Tape, call: Call) -> Any:
    return _same(tape, call, "activation", does=_ACTIVATIONS[type(call.operation).__name__])


@handles("Gelu")
def _gelu(tape: Tape, call: Call) -> Any:
    return _same(tape, call, "activation", does="gelu_tanh" if call.operation.approximate else "gelu")


@handles("LeakyRelu")
def _leaky(tape: Tape, call: Call) -> Any:
    return _same(tape, call, "activation", does="leaky_relu", slope=float(call.operation.negative_slope))


@handles("Elu")
def _elu(tape: Tape, call: Call) -> Any:
    return _same(tape, call, "activation", does="elu", alpha=float(call.operation.alpha))


@handles("Softmax", "LogSoftmax")
def _softmax(tape: Tape, call: Call) -> Any:
    x = tape.array(first(call))
    axis, log = call.operation.axis, type(call.operation).__name__ == "LogSoftmax"
    if isinstance(axis, (tuple, list)) and len(axis) == 1:
        axis = axis[0]
    if not isinstance(axis, int):
        raise PortError("a softmax over several axes has no recipe for code")
    return tape.add(call, "softmax", [x], x.shape, dtype_of(x), axis=axis % len(x.shape), log=log)


@handles("Where")
def _where(tape: Tape, call: Call) -> Any:
    condition, a, b = list(call.args.values())[:3]
    shapes = [tuple(getattr(item, "shape", ())) for item in (condition, a, b)]
    dtype = next((dtype_of(item) for item in (a, b) if hasattr(item, "dtype")), "float32")
    return tape.add(call, "where", [condition, a, b], np.broadcast_shapes(*shapes), dtype)


@handles("Clip")
def _clip(tape: Tape, call: Call) -> Any:
    low, high = call.operation.x_min, call.operation.x_max
    if not all(isinstance(bound, (int, float)) for bound in (low, high)):
        x = tape.binary(call, "maximum", first(call), low)
        return tape.binary(call, "minimum", x, high)
    return _same(tape, call, "clip", low=low, high=high)


@handles("Cast", "SaturateCast", "ConvertToTensor")
def _cast(tape: Tape, call: Call) -> Any:
    x = tape.array(first(call))
    dtype = call.operation.dtype
    if dtype is None or keras.backend.standardize_dtype(dtype) == dtype_of(x):
        return x
    return tape.add(call, "cast", [x], x.shape, str(keras.backend.standardize_dtype(dtype)))


@handles("StopGradient", "Copy", "Identity")
def _identity(tape: Tape, call: Call) -> Any:
    return first(call)


@handles("ZerosLike", "OnesLike", "FullLike")
def _full(tape: Tape, call: Call) -> Any:
    x = tape.array(first(call))
    kind = type(call.operation).__name__
    value = call.args.get("fill_value", 1 if kind == "OnesLike" else 0)
    return np.full(tuple(x.shape), value, dtype_of(x))


# Along axes.

_REDUCTIONS = {
    "Mean": "mean", "Sum": "sum", "Max": "max", "Amax": "max", "Min": "min", "Amin": "min", "Any": "any", "All": "all",
    "Argmax": "argmax", "Prod": "prod", "Logsumexp": "logsumexp",
}  # fmt: skip


@handles(*_REDUCTIONS)
def _reduce(tape: Tape, call: Call) -> Any:
    x = tape.array(first(call))
    axes = _axes(call.operation.axis, x)
    keepdims = bool(call.operation.keepdims)
    return tape.reduce(call, _REDUCTIONS[type(call.operation).__name__], x, axes, keepdims=keepdims)


def _axes(axis: Any, x: Any) -> list[int]:
    return list(range(len(x.shape))) if axis is None else ([axis] if isinstance(axis, int) else list(axis))


@handles("Var", "Std", "Moments")
def _var(tape: Tape, call: Call) -> Any:
    x = tape.array(first(call))
    kind = type(call.operation).__name__
    axes = _axes(call.operation.axes if kind == "Moments" else call.operation.axis, x)
    keepdims = bool(call.operation.keepdims)
    mean = tape.reduce(call, "mean", x, axes, keepdims=True)
    squares = tape.unary(call, "square", tape.binary(call, "subtract", x, mean))
    variance = tape.reduce(call, "mean", squares, axes, keepdims=keepdims)
    if kind == "Moments":
        return mean if keepdims else tape.reduce(call, "mean", x, axes, keepdims=False), variance
    return variance if kind == "Var" else tape.unary(call, "sqrt", variance)


@handles("Normalize")
def _normalize(tape: Tape, call: Call) -> Any:
    x, operation = tape.array(first(call)), call.operation
    if operation.order != 2:
        raise PortError("keras.ops.normalize of another order than 2 has no recipe for code")
    squares = tape.unary(call, "square", x)
    whole = tape.reduce(call, "sum", squares, _axes(operation.axis, x), keepdims=True)
    whole = tape.binary(call, "maximum", whole, float(operation.epsilon) ** 2)
    return tape.binary(call, "multiply", x, tape.unary(call, "rsqrt", whole))


@handles("Cumsum")
def _cumsum(tape: Tape, call: Call) -> Any:
    x = tape.array(first(call))
    if dtype_of(x) == "bool":
        x = tape.add(call, "cast", [x], x.shape, "int32")
    return tape.add(call, "cumsum", [x], x.shape, dtype_of(x), axis=(call.operation.axis or 0) % len(x.shape))


@handles("LayerNorm", "RMSNorm")
def _norm(tape: Tape, call: Call) -> Any:
    x, operation = tape.array(first(call)), call.operation
    axes = _axes(operation.axis, x)
    if type(operation).__name__ == "LayerNorm":
        mean = tape.reduce(call, "mean", x, axes, keepdims=True)
        x = tape.binary(call, "subtract", x, mean)
    squares = tape.reduce(call, "mean", tape.unary(call, "square", x), axes, keepdims=True)
    x = tape.binary(
        call, "multiply", x, tape.unary(call, "rsqrt", tape.binary(call, "add", squares, operation.epsilon))
    )
    for function, role in (("multiply", "gamma"), ("multiply", "scale"), ("add", "beta")):
        if call.args.get(role) is not None:
            x = tape.binary(call, function, x, call.args[role])
    return x


@handles("BatchNorm")
def _batch_norm(tape: Tape, call: Call) -> Any:
    x, operation, args = tape.array(first(call)), call.operation, call.args
    axis = operation.axis % len(x.shape)
    shape = [n if a == axis else 1 for a, n in enumerate(x.shape)]

    def spread(item: Any) -> Any:
        return tape.reshape(call, item, shape)

    scale = tape.unary(call, "rsqrt", tape.binary(call, "add", spread(args["variance"]), operation.epsilon))
    x = tape.binary(call, "multiply", tape.binary(call, "subtract", x, spread(args["mean"])), scale)
    for function, role in (("multiply", "scale"), ("add", "offset")):
        if args.get(role) is not None:
            x = tape.binary(call, function, x, spread(args[role]))
    return x


# Products.


@handles("Matmul", "Dot")
def _matmul(tape: Tape, call: Call) -> Any:
    a, b = (tape.array(item) for item in list(call.args.values())[:2])
    if min(len(a.shape), len(b.shape)) < 2 or (type(call.operation).__name__ == "Dot" and len(b.shape) > 2):
        raise PortError("a product with a vector has no recipe for code")
    shape = (*np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2])), a.shape[-2], b.shape[-1])
    return tape.add(call, "matmul", [a, b], shape, dtype_of(a))


@handles("Einsum")
def _einsum(tape: Tape, call: Call) -> Any:
    operands = first(call)
    arrays = [tape.array(item) for item in operands]
    equation = call.operation.subscripts.replace(" ", "")
    spec = call.operation.compute_output_spec(*arrays)
    return tape.add(call, "einsum", arrays, spec.shape, dtype_of(arrays[0]), equation=equation)


@handles("Tensordot")
def _tensordot(tape: Tape, call: Call) -> Any:
    a, b = (tape.array(item) for item in list(call.args.values())[:2])
    axes = call.operation.axes
    left, right = (
        (list(range(len(a.shape) - axes, len(a.shape))), list(range(axes)))
        if isinstance(axes, int)
        else ([side] if isinstance(side, int) else list(side) for side in axes)
    )
    letters = "abcdefghijklmnopqrstuvwxyz"
    first = list(letters[: len(a.shape)])
    second = list(letters[len(a.shape) : len(a.shape) + len(b.shape)])
    for one, other in zip(left, right, strict=True):
        second[other] = first[one]
    result = [x for x in first if x not in second] + [x for x in second if x not in first]
    sizes = dict(zip(first, a.shape, strict=True)) | dict(zip(second, b.shape, strict=True))
    equation = f"{''.join(first)},{''.join(second)}->{''.join(result)}"
    return tape.add(call, "einsum", [a, b], [sizes[x] for x in result], dtype_of(a), equation=equation)


@handles("DotProductAttention")
def _attention(tape: Tape, call: Call) -> Any:
    args = call.args
    if args.get("bias") is not None:
        raise PortError("keras.ops.dot_product_attention with a bias has no recipe for code")
    query, key, value = (tape.permute(call, args[part], (0, 2, 1, 3)) for part in ("query", "key", "value"))
    times = query.shape[1] // key.shape[1]
    if times > 1:
        key, value = (
            tape.add(call, "repeat", [part], (*query.shape[:2], *part.shape[2:]), dtype_of(part), axis=1, times=times)
            for part in (key, value)
        )
    scale = args.get("scale") or 1 / math.sqrt(query.shape[-1])
    mask = args.get("mask")
    causal = bool(args.get("is_causal") or getattr(call.operation, "is_causal", False))
    inputs = [query, key, value] + ([] if mask is None else [mask])
    shape = (*query.shape[:-1], value.shape[-1])
    made = tape.add(call, "attention", inputs, shape, dtype_of(query), scale=float(scale), causal=causal)
    return tape.permute(call, made, (0, 2, 1, 3))
