"""Calls of torch modules, recorded as neutral steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn import functional

from xweights.porting.skeletons.naming import to_identifier
from xweights_torch.activations import NAME_OF_FIXED_MODULE
from xweights_torch.porting.layers import attributes_of, kind_of
from xweights_torch.skeleton.values import PendingOutput, StepRecorder, TracedValue

# Suffixes of layers with channels second, and the number of axes after the batch of their inputs (otherwise any).
_RANKS = {"1d": 2, "2d": 3, "3d": 4}


def record_module(
    recorder: StepRecorder, path: str, module: Any, args: list[Any], named: Mapping[str, Any]
) -> TracedValue | PendingOutput:
    """Record one call of a module; return its output."""
    name = to_identifier(path)
    values = [arg for arg in args if isinstance(arg, TracedValue)]
    unknown = f"a {type(module).__name__} with settings or of a kind"
    if not values or any(isinstance(arg, PendingOutput) for arg in args):
        return recorder.add_unsupported(name, f"a {type(module).__name__} called on no array")
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
        return _transformer(recorder, path, module, values, named)
    kind = kind_of(module)
    if kind in ("simple_rnn", "lstm", "gru"):
        if isinstance(module, nn.RNNCellBase) or module.proj_size:
            return recorder.add_unsupported(name, unknown)
        if len(values) > 1 or any(isinstance(arg, (tuple, list)) for arg in args):
            return recorder.add_unsupported(name, "a recurrent layer that is given its first state")
        return PendingOutput(module, path, (values[0],))
    if kind == "attention":
        return _attention(recorder, path, module, values, named)
    if kind in _READERS:
        return _READERS[kind](recorder, name, module, values[0])
    return _weightless(recorder, name, module, values[0])


def _rank_of(module: Any) -> int:
    return _RANKS.get(type(module).__name__[-2:].lower(), 0)


def _dense(recorder: StepRecorder, name: str, module: Any, value: TracedValue) -> TracedValue:
    value = recorder.with_channels(value, first=False)
    options = {"inputs": module.in_features, "units": module.out_features, "bias": module.bias is not None}
    return replace(value, name=recorder.add(name, "dense", (value,), {**options, "tied": None}, layer=name))


def _conv(recorder: StepRecorder, name: str, module: Any, value: TracedValue) -> TracedValue:
    if module.padding_mode != "zeros":
        return recorder.add_unsupported(name, f"a convolution with padding_mode={module.padding_mode!r}")
    value = recorder.with_channels(value, first=True)
    settings = attributes_of(module, "conv")
    options = {key: settings[key] for key in ("strides", "dilation", "groups", "padding")}
    options |= {"size": tuple(module.kernel_size), "bias": module.bias is not None, "space": ()}
    options |= {"channels": module.in_channels, "filters": module.out_channels}
    output = recorder.add(name, "conv", (value,), options, layer=name)
    return TracedValue(output, len(module.kernel_size) + 1, first=True)


def _conv_transpose(recorder: StepRecorder, name: str, module: Any, value: TracedValue) -> TracedValue:
    if module.groups != 1:
        return recorder.add_unsupported(name, "a transposed convolution in groups")
    value = recorder.with_channels(value, first=True)
    crop = tuple((side, side - more) for side, more in zip(module.padding, module.output_padding, strict=True))
    options = {
        "channels": module.in_channels, "filters": module.out_channels, "size": tuple(module.kernel_size),
        "strides": tuple(module.stride), "dilation": tuple(module.dilation), "crop": crop,
        "bias": module.bias is not None,
    }  # fmt: skip
    output = recorder.add(name, "conv_transpose", (value,), options, layer=name)
    return TracedValue(output, len(module.kernel_size) + 1, first=True)


def _embedding(recorder: StepRecorder, name: str, module: Any, value: TracedValue) -> TracedValue:
    if module.max_norm is not None:
        return recorder.add_unsupported(name, "an embedding with max_norm")
    options = {"vocab": module.num_embeddings, "width": module.embedding_dim}
    output = recorder.add(name, "embedding", (value,), options, layer=name)
    return TracedValue(output, 2 if value.rank is None else value.rank + 1, first=False)


def _batch_norm(recorder: StepRecorder, name: str, module: Any, value: TracedValue) -> TracedValue:
    if not module.track_running_stats:
        return recorder.add_unsupported(name, "a batch norm without running statistics")
    rank = _rank_of(module)
    value = value if rank == 2 and value.first is None else recorder.with_channels(value, first=True)
    options = {"channels": module.num_features, "scale": module.affine, "center": module.affine}
    output = recorder.add(name, "batch_norm", (value,), options | attributes_of(module, "batch_norm"), layer=name)
    return TracedValue(output, value.rank if rank == 2 else rank or value.rank, True if value.rank != 1 else None)


def _group_norm(recorder: StepRecorder, name: str, module: Any, value: TracedValue) -> TracedValue:
    channels = getattr(module, "num_channels", getattr(module, "num_features", 0))
    if not module.affine or getattr(module, "track_running_stats", False):
        return recorder.add_unsupported(name, "a group norm without weights, or with running statistics")
    value = recorder.with_channels(value, first=True)
    options = {"channels": channels, **attributes_of(module, "group_norm")}
    return replace(value, name=recorder.add(name, "group_norm", (value,), options, layer=name))


def _layer_norm(recorder: StepRecorder, name: str, module: Any, value: TracedValue) -> TracedValue:
    shape = tuple(module.normalized_shape)
    first = len(shape) > 2 and value.rank == len(shape) and value.first is not False
    value = recorder.with_channels(value, first=first)
    normalized = (*shape[1:], shape[0]) if first else shape
    scale = module.elementwise_affine
    options = {"normalized": normalized, "scale": scale, "center": scale and module.bias is not None}
    options |= attributes_of(module, "layer_norm")
    return replace(value, name=recorder.add(name, "layer_norm", (value,), options, layer=name))


def _rms_norm(recorder: StepRecorder, name: str, module: Any, value: TracedValue) -> TracedValue:
    if len(module.normalized_shape) != 1 or module.weight is None:
        return recorder.add_unsupported(name, "an RMS norm over several axes, or without weights")
    value = recorder.with_channels(value, first=False)
    options = {"width": module.normalized_shape[0], **attributes_of(module, "rms_norm")}
    return replace(value, name=recorder.add(name, "rms_norm", (value,), options, layer=name))


def _prelu(recorder: StepRecorder, name: str, module: Any, value: TracedValue) -> TracedValue:
    rank = value.rank
    if rank is None:
        return recorder.add_unsupported(name, "a PReLU on a value of a rank that isn't known (pass sample=)")
    if module.num_parameters > 1:
        value = recorder.with_channels(value, first=True)
    slopes = (*(1 for _ in range(rank - 1)), module.num_parameters)
    return replace(value, name=recorder.add(name, "prelu", (value,), {"slopes": slopes}, layer=name))


_READERS: dict[str, Callable[[StepRecorder, str, Any, TracedValue], TracedValue]] = {
    "dense": _dense,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "embedding": _embedding,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "prelu": _prelu,
}


def record_recurrent(recorder: StepRecorder, pending: PendingOutput, *, sequences: bool) -> TracedValue:
    """Record a recurrent module, one step for each layer; the last returns sequences or its last state."""
    module, value = pending.module, recorder.with_channels(pending.args[0], first=False)
    kind, width = kind_of(module), module.input_size
    for index in range(module.num_layers):
        last = index == module.num_layers - 1
        options = {
            "inputs": width, "units": module.hidden_size, "bias": module.bias, "layers": 1,
            "both": module.bidirectional, "backwards": False, "sequences": sequences or not last,
            "activation": getattr(module, "nonlinearity", "tanh"),
        }  # fmt: skip
        name = to_identifier(pending.path) + (f"_l{index}" if module.num_layers > 1 else "")
        rank = 2 if options["sequences"] else 1
        value = TracedValue(
            recorder.add(name, kind, (value,), options, layer=name),
            rank,
            first=False,
            time_first=not module.batch_first,
        )
        width = module.hidden_size * (2 if module.bidirectional else 1)
    return value


def _attention(
    recorder: StepRecorder, path: str, module: Any, values: list[TracedValue], named: Mapping[str, Any]
) -> TracedValue | PendingOutput:
    masked = {"key_padding_mask", "attn_mask"} & {key for key, value in named.items() if value is not None}
    if len(values) != 3 or masked or module.bias_k is not None or module.add_zero_attn:
        return recorder.add_unsupported(to_identifier(path), "attention with masks, or with settings")
    return PendingOutput(module, path, tuple(values))


def record_attention(recorder: StepRecorder, path: str, module: Any, values: tuple[TracedValue, ...]) -> TracedValue:
    """Record an attention module of which the first output is used."""
    width = module.embed_dim
    options = {
        "widths": (width, module.kdim, module.vdim), "heads": module.num_heads, "key_heads": module.num_heads,
        "key_size": module.head_dim, "value_size": module.head_dim, "outputs": width,
        "bias": module.in_proj_bias is not None, "causal": False,
    }  # fmt: skip
    inputs = tuple(recorder.with_channels(value, first=False) for value in values)
    name = to_identifier(path)
    return TracedValue(recorder.add(name, "attention", inputs, options, layer=name), 2, first=False)


def _transformer(
    recorder: StepRecorder, path: str, module: Any, values: list[TracedValue], named: Mapping[str, Any]
) -> TracedValue:
    """Record a transformer encoder, layer by layer."""
    if len(values) > 1 or any(value not in (None, False) for value in named.values()):
        return recorder.add_unsupported(to_identifier(path), "a transformer encoder called with masks")
    value = recorder.with_channels(values[0], first=False)
    if isinstance(module, nn.TransformerEncoder):
        for index, layer in enumerate(module.layers):
            value = _encoder_layer(recorder, f"{path}.layers.{index}", layer, value)
        if module.norm is not None:
            value = _layer_norm(recorder, to_identifier(f"{path}.norm"), module.norm, value)
        return value
    return _encoder_layer(recorder, path, module, value)


def _encoder_layer(recorder: StepRecorder, path: str, module: Any, value: TracedValue) -> TracedValue:
    does = {functional.relu: "relu", functional.gelu: "gelu"}.get(module.activation)
    if does is None:
        return recorder.add_unsupported(to_identifier(path), "a transformer layer with an activation of one's own")

    def attend(x: TracedValue) -> TracedValue:
        return record_attention(recorder, f"{path}.self_attn", module.self_attn, (x, x, x))

    def feed_forward(x: TracedValue) -> TracedValue:
        x = _dense(recorder, to_identifier(f"{path}.linear1"), module.linear1, x)
        x = replace(x, name=recorder.add(to_identifier(f"{path}.activation"), "activation", (x,), {"does": does}))
        return _dense(recorder, to_identifier(f"{path}.linear2"), module.linear2, x)

    for norm, inner in (("norm1", attend), ("norm2", feed_forward)):

        def normalize(x: TracedValue, norm: str = norm) -> TracedValue:
            return _layer_norm(recorder, to_identifier(f"{path}.{norm}"), getattr(module, norm), x)

        output = inner(normalize(value) if module.norm_first else value)
        added = replace(value, name=recorder.add(to_identifier(f"{path}.add"), "add", (value, output)))
        value = added if module.norm_first else normalize(added)
    return value


def _weightless(recorder: StepRecorder, name: str, module: Any, value: TracedValue) -> TracedValue:
    def step(kind: str, **options: Any) -> TracedValue:
        return replace(value, name=recorder.add(name, kind, (value,), options))

    if type(module) in NAME_OF_FIXED_MODULE:
        return step("activation", does=NAME_OF_FIXED_MODULE[type(module)])
    if isinstance(module, nn.GELU):
        return step("activation", does="gelu" if module.approximate == "none" else "gelu_tanh")
    if isinstance(module, nn.LeakyReLU):
        return step("activation", does="leaky_relu", slope=module.negative_slope)
    if isinstance(module, nn.ELU):
        return step("activation", does="elu", alpha=module.alpha)
    if isinstance(module, nn.Softplus) and module.beta == 1:
        return step("activation", does="softplus")
    if isinstance(module, (nn.Softmax, nn.LogSoftmax)):
        does = "softmax" if isinstance(module, nn.Softmax) else "log_softmax"
        return record_softmax(recorder, name, does, value, module.dim)
    if isinstance(module, nn.Identity):
        return value
    if type(module) is nn.Dropout:
        return step("dropout", rate=module.p)
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return record_flatten(recorder, name, value)
    rank = _rank_of(module)
    plain_windows = not getattr(module, "ceil_mode", False) and not any(_per_axis(getattr(module, "padding", 0), 1))
    if (
        isinstance(module, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d))
        and plain_windows
        and _per_axis(module.dilation, 1)[0] == 1
    ):
        return record_pool(recorder, name, "max_pool", value, rank, module.kernel_size, module.stride)
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)) and plain_windows:
        return record_pool(recorder, name, "average_pool", value, rank, module.kernel_size, module.stride)
    ends = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    if isinstance(module, ends) and all(length == 1 for length in _per_axis(module.output_size, rank - 1)):
        value = recorder.with_channels(value, first=True)
        output = recorder.add(name, "global_average", (value,), {"axes": tuple(range(1, rank)), "keeps": True})
        return TracedValue(output, rank, first=True)
    if isinstance(module, (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)):
        flat = module.padding
        sides = tuple((flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2))
        value = recorder.with_channels(value, first=True)
        return TracedValue(recorder.add(name, "zero_padding", (value,), {"padding": sides}), rank, first=True)
    return recorder.add_unsupported(name, f"a {type(module).__name__} with settings or of a kind")


def record_pool(
    recorder: StepRecorder, name: str, kind: str, value: TracedValue, rank: int, size: Any, strides: Any
) -> TracedValue:
    """Record a pooling over windows of ``size``."""
    value = recorder.with_channels(value, first=True)
    windows = _per_axis(size, rank - 1)
    options = {"size": windows, "strides": _per_axis(strides or size, rank - 1), "padding": "valid", "space": ()}
    return TracedValue(recorder.add(name, kind, (value,), options), rank, first=True)


def record_flatten(recorder: StepRecorder, name: str, value: TracedValue) -> TracedValue:
    """Record a flatten in torch's order; ports detect it where a dense layer follows."""
    return TracedValue(recorder.add(name, "flatten", (value,)), 1, first=None)


def record_softmax(recorder: StepRecorder, name: str, does: str, value: TracedValue, dim: int | None) -> TracedValue:
    """Record a softmax along an axis of the tensor."""
    if dim is None or (value.rank is None and dim != -1):
        return recorder.add_unsupported(name, "a softmax along an axis that isn't known (pass sample=)")
    axis = dim if value.rank is None else dim % (value.rank + 1)
    value = recorder.with_channels(value, first=axis == 1 and value.rank != 1)
    if axis not in (1, -1, value.rank):
        return recorder.add_unsupported(name, "a softmax along an axis in the middle")
    return replace(value, name=recorder.add(name, "activation", (value,), {"does": does}))


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
