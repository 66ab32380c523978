"""Calls of functions and methods inside a torch module, recorded as neutral steps."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from xweights_torch.activations import NAME_OF_FUNCTION
from xweights_torch.skeleton.modules import (
    record_attention,
    record_flatten,
    record_pool,
    record_recurrent,
    record_softmax,
)
from xweights_torch.skeleton.values import PendingOutput, StepRecorder, TracedValue

_BINARY = {
    operator.add: "add", torch.add: "add", "add": "add", operator.iadd: "add",
    operator.sub: "subtract", torch.sub: "subtract", "sub": "subtract",
    operator.mul: "multiply", torch.mul: "multiply", "mul": "multiply",
    operator.truediv: "divide", torch.div: "divide", "div": "divide",
    torch.maximum: "maximum", torch.minimum: "minimum",
}  # fmt: skip
_PERMUTATIONS = ("permute", "transpose", "swapaxes", "movedim", "t")
_SIZE = ("size", "getattr")


def record_call(recorder: StepRecorder, node: Any, values: Mapping[Any, Any]) -> Any:
    """Record one call; return its result: a value, a pending output, or None for a size."""
    target = node.target
    function = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    args = [values.get(arg) if isinstance(arg, fx.Node) else arg for arg in node.args]
    name = str(node.name)
    if function in _SIZE:
        return None
    if target is operator.getitem:
        return _select(recorder, name, args)
    if target in _BINARY:
        return _binary(recorder, name, _BINARY[target], args)
    if function in ("cat", "concat", "concatenate"):
        parts = [values.get(arg) if isinstance(arg, fx.Node) else arg for arg in node.args[0]]
        return _join(recorder, name, parts, _option(node, args, 1, "dim", 0))
    value = args[0] if args else None
    if isinstance(value, PendingOutput):
        return recorder.add_unsupported(name, f"a call of {function} on a result of a layer other than its output")
    if not isinstance(value, TracedValue):
        return recorder.add_unsupported(name, f"a call of {function}")
    if function in NAME_OF_FUNCTION:
        return _activation(recorder, name, function, node, args, value)
    if function in ("softmax", "log_softmax"):
        return record_softmax(recorder, name, function, value, _option(node, args, 1, "dim", None))
    if function in _PERMUTATIONS:
        return _permute(recorder, name, function, value, args[1:])
    if function in ("flatten", "view", "reshape"):
        return _reshape(recorder, name, function, node, value, args[1:])
    if function in ("mean", "amax"):
        return _reduce(recorder, name, function, value, _option(node, args, 1, "dim", None), _keeps_dims(node, args))
    if function == "dropout":
        return replace(value, name=recorder.add(name, "dropout", (value,), {"rate": _option(node, args, 1, "p", 0.5)}))
    if function in ("contiguous", "clone", "detach"):
        return value
    if function == "pad":
        return _pad(recorder, name, node, args, value)
    pool = _POOLS.get(function)
    if pool is not None and not set(node.kwargs) - {"kernel_size", "stride"} and len(args) < 4:
        size = _option(node, args, 1, "kernel_size", None)
        return record_pool(recorder, name, pool[0], value, pool[1], size, _option(node, args, 2, "stride", None))
    if function.startswith("adaptive_avg_pool") and _option(node, args, 1, "output_size", None) in (
        1,
        (1, 1),
        (1, 1, 1),
    ):
        rank = int(function[-2]) + 1
        value = recorder.with_channels(value, first=True)
        output = recorder.add(name, "global_average", (value,), {"axes": tuple(range(1, rank)), "keeps": True})
        return TracedValue(output, rank, first=True)
    return recorder.add_unsupported(name, f"a call of {function}")


_POOLS = {
    f"{kind}_pool{rank}d": (f"{reduction}_pool", rank + 1)
    for kind, reduction in (("max", "max"), ("avg", "average"))
    for rank in (1, 2, 3)
}


def _option(node: Any, args: list[Any], index: int, name: str, default: Any) -> Any:
    return args[index] if len(args) > index else node.kwargs.get(name, default)


def _keeps_dims(node: Any, args: list[Any]) -> bool:
    return bool(_option(node, args, 2, "keepdim", False))


def _select(recorder: StepRecorder, name: str, args: list[Any]) -> Any:
    value, key = args
    if isinstance(value, PendingOutput):
        return _select_part(recorder, name, value, key)
    if not isinstance(value, TracedValue):
        return None  # part of a size
    time_first = value.time_first and isinstance(key, int)
    batch_first = isinstance(key, tuple) and len(key) > 1 and key[0] == slice(None) and isinstance(key[1], int)
    if (time_first or (batch_first and not value.time_first)) and value.rank is not None:
        rest = () if time_first else [part for part in key[2:] if part not in (slice(None), Ellipsis)]
        if not rest:
            value = recorder.with_channels(value, first=False)
            index = key if time_first else key[1]
            output = recorder.add(name, "select", (value,), {"place": index})
            return TracedValue(output, (value.rank or 0) - 1, first=False)
    rank = value.rank
    if isinstance(key, tuple) and rank is not None and 3 <= len(key) <= rank + 1:
        sides = [_cropped_sides(part) for part in key]
        if sides[:2] == [(0, 0), (0, 0)] and None not in sides:
            value = recorder.with_channels(value, first=True)
            cropping = tuple(sides[2:]) + ((0, 0),) * (rank + 1 - len(key))
            return replace(value, name=recorder.add(name, "cropping", (value,), {"cropping": cropping}))
    return recorder.add_unsupported(name, f"a choice of entries [{key}]")


def _cropped_sides(key: Any) -> tuple[int, int] | None:
    """Return how much a slice leaves out in front and behind; None for any other index."""
    if not isinstance(key, slice) or key.step not in (None, 1):
        return None
    front, stop = key.start or 0, key.stop
    if not isinstance(front, int) or front < 0 or not (stop is None or (isinstance(stop, int) and stop < 0)):
        return None
    return front, -(stop or 0)


def _pad(recorder: StepRecorder, name: str, node: Any, args: list[Any], value: TracedValue) -> TracedValue:
    flat = list(args[1])
    sides = [(flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2)]
    zeros = _option(node, args, 2, "mode", "constant") == "constant" and not _option(node, args, 3, "value", 0)
    known = all(isinstance(side, int) for pair in sides for side in pair)
    rank, negative = value.rank, known and any(side < 0 for pair in sides for side in pair)
    if not known or rank is None or not zeros or len(sides) >= rank or negative:
        return recorder.add_unsupported(
            name, "a padding with other numbers than zeros, of channels, or of an unknown rank"
        )
    value = recorder.with_channels(value, first=True)
    padding = ((0, 0),) * (rank - 1 - len(sides)) + tuple(sides)
    return replace(value, name=recorder.add(name, "zero_padding", (value,), {"padding": padding}))


def _select_part(recorder: StepRecorder, name: str, pending: PendingOutput, key: Any) -> Any:
    """Record a part of a recurrent or attention layer's output: the sequence, or the last state."""
    part = (*pending.part, key)
    if isinstance(pending.module, nn.MultiheadAttention):
        if part == (0,):
            return record_attention(recorder, pending.path, pending.module, pending.args)
        return recorder.add_unsupported(name, "the weights of attention")
    if part == (0,):
        return record_recurrent(recorder, pending, sequences=True)
    states = (1, 0) if isinstance(pending.module, nn.LSTM) else (1,)
    if part == (*states, -1) and not pending.module.bidirectional:
        return record_recurrent(recorder, pending, sequences=False)
    is_state = part[: len(states)] == states[: len(part)] and (len(part) <= len(states) or part[-1] in (-1, -2))
    if is_state and len(part) <= len(states) + 1:
        return replace(pending, part=part)
    return recorder.add_unsupported(name, "a state of a recurrent layer")


