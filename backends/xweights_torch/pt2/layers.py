"""Table of the operations of ``torch.export`` programs and the ``torch.nn`` layers that they come from.

A builder returns None where an operation does something that its layer can't, such as using a kernel that is itself
computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn


class OperationCall:
    """One operation of a program: its arguments by name, and the parameters that it uses."""

    def __init__(self, node: fx.Node, program: fx.GraphModule) -> None:
        self.node, self.program = node, program
        schema: Any = node.target
        self.arguments: dict[str, Any] = {}
        for position, argument in enumerate(schema._schema.arguments):
            default = argument.default_value if argument.has_default_value() else None
            self.arguments[argument.name] = node.args[position] if position < len(node.args) else default
        self.arguments |= node.kwargs
        self.used: list[str] = []
        self.inputs: list[Any] = [node.args[0]] if node.args else []

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def array(self, name: str) -> torch.Tensor | None:
        """Return a parameter or buffer that is an argument, and record its use; None if there is none."""
        return self.array_of(self.arguments.get(name))

    def array_of(self, argument: Any) -> torch.Tensor | None:
        """Return the array behind an argument, and record its name."""
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return None
        value: Any = self.program
        for part in str(argument.target).split("."):
            value = getattr(value, part)
        self.used.append(str(argument.target))
        return value if isinstance(value, torch.Tensor) else None

    def is_computed(self, *names: str) -> bool:
        """Return whether one of these arguments is the result of another operation."""
        return any(isinstance(value := self.arguments.get(name), fx.Node) and value.op != "get_attr" for name in names)


def _fill(layer: nn.Module, **arrays: torch.Tensor | None) -> nn.Module:
    """Put a program's own arrays into a layer that was made without memory."""
    for name, array in arrays.items():
        if array is None:
            layer.register_parameter(name, None)
        elif name in layer._buffers:
            layer.register_buffer(name, array)
        else:
            layer.register_parameter(name, array if isinstance(array, nn.Parameter) else nn.Parameter(array, False))
    return layer


def _linear(call: OperationCall) -> nn.Module | None:
    weight, bias = call.array("weight"), call.array("bias")
    if weight is None or call.is_computed("bias"):
        return None
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return _fill(layer, weight=weight, bias=bias)


def _conv(rank: int, *, transposed: bool = False) -> Callable[[OperationCall], nn.Module | None]:
    transposed_kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    kind: Any = transposed_kinds[rank - 1] if transposed else (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]

    def build(call: OperationCall) -> nn.Module | None:
        weight, bias = call.array("weight"), call.array("bias")
        if weight is None or call.is_computed("bias"):
            return None
        padding = call["padding"] if isinstance(call["padding"], str) else _per_axis(call["padding"], rank)
        options = {name: _per_axis(call[name], rank) for name in ("stride", "dilation")} | {"padding": padding}
        groups = int(call["groups"])
        if transposed:
            options["output_padding"] = _per_axis(call["output_padding"], rank)
        first, second = (weight.shape[0], weight.shape[1] * groups)
        channels = (first, second) if transposed else (weight.shape[1] * groups, weight.shape[0])
        with torch.device("meta"):
            layer: nn.Module = kind(*channels, tuple(weight.shape[2:]), groups=groups, bias=bias is not None, **options)
        return _fill(layer, weight=weight, bias=bias)

    return build


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    values = [int(length) for length in value] if isinstance(value, Sequence) else [int(value)]
    return tuple(values * rank if len(values) == 1 else values)


def _embedding(call: OperationCall) -> nn.Module | None:
    weight = call.array("weight")
    if weight is None:
        return None
    padding = int(call["padding_idx"])
    with torch.device("meta"):
        layer = nn.Embedding(weight.shape[0], weight.shape[1], padding_idx=padding if padding >= 0 else None)
    call.inputs = [call["indices"]]
    return _fill(layer, weight=weight)


def _batch_norm(call: OperationCall) -> nn.Module | None:
    arrays = {new: call.array(old) for new, old in _BATCH_NORM.items()}
    mean = arrays["running_mean"]
    if mean is None or call.is_computed(*_BATCH_NORM.values()):
        return None
    node = call["input"]
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    rank = 4 if value is None else value.dim()
    kind: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank]
    with torch.device("meta"):
        layer = kind(mean.shape[0], eps=call["eps"], momentum=call["momentum"], affine=arrays["weight"] is not None)
    layer.num_batches_tracked = None if not _find_counter(call) else call.array("counter")
    return _fill(layer, **arrays)


