"""One step in neutral words as torch code: the layers that it needs, and the expression that it becomes."""

from __future__ import annotations

import math
from typing import Any

from xweights.errors import PortError
from xweights.porting.skeleton import Step
from xweights_torch.skeleton.functions import FUNCTIONS, Writer, Written, padded, same_padding

# What torch has with channels second, with channels last, and either way.
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


def written(step: Step, given: list[str], *, first: bool) -> Written:
    """Return a step as torch code; ``first`` says whether its inputs have channels second."""
    return _WRITERS[step.kind](step, given, first)


def _layer(step: Step, code: str, given: list[str], **more: Any) -> Written:
    return Written(f"self.{step.layer}({', '.join(given)})", {step.layer: code}, **more)


# Layers.


def _dense(step: Step, given: list[str], first: bool) -> Written:
    one = step.options
    ties = () if one["tied"] is None else (f"self.{step.layer}.weight = self.{one['tied']}.weight",)
    return _layer(step, f"nn.Linear({one['inputs']}, {one['units']}, bias={one['bias']})", given, ties=ties)


def _einsum(step: Step, given: list[str], first: bool) -> Written:
    """A matrix product: what is summed over goes last, and what is made goes where the equation has it."""
    one = step.options
    operand, kernel, result = one["equation"]
    lengths, outputs = one["inputs"], one["outputs"]
    summed = [letter for letter in operand if letter in kernel]
    rest = [letter for letter in operand if letter not in kernel]
    code = (
        f"nn.Linear({math.prod(lengths[a] for a in summed)}, {math.prod(lengths[a] for a in outputs)}, "
        f"bias={one['bias']})"
    )
    call = given[0]
    if list(operand) != [*rest, *summed]:
        call = f"{call}.permute({', '.join(str(operand.index(letter)) for letter in [*rest, *summed])})"
    if len(summed) > 1:
        call = f"{call}.flatten({len(rest)})"
    call = f"self.{step.layer}({call})"
    if len(outputs) > 1:
        call = f"{call}.unflatten(-1, {tuple(lengths[letter] for letter in outputs)})"
    if list(result) != [*rest, *outputs]:
        made = [*rest, *outputs]
        call = f"{call}.permute({', '.join(str(made.index(letter)) for letter in result)})"
    return Written(call, {step.layer: code})


def _embedding(step: Step, given: list[str], first: bool) -> Written:
    return _layer(step, f"nn.Embedding({step.options['vocab']}, {step.options['width']})", given)


def _conv(step: Step, given: list[str], first: bool) -> Written:
    one = step.options
    rank, padding = len(one["size"]), one["padding"]
    inside: Any = 0
    if padding == "causal":
        reach = (one["size"][0] - 1) * one["dilation"][0]
        given = [padded(given[0], ((reach, 0),))]
    elif padding == "same":
        sides = same_padding(step)
        if all(front == behind for front, behind in sides):
            inside = tuple(front for front, _ in sides)
        elif all(stride == 1 for stride in one["strides"]):
            inside = "same"
        else:
            given = [padded(given[0], sides)]
    elif padding != "valid":
        inside = padding
    code = (
        f"nn.Conv{rank}d({one['channels']}, {one['filters']}, {one['size']}, stride={one['strides']}, "
        f"padding={inside!r}, dilation={one['dilation']}, groups={one['groups']}, bias={one['bias']})"
    )
    return _layer(step, code, given, first=True)


def _conv_transpose(step: Step, given: list[str], first: bool) -> Written:
    """Keras crops the larger half at the end, torch as much at both ends."""
    one = step.options
    rank, crop = len(one["size"]), one["crop"]
    extra = tuple(-min(behind, 0) for _, behind in crop)
    even = all(front == behind for front, behind in crop)
    padding = tuple(front for front, _ in crop) if even else (0,) * rank
    code = (
        f"nn.ConvTranspose{rank}d({one['channels']}, {one['filters']}, {one['size']}, stride={one['strides']}, "
        f"padding={padding}, output_padding={extra}, dilation={one['dilation']}, bias={one['bias']})"
    )
    call = f"self.{step.layer}({given[0]})"
    if not even and any(front or behind > 0 for front, behind in crop):
        cuts = ", ".join(f"{front or ''}:{-behind if behind > 0 else ''}" for front, behind in crop)
        call = f"{call}[:, :, {cuts}]"
    return Written(call, {step.layer: code}, first=True)


def _batch_norm(step: Step, given: list[str], first: bool) -> Written:
    one = step.options
    rank = max(len(step.shape or ()) - 1, 1)
    if rank > 3:
        raise PortError(f"{step.name!r} normalizes over {rank} axes, and torch has 3 at most")
    momentum = None if one["momentum"] is None else round(1 - one["momentum"], 12)
    affine = one["scale"] or one["center"]
    code = f"nn.BatchNorm{rank}d({one['channels']}, eps={one['eps']}, momentum={momentum}, affine={affine})"
    return _layer(step, code, given)