def _binary(recorder: StepRecorder, name: str, kind: str, args: list[Any]) -> TracedValue:
    values = [arg for arg in args if isinstance(arg, TracedValue)]
    numbers = [arg for arg in args if isinstance(arg, (int, float))]
    if len(values) == 2:
        left, right = values
        if kind == "divide" or (left.rank is not None and right.rank is not None and left.rank != right.rank):
            return recorder.add_unsupported(name, f"to {kind} arrays, or arrays of two ranks")
        first = next((value.first for value in values if value.first is not None), None)
        if first is not None:
            values = [recorder.with_channels(value, first=first) for value in values]
        return replace(values[0], name=recorder.add(name, kind, tuple(values)))
    if len(values) == 1 and len(numbers) == 1 and (args[0] is values[0] or kind in ("add", "multiply")):
        number = float(numbers[0])
        factor = {"multiply": number, "divide": 1.0 / number if kind == "divide" else 1.0}.get(kind, 1.0)
        offset = {"add": number, "subtract": -number}.get(kind, 0.0)
        options = {"factor": factor, "offset": offset}
        return replace(values[0], name=recorder.add(name, "scale", (values[0],), options))
    return recorder.add_unsupported(name, f"to {kind} something that no layer has made")


def _join(recorder: StepRecorder, name: str, parts: list[Any], dim: Any) -> TracedValue:
    if all(isinstance(part, PendingOutput) for part in parts) and len(parts) == 2:
        first_part, second_part = parts
        if (
            first_part.module is second_part.module
            and (first_part.part[-1], second_part.part[-1]) == (-2, -1)
            and dim in (1, -1)
        ):
            return record_recurrent(recorder, first_part, sequences=False)
    if not all(isinstance(part, TracedValue) for part in parts) or not isinstance(dim, int):
        return recorder.add_unsupported(name, "a concatenation of something that no layer has made")
    first = next((part.first for part in parts if part.first is not None), False)
    values = tuple(recorder.with_channels(part, first=first) for part in parts)
    rank = next((value.rank for value in values if value.rank is not None), None)
    if rank is None and dim != -1:
        return recorder.add_unsupported(name, "a concatenation along an axis that isn't known (pass sample=)")
    if rank is None:
        axis = -1
    else:
        position = dim % (rank + 1)
        axis = position if not first or rank == 1 else (rank if position == 1 else position - 1)
    if axis == 0:
        return recorder.add_unsupported(name, "a concatenation along the batch")
    return TracedValue(recorder.add(name, "concatenate", values, {"axis": axis}), rank, first)


