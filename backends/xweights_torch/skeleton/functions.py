"""What needs no weights, as torch code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xweights.errors import PortError
from xweights.porting.skeleton import Step


@dataclass(frozen=True)
class Written:
    """``layers`` by attribute, the ``call``, and whether its result has channels second (None: as what it takes)."""

    call: str
    layers: Mapping[str, str] = field(default_factory=dict)
    first: bool | None = None
    ties: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()


Writer = Callable[[Step, list[str], bool], Written]


def same_padding(step: Step) -> tuple[tuple[int, int], ...]:
    """Return how many zeros "same" puts in front and behind along each axis: the larger half behind."""
    one = step.options
    sides = []
    dilation = one.get("dilation", (1,) * len(one["size"]))
    for length, size, stride, spread in zip(one["space"], one["size"], one["strides"], dilation, strict=True):
        reach = (size - 1) * spread + 1
        if stride == 1:
            whole = reach - 1
        elif length is None:
            raise PortError(f'{step.name!r} pads by the size of its images ("same" with strides), which isn\'t known')
        else:
            whole = max((-(-length // stride) - 1) * stride + reach - length, 0)
        sides.append((whole // 2, whole - whole // 2))
    return tuple(sides)


def padded(given: str, sides: tuple[tuple[int, int], ...], value: str = "") -> str:
    """Return code that pads the last axes; torch names the last axis first."""
    flat = tuple(side for axis in reversed(sides) for side in axis)
    return f"functional.pad({given}, {flat}{value})"


def function_of(word: str, x: str, channel: int, options: Mapping[str, Any]) -> str:
    """Return the code of an activation; ``channel`` is the axis of a softmax."""
    special = {
        "gelu_tanh": f'functional.gelu({x}, approximate="tanh")',
        "softmax": f"torch.softmax({x}, {channel})",
        "log_softmax": f"torch.log_softmax({x}, {channel})",
        "sigmoid": f"torch.sigmoid({x})",
        "tanh": f"torch.tanh({x})",
        "relu": f"torch.relu({x})",
        "leaky_relu": f"functional.leaky_relu({x}, {options.get('slope', 0.2)})",
        "elu": f"functional.elu({x}, {options.get('alpha', 1.0)})",
        "hard_sigmoid": f"functional.hardsigmoid({x})",
        "hard_silu": f"functional.hardswish({x})",
    }
    return special.get(word, f"functional.{word}({x})")


def _activation(step: Step, given: list[str], first: bool) -> Written:
    return Written(function_of(step.options["does"], given[0], 1 if first else -1, step.options))


def _dropout(step: Step, given: list[str], first: bool) -> Written:
    return Written(f"self.{step.name}({given[0]})", {step.name: f"nn.Dropout({step.options['rate']})"})


def _reshape(step: Step, given: list[str], first: bool) -> Written:
    shape = [-1 if one is None else one for one in step.shape or ()]
    if shape.count(-1) > 1:
        raise PortError(f"{step.name!r} reshapes to a shape with several lengths that aren't known")
    start = "-1" if -1 not in shape else f"{given[0]}.shape[0]"
    return Written(f"{given[0]}.reshape({', '.join([start, *map(str, shape)])})")


def _permute(step: Step, given: list[str], first: bool) -> Written:
    return Written(f"{given[0]}.permute(0, {', '.join(map(str, step.options['order']))})")


def _max_pool(step: Step, given: list[str], first: bool) -> Written:
    one, taken = step.options, given[0]
    if one["padding"] == "same":
        sides = same_padding(step)
        if any(side for axis in sides for side in axis):
            taken = padded(taken, sides, ', value=float("-inf")')
    rank = len(one["size"])
    return Written(f"functional.max_pool{rank}d({taken}, {one['size']}, {one['strides']})", first=True)


def _average_pool(step: Step, given: list[str], first: bool) -> Written:
    one, more = step.options, ""
    if one["padding"] == "same":
        sides = same_padding(step)
        if any(front != behind for front, behind in sides):
            raise PortError(f"{step.name!r} averages with more padding behind than in front, which torch can't count")
        more = f", {tuple(front for front, _ in sides)}, count_include_pad=False"
    rank = len(one["size"])
    return Written(f"functional.avg_pool{rank}d({given[0]}, {one['size']}, {one['strides']}{more})", first=True)


def _global(code: str) -> Writer:
    def write(step: Step, given: list[str], first: bool) -> Written:
        axes = tuple(axis + first for axis in step.options["axes"])
        return Written(f"{given[0]}.{code}({axes}, keepdim={step.options['keeps']})")

    return write


def _cropping(step: Step, given: list[str], first: bool) -> Written:
    cuts = ", ".join(f"{front or ''}:{-behind if behind else ''}" for front, behind in step.options["cropping"])
    return Written(f"{given[0]}[:, :, {cuts}]", first=True)


def _upsample(step: Step, given: list[str], first: bool) -> Written:
    factors = ", ".join(map(str, step.options["size"]))
    mode = f'mode="{step.options["mode"]}"' + (", align_corners=False" if step.options["mode"] != "nearest" else "")
    comma = "," if len(step.options["size"]) == 1 else ""
    return Written(f"functional.interpolate({given[0]}, scale_factor=({factors}{comma}), {mode})", first=True)


def _joined(sign: str, *, mean: bool = False) -> Writer:
    def write(step: Step, given: list[str], first: bool) -> Written:
        joined = f" {sign} ".join(given)
        return Written(f"({joined}) / {len(given)}" if mean else joined)

    return write


def _extreme(name: str) -> Writer:
    def write(step: Step, given: list[str], first: bool) -> Written:
        call = given[0]
        for other in given[1:]:
            call = f"torch.{name}({call}, {other})"
        return Written(call)

    return write


def _concatenate(step: Step, given: list[str], first: bool) -> Written:
    axis, rank = step.options["axis"], len(step.shape or ())
    if first:
        axis = 1 if axis == rank else axis + 1
    return Written(f"torch.cat([{', '.join(given)}], {axis})")


def _scale(step: Step, given: list[str], first: bool) -> Written:
    factor, offset = step.options["factor"], step.options["offset"]
    call = given[0] if factor == 1.0 else f"{given[0]} * {factor!r}"
    return Written(call if offset == 0.0 else f"{call} + {offset!r}")


def _simply(code: str) -> Writer:
    return lambda step, given, first: Written(code.format(x=given[0], **step.options))


FUNCTIONS: dict[str, Writer] = {
    "activation": _activation,
    "dropout": _dropout,
    "flatten": _simply("{x}.flatten(1)"),
    "reshape": _reshape,
    "permute": _permute,
    "repeat": _simply("{x}.unsqueeze(1).repeat(1, {times}, 1)"),
    "select": _simply("{x}[:, {place}]"),
    "merge_frames": _simply("{x}.flatten(0, 1)"),
    "split_frames": _simply("{x}.unflatten(0, (-1, {frames}))"),
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "global_average": _global("mean"),
    "global_max": _global("amax"),
    "zero_padding": lambda step, given, first: Written(padded(given[0], step.options["padding"]), first=True),
    "cropping": _cropping,
    "upsample": _upsample,
    "add": _joined("+"),
    "subtract": _joined("-"),
    "multiply": _joined("*"),
    "average": _joined("+", mean=True),
    "maximum": _extreme("maximum"),
    "minimum": _extreme("minimum"),
    "concatenate": _concatenate,
    "scale": _scale,
}  # fmt: skip
