"""Neutral steps as torch code: the layers that a step needs, and its expression."""

from __future__ import annotations

import math
from typing import Any

from xweights.errors import PortError
from xweights.porting.skeleton import Step
from xweights_torch.skeleton.functions import FUNCTIONS, StepCode, StepWriter, pad_code, same_padding

# Steps that torch does with channels second, with channels last, and either way.
FIRST = frozenset(
    {"conv", "conv_transpose", "batch_norm", "group_norm", "max_pool", "average_pool", "zero_padding", "cropping",
     "upsample"}
)  # fmt: skip
LAST = frozenset(
    {"dense", "einsum", "embedding", "rms_norm", "normalization", "simple_rnn", "lstm", "gru", "attention", "reshape",
     "attention_scale", "additive_attention", "permute", "repeat", "select", "merge_frames", "split_frames",
     "conv_lstm"}
)  # fmt: skip
BOTH_WAYS = frozenset(
    {"activation", "dropout", "global_average", "global_max", "add", "subtract", "multiply", "average", "maximum",
     "minimum", "concatenate", "scale", "prelu"}
)  # fmt: skip


def write_step(step: Step, inputs: list[str], *, first: bool) -> StepCode:
    """Return a step as torch code; ``first`` says whether its inputs have channels second."""
    return _WRITERS[step.kind](step, inputs, first)


def _layer(step: Step, code: str, inputs: list[str], **more: Any) -> StepCode:
    return StepCode(f"self.{step.layer}({', '.join(inputs)})", {step.layer: code}, **more)


# Layers.


def _dense(step: Step, inputs: list[str], first: bool) -> StepCode:
    options = step.options
    ties = () if options["tied"] is None else (f"self.{step.layer}.weight = self.{options['tied']}.weight",)
    return _layer(
        step, f"nn.Linear({options['inputs']}, {options['units']}, bias={options['bias']})", inputs, ties=ties
    )


def _einsum(step: Step, inputs: list[str], first: bool) -> StepCode:
    """Return the code of an einsum: summed axes go last, output axes go where the equation has them."""
    options = step.options
    operand, kernel, result = options["equation"]
    lengths, outputs = options["inputs"], options["outputs"]
    summed = [letter for letter in operand if letter in kernel]
    rest = [letter for letter in operand if letter not in kernel]
    code = (
        f"nn.Linear({math.prod(lengths[a] for a in summed)}, {math.prod(lengths[a] for a in outputs)}, "
        f"bias={options['bias']})"
    )
    call = inputs[0]
    if list(operand) != [*rest, *summed]:
        call = f"{call}.permute({', '.join(str(operand.index(letter)) for letter in [*rest, *summed])})"
    if len(summed) > 1:
        call = f"{call}.flatten({len(rest)})"
    call = f"self.{step.layer}({call})"
    if len(outputs) > 1:
        call = f"{call}.unflatten(-1, {tuple(lengths[letter] for letter in outputs)})"
    if list(result) != [*rest, *outputs]:
        axes = [*rest, *outputs]
        call = f"{call}.permute({', '.join(str(axes.index(letter)) for letter in result)})"
    return StepCode(call, {step.layer: code})


def _embedding(step: Step, inputs: list[str], first: bool) -> StepCode:
    return _layer(step, f"nn.Embedding({step.options['vocab']}, {step.options['width']})", inputs)


def _conv(step: Step, inputs: list[str], first: bool) -> StepCode:
    options = step.options
    rank, padding = len(options["size"]), options["padding"]
    inside: Any = 0
    if padding == "causal":
        reach = (options["size"][0] - 1) * options["dilation"][0]
        inputs = [pad_code(inputs[0], ((reach, 0),))]
    elif padding == "same":
        sides = same_padding(step)
        if all(front == behind for front, behind in sides):
            inside = tuple(front for front, _ in sides)
        elif all(stride == 1 for stride in options["strides"]):
            inside = "same"
        else:
            inputs = [pad_code(inputs[0], sides)]
    elif padding != "valid":
        inside = padding
    code = (
        f"nn.Conv{rank}d({options['channels']}, {options['filters']}, {options['size']}, stride={options['strides']}, "
        f"padding={inside!r}, dilation={options['dilation']}, groups={options['groups']}, bias={options['bias']})"
    )
    return _layer(step, code, inputs, first=True)


def _conv_transpose(step: Step, inputs: list[str], first: bool) -> StepCode:
    """Return a transposed convolution; Keras crops the larger half at the end, torch equally at both ends."""
    options = step.options
    rank, crop = len(options["size"]), options["crop"]
    extra = tuple(-min(behind, 0) for _, behind in crop)
    even = all(front == behind for front, behind in crop)
    padding = tuple(front for front, _ in crop) if even else (0,) * rank
    code = (
        f"nn.ConvTranspose{rank}d({options['channels']}, {options['filters']}, {options['size']}, "
        f"stride={options['strides']}, padding={padding}, output_padding={extra}, dilation={options['dilation']}, "
        f"bias={options['bias']})"
    )
    call = f"self.{step.layer}({inputs[0]})"
    if not even and any(front or behind > 0 for front, behind in crop):
        cuts = ", ".join(f"{front or ''}:{-behind if behind > 0 else ''}" for front, behind in crop)
        call = f"{call}[:, :, {cuts}]"
    return StepCode(call, {step.layer: code}, first=True)


