"""One call of a function or method, inside a torch module, as steps in neutral words."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from xweights_torch.skeleton.modules import attention_step, flattened, pooled, recurrent_steps, softmaxed
from xweights_torch.skeleton.values import Pending, Reading, Value

_ACTIVATIONS = {
    "relu": "relu", "relu_": "relu", "relu6": "relu6", "silu": "silu", "mish": "mish", "tanh": "tanh",
    "sigmoid": "sigmoid", "selu": "selu", "softsign": "softsign", "hardsigmoid": "hard_sigmoid",
    "hardswish": "hard_silu", "gelu": "gelu", "leaky_relu": "leaky_relu", "elu": "elu", "softplus": "softplus",
}  # fmt: skip
_TWO = {
    operator.add: "add", torch.add: "add", "add": "add", operator.iadd: "add",
    operator.sub: "subtract", torch.sub: "subtract", "sub": "subtract",
    operator.mul: "multiply", torch.mul: "multiply", "mul": "multiply",
    operator.truediv: "divide", torch.div: "divide", "div": "divide",
    torch.maximum: "maximum", torch.minimum: "minimum",
}  # fmt: skip
_TURNS = ("permute", "transpose", "swapaxes", "movedim", "t")
_SIZE = ("size", "getattr")


def call_steps(reading: Reading, node: Any, values: Mapping[Any, Any]) -> Any:
    """Read one call; return what it makes: a value, something pending, or None for a size."""
    target = node.target
    word = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    args = [values.get(one) if isinstance(one, fx.Node) else one for one in node.args]
    name = str(node.name)
    if word in _SIZE:
        return None
    if target is operator.getitem:
        return _selected(reading, name, args)
    if target in _TWO:
        return _two(reading, name, _TWO[target], args)
    if word in ("cat", "concat", "concatenate"):
        parts = [values.get(one) if isinstance(one, fx.Node) else one for one in node.args[0]]
        return _joined(reading, name, parts, _option(node, args, 1, "dim", 0))
    value = args[0] if args else None
    if isinstance(value, Pending):
        return reading.unknown(name, f"a call of {word} on what a layer returned beside its output")
    if not isinstance(value, Value):
        return reading.unknown(name, f"a call of {word}")
    if word in _ACTIVATIONS:
        return _activation(reading, name, word, node, args, value)
    if word in ("softmax", "log_softmax"):
        return softmaxed(reading, name, word, value, _option(node, args, 1, "dim", None))
    if word in _TURNS:
        return _turned(reading, name, word, value, args[1:])
    if word in ("flatten", "view", "reshape"):
        return _reshaped(reading, name, word, node, value, args[1:])
    if word in ("mean", "amax"):
        return _reduced(reading, name, word, value, _option(node, args, 1, "dim", None), _keeps(node, args))
    if word == "dropout":
        return replace(value, name=reading.add(name, "dropout", (value,), {"rate": _option(node, args, 1, "p", 0.5)}))
    if word in ("contiguous", "clone", "detach"):
        return value
    if word == "pad":
        return _padded(reading, name, node, args, value)
    called = _POOLS.get(word)
    if called is not None and not set(node.kwargs) - {"kernel_size", "stride"} and len(args) < 4:
        size = _option(node, args, 1, "kernel_size", None)
        return pooled(reading, name, called[0], value, called[1], size, _option(node, args, 2, "stride", None))
    if word.startswith("adaptive_avg_pool") and _option(node, args, 1, "output_size", None) in (1, (1, 1), (1, 1, 1)):
        rank = int(word[-2]) + 1
        value = reading.laid(value, first=True)
        made = reading.add(name, "global_average", (value,), {"axes": tuple(range(1, rank)), "keeps": True})
        return Value(made, rank, first=True)
    return reading.unknown(name, f"a call of {word}")


_POOLS = {
    f"{kind}_pool{rank}d": (f"{word}_pool", rank + 1)
    for kind, word in (("max", "max"), ("avg", "average"))
    for rank in (1, 2, 3)
}


def _option(node: Any, args: list[Any], place: int, name: str, usual: Any) -> Any:
    return args[place] if len(args) > place else node.kwargs.get(name, usual)


def _keeps(node: Any, args: list[Any]) -> bool:
    return bool(_option(node, args, 2, "keepdim", False))


def _selected(reading: Reading, name: str, args: list[Any]) -> Any:
    value, key = args
    if isinstance(value, Pending):
        return _part(reading, name, value, key)
    if not isinstance(value, Value):
        return None  # of a size
    time_first = value.time_first and isinstance(key, int)
    batch_first = isinstance(key, tuple) and len(key) > 1 and key[0] == slice(None) and isinstance(key[1], int)
    if (time_first or (batch_first and not value.time_first)) and value.rank is not None:
        rest = () if time_first else [one for one in key[2:] if one not in (slice(None), Ellipsis)]
        if not rest:
            value = reading.laid(value, first=False)
            place = key if time_first else key[1]
            made = reading.add(name, "select", (value,), {"place": place})
            return Value(made, (value.rank or 0) - 1, first=False)
    rank = value.rank
    if isinstance(key, tuple) and rank is not None and 3 <= len(key) <= rank + 1:
        sides = [_side(one) for one in key]
        if sides[:2] == [(0, 0), (0, 0)] and None not in sides:
            value = reading.laid(value, first=True)
            cropping = tuple(sides[2:]) + ((0, 0),) * (rank + 1 - len(key))
            return replace(value, name=reading.add(name, "cropping", (value,), {"cropping": cropping}))
    return reading.unknown(name, f"a choice of entries [{key}]")


def _side(key: Any) -> tuple[int, int] | None:
    """Return how much a slice leaves out in front and behind; None for another choice."""
    if not isinstance(key, slice) or key.step not in (None, 1):
        return None
    front, stop = key.start or 0, key.stop
    if not isinstance(front, int) or front < 0 or not (stop is None or (isinstance(stop, int) and stop < 0)):
        return None
    return front, -(stop or 0)


def _padded(reading: Reading, name: str, node: Any, args: list[Any], value: Value) -> Value:
    flat = list(args[1])
    sides = [(flat[at], flat[at + 1]) for at in range(len(flat) - 2, -1, -2)]
    zeros = _option(node, args, 2, "mode", "constant") == "constant" and not _option(node, args, 3, "value", 0)
    rank, negative = value.rank, any(side < 0 for one in sides for side in one)
    if rank is None or not zeros or len(sides) >= rank or negative:
        return reading.unknown(name, "a padding with other numbers than zeros, of channels, or of an unknown rank")
    value = reading.laid(value, first=True)
    padding = ((0, 0),) * (rank - 1 - len(sides)) + tuple(sides)
    return replace(value, name=reading.add(name, "zero_padding", (value,), {"padding": padding}))


def _part(reading: Reading, name: str, pending: Pending, key: Any) -> Any:
    """A part of what a recurrent or an attention layer returns: its output, or where it ends."""
    part = (*pending.part, key)
    if isinstance(pending.module, nn.MultiheadAttention):
        if part == (0,):
            return attention_step(reading, pending.path, pending.module, pending.given)
        return reading.unknown(name, "the weights of attention")
    if part == (0,):
        return recurrent_steps(reading, pending, sequences=True)
    states = (1, 0) if isinstance(pending.module, nn.LSTM) else (1,)
    if part == (*states, -1) and not pending.module.bidirectional:
        return recurrent_steps(reading, pending, sequences=False)
    known = part[: len(states)] == states[: len(part)] and (len(part) <= len(states) or part[-1] in (-1, -2))
    if known and len(part) <= len(states) + 1:
        return replace(pending, part=part)
    return reading.unknown(name, "a state of a recurrent layer")


def _two(reading: Reading, name: str, kind: str, args: list[Any]) -> Value:
    values = [one for one in args if isinstance(one, Value)]
    numbers = [one for one in args if isinstance(one, (int, float))]
    if len(values) == 2:
        one, other = values
        if kind == "divide" or (one.rank is not None and other.rank is not None and one.rank != other.rank):
            return reading.unknown(name, f"to {kind} arrays, or arrays of two ranks")
        first = next((value.first for value in values if value.first is not None), None)
        if first is not None:
            values = [reading.laid(value, first=first) for value in values]
        return replace(values[0], name=reading.add(name, kind, tuple(values)))
    if len(values) == 1 and len(numbers) == 1 and (args[0] is values[0] or kind in ("add", "multiply")):
        number = float(numbers[0])
        factor = {"multiply": number, "divide": 1.0 / number if kind == "divide" else 1.0}.get(kind, 1.0)
        offset = {"add": number, "subtract": -number}.get(kind, 0.0)
        options = {"factor": factor, "offset": offset}
        return replace(values[0], name=reading.add(name, "scale", (values[0],), options))
    return reading.unknown(name, f"to {kind} something that no layer has made")


def _joined(reading: Reading, name: str, parts: list[Any], dim: Any) -> Value:
    if all(isinstance(one, Pending) for one in parts) and len(parts) == 2:
        one, other = parts
        if one.module is other.module and (one.part[-1], other.part[-1]) == (-2, -1) and dim in (1, -1):
            return recurrent_steps(reading, one, sequences=False)
    if not all(isinstance(one, Value) for one in parts) or not isinstance(dim, int):
        return reading.unknown(name, "a concatenation of something that no layer has made")
    first = next((one.first for one in parts if one.first is not None), False)
    values = tuple(reading.laid(one, first=first) for one in parts)
    rank = next((one.rank for one in values if one.rank is not None), None)
    if rank is None and dim != -1:
        return reading.unknown(name, "a concatenation along an axis that isn't known (pass sample=)")
    if rank is None:
        axis = -1
    else:
        place = dim % (rank + 1)
        axis = place if not first or rank == 1 else (rank if place == 1 else place - 1)
    if axis == 0:
        return reading.unknown(name, "a concatenation along the batch")
    return Value(reading.add(name, "concatenate", values, {"axis": axis}), rank, first)


def _activation(reading: Reading, name: str, word: str, node: Any, args: list[Any], value: Value) -> Value:
    does, options = _ACTIVATIONS[word], {}
    if word == "gelu" and _option(node, args, 1, "approximate", "none") == "tanh":
        does = "gelu_tanh"
    if word == "leaky_relu":
        options["slope"] = _option(node, args, 1, "negative_slope", 0.01)
    if word == "elu":
        options["alpha"] = _option(node, args, 1, "alpha", 1.0)
    if word == "softplus" and (len(args) > 1 or node.kwargs):
        return reading.unknown(name, "softplus with settings")
    return replace(value, name=reading.add(name, "activation", (value,), {"does": does, **options}))


def _turned(reading: Reading, name: str, word: str, value: Value, args: list[Any]) -> Value:
    """A permutation: where it only moves the channels, the neutral value stays as it is."""
    if value.rank is None:
        return reading.unknown(name, "a permutation of a value whose rank isn't known (pass sample=)")
    count = value.rank + 1
    flat = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    axes = list(range(count))
    if word == "permute":
        axes = [int(one) % count for one in flat]
    elif word in ("transpose", "swapaxes", "t"):
        one, other = (int(axis) % count for axis in (flat or (0, 1)))
        axes[one], axes[other] = other, one
    else:
        moved = axes.pop(int(flat[0]) % count)
        axes.insert(int(flat[1]) % count, moved)
    if axes[0] != 0:
        return reading.unknown(name, "a permutation that moves the batch")
    was = bool(value.first)

    def neutral(axis: int) -> int:
        if not was:
            return axis
        return value.rank or 0 if axis == 1 else axis - 1

    straight = tuple(range(1, count))
    for first in (False, True):
        wanted = (*range(2, count), 1) if first else straight
        order = tuple(neutral(axes[axis]) for axis in wanted)
        if order == straight:
            return replace(value, first=first)
    order = tuple(neutral(axes[axis]) for axis in straight)
    return replace(value, name=reading.add(name, "permute", (value,), {"order": order}), first=False)


def _reshaped(reading: Reading, name: str, word: str, node: Any, value: Value, args: list[Any]) -> Value:
    flat = list(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else list(args)
    if word == "flatten":
        start = flat[0] if flat else node.kwargs.get("start_dim", 0)
        end = flat[1] if len(flat) > 1 else node.kwargs.get("end_dim", -1)
        if (start, end) == (1, -1):
            return flattened(reading, name, value)
        return reading.unknown(name, f"a flatten of the axes {start} to {end}")
    if len(flat) == 2 and flat[1] == -1:
        return flattened(reading, name, value)
    batch = flat[0] if flat else None
    if not all(isinstance(one, int) for one in flat[1:]) or not (batch is None or batch == -1) or -1 in flat[1:]:
        return reading.unknown(name, f"a {word} to a shape that isn't known")
    if value.rank != 1:
        value = reading.laid(value, first=False)
    # In torch's order, which is exact whatever comes next.
    made = reading.add(name, "reshape", (value,), shape=tuple(flat[1:]))
    return Value(made, len(flat) - 1, first=False)


def _reduced(reading: Reading, name: str, word: str, value: Value, dim: Any, keeps: bool) -> Value:
    axes = (dim,) if isinstance(dim, int) else dim
    if not axes or value.rank is None:
        return reading.unknown(name, f"a {word} over axes that aren't known (pass sample=)")
    count = value.rank + 1
    first = bool(value.first)
    places = sorted((value.rank if axis % count == 1 else axis % count - 1) if first else axis % count for axis in axes)
    if 0 in [axis % count for axis in axes]:
        return reading.unknown(name, f"a {word} over the batch")
    kind = {"mean": "global_average", "amax": "global_max"}[word]
    made = reading.add(name, kind, (value,), {"axes": tuple(places), "keeps": keeps})
    rank = value.rank if keeps else value.rank - len(places)
    return Value(made, rank, first and (keeps or value.rank not in places) if rank > 1 else None)
