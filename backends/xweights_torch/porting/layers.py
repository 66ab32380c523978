"""Kinds, settings, inputs and outputs of ``torch.nn`` layers in a port.

Arrays are in the neutral form of ``xweights.porting.protocol``: channels last, time second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from xweights.core.dtypes import Array
from xweights.porting.protocol import LayerRecord
from xweights_torch.activations import MODULES
from xweights_torch.dtypes import from_host, host_view

# The nearest base in the MRO applies.
KINDS: dict[type[Any], str] = {
    nn.Linear: "dense",
    _ConvTransposeNd: "conv_transpose",
    _ConvNd: "conv",
    nn.Embedding: "embedding",
    nn.EmbeddingBag: "embedding",
    _BatchNorm: "batch_norm",
    _InstanceNorm: "group_norm",
    nn.GroupNorm: "group_norm",
    nn.LayerNorm: "layer_norm",
    nn.RMSNorm: "rms_norm",
    nn.PReLU: "prelu",
    nn.RNN: "simple_rnn",
    nn.LSTM: "lstm",
    nn.GRU: "gru",
    nn.RNNCell: "simple_rnn",
    nn.LSTMCell: "lstm",
    nn.GRUCell: "gru",
    nn.MultiheadAttention: "attention",
}
RECURRENT = ("simple_rnn", "lstm", "gru")
CHANNELS_SECOND = ("conv", "conv_transpose", "batch_norm", "group_norm", "prelu")

# Layers without weights, and the settings that distinguish two of them: torch's attribute -> neutral name.
WEIGHTLESS: dict[type[nn.Module], tuple[str, Mapping[str, str]]] = {
    **MODULES,
    nn.Flatten: ("flatten", {}),
    nn.Unflatten: ("reshape", {}),
    nn.Dropout: ("dropout", {}),
    nn.MaxPool1d: ("max_pool", {"padding": "padding"}),
    nn.MaxPool2d: ("max_pool", {"padding": "padding"}),
    nn.MaxPool3d: ("max_pool", {"padding": "padding"}),
    nn.AvgPool1d: ("average_pool", {"padding": "padding"}),
    nn.AvgPool2d: ("average_pool", {"padding": "padding"}),
    nn.ZeroPad2d: ("zero_padding", {"padding": "padding"}),
    nn.Upsample: ("upsample", {"mode": "mode"}),
    nn.PixelShuffle: ("rearrange", {}),
    nn.PixelUnshuffle: ("rearrange", {}),
    nn.ChannelShuffle: ("rearrange", {}),
}


def kind_of(module: nn.Module) -> str:
    """Return the neutral kind of a module; "other" for an unknown one."""
    for base in type(module).__mro__:
        if base in KINDS:
            return KINDS[base]
    return "other"


def is_known(record: LayerRecord) -> bool:
    """Return whether a layer computes as its class does in torch, so that nothing in it has to be looked at."""
    module = record.layer
    names = ("forward", "_conv_forward") if isinstance(module, _ConvNd) else ("forward",)
    if any(name in vars(module) for name in names):
        return False
    if isinstance(module, torch.jit.ScriptModule):
        return True
    if record.kind == "other" and any(True for _ in module.children()):
        # A parametrization is a child.
        return getattr(module, "parametrizations", None) is not None and len(list(module.children())) == 1
    owners = [next(base for base in type(module).__mro__ if name in vars(base)) for name in names]
    return all(owner is not nn.Module and owner.__module__.startswith("torch.") for owner in owners)


def attributes_of(module: Any, kind: str) -> dict[str, Any]:
    """Return the settings of a layer by neutral name."""
    settings: dict[str, Any] = {}
    if kind in ("batch_norm", "group_norm", "layer_norm", "rms_norm"):
        eps = module.eps
        weight = getattr(module, "weight", None)
        if eps is None:
            eps = torch.finfo(torch.float32 if weight is None else weight.dtype).eps
        settings["eps"] = float(eps)
    if kind == "batch_norm":
        # torch: the share of the new batch; neutral: the share of the past.
        settings["momentum"] = None if module.momentum is None else round(1.0 - module.momentum, 12)
    if kind == "group_norm":
        settings["groups"] = module.num_features if isinstance(module, _InstanceNorm) else module.num_groups
    if kind in ("conv", "conv_transpose"):
        settings |= {"groups": module.groups, "strides": tuple(module.stride), "dilation": tuple(module.dilation)}
        settings["padding"] = module.padding if isinstance(module.padding, str) else tuple(module.padding)
        if any(getattr(module, "output_padding", ())):
            settings["output_padding"] = tuple(module.output_padding)
        if module.padding_mode != "zeros":
            settings["padding_mode"] = module.padding_mode
    if kind == "simple_rnn":
        settings["activation"] = module.nonlinearity
    if kind in RECURRENT:
        settings["cell"] = isinstance(module, nn.RNNCellBase)
    if kind in ("lstm", "gru"):
        settings |= {"activation": "tanh", "recurrent_activation": "sigmoid"}
    if kind == "attention":
        settings["heads"] = module.num_heads
    return settings


def weightless_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the function of a layer without weights, and its settings."""
    for base in type(module).__mro__:
        if base in WEIGHTLESS:
            does, names = WEIGHTLESS[base]
            return {"does": does, **{neutral: getattr(module, native) for native, neutral in names.items()}}
    own = type(module).__module__.startswith("torch.")
    return {"does": type(module).__name__ if own else "unknown"}