def _batch_norm(step: Step, inputs: list[str], first: bool) -> StepCode:
    options = step.options
    rank = max(len(step.shape or ()) - 1, 1)
    if rank > 3:
        raise PortError(f"{step.name!r} normalizes over {rank} axes, and torch has 3 at most")
    momentum = None if options["momentum"] is None else round(1 - options["momentum"], 12)
    affine = options["scale"] or options["center"]
    code = f"nn.BatchNorm{rank}d({options['channels']}, eps={options['eps']}, momentum={momentum}, affine={affine})"
    return _layer(step, code, inputs)


def _layer_norm(step: Step, inputs: list[str], first: bool) -> StepCode:
    options = step.options
    *space, channels = options["normalized"]
    shape = [channels, *space] if first else [*space, channels]
    if not options["scale"]:
        code = f"nn.LayerNorm({shape}, eps={options['eps']}, elementwise_affine={options['center']})"
    else:
        code = f"nn.LayerNorm({shape}, eps={options['eps']}, bias={options['center']})"
    return _layer(step, code, inputs)


def _prelu(step: Step, inputs: list[str], first: bool) -> StepCode:
    slopes = step.options["slopes"]
    size, channels = math.prod(slopes), slopes[-1]
    if size == 1:
        return _layer(step, "nn.PReLU()", inputs)
    if size == channels:
        # nn.PReLU expects the channels on the second axis.
        moved = inputs[0] if first or len(slopes) == 1 else f"{inputs[0]}.movedim(-1, 1)"
        return StepCode(f"self.{step.layer}({moved})", {step.layer: f"nn.PReLU({channels})"}, first=len(slopes) > 1)
    shape = (channels, *slopes[:-1]) if first else slopes
    return _layer(step, f"Slopes{tuple(shape)}", inputs, helpers=("Slopes",))


def _recurrent(name: str) -> StepWriter:
    def write(step: Step, inputs: list[str], first: bool) -> StepCode:
        options = step.options
        settings = "".join(
            f", {setting}={value!r}"
            for setting, value, default in (
                ("num_layers", options["layers"], 1),
                ("bidirectional", options["both"], False),
                ("nonlinearity", options.get("activation", "tanh") if name == "RNN" else "tanh", "tanh"),
                ("bias", options["bias"], True),
            )
            if value != default
        )
        code = f"nn.{name}({options['inputs']}, {options['units']}{settings}, batch_first=True)"
        sequence = f"{inputs[0]}.flip(1)" if options["backwards"] else inputs[0]
        call = f"self.{step.layer}({sequence})"
        if options["sequences"]:
            call += "[0]"
        elif options["both"]:  # the end of each direction: h_n, not the last step of the output
            state = "[1][0][-2:]" if name == "LSTM" else "[1][-2:]"
            call = f"torch.cat(tuple({call}{state}), -1)"
        else:
            call += "[0][:, -1]"
        return StepCode(call, {step.layer: code}, first=False)

    return write


def _attention(step: Step, inputs: list[str], first: bool) -> StepCode:
    options = step.options
    query, key, value = options["widths"]
    plain = (
        options["heads"] == options["key_heads"]
        and options["heads"] * options["key_size"] == query == options["outputs"]
    )
    if not plain or options["key_size"] != options["value_size"] or options["causal"]:
        code = ", ".join(f"{name}={options[name]!r}" for name in _ATTENTION)
        return _layer(step, f"Attention({code})", inputs, helpers=("Attention",))
    widths = "" if key == value == query else f", kdim={key}, vdim={value}"
    code = f"nn.MultiheadAttention({query}, {options['heads']}{widths}, bias={options['bias']}, batch_first=True)"
    return StepCode(f"self.{step.layer}({', '.join(inputs)}, need_weights=False)[0]", {step.layer: code})


_ATTENTION = ("widths", "heads", "key_heads", "key_size", "value_size", "outputs", "bias", "causal")


def _conv_lstm(step: Step, inputs: list[str], first: bool) -> StepCode:
    options = step.options
    rank = len(options["size"])
    code = (
        f"ConvLSTM(nn.Conv{rank}d, {options['channels']}, {options['filters']}, {options['size']}, "
        f"padding={options['padding']!r}, bias={options['bias']}, sequences={options['sequences']})"
    )
    call = f"self.{step.layer}({inputs[0]}.movedim(-1, 2))"
    output = f"{call}.movedim(2, -1)" if options["sequences"] else call
    return StepCode(output, {step.layer: code}, first=not options["sequences"], helpers=("ConvLSTM",))


def _with_helper(helper: str, *options: str) -> StepWriter:
    def write(step: Step, inputs: list[str], first: bool) -> StepCode:
        arguments = inputs if len(inputs) != 2 else [*inputs, inputs[1]]  # the key defaults to the value
        code = f"{helper}({', '.join(str(step.options[name]) for name in options)})"
        return _layer(step, code, arguments, helpers=(helper,))

    return write


_WRITERS: dict[str, StepWriter] = {
    "dense": _dense,
    "einsum": _einsum,
    "embedding": _embedding,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": lambda step, inputs, first: _layer(
        step, f"nn.RMSNorm({step.options['width']}, eps={step.options['eps']})", inputs
    ),
    "group_norm": lambda step, inputs, first: _layer(
        step, f"nn.GroupNorm({step.options['groups']}, {step.options['channels']}, eps={step.options['eps']})", inputs
    ),
    "normalization": _with_helper("Standard", "width"),
    "prelu": _prelu,
    "simple_rnn": _recurrent("RNN"),
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "attention": _attention,
    "attention_scale": _with_helper("ScaledAttention"),
    "additive_attention": _with_helper("AdditiveAttention", "width"),
    "conv_lstm": _conv_lstm,
    **FUNCTIONS,
}
