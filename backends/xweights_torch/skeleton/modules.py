"""One torch module as steps in neutral words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn import functional

from xweights.porting.skeleton import identifier
from xweights_torch.porting.layers import attributes_of, kind_of
from xweights_torch.skeleton.values import Pending, Reading, Value

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SELU: "selu",
    nn.Softsign: "softsign",
    nn.Hardsigmoid: "hard_sigmoid",
    nn.Hardswish: "hard_silu",
}
# Layers of channels second, and the number of axes after the batch that they take (0: any).
_RANKS = {"1d": 2, "2d": 3, "3d": 4}


def module_steps(
    reading: Reading, path: str, module: Any, given: list[Any], named: Mapping[str, Any]
) -> Value | Pending:
    """Read one call of a module; return what it makes."""
    name = identifier(path)
    values = [one for one in given if isinstance(one, Value)]
    unknown = f"a {type(module).__name__} with settings or of a kind"
    if not values or any(isinstance(one, Pending) for one in given):
        return reading.unknown(name, f"a {type(module).__name__} called on no array")
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)):
        return _transformer(reading, path, module, values, named)
    kind = kind_of(module)
    if kind in ("simple_rnn", "lstm", "gru"):
        if isinstance(module, nn.RNNCellBase) or module.proj_size:
            return reading.unknown(name, unknown)
        if len(values) > 1 or any(isinstance(one, (tuple, list)) for one in given):
            return reading.unknown(name, "a recurrent layer that is given its first state")
        return Pending(module, path, (values[0],))
    if kind == "attention":
        return _attention(reading, path, module, values, named)
    if kind in _READERS:
        return _READERS[kind](reading, name, module, values[0])
    return _plain(reading, name, module, values[0])


def _rank_of(module: Any) -> int:
    return _RANKS.get(type(module).__name__[-2:].lower(), 0)


def _dense(reading: Reading, name: str, module: Any, value: Value) -> Value:
    value = reading.laid(value, first=False)
    options = {"inputs": module.in_features, "units": module.out_features, "bias": module.bias is not None}
    return replace(value, name=reading.add(name, "dense", (value,), {**options, "tied": None}, layer=name))


def _conv(reading: Reading, name: str, module: Any, value: Value) -> Value:
    if module.padding_mode != "zeros":
        return reading.unknown(name, f"a convolution with padding_mode={module.padding_mode!r}")
    value = reading.laid(value, first=True)
    settings = attributes_of(module, "conv")
    options = {key: settings[key] for key in ("strides", "dilation", "groups", "padding")}
    options |= {"size": tuple(module.kernel_size), "bias": module.bias is not None, "space": ()}
    options |= {"channels": module.in_channels, "filters": module.out_channels}
    made = reading.add(name, "conv", (value,), options, layer=name)
    return Value(made, len(module.kernel_size) + 1, first=True)


def _conv_transpose(reading: Reading, name: str, module: Any, value: Value) -> Value:
    if module.groups != 1:
        return reading.unknown(name, "a transposed convolution in groups")
    value = reading.laid(value, first=True)
    crop = tuple((side, side - more) for side, more in zip(module.padding, module.output_padding, strict=True))
    options = {
        "channels": module.in_channels, "filters": module.out_channels, "size": tuple(module.kernel_size),
        "strides": tuple(module.stride), "dilation": tuple(module.dilation), "crop": crop,
        "bias": module.bias is not None,
    }  # fmt: skip
    made = reading.add(name, "conv_transpose", (value,), options, layer=name)
    return Value(made, len(module.kernel_size) + 1, first=True)


def _embedding(reading: Reading, name: str, module: Any, value: Value) -> Value:
    if module.max_norm is not None:
        return reading.unknown(name, "an embedding with max_norm")
    options = {"vocab": module.num_embeddings, "width": module.embedding_dim}
    made = reading.add(name, "embedding", (value,), options, layer=name)
    return Value(made, 2 if value.rank is None else value.rank + 1, first=False)


def _batch_norm(reading: Reading, name: str, module: Any, value: Value) -> Value:
    if not module.track_running_stats:
        return reading.unknown(name, "a batch norm without running statistics")
    rank = _rank_of(module)
    value = value if rank == 2 and value.first is None else reading.laid(value, first=True)
    options = {"channels": module.num_features, "scale": module.affine, "center": module.affine}
    made = reading.add(name, "batch_norm", (value,), options | attributes_of(module, "batch_norm"), layer=name)
    return Value(made, value.rank if rank == 2 else rank or value.rank, True if value.rank != 1 else None)


def _group_norm(reading: Reading, name: str, module: Any, value: Value) -> Value:
    channels = getattr(module, "num_channels", getattr(module, "num_features", 0))
    if not module.affine or getattr(module, "track_running_stats", False):
        return reading.unknown(name, "a group norm without weights, or with running statistics")
    value = reading.laid(value, first=True)
    options = {"channels": channels, **attributes_of(module, "group_norm")}
    return replace(value, name=reading.add(name, "group_norm", (value,), options, layer=name))


def _layer_norm(reading: Reading, name: str, module: Any, value: Value) -> Value:
    shape = tuple(module.normalized_shape)
    first = len(shape) > 2 and value.rank == len(shape) and value.first is not False
    value = reading.laid(value, first=first)
    normalized = (*shape[1:], shape[0]) if first else shape
    scale = module.elementwise_affine
    options = {"normalized": normalized, "scale": scale, "center": scale and module.bias is not None}
    options |= attributes_of(module, "layer_norm")
    return replace(value, name=reading.add(name, "layer_norm", (value,), options, layer=name))


def _rms_norm(reading: Reading, name: str, module: Any, value: Value) -> Value:
    if len(module.normalized_shape) != 1 or module.weight is None:
        return reading.unknown(name, "an RMS norm over several axes, or without weights")
    value = reading.laid(value, first=False)
    options = {"width": module.normalized_shape[0], **attributes_of(module, "rms_norm")}
    return replace(value, name=reading.add(name, "rms_norm", (value,), options, layer=name))


def _prelu(reading: Reading, name: str, module: Any, value: Value) -> Value:
    rank = value.rank
    if rank is None:
        return reading.unknown(name, "a PReLU on a value of a rank that isn't known (pass sample=)")
    if module.num_parameters > 1:
        value = reading.laid(value, first=True)
    slopes = (*(1 for _ in range(rank - 1)), module.num_parameters)
    return replace(value, name=reading.add(name, "prelu", (value,), {"slopes": slopes}, layer=name))


_READERS: dict[str, Callable[[Reading, str, Any, Value], Value]] = {
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


def recurrent_steps(reading: Reading, pending: Pending, *, sequences: bool) -> Value:
    """Read a recurrent module, one step for each of its layers; the last one gives sequences or where it ends."""
    module, value = pending.module, reading.laid(pending.given[0], first=False)
    kind, width = kind_of(module), module.input_size
    for place in range(module.num_layers):
        last = place == module.num_layers - 1
        options = {
            "inputs": width, "units": module.hidden_size, "bias": module.bias, "layers": 1,
            "both": module.bidirectional, "backwards": False, "sequences": sequences or not last,
            "activation": getattr(module, "nonlinearity", "tanh"),
        }  # fmt: skip
        name = identifier(pending.path) + (f"_l{place}" if module.num_layers > 1 else "")
        rank = 2 if options["sequences"] else 1
        value = Value(
            reading.add(name, kind, (value,), options, layer=name), rank, first=False, time_first=not module.batch_first
        )
        width = module.hidden_size * (2 if module.bidirectional else 1)
    return value


def _attention(
    reading: Reading, path: str, module: Any, values: list[Value], named: Mapping[str, Any]
) -> Value | Pending:
    masked = {"key_padding_mask", "attn_mask"} & {key for key, one in named.items() if one is not None}
    if len(values) != 3 or masked or module.bias_k is not None or module.add_zero_attn:
        return reading.unknown(identifier(path), "attention with masks, or with settings")
    return Pending(module, path, tuple(values))


def attention_step(reading: Reading, path: str, module: Any, values: tuple[Value, ...]) -> Value:
    """Read an attention module whose first output is wanted."""
    width = module.embed_dim
    options = {
        "widths": (width, module.kdim, module.vdim), "heads": module.num_heads, "key_heads": module.num_heads,
        "key_size": module.head_dim, "value_size": module.head_dim, "outputs": width,
        "bias": module.in_proj_bias is not None, "causal": False,
    }  # fmt: skip
    given = tuple(reading.laid(one, first=False) for one in values)
    name = identifier(path)
    return Value(reading.add(name, "attention", given, options, layer=name), 2, first=False)


def _transformer(reading: Reading, path: str, module: Any, values: list[Value], named: Mapping[str, Any]) -> Value:
    """An encoder: what its layers do, written out."""
    if len(values) > 1 or any(one not in (None, False) for one in named.values()):
        return reading.unknown(identifier(path), "a transformer encoder called with masks")
    value = reading.laid(values[0], first=False)
    if isinstance(module, nn.TransformerEncoder):
        for place, layer in enumerate(module.layers):
            value = _encoder_layer(reading, f"{path}.layers.{place}", layer, value)
        if module.norm is not None:
            value = _layer_norm(reading, identifier(f"{path}.norm"), module.norm, value)
        return value
    return _encoder_layer(reading, path, module, value)


def _encoder_layer(reading: Reading, path: str, module: Any, value: Value) -> Value:
    does = {functional.relu: "relu", functional.gelu: "gelu"}.get(module.activation)
    if does is None:
        return reading.unknown(identifier(path), "a transformer layer with an activation of one's own")

    def attended(x: Value) -> Value:
        return attention_step(reading, f"{path}.self_attn", module.self_attn, (x, x, x))

    def fed(x: Value) -> Value:
        x = _dense(reading, identifier(f"{path}.linear1"), module.linear1, x)
        x = replace(x, name=reading.add(identifier(f"{path}.activation"), "activation", (x,), {"does": does}))
        return _dense(reading, identifier(f"{path}.linear2"), module.linear2, x)

    for norm, inner in (("norm1", attended), ("norm2", fed)):

        def normed(x: Value, norm: str = norm) -> Value:
            return _layer_norm(reading, identifier(f"{path}.{norm}"), getattr(module, norm), x)

        made = inner(normed(value) if module.norm_first else value)
        added = replace(value, name=reading.add(identifier(f"{path}.add"), "add", (value, made)))
        value = added if module.norm_first else normed(added)
    return value


def _plain(reading: Reading, name: str, module: Any, value: Value) -> Value:
    def step(kind: str, **options: Any) -> Value:
        return replace(value, name=reading.add(name, kind, (value,), options))

    if type(module) in _ACTIVATIONS:
        return step("activation", does=_ACTIVATIONS[type(module)])
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
        return softmaxed(reading, name, does, value, module.dim)
    if isinstance(module, nn.Identity):
        return value
    if type(module) is nn.Dropout:
        return step("dropout", rate=module.p)
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return flattened(reading, name, value)
    rank = _rank_of(module)
    whole = not getattr(module, "ceil_mode", False) and not any(_each(getattr(module, "padding", 0), 1))
    if isinstance(module, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)) and whole and _each(module.dilation, 1)[0] == 1:
        return pooled(reading, name, "max_pool", value, rank, module.kernel_size, module.stride)
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)) and whole:
        return pooled(reading, name, "average_pool", value, rank, module.kernel_size, module.stride)
    ends = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    if isinstance(module, ends) and all(one == 1 for one in _each(module.output_size, rank - 1)):
        value = reading.laid(value, first=True)
        made = reading.add(name, "global_average", (value,), {"axes": tuple(range(1, rank)), "keeps": True})
        return Value(made, rank, first=True)
    if isinstance(module, (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)):
        flat = module.padding
        sides = tuple((flat[at], flat[at + 1]) for at in range(len(flat) - 2, -1, -2))
        value = reading.laid(value, first=True)
        return Value(reading.add(name, "zero_padding", (value,), {"padding": sides}), rank, first=True)
    return reading.unknown(name, f"a {type(module).__name__} with settings or of a kind")


def pooled(reading: Reading, name: str, kind: str, value: Value, rank: int, size: Any, strides: Any) -> Value:
    """Read a pooling over windows of ``size``."""
    value = reading.laid(value, first=True)
    windows = _each(size, rank - 1)
    options = {"size": windows, "strides": _each(strides or size, rank - 1), "padding": "valid", "space": ()}
    return Value(reading.add(name, kind, (value,), options), rank, first=True)


def flattened(reading: Reading, name: str, value: Value) -> Value:
    """Read a flatten in torch's order: ports find it where a dense layer follows."""
    return Value(reading.add(name, "flatten", (value,)), 1, first=None)


def softmaxed(reading: Reading, name: str, does: str, value: Value, dim: int | None) -> Value:
    """Read a softmax along an axis of the tensor."""
    if dim is None or (value.rank is None and dim != -1):
        return reading.unknown(name, "a softmax along an axis that isn't known (pass sample=)")
    place = dim if value.rank is None else dim % (value.rank + 1)
    value = reading.laid(value, first=place == 1 and value.rank != 1)
    if place not in (1, -1, value.rank):
        return reading.unknown(name, "a softmax along an axis in the middle")
    return replace(value, name=reading.add(name, "activation", (value,), {"does": does}))


def _each(value: Any, rank: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
