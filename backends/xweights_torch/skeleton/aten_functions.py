"""Torch's functions of arrays as neutral operations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from xweights.errors import PortError
from xweights_torch.skeleton.aten import Call, ProgramReader, Value, Weight, handles, name_of_dtype

_UNARY = {
    "exp": "exp", "log": "log", "sqrt": "sqrt", "rsqrt": "rsqrt", "abs": "abs", "neg": "negative", "sin": "sin",
    "cos": "cos", "erf": "erf", "reciprocal": "reciprocal", "floor": "floor", "ceil": "ceil", "round": "round",
    "sign": "sign", "logical_not": "logical_not", "bitwise_not": "logical_not", "square": "square", "log1p": "log1p",
    "expm1": "expm1", "isnan": "isnan", "isinf": "isinf",
}  # fmt: skip
_BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "floor_divide": "floor_divide", "remainder": "mod",
    "maximum": "maximum", "minimum": "minimum", "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal",
    "gt": "greater", "ge": "greater_equal", "logical_and": "logical_and", "logical_or": "logical_or",
    "bitwise_and": "logical_and", "bitwise_or": "logical_or", "__and__": "logical_and", "__or__": "logical_or",
    "pow": "power",
}  # fmt: skip
_ACTIVATIONS = {
    "relu": "relu", "silu": "silu", "sigmoid": "sigmoid", "tanh": "tanh", "hardswish": "hard_silu",
    "hardsigmoid": "hard_sigmoid", "relu6": "relu6", "selu": "selu", "mish": "mish", "log_sigmoid": "log_sigmoid",
}  # fmt: skip


@handles(*_UNARY)
def _unary(reader: ProgramReader, call: Call) -> Any:
    function = _UNARY[call.base]
    if call.base == "bitwise_not" and call.dtype != "bool":
        raise PortError("a bitwise operation of integers has no recipe for code")
    return reader.add(call, "unary", [call["self"]], function=function)


@handles(*_BINARY)
def _binary(reader: ProgramReader, call: Call) -> Any:
    base = call.base
    function = _BINARY[base]
    a = call["self"]
    b = call["exponent"] if base == "pow" else call["other"]
    if base.startswith(("bitwise", "__")) and call.dtype != "bool":
        raise PortError("a bitwise operation of integers has no recipe for code")
    if base == "pow" and b == 2:
        return reader.add(call, "unary", [a], function="square")
    alpha = call.get("alpha", 1)
    if alpha != 1:
        b = reader.binary(call, "multiply", b, alpha)
    return reader.add(call, "binary", [a, b], function=function)


@handles("div", "true_divide", "rsub", "atan2")
def _other_binary(reader: ProgramReader, call: Call) -> Any:
    a, b = call["self"], call["other"]
    base = call.base
    if base == "rsub":
        return reader.add(call, "binary", [b, a], function="subtract")
    mode = call.get("rounding_mode")
    if mode == "trunc" or base == "atan2":
        raise PortError(f"torch's {base} with this rounding has no recipe for code")
    return reader.add(call, "binary", [a, b], function="floor_divide" if mode else "divide")


@handles("addcmul", "addcdiv")
def _add_product(reader: ProgramReader, call: Call) -> Any:
    function = "multiply" if call.base == "addcmul" else "divide"
    product = reader.binary(call, function, call["tensor1"], call["tensor2"])
    if call.get("value", 1) != 1:
        product = reader.binary(call, "multiply", product, call["value"])
    return reader.add(call, "binary", [call["self"], product], function="add")


@handles("lerp")
def _lerp(reader: ProgramReader, call: Call) -> Any:
    step = reader.binary(call, "multiply", reader.binary(call, "subtract", call["end"], call["self"]), call["weight"])
    return reader.add(call, "binary", [call["self"], step], function="add")


@handles(*_ACTIVATIONS)
def _activation(reader: ProgramReader, call: Call) -> Any:
    return reader.add(call, "activation", [call["self"]], does=_ACTIVATIONS[call.base])


@handles("gelu")
def _gelu(reader: ProgramReader, call: Call) -> Any:
    does = "gelu_tanh" if call.get("approximate", "none") == "tanh" else "gelu"
    return reader.add(call, "activation", [call["self"]], does=does)


@handles("leaky_relu")
def _leaky(reader: ProgramReader, call: Call) -> Any:
    return reader.add(call, "activation", [call["self"]], does="leaky_relu", slope=call["negative_slope"])


@handles("elu")
def _elu(reader: ProgramReader, call: Call) -> Any:
    if (call.get("scale", 1), call.get("input_scale", 1)) != (1, 1):
        raise PortError("elu with a scale has no recipe for code")
    return reader.add(call, "activation", [call["self"]], does="elu", alpha=float(call["alpha"]))


@handles("softplus")
def _softplus(reader: ProgramReader, call: Call) -> Any:
    beta = call.get("beta", 1)
    x = call["self"] if beta == 1 else reader.binary(call, "multiply", call["self"], beta)
    soft = reader.add(call, "activation", [x], does="softplus")
    return soft if beta == 1 else reader.binary(call, "divide", soft, beta)


@handles("prelu")
def _prelu(reader: ProgramReader, call: Call) -> Any:
    x, weight = reader.value(call["self"]), call["weight"]
    slopes = reader.reshape(call, weight, (*weight.shape, *(1,) * (len(x.shape) - 2))) if len(x.shape) > 1 else weight
    scaled = reader.binary(call, "multiply", x, slopes)
    return reader.add(call, "where", [reader.binary(call, "greater", x, 0.0, "bool"), x, scaled])


@handles("hardtanh", "clamp", "clip", "clamp_min", "clamp_max")
def _clip(reader: ProgramReader, call: Call) -> Any:
    low = call.args.get("min_val", call.args.get("min"))
    high = call.args.get("max_val", call.args.get("max"))
    x = call["self"]
    if isinstance(low, (Value, Weight, torch.Tensor)) or isinstance(high, (Value, Weight, torch.Tensor)):
        x = x if low is None else reader.binary(call, "maximum", x, low)
        return x if high is None else reader.binary(call, "minimum", x, high)
    return reader.add(call, "clip", [x], low=low, high=high)


@handles("where")
def _where(reader: ProgramReader, call: Call) -> Any:
    return reader.add(call, "where", [call["condition"], call["self"], call["other"]])


@handles("masked_fill")
def _fill(reader: ProgramReader, call: Call) -> Any:
    return reader.add(call, "where", [call["mask"], call["value"], call["self"]])


@handles("tril", "triu")
def _triangle(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    shape = getattr(np, call.base)
    mask = reader.constant(shape(np.ones(x.shape[-2:], bool), call.get("diagonal", 0)))
    return reader.add(call, "where", [mask, x, 0.0])


@handles("_to_copy", "to", "type_as")
def _cast(reader: ProgramReader, call: Call) -> Any:
    item = call["self"]
    dtype = name_of_dtype(call.meta.dtype)
    return item if item.dtype == dtype else reader.add(call, "cast", [item])


@handles("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "lift_fresh", "positive", "detach_copy",
         "_assert_tensor_metadata", "feature_dropout", "alias_copy")  # fmt: skip
def _same(reader: ProgramReader, call: Call) -> Any:
    return call.args.get("self", call.args.get("input"))


@handles("dropout", "native_dropout", "alpha_dropout")
def _dropout(reader: ProgramReader, call: Call) -> Any:
    if call.get("p", 0) == 0 or not call.path or isinstance(call["input"], Weight):
        return call["input"]
    return reader.add(call, "dropout", [call["input"]], layer=call.path, rate=call["p"])


# Along axes.

_REDUCTIONS = {
    "mean": "mean", "sum": "sum", "amax": "max", "amin": "min", "any": "any", "all": "all", "argmax": "argmax",
    "prod": "prod",
}  # fmt: skip


def _axes_of(axes: Any) -> list[int]:
    return [axes] if isinstance(axes, int) else list(axes)


@handles(*_REDUCTIONS)
def _reduce(reader: ProgramReader, call: Call) -> Any:
    name = call.function
    x = reader.value(call["self"])
    if name in ("mean", "sum") and x.dtype != call.dtype:
        x = reader.add(call, "cast", [x], x.shape, call.dtype)
    axes = call.args.get("dim")
    if axes is None and name == "argmax":
        x = reader.reshape(call, x, (math.prod(x.shape),))
    every = axes is None or (isinstance(axes, (list, tuple)) and not axes)
    chosen = list(range(len(x.shape))) if every else _axes_of(axes)
    return reader.reduce(call, _REDUCTIONS[name], x, chosen, keepdims=bool(call.get("keepdim", False)))


@handles("max", "min")
def _extreme(reader: ProgramReader, call: Call) -> Any:
    base = call.function
    x = reader.value(call["self"])
    if "other" in call.args:
        return reader.add(call, "binary", [x, call["other"]], function=f"{base}imum")
    if "dim" not in call.args:
        return reader.reduce(call, base, x, range(len(x.shape)), keepdims=False)
    values = reader.reduce(call, base, x, [call["dim"]], keepdims=call["keepdim"])
    places = reader.reduce(call, f"arg{base}", x, [call["dim"]], keepdims=call["keepdim"]) if base == "max" else None
    return [values, places]


@handles("var", "std", "var_mean", "std_mean")
def _var(reader: ProgramReader, call: Call) -> Any:
    base = call.function
    x = reader.value(call["self"])
    axes = call.args.get("dim")
    axes = list(range(len(x.shape))) if axes is None else ([axes] if isinstance(axes, int) else list(axes))
    keepdims = bool(call.get("keepdim", False))
    correction = call.args.get("correction")
    if correction is None:
        correction = 0 if call.args.get("unbiased") is False else 1
    number = math.prod(x.shape[axis] for axis in axes)
    mean = reader.reduce(call, "mean", x, axes, keepdims=True)
    squares = reader.unary(call, "square", reader.binary(call, "subtract", x, mean, x.dtype))
    result = reader.reduce(call, "mean", squares, axes, keepdims=keepdims)
    if correction:
        result = reader.binary(call, "multiply", result, number / max(number - correction, 1e-30), x.dtype)
    if base.startswith("std"):
        result = reader.unary(call, "sqrt", result)
    if base.endswith("mean"):
        return [result, mean if keepdims else reader.reduce(call, "mean", x, axes, keepdims=False)]
    return result


@handles("linalg_vector_norm", "norm")
def _norm(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    if call.args.get("ord", call.args.get("p", 2)) not in (2, None):
        raise PortError("a norm other than the Euclidean has no recipe for code")
    axes = call.args.get("dim")
    axes = list(range(len(x.shape))) if axes is None else ([axes] if isinstance(axes, int) else list(axes))
    squares = reader.unary(call, "square", x)
    return reader.unary(call, "sqrt", reader.reduce(call, "sum", squares, axes, keepdims=bool(call.get("keepdim"))))


@handles("logsumexp")
def _logsumexp(reader: ProgramReader, call: Call) -> Any:
    axes = [call["dim"]] if isinstance(call["dim"], int) else list(call["dim"])
    keepdims = bool(call.get("keepdim", False))
    return reader.reduce(call, "logsumexp", call["self"], axes, keepdims=keepdims)


@handles("cumsum")
def _cumsum(reader: ProgramReader, call: Call) -> Any:
    x = reader.value(call["self"])
    if x.dtype == "bool":
        x = reader.add(call, "cast", [x], x.shape, "int64")
    return reader.add(call, "cumsum", [x], axis=call["dim"] % len(call.shape))


@handles("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(reader: ProgramReader, call: Call) -> Any:
    log = "log" in str(call.node.target._schema.name)
    return reader.add(call, "softmax", [call["self"]], axis=call["dim"] % len(call.shape), log=log)