def _activation(
    recorder: StepRecorder, name: str, function: str, node: Any, args: list[Any], value: TracedValue
) -> TracedValue:
    does, options = NAME_OF_FUNCTION[function], {}
    if function == "gelu" and _option(node, args, 1, "approximate", "none") == "tanh":
        does = "gelu_tanh"
    if function == "leaky_relu":
        options["slope"] = _option(node, args, 1, "negative_slope", 0.01)
    if function == "elu":
        options["alpha"] = _option(node, args, 1, "alpha", 1.0)
    if function == "softplus" and (len(args) > 1 or node.kwargs):
        return recorder.add_unsupported(name, "softplus with settings")
    return replace(value, name=recorder.add(name, "activation", (value,), {"does": does, **options}))


def _permute(recorder: StepRecorder, name: str, function: str, value: TracedValue, args: list[Any]) -> TracedValue:
    """Record a permutation; one that only moves the channels leaves the neutral value unchanged."""
    if value.rank is None:
        return recorder.add_unsupported(name, "a permutation of a value whose rank isn't known (pass sample=)")
    count = value.rank + 1
    flat = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
    axes = list(range(count))
    if function == "permute":
        axes = [int(axis) % count for axis in flat]
    elif function in ("transpose", "swapaxes", "t"):
        a, b = (int(axis) % count for axis in (flat or (0, 1)))
        axes[a], axes[b] = b, a
    else:
        moved = axes.pop(int(flat[0]) % count)
        axes.insert(int(flat[1]) % count, moved)
    if axes[0] != 0:
        return recorder.add_unsupported(name, "a permutation that moves the batch")
    channels_first = bool(value.first)

    def neutral(axis: int) -> int:
        if not channels_first:
            return axis
        return value.rank or 0 if axis == 1 else axis - 1

    unchanged = tuple(range(1, count))
    for first in (False, True):
        axis_order = (*range(2, count), 1) if first else unchanged
        order = tuple(neutral(axes[axis]) for axis in axis_order)
        if order == unchanged:
            return replace(value, first=first)
    order = tuple(neutral(axes[axis]) for axis in unchanged)
    return replace(value, name=recorder.add(name, "permute", (value,), {"order": order}), first=False)


def _reshape(
    recorder: StepRecorder, name: str, function: str, node: Any, value: TracedValue, args: list[Any]
) -> TracedValue:
    flat = list(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else list(args)
    if function == "flatten":
        start = flat[0] if flat else node.kwargs.get("start_dim", 0)
        end = flat[1] if len(flat) > 1 else node.kwargs.get("end_dim", -1)
        if (start, end) == (1, -1):
            return record_flatten(recorder, name, value)
        return recorder.add_unsupported(name, f"a flatten of the axes {start} to {end}")
    if len(flat) == 2 and flat[1] == -1:
        return record_flatten(recorder, name, value)
    batch = flat[0] if flat else None
    if not all(isinstance(length, int) for length in flat[1:]) or not (batch is None or batch == -1) or -1 in flat[1:]:
        return recorder.add_unsupported(name, f"a {function} to a shape that isn't known")
    if value.rank != 1:
        value = recorder.with_channels(value, first=False)
    # In torch's order, which is exact whatever follows.
    output = recorder.add(name, "reshape", (value,), shape=tuple(flat[1:]))
    return TracedValue(output, len(flat) - 1, first=False)


def _reduce(recorder: StepRecorder, name: str, function: str, value: TracedValue, dim: Any, keeps: bool) -> TracedValue:
    axes = (dim,) if isinstance(dim, int) else dim
    if not axes or value.rank is None:
        return recorder.add_unsupported(name, f"a {function} over axes that aren't known (pass sample=)")
    count = value.rank + 1
    first = bool(value.first)
    reduced = sorted(
        (value.rank if axis % count == 1 else axis % count - 1) if first else axis % count for axis in axes
    )
    if 0 in [axis % count for axis in axes]:
        return recorder.add_unsupported(name, f"a {function} over the batch")
    kind = {"mean": "global_average", "amax": "global_max"}[function]
    output = recorder.add(name, kind, (value,), {"axes": tuple(reduced), "keeps": keeps})
    rank = value.rank if keeps else value.rank - len(reduced)
    return TracedValue(output, rank, first and (keeps or value.rank not in reduced) if rank > 1 else None)