def refusal_reason(module: Any, kind: str) -> str | None:
    """Return why a layer has no counterpart in another framework, or None."""
    if kind in RECURRENT and getattr(module, "proj_size", None):
        return "a recurrent layer with proj_size has no counterpart: its state is a projection of its output"
    if kind == "attention" and module.bias_k is not None:
        return "attention with add_bias_kv has no counterpart: bias_k and bias_v are an extra key and value"
    if kind == "attention" and module.add_zero_attn:
        return "attention with add_zero_attn has no counterpart: it attends to an extra key of zeros"
    if isinstance(module, nn.Bilinear):
        return "a bilinear layer has no counterpart"
    if kind == "group_norm" and getattr(module, "track_running_stats", False):
        return "an instance norm with running statistics has no counterpart"
    return None


# Neutral arrays: host views of tensors, to be copied by callers that keep them.


def host(value: Any) -> Array | None:
    """Return a tensor on the host; None for anything else."""
    if not isinstance(value, torch.Tensor) or value.is_nested or value.is_sparse:
        return None
    return host_view(value.detach())


def _argument(args: tuple[Any, ...], named: Mapping[str, Any], index: int, name: str) -> Any:
    return args[index] if len(args) > index else named.get(name)


def to_neutral(module: Any, kind: str, array: Array | None) -> Array | None:
    """Return an input or output of a layer in neutral form."""
    if array is None:
        return None
    if kind == "dense":
        return array.reshape(-1, array.shape[-1])
    if kind in ("conv", "conv_transpose"):
        space = len(module.kernel_size)
        return np.moveaxis(array if array.ndim == space + 2 else array[None], 1, -1)
    if kind == "prelu":
        return _vectors(module, array)
    if kind in ("batch_norm", "group_norm"):
        return (
            np.moveaxis(array, 1, -1).reshape(-1, array.shape[1]) if kind == "batch_norm" else np.moveaxis(array, 1, -1)
        )
    if kind in ("layer_norm", "rms_norm"):
        axes = len(module.normalized_shape)
        if axes >= 3:
            array = np.moveaxis(array, -axes, -1)
        return array.reshape(-1, int(np.prod(module.normalized_shape)))
    return array


def _vectors(module: Any, array: Array) -> Array:
    if array.ndim == 1:
        return array
    if module.num_parameters == 1:
        return np.moveaxis(array, 1, -1) if array.ndim > 3 else array
    return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])


