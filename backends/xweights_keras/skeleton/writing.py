"""Write neutral steps as the source code of a Keras model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xweights.errors import PortError, Problems
from xweights.porting.skeleton import Step


def code_of(steps: Sequence[Step], problems: Problems) -> str:
    """Return the source code of a model with these steps."""
    all_layers: dict[str, str] = {}
    forward: list[str] = []
    arguments = [step.name for step in steps if step.kind == "input"]
    results: Sequence[str] = ()
    dense = {name for step in steps if step.kind == "dense" for name in step.inputs}
    for step in steps:
        if step.kind == "input":
            continue
        if step.kind == "output":
            results = step.inputs
            continue
        try:
            layers, call = _write_step(step, flat=step.name in dense)
        except PortError as error:
            problems.add(PortError, str(error).partition("\nFix:")[0], fix="write the twin by hand, and port into it")
            continue
        for name, code in layers.items():
            all_layers.setdefault(name, code)
        forward.append(f"{step.name} = {call}")
    body = "\n".join(f"        self.{name} = {code}" for name, code in all_layers.items()) or "        pass"
    run = "\n".join(f"        {line}" for line in forward)
    return (
        "import keras\n\nL = keras.layers\n\n\n"
        # Keras passes options of its own when it loads a model.
        "class Twin(keras.Model):\n    def __init__(self, **options):\n        super().__init__(**options)\n"
        f"{body}\n\n    def call(self, inputs):\n        {', '.join(arguments)} = inputs\n{run}\n"
        f"        return {', '.join(results)}\n"
    )


def _write_step(step: Step, *, flat: bool) -> tuple[dict[str, str], str]:
    """Return the layers of a step, by attribute name, and the call."""
    inputs = list(step.inputs)
    layers: dict[str, str] = {}
    if step.kind in ("conv", "conv_transpose"):
        return _write_convolution(step)
    if step.kind == "flatten" and not flat:
        return {}, f"keras.ops.reshape({inputs[0]}, (keras.ops.shape({inputs[0]})[0], -1))"
    if step.kind in _CALLS:
        return {}, _CALLS[step.kind](step, inputs)
    if step.kind not in _LAYERS:
        raise PortError(f"{step.name!r} is a step of the kind {step.kind!r}, which has no recipe for Keras code")
    name = step.layer or step.name
    layers[name] = _LAYERS[step.kind](step)
    if step.kind == "attention":
        query, key, value = inputs
        causal = ", use_causal_mask=True" if step.options["causal"] else ""
        return layers, f"self.{name}({query}, {value}, {key}{causal})"
    taken = f"[{', '.join(inputs)}]" if step.kind in _SEVERAL else inputs[0]
    return layers, f"self.{name}({taken})"


_SEVERAL = ("add", "subtract", "multiply", "average", "maximum", "minimum", "concatenate")


def _write_convolution(step: Step) -> tuple[dict[str, str], str]:
    """Return the code of a convolution. Keras pads with "same" or not at all; other padding is a layer of its own."""
    options, name = step.options, step.layer
    rank = len(options["size"])
    call = step.inputs[0]
    layers: dict[str, str] = {}
    if step.kind == "conv":
        padding = _padding_name(options)
        if padding is None:
            sides = tuple((side, side) for side in options["padding"])
            layers[f"{name}_pad"] = f"L.ZeroPadding{rank}D({sides[0] if rank == 1 else sides})"
            call, padding = f"self.{name}_pad({call})", "valid"
        layers[name] = _conv(step, padding)
        return layers, f"self.{name}({call})"
    common = (
        f"{options['filters']}, {options['size']}, strides={options['strides']}, dilation_rate={options['dilation']}"
    )
    padding, crop = _split_crop(step)
    layers[name] = (
        f"L.Conv{rank}DTranspose({common}, padding={padding!r}, use_bias={options['bias']}{_activation_arg(step)})"
    )
    call = f"self.{name}({call})"
    if any(side for axis in crop for side in axis):
        layers[f"{name}_crop"] = f"L.Cropping{rank}D({crop[0] if rank == 1 else crop})"
        call = f"self.{name}_crop({call})"
    return layers, call


def _padding_name(options: Mapping[str, Any]) -> str | None:
    padding = options["padding"]
    if isinstance(padding, str):
        return padding
    if not any(padding):
        return "valid"
    plain = all(stride == 1 for stride in options["strides"])
    reach = [(size - 1) * spread for size, spread in zip(options["size"], options["dilation"], strict=True)]
    return "same" if plain and all(2 * side == whole for side, whole in zip(padding, reach, strict=True)) else None


def _split_crop(step: Step) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return the padding of a transposed convolution in Keras, and the sides to crop as well."""
    options = step.options
    over = [
        (size - 1) * spread + 1 - stride
        for size, spread, stride in zip(options["size"], options["dilation"], options["strides"], strict=True)
    ]
    crop = tuple(options["crop"])
    valid = tuple((0, min(extra, 0)) for extra in over)
    if crop == valid:
        return "valid", ((0, 0),) * len(crop)
    if all(extra >= 0 for extra in over) and crop == tuple((extra // 2, extra - extra // 2) for extra in over):
        return "same", ((0, 0),) * len(crop)
    left = tuple((front, behind - most[1]) for (front, behind), most in zip(crop, valid, strict=True))
    if any(behind < 0 for _, behind in left):
        raise PortError(f"{step.name!r} is a transposed convolution with output_padding, which Keras doesn't have")
    return "valid", left


def _conv(step: Step, padding: str) -> str:
    options = step.options
    rank, channels = len(options["size"]), options["channels"]
    common = (
        f"{options['size']}, strides={options['strides']}, padding={padding!r}, dilation_rate={options['dilation']}"
    )
    more = f"use_bias={options['bias']}{_activation_arg(step)}"
    if options["groups"] == channels > 1 and rank < 3:
        return f"L.DepthwiseConv{rank}D({common}, depth_multiplier={options['filters'] // channels}, {more})"
    return f"L.Conv{rank}D({options['filters']}, {common}, groups={options['groups']}, {more})"


def _activation_arg(step: Step) -> str:
    if step.fused == "linear":
        return ""
    if step.fused == "gelu_tanh":
        return ", activation=lambda x: keras.activations.gelu(x, approximate=True)"
    return f", activation={step.fused!r}"


def _dense(step: Step) -> str:
    return f"L.Dense({step.options['units']}, use_bias={step.options['bias']}{_activation_arg(step)})"


def _recurrent(name: str) -> Callable[[Step], str]:
    def write(step: Step) -> str:
        options = step.options
        activation = ', activation="relu"' if options.get("activation") == "relu" else ""
        backwards = ", go_backwards=True" if options["backwards"] else ""
        code = (
            f"L.{name}({options['units']}, use_bias={options['bias']}, return_sequences={options['sequences']}"
            f"{activation}{backwards})"
        )
        return f"L.Bidirectional({code})" if options["both"] else code

    return write


def _attention(step: Step) -> str:
    options = step.options
    if options["key_heads"] != options["heads"]:
        common = f"{options['key_size']}, {options['heads']}, {options['key_heads']}"
        return f"L.GroupQueryAttention({common}, use_bias={options['bias']})"
    return (
        f"L.MultiHeadAttention({options['heads']}, {options['key_size']}, value_dim={options['value_size']}, "
        f"output_shape={options['outputs']}, use_bias={options['bias']})"
    )


def _prelu(step: Step) -> str:
    slopes = step.options["slopes"]
    shared = [axis for axis, length in enumerate(slopes, start=1) if length == 1]
    return f"L.PReLU(shared_axes={shared})" if shared else "L.PReLU()"


def _batch_norm(step: Step) -> str:
    options = step.options
    momentum = "" if options["momentum"] is None else f"momentum={options['momentum']}, "
    if options["momentum"] is None:
        raise PortError(f"{step.name!r} averages its statistics over all batches (momentum=None), which Keras can't")
    return (
        f"L.BatchNormalization({momentum}epsilon={options['eps']}, scale={options['scale']}, "
        f"center={options['center']})"
    )


def _layer_norm(step: Step) -> str:
    options = step.options
    axes = list(range(-len(options["normalized"]), 0))
    where = f"axis={axes}, " if len(axes) > 1 else ""
    return (
        f"L.LayerNormalization({where}epsilon={options['eps']}, scale={options['scale']}, center={options['center']})"
    )


def _pool(name: str) -> Callable[[Step], str]:
    def write(step: Step) -> str:
        options = step.options
        return (
            f"L.{name}{len(options['size'])}D({options['size']}, strides={options['strides']}, "
            f"padding={options['padding']!r})"
        )

    return write


def _sides(name: str, option: str) -> Callable[[Step], str]:
    def write(step: Step) -> str:
        sides = step.options[option]
        return f"L.{name}{len(sides)}D({sides[0] if len(sides) == 1 else sides})"

    return write


_LAYERS: dict[str, Callable[[Step], str]] = {
    "dense": _dense,
    "embedding": lambda step: f"L.Embedding({step.options['vocab']}, {step.options['width']})",
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": lambda step: f"L.RMSNormalization(epsilon={step.options['eps']})",
    "group_norm": lambda step: f"L.GroupNormalization({step.options['groups']}, epsilon={step.options['eps']})",
    "prelu": _prelu,
    "simple_rnn": _recurrent("SimpleRNN"),
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "attention": _attention,
    "dropout": lambda step: f"L.Dropout({step.options['rate']})",
    "flatten": lambda step: "L.Flatten()",
    "reshape": lambda step: f"L.Reshape({step.shape})",
    "permute": lambda step: f"L.Permute({step.options['order']})",
    "max_pool": _pool("MaxPooling"),
    "average_pool": _pool("AveragePooling"),
    "zero_padding": _sides("ZeroPadding", "padding"),
    "cropping": _sides("Cropping", "cropping"),
    "add": lambda step: "L.Add()",
    "subtract": lambda step: "L.Subtract()",
    "multiply": lambda step: "L.Multiply()",
    "average": lambda step: "L.Average()",
    "maximum": lambda step: "L.Maximum()",
    "minimum": lambda step: "L.Minimum()",
    "concatenate": lambda step: f"L.Concatenate(axis={step.options['axis']})",
}


# Steps that are functions in Keras.


def _activation(step: Step, inputs: Sequence[str]) -> str:
    does, options = step.options["does"], step.options
    if does == "leaky_relu":
        return f"keras.activations.leaky_relu({inputs[0]}, negative_slope={options['slope']})"
    if does == "elu":
        return f"keras.activations.elu({inputs[0]}, alpha={options.get('alpha', 1.0)})"
    if does == "gelu_tanh":
        return f"keras.activations.gelu({inputs[0]}, approximate=True)"
    return f"keras.activations.{does}({inputs[0]})"


def _scale(step: Step, inputs: Sequence[str]) -> str:
    factor, offset = step.options["factor"], step.options["offset"]
    call = inputs[0] if factor == 1.0 else f"{inputs[0]} * {factor!r}"
    return call if offset == 0.0 else f"{call} + {offset!r}"


def _reduce(name: str) -> Callable[[Step, Sequence[str]], str]:
    def write(step: Step, inputs: Sequence[str]) -> str:
        return f"keras.ops.{name}({inputs[0]}, axis={step.options['axes']}, keepdims={step.options['keeps']})"

    return write


_CALLS: dict[str, Callable[[Step, Sequence[str]], str]] = {
    "activation": _activation,
    "scale": _scale,
    "global_average": _reduce("mean"),
    "global_max": _reduce("max"),
    "select": lambda step, inputs: f"{inputs[0]}[:, {step.options['place']}]",
}
