"""Keras models as steps in neutral words, and steps as the source code of a Keras model.

Owns :func:`steps_of` and :func:`code_of`. Imports Keras and the core's Step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from xweights.errors import PortError
from xweights.porting.skeletons import Step
from xweights_keras.naming import by_name
from xweights_keras.porting_layers import attributes_of, is_a, kind_of, word_of
from xweights_keras.walk import is_graph


def steps_of(model: Any) -> list[Step]:
    """Return what a Sequential or functional model does. Raise PortError for another one."""
    if not is_graph(model):
        raise PortError(
            f"the order of calls of a {type(model).__name__} isn't known without a run\n"
            "Fix: write the twin by hand, or make the model with the functional API"
        )
    graph = model._functional if type(model).__name__ == "Sequential" else model
    paths = {id(layer): path.replace("/", "_") for path, layer in by_name(model.layers)}
    names: dict[int, str] = {}
    found: list[Step] = []
    for place, tensor in enumerate(graph.inputs):
        names[id(tensor)] = f"x{place}" if len(graph.inputs) > 1 else "x"
        found.append(Step(names[id(tensor)], "input", options={"shape": tuple(tensor.shape[1:])}))
    for _, nodes in sorted(graph._nodes_by_depth.items(), reverse=True):
        for node in nodes:
            if node.is_input:
                continue
            layer = node.operation
            inputs = tuple(names[id(one)] for one in node.input_tensors)
            step = _step(
                paths.get(id(layer), layer.name), layer, inputs, [tuple(one.shape) for one in node.input_tensors]
            )
            if any(one.name == step.name for one in found):
                step = Step(step.name, "called twice, which has no recipe for code")
            found.append(step)
            for one in node.outputs:
                names[id(one)] = step.name
    return found


def _step(name: str, layer: Any, inputs: tuple[str, ...], shapes: list[tuple[int, ...]]) -> Step:
    if not isinstance(layer, keras.Layer):
        kind = {"Add": "add", "Multiply": "multiply"}.get(type(layer).__name__)
        if kind is not None and len(inputs) == 2:
            return Step(name, kind, inputs)
        return Step(name, f"{type(layer).__name__}, an operation, which has no recipe for code")
    kind = kind_of(layer)
    shape = shapes[0]
    fused = word_of(getattr(layer, "activation", None)) if kind in ("dense", "conv", "conv_transpose") else "linear"
    options = _options(layer, kind, shape)
    if options is None:
        return _plain(name, layer, inputs, shape)
    return Step(name, kind, inputs, options, fused)


def _options(layer: Any, kind: str, shape: tuple[int, ...]) -> dict[str, Any] | None:
    settings = attributes_of(layer, kind)
    bias = bool(getattr(layer, "use_bias", False))
    width = shape[-1]
    if kind == "dense":
        return {"inputs": width, "units": layer.units, "bias": bias}
    if kind == "embedding":
        return {"vocab": layer.input_dim, "width": layer.output_dim}
    if kind in ("conv", "conv_transpose") and layer.data_format == "channels_last":
        if kind == "conv_transpose" and (layer.padding != "valid" or settings.get("output_padding") is not None):
            return None
        options = {name: settings[name] for name in ("strides", "dilation", "groups", "padding")}
        filters = layer.filters if hasattr(layer, "filters") else width * layer.depth_multiplier
        space = shape[1:-1]
        return options | {
            "size": tuple(layer.kernel_size),
            "bias": bias,
            "channels": width,
            "filters": filters,
            "space": space,
        }
    if kind == "batch_norm" and layer.scale and layer.center and layer.axis in (-1, len(shape) - 1):
        return {"channels": width, "rank": max(len(shape) - 2, 1), **settings}
    if kind in ("layer_norm", "rms_norm") and layer.axis in (-1, [-1], len(shape) - 1, [len(shape) - 1]):
        return {"width": width, **settings}
    if kind == "group_norm":
        return {"channels": width, **settings}
    usual = settings.get("activation") == "tanh" and settings.get("recurrent_activation", "sigmoid") == "sigmoid"
    if kind in ("lstm", "gru", "simple_rnn") and usual and not layer.go_backwards and not hasattr(layer.cell, "cells"):
        return {
            "inputs": width,
            "units": layer.units,
            "bias": bool(layer.cell.use_bias),
            "sequences": layer.return_sequences,
        }
    return None


def _plain(name: str, layer: Any, inputs: tuple[str, ...], shape: tuple[int, ...]) -> Step:
    if is_a(layer, "Activation"):
        return Step(name, "activation", inputs, {"does": word_of(layer.activation)}, word_of(layer.activation))
    if is_a(layer, "LeakyReLU"):
        return Step(name, "activation", inputs, {"does": "leaky_relu", "slope": float(layer.negative_slope)})
    if is_a(layer, "ReLU") and layer.max_value in (None, 6) and not layer.negative_slope and not layer.threshold:
        return Step(name, "activation", inputs, {"does": "relu6" if layer.max_value else "relu"})
    for kind, word in (("Softmax", "softmax"), ("ELU", "elu")):
        if is_a(layer, kind):
            return Step(name, "activation", inputs, {"does": word})
    if is_a(layer, "Dropout"):
        return Step(name, "dropout", inputs, {"rate": layer.rate})
    if is_a(layer, "Flatten"):
        return Step(name, "flatten", inputs)
    for kind, word in (("Add", "add"), ("Multiply", "multiply"), ("Concatenate", "concatenate")):
        if is_a(layer, kind) and (word == "concatenate" or len(inputs) == 2):
            return Step(name, word, inputs)
    pools = {"MaxPooling": "max_pool", "AveragePooling": "average_pool"}
    for rank in (1, 2):
        for kind, word in pools.items():
            if is_a(layer, f"{kind}{rank}D") and (layer.padding == "valid" or word == "max_pool"):
                options = {"size": tuple(layer.pool_size), "strides": tuple(layer.strides)}
                return Step(name, word, inputs, {**options, "padding": layer.padding, "space": shape[1:-1]})
        if is_a(layer, f"GlobalAveragePooling{rank}D"):
            return Step(name, "global_average", inputs, {"rank": rank, "keeps": layer.keepdims})
    if is_a(layer, "ZeroPadding2D"):
        return Step(name, "zero_padding", inputs, {"padding": tuple(tuple(one) for one in layer.padding)})
    return Step(name, f"{type(layer).__name__}, with settings or of a kind that has no recipe for code", inputs)


# Writing


def code_of(steps: Sequence[Step]) -> str:
    """Return the source code of a model that does these steps."""
    made: list[str] = []
    forward: list[str] = []
    for step in steps:
        if step.kind == "input":
            continue
        given = ", ".join(step.inputs)
        pad = step.options.get("padding")
        if step.kind == "conv" and isinstance(pad, tuple) and any(pad):
            made.append(f"self.{step.name}_pad = L.ZeroPadding{len(pad)}D({pad[0] if len(pad) == 1 else pad})")
            given = f"self.{step.name}_pad({given})"
        written = _WRITERS[step.kind](step)
        if written.startswith("L."):
            made.append(f"self.{step.name} = {written}")
            several = step.kind in ("add", "multiply", "concatenate")
            forward.append(f"{step.name} = self.{step.name}({f'[{given}]' if several else given})")
        else:
            forward.append(f"{step.name} = {written.format(x=given)}")
    names = [step.name for step in steps if step.kind == "input"]
    used = {name for step in steps for name in step.inputs}
    results = ", ".join(step.name for step in steps if step.name not in used)
    body = "\n".join(f"        {line}" for line in made) or "        pass"
    unpack = f"        {', '.join(names)} = inputs\n"
    run = "\n".join(f"        {line}" for line in forward)
    return (
        "import keras\n\nL = keras.layers\n\n\n"
        "class Twin(keras.Model):\n    def __init__(self):\n        super().__init__()\n"
        f"{body}\n\n    def call(self, inputs):\n{unpack}{run}\n        return {results}\n"
    )


def _activation(step: Step) -> str:
    does = step.options["does"]
    if does == "leaky_relu":
        return f"keras.activations.leaky_relu({{x}}, negative_slope={step.options['slope']})"
    if does == "gelu_tanh":
        return "keras.activations.gelu({x}, approximate=True)"
    return f"keras.activations.{does}({{x}})"


def _conv(step: Step) -> str:
    one = step.options
    padding = one["padding"] if isinstance(one["padding"], str) else "valid"
    rank, channels = len(one["size"]), one["channels"]
    common = f"{one['size']}, strides={one['strides']}, padding={padding!r}, dilation_rate={one['dilation']}"
    more = f"use_bias={one['bias']}{_fused(step)}"
    if one["groups"] == channels > 1 and rank < 3:
        return f"L.DepthwiseConv{rank}D({common}, depth_multiplier={one['filters'] // channels}, {more})"
    return f"L.Conv{rank}D({one['filters']}, {common}, groups={one['groups']}, {more})"


def _conv_transpose(step: Step) -> str:
    one = step.options
    if any(one["padding"]) if isinstance(one["padding"], tuple) else one["padding"] != "valid":
        raise PortError(f"{step.name!r} is a transposed convolution with padding, which has no recipe for code")
    more = f"use_bias={one['bias']}{_fused(step)}"
    return f"L.Conv{len(one['size'])}DTranspose({one['filters']}, {one['size']}, strides={one['strides']}, {more})"


def _fused(step: Step) -> str:
    return "" if step.fused == "linear" else f", activation={step.fused!r}"


def _recurrent(name: str) -> Callable[[Step], str]:
    return lambda step: (
        f"L.{name}({step.options['units']}, use_bias={step.options['bias']}, "
        f"return_sequences={step.options['sequences']})"
    )


def _pool(name: str) -> Callable[[Step], str]:
    def write(step: Step) -> str:
        one = step.options
        padding = one.get("padding", "valid")
        return f"L.{name}{len(one['size'])}D({one['size']}, strides={one['strides']}, padding={padding!r})"

    return write


def _norm(name: str, *settings: str) -> Callable[[Step], str]:
    words = {"eps": "epsilon"}

    def write(step: Step) -> str:
        return f"L.{name}({', '.join(f'{words.get(one, one)}={step.options[one]}' for one in settings)})"

    return write


def _dense(step: Step) -> str:
    one: Mapping[str, Any] = step.options
    return f"L.Dense({one['units']}, use_bias={one['bias']}{_fused(step)})"


_WRITERS: dict[str, Callable[[Step], str]] = {
    "dense": _dense,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "embedding": lambda step: f"L.Embedding({step.options['vocab']}, {step.options['width']})",
    "batch_norm": _norm("BatchNormalization", "momentum", "eps"),
    "layer_norm": _norm("LayerNormalization", "eps"),
    "rms_norm": _norm("RMSNormalization", "eps"),
    "group_norm": _norm("GroupNormalization", "groups", "eps"),
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "simple_rnn": _recurrent("SimpleRNN"),
    "activation": _activation,
    "dropout": lambda step: f"L.Dropout({step.options['rate']})",
    "flatten": lambda step: "L.Flatten()",
    "max_pool": _pool("MaxPooling"),
    "average_pool": _pool("AveragePooling"),
    "global_average": lambda step: f"L.GlobalAveragePooling{step.options['rank']}D(keepdims={step.options['keeps']})",
    "zero_padding": lambda step: f"L.ZeroPadding2D({step.options['padding']})",
    "add": lambda step: "L.Add()",
    "multiply": lambda step: "L.Multiply()",
    "concatenate": lambda step: "L.Concatenate()",
}
