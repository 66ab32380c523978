"""Steps without weights as torch code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from xweights.errors import PortError
from xweights.porting.skeleton import Step
from xweights_torch.activations import code_of


@dataclass(frozen=True)
class StepCode:
    """Code of one step: ``layers`` by attribute, the ``call``, and whether its result has channels second.

    ``first`` is None for a result that has them where its input does.
    """

    call: str
    layers: Mapping[str, str] = field(default_factory=dict)
    first: bool | None = None
    ties: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()


StepWriter = Callable[[Step, list[str], bool], StepCode]


def same_padding(step: Step) -> tuple[tuple[int, int], ...]:
    """Return how many zeros "same" puts in front and behind along each axis: the larger half behind."""
    options = step.options
    sides = []
    dilation = options.get("dilation", (1,) * len(options["size"]))
    for length, size, stride, rate in zip(options["space"], options["size"], options["strides"], dilation, strict=True):
        window = (size - 1) * rate + 1
        if stride == 1:
            total = window - 1
        elif length is None:
            raise PortError(f'{step.name!r} pads by the size of its images ("same" with strides), which isn\'t known')
        else:
            total = max((-(-length // stride) - 1) * stride + window - length, 0)
        sides.append((total // 2, total - total // 2))
    return tuple(sides)


def pad_code(inputs: str, sides: tuple[tuple[int, int], ...], value: str = "") -> str:
    """Return code that pads the last axes; torch names the last axis first."""
    flat = tuple(side for axis in reversed(sides) for side in axis)
    return f"functional.pad({inputs}, {flat}{value})"


def _activation(step: Step, inputs: list[str], first: bool) -> StepCode:
    return StepCode(code_of(step.options["does"], inputs[0], 1 if first else -1, step.options))


def _dropout(step: Step, inputs: list[str], first: bool) -> StepCode:
    return StepCode(f"self.{step.name}({inputs[0]})", {step.name: f"nn.Dropout({step.options['rate']})"})


def _reshape(step: Step, inputs: list[str], first: bool) -> StepCode:
    shape = [-1 if length is None else length for length in step.shape or ()]
    if shape.count(-1) > 1:
        raise PortError(f"{step.name!r} reshapes to a shape with several lengths that aren't known")
    start = "-1" if -1 not in shape else f"{inputs[0]}.shape[0]"
    return StepCode(f"{inputs[0]}.reshape({', '.join([start, *map(str, shape)])})")


def _permute(step: Step, inputs: list[str], first: bool) -> StepCode:
    return StepCode(f"{inputs[0]}.permute(0, {', '.join(map(str, step.options['order']))})")


def _max_pool(step: Step, inputs: list[str], first: bool) -> StepCode:
    options, padded = step.options, inputs[0]
    if options["padding"] == "same":
        sides = same_padding(step)
        if any(side for axis in sides for side in axis):
            padded = pad_code(padded, sides, ', value=float("-inf")')
    rank = len(options["size"])
    return StepCode(f"functional.max_pool{rank}d({padded}, {options['size']}, {options['strides']})", first=True)


def _average_pool(step: Step, inputs: list[str], first: bool) -> StepCode:
    options, padding_options = step.options, ""
    if options["padding"] == "same":
        sides = same_padding(step)
        if any(front != behind for front, behind in sides):
            raise PortError(f"{step.name!r} averages with more padding behind than in front, which torch can't count")
        padding_options = f", {tuple(front for front, _ in sides)}, count_include_pad=False"
    rank = len(options["size"])
    return StepCode(
        f"functional.avg_pool{rank}d({inputs[0]}, {options['size']}, {options['strides']}{padding_options})", first=True
    )


def _global(code: str) -> StepWriter:
    def write(step: Step, inputs: list[str], first: bool) -> StepCode:
        axes = tuple(axis + first for axis in step.options["axes"])
        return StepCode(f"{inputs[0]}.{code}({axes}, keepdim={step.options['keeps']})")

    return write


def _cropping(step: Step, inputs: list[str], first: bool) -> StepCode:
    cuts = ", ".join(f"{front or ''}:{-behind if behind else ''}" for front, behind in step.options["cropping"])
    return StepCode(f"{inputs[0]}[:, :, {cuts}]", first=True)


def _upsample(step: Step, inputs: list[str], first: bool) -> StepCode:
    factors = ", ".join(map(str, step.options["size"]))
    mode = f'mode="{step.options["mode"]}"' + (", align_corners=False" if step.options["mode"] != "nearest" else "")
    comma = "," if len(step.options["size"]) == 1 else ""
    return StepCode(f"functional.interpolate({inputs[0]}, scale_factor=({factors}{comma}), {mode})", first=True)


def _join(sign: str, *, mean: bool = False) -> StepWriter:
    def write(step: Step, inputs: list[str], first: bool) -> StepCode:
        joined = f" {sign} ".join(inputs)
        return StepCode(f"({joined}) / {len(inputs)}" if mean else joined)

    return write


def _extreme(name: str) -> StepWriter:
    def write(step: Step, inputs: list[str], first: bool) -> StepCode:
        call = inputs[0]
        for other in inputs[1:]:
            call = f"torch.{name}({call}, {other})"
        return StepCode(call)

    return write


def _concatenate(step: Step, inputs: list[str], first: bool) -> StepCode:
    axis, rank = step.options["axis"], len(step.shape or ())
    if first:
        axis = 1 if axis == rank else axis + 1
    return StepCode(f"torch.cat([{', '.join(inputs)}], {axis})")


def _scale(step: Step, inputs: list[str], first: bool) -> StepCode:
    factor, offset = step.options["factor"], step.options["offset"]
    call = inputs[0] if factor == 1.0 else f"{inputs[0]} * {factor!r}"
    return StepCode(call if offset == 0.0 else f"{call} + {offset!r}")


def _template(code: str) -> StepWriter:
    return lambda step, inputs, first: StepCode(code.format(x=inputs[0], **step.options))


FUNCTIONS: dict[str, StepWriter] = {
    "activation": _activation,
    "dropout": _dropout,
    "flatten": _template("{x}.flatten(1)"),
    "reshape": _reshape,
    "permute": _permute,
    "repeat": _template("{x}.unsqueeze(1).repeat(1, {times}, 1)"),
    "select": _template("{x}[:, {place}]"),
    "merge_frames": _template("{x}.flatten(0, 1)"),
    "split_frames": _template("{x}.unflatten(0, (-1, {frames}))"),
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "global_average": _global("mean"),
    "global_max": _global("amax"),
    "zero_padding": lambda step, inputs, first: StepCode(pad_code(inputs[0], step.options["padding"]), first=True),
    "cropping": _cropping,
    "upsample": _upsample,
    "add": _join("+"),
    "subtract": _join("-"),
    "multiply": _join("*"),
    "average": _join("+", mean=True),
    "maximum": _extreme("maximum"),
    "minimum": _extreme("minimum"),
    "concatenate": _concatenate,
    "scale": _scale,
}  # fmt: skip