def _layer_norm(step: Step, given: list[str], first: bool) -> Written:
    one = step.options
    *space, channels = one["normalized"]
    shape = [channels, *space] if first else [*space, channels]
    if not one["scale"]:
        code = f"nn.LayerNorm({shape}, eps={one['eps']}, elementwise_affine={one['center']})"
    else:
        code = f"nn.LayerNorm({shape}, eps={one['eps']}, bias={one['center']})"
    return _layer(step, code, given)


def _prelu(step: Step, given: list[str], first: bool) -> Written:
    slopes = step.options["slopes"]
    size, channels = math.prod(slopes), slopes[-1]
    if size == 1:
        return _layer(step, "nn.PReLU()", given)
    if size == channels:
        # nn.PReLU takes the second axis for the channels.
        turned = given[0] if first or len(slopes) == 1 else f"{given[0]}.movedim(-1, 1)"
        return Written(f"self.{step.layer}({turned})", {step.layer: f"nn.PReLU({channels})"}, first=len(slopes) > 1)
    shape = (channels, *slopes[:-1]) if first else slopes
    return _layer(step, f"Slopes{tuple(shape)}", given, helpers=("Slopes",))


def _recurrent(name: str) -> Writer:
    def write(step: Step, given: list[str], first: bool) -> Written:
        one = step.options
        more = "".join(
            f", {word}={value!r}"
            for word, value, usual in (
                ("num_layers", one["layers"], 1),
                ("bidirectional", one["both"], False),
                ("nonlinearity", one.get("activation", "tanh") if name == "RNN" else "tanh", "tanh"),
                ("bias", one["bias"], True),
            )
            if value != usual
        )
        code = f"nn.{name}({one['inputs']}, {one['units']}{more}, batch_first=True)"
        taken = f"{given[0]}.flip(1)" if one["backwards"] else given[0]
        call = f"self.{step.layer}({taken})"
        if one["sequences"]:
            call += "[0]"
        elif one["both"]:  # where each direction ends: h_n, not the last step of the output
            state = "[1][0][-2:]" if name == "LSTM" else "[1][-2:]"
            call = f"torch.cat(tuple({call}{state}), -1)"
        else:
            call += "[0][:, -1]"
        return Written(call, {step.layer: code}, first=False)

    return write


def _attention(step: Step, given: list[str], first: bool) -> Written:
    one = step.options
    query, key, value = one["widths"]
    plain = one["heads"] == one["key_heads"] and one["heads"] * one["key_size"] == query == one["outputs"]
    if not plain or one["key_size"] != one["value_size"] or one["causal"]:
        code = ", ".join(f"{name}={one[name]!r}" for name in _ATTENTION)
        return _layer(step, f"Attention({code})", given, helpers=("Attention",))
    widths = "" if key == value == query else f", kdim={key}, vdim={value}"
    code = f"nn.MultiheadAttention({query}, {one['heads']}{widths}, bias={one['bias']}, batch_first=True)"
    return Written(f"self.{step.layer}({', '.join(given)}, need_weights=False)[0]", {step.layer: code})


_ATTENTION = ("widths", "heads", "key_heads", "key_size", "value_size", "outputs", "bias", "causal")


def _conv_lstm(step: Step, given: list[str], first: bool) -> Written:
    one = step.options
    rank = len(one["size"])
    code = (
        f"ConvLSTM(nn.Conv{rank}d, {one['channels']}, {one['filters']}, {one['size']}, padding={one['padding']!r}, "
        f"bias={one['bias']}, sequences={one['sequences']})"
    )
    call = f"self.{step.layer}({given[0]}.movedim(-1, 2))"
    made = f"{call}.movedim(2, -1)" if one["sequences"] else call
    return Written(made, {step.layer: code}, first=not one["sequences"], helpers=("ConvLSTM",))


def _helped(helper: str, *options: str) -> Writer:
    def write(step: Step, given: list[str], first: bool) -> Written:
        taken = given if len(given) != 2 else [*given, given[1]]  # the key is the value where it isn't given
        code = f"{helper}({', '.join(str(step.options[name]) for name in options)})"
        return _layer(step, code, taken, helpers=(helper,))

    return write


_WRITERS: dict[str, Writer] = {
    "dense": _dense,
    "einsum": _einsum,
    "embedding": _embedding,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": lambda step, given, first: _layer(
        step, f"nn.RMSNorm({step.options['width']}, eps={step.options['eps']})", given
    ),
    "group_norm": lambda step, given, first: _layer(
        step, f"nn.GroupNorm({step.options['groups']}, {step.options['channels']}, eps={step.options['eps']})", given
    ),
    "normalization": _helped("Standard", "width"),
    "prelu": _prelu,
    "simple_rnn": _recurrent("RNN"),
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
    "attention": _attention,
    "attention_scale": _helped("ScaledAttention"),
    "additive_attention": _helped("AdditiveAttention", "width"),
    "conv_lstm": _conv_lstm,
    **FUNCTIONS,
}