def to_native_output(module: Any, kind: str, value: Array, like: torch.Tensor) -> torch.Tensor | None:
    """Return a neutral output in the layer's own form; None where that is ambiguous."""
    shape = tuple(like.shape)
    channels_second = kind in ("conv", "conv_transpose", "batch_norm", "group_norm", "prelu") and len(shape) > 1
    if kind == "prelu" and module.num_parameters == 1:
        channels_second = len(shape) > 3
    if kind in ("layer_norm", "rms_norm") and len(module.normalized_shape) > 1:
        return None
    if kind in ("conv", "conv_transpose") and len(shape) != len(module.kernel_size) + 2:
        return None
    neutral_shape = (shape[0], *shape[2:], shape[1]) if channels_second else shape
    if value.size != like.numel():
        return None
    native = np.moveaxis(value.reshape(neutral_shape), -1, 1) if channels_second else value.reshape(neutral_shape)
    return to_tensor(native).to(like.dtype).to(like.device)


def to_tensor(array: Array) -> torch.Tensor:
    """Return a host array as a tensor of its own."""
    return from_host(np.array(array, order="C"))


def inputs_of(module: Any, kind: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Array | None]:
    """Return the inputs of a layer, by part."""
    if kind == "attention":
        parts = {}
        for index, part in enumerate(("query", "key", "value")):
            array = host(_argument(args, named, index, part))
            if array is not None and array.ndim == 3 and not module.batch_first:
                array = array.swapaxes(0, 1)
            parts[part] = None if array is None else array.reshape(-1, array.shape[-1])
        return {**parts, "attention_output": None}
    first = args[0] if args else next(iter(named.values()), None)
    array = host(first)
    if kind in RECURRENT:
        return _recurrent_inputs(module, array)
    if kind == "embedding":
        return {"": None if array is None else array.reshape(-1)}
    return {"": to_neutral(module, kind, array)}


def outputs_of(module: Any, kind: str, output: Any) -> dict[str, Array | None]:
    """Return the outputs of a layer, by part."""
    if kind == "attention":
        array = host(output[0])
        if array is not None and array.ndim == 3 and not module.batch_first:
            array = array.swapaxes(0, 1)
        return {"attention_output": None if array is None else array.reshape(-1, array.shape[-1])}
    if kind in RECURRENT:
        return _recurrent_outputs(module, output)
    first = output[0] if isinstance(output, (tuple, list)) else output
    array = host(first)
    if kind == "embedding":
        seen = array is not None and not isinstance(module, nn.EmbeddingBag)  # whose rows are reduced at once
        return {"": array.reshape(-1, array.shape[-1]) if seen and array is not None else None}
    return {"": to_neutral(module, kind, array)}


def _is_cell(module: Any) -> bool:
    return isinstance(module, nn.RNNCellBase)


def _sequence(module: Any, array: Array) -> Array:
    if _is_cell(module):
        return array.reshape(-1, 1, array.shape[-1])
    if array.ndim == 2:
        return array[None]
    return array if module.batch_first else array.swapaxes(0, 1)


def _recurrent_inputs(module: Any, array: Array | None) -> dict[str, Array | None]:
    if _is_cell(module):
        return {"": None if array is None else _sequence(module, array)}
    inputs: dict[str, Array | None] = {}
    for layer in range(module.num_layers):
        for direction in ("", "_reverse") if module.bidirectional else ("",):
            inputs[f"l{layer}{direction}"] = None
    if array is not None:
        sequence = _sequence(module, array)
        inputs["l0"] = sequence
        if module.bidirectional:
            inputs["l0_reverse"] = sequence[:, ::-1]
    return inputs


def _recurrent_outputs(module: Any, output: Any) -> dict[str, Array | None]:
    array = host(output[0] if isinstance(output, tuple) else output)
    if array is None:
        return {}
    sequence = _sequence(module, array)
    if _is_cell(module):
        return {"": sequence}
    last = module.num_layers - 1
    if not module.bidirectional:
        return {f"l{last}": sequence}
    width = module.hidden_size
    return {f"l{last}": sequence[..., :width], f"l{last}_reverse": sequence[:, ::-1, width:]}