_BATCH_NORM = {"weight": "weight", "bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}


def _find_counter(call: OperationCall) -> bool:
    """Find the counter next to the statistics, which inference doesn't use."""
    prefix = next(name for name in call.used if name.endswith("running_mean")).removesuffix("running_mean")
    path = f"{prefix}num_batches_tracked"
    for node in call.node.graph.nodes:
        if node.op == "get_attr" and node.target == path:
            call.arguments["counter"] = node
            return True
    return False


def _norm(call: OperationCall, kind: Any, *sizes: Any) -> nn.Module | None:
    weight = call.array("weight")
    bias = call.array("bias") if "bias" in call.arguments else None
    if call.is_computed("weight", "bias"):
        return None
    options = {"elementwise_affine": weight is not None} if kind is not nn.GroupNorm else {"affine": weight is not None}
    with torch.device("meta"):
        layer = kind(*sizes, eps=call["eps"], **options)
    return _fill(layer, weight=weight) if kind is nn.RMSNorm else _fill(layer, weight=weight, bias=bias)


def _layer_norm(call: OperationCall) -> nn.Module | None:
    return _norm(call, nn.LayerNorm, [int(length) for length in call["normalized_shape"]])


def _rms_norm(call: OperationCall) -> nn.Module | None:
    return _norm(call, nn.RMSNorm, [int(length) for length in call["normalized_shape"]])


def _group_norm(call: OperationCall) -> nn.Module | None:
    weight = call.array("weight")
    call.used.clear()
    return None if weight is None else _norm(call, nn.GroupNorm, int(call["num_groups"]), weight.shape[0])


def _prelu(call: OperationCall) -> nn.Module | None:
    weight = call.array("weight")
    if weight is None:
        return None
    with torch.device("meta"):
        layer = nn.PReLU(weight.numel())
    return _fill(layer, weight=weight)


def _softmax(call: OperationCall) -> nn.Module:
    return nn.Softmax(int(call["dim"]))


def _collapse(value: Any) -> Any:
    """Return a setting as one number if it is equal along all axes."""
    if not isinstance(value, Sequence) or not value:
        return value
    return value[0] if len(set(value)) == 1 else tuple(value)


def _pool(kind: Any, *names: str) -> Callable[[OperationCall], nn.Module | None]:
    def build(call: OperationCall) -> nn.Module | None:
        options = {name: _collapse(call[name]) for name in names}
        return kind(**{name: value for name, value in options.items() if value not in (None, [])})  # type: ignore[no-any-return]

    return build


# Name of an operation -> function that builds its layer.
BUILDERS: dict[str, Callable[[OperationCall], nn.Module | None]] = {
    "linear": _linear,
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "conv3d": _conv(3),
    "conv_transpose1d": _conv(1, transposed=True),
    "conv_transpose2d": _conv(2, transposed=True),
    "conv_transpose3d": _conv(3, transposed=True),
    "embedding": _embedding,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "prelu": _prelu,
    "relu": lambda call: nn.ReLU(),
    "relu_": lambda call: nn.ReLU(),
    "gelu": lambda call: nn.GELU(call["approximate"]),
    "silu": lambda call: nn.SiLU(),
    "sigmoid": lambda call: nn.Sigmoid(),
    "tanh": lambda call: nn.Tanh(),
    "elu": lambda call: nn.ELU(float(call["alpha"])),
    "leaky_relu": lambda call: nn.LeakyReLU(float(call["negative_slope"])),
    "softmax": _softmax,
    "dropout": lambda call: nn.Dropout(float(call["p"])),
    "flatten": lambda call: nn.Flatten(int(call["start_dim"]), int(call["end_dim"])),
    "max_pool1d": _pool(nn.MaxPool1d, "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "max_pool2d": _pool(nn.MaxPool2d, "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool1d": _pool(nn.AvgPool1d, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "avg_pool2d": _pool(nn.AvgPool2d, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "adaptive_avg_pool2d": _pool(nn.AdaptiveAvgPool2d, "output_size"),
}

RECURRENT: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}


def build_recurrent(call: OperationCall, kind: Any) -> nn.Module | None:
    """Return a recurrent layer; None where its weights are computed, projected or packed."""
    params, layers, bidirectional = call.arguments.get("params"), call["num_layers"], call["bidirectional"]
    if not isinstance(params, Sequence) or "batch_first" not in call.arguments:
        return None
    arrays = [call.array_of(param) for param in params]
    parts = 4 if call["has_biases"] else 2
    first = arrays[0]
    if first is None or any(array is None for array in arrays) or len(arrays) != parts * layers * (1 + bidirectional):
        return None
    recurrent_kernel = arrays[1]
    assert recurrent_kernel is not None
    options = {"num_layers": layers, "bias": call["has_biases"], "batch_first": call["batch_first"]}
    options |= {"bidirectional": bidirectional, "dropout": call["dropout"] if layers > 1 else 0.0}
    if kind is nn.RNN:
        options["nonlinearity"] = "relu" if "relu" in str(call.node.target) else "tanh"
    with torch.device("meta"):
        layer: nn.Module = kind(first.shape[1], recurrent_kernel.shape[1], **options)
    names = [f"{name}_l{index}{end}" for index in range(layers) for end in ("", "_reverse")[: 1 + bidirectional]
             for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[:parts]]  # fmt: skip
    for name, array in zip(names, arrays, strict=True):
        _fill(layer, **{name: array})
    # A recurrent layer starts from zeros unless it is given states.
    states = call["hx"]
    initial_states = list(states) if isinstance(states, (list, tuple)) else [states]
    if not all(is_zeros(state) for state in initial_states):
        call.inputs.append(tuple(initial_states) if isinstance(states, (list, tuple)) else states)
    return layer


def is_zeros(node: Any) -> bool:
    """Return whether a value consists of zeros."""
    return isinstance(node, fx.Node) and node.op == "call_function" and str(node.target).startswith("aten.zeros.")
