"""Settings of mergekit's recipes: numbers, for all models or for each, by parts of names and along the layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xweights.core.parameter import Parameter
    from xweights.errors import Problems

# mergekit's name of a setting, and ours.
SETTINGS = {
    "weight": "weights", "density": "density", "lambda": "scale", "gamma": "gamma", "epsilon": "epsilon", "t": "t",
    "normalize": "normalize", "rescale": "rescale",
}  # fmt: skip
_PER_MODEL = ("weight", "density", "gamma", "epsilon")
_SWITCHES = ("normalize", "rescale")
# mergekit scales what it keeps until the sum of magnitudes is the same as before.
RESCALED = "l1"
NOTHING_HERE = ("int8_mask", "tokenizer_source", "tokenizer", "chat_template")
Number = float | tuple[float, ...]  # several are a gradient: points on a line from the first layer to the last
_LAYER = re.compile(r"(?P<stack>.*?(?:^|[./]))(?P<number>\d{1,9})(?:[./]|$)")


def read_settings(shared: Any, of_models: Sequence[Any], problems: Problems) -> dict[str, Any]:
    """Return the options of a merge: what each model says of itself counts before what is said for all."""
    from xweights.errors import ArgumentError, near

    options: dict[str, Any] = {}
    if not all(isinstance(one, dict) for one in (shared, *of_models)):
        problems.add(ArgumentError, "parameters: are NAME: VALUE")
        return options
    for key in dict.fromkeys(key for one in (shared, *of_models) for key in one):
        if key in NOTHING_HERE:
            continue
        if key not in SETTINGS:
            problems.add(ArgumentError, f"parameters: {key} isn't known\n{near(str(key), SETTINGS)}")
        elif key not in _PER_MODEL and key not in shared:
            fix = f"parameters: {{{key}: ...}} beside models:, not inside"
            problems.add(ArgumentError, f"parameters: {key} is one for all models", fix=fix)
        elif key in _SWITCHES:
            if shared[key] not in (True, False):
                problems.add(ArgumentError, f"parameters: {key} is true or false\ngot: {shared[key]!r:.80}")
            options[SETTINGS[key]] = bool(shared[key]) if key == "normalize" else RESCALED if shared[key] else None
        elif any(key in one for one in of_models):
            if key not in shared and not all(key in one for one in of_models):
                problems.add(ArgumentError, f"parameters: {key} is missing in some of the models", fix="give all one")
            # What a model's own conditions leave open is as parameters: beside models: says.
            said = [shared[key]] if key in shared else []
            own = [[*([one[key]] if key in one else []), *said] for one in of_models]
            options[SETTINGS[key]] = _numbers(key, own, problems, single=False)
        else:
            options[SETTINGS[key]] = _numbers(key, [[shared[key]]], problems, single=True)
    return options


@dataclass(frozen=True)
class ByFilter:
    """Numbers that depend on a parameter: of each model's conditions, the first whose filter is in the name counts.

    An empty filter is in every name.
    """

    setting: str
    of_models: tuple[tuple[tuple[str, Number], ...], ...]
    single: bool
    layers: int = 0

    def __call__(self, p: Parameter) -> float | tuple[float, ...]:
        from xweights.errors import SelectionError

        names = (p.native_name, *p.native_aliases)
        found: list[float] = []
        for conditions in self.of_models:
            numbers = [number for part, number in conditions if any(part in name for name in names)]
            if not numbers:
                raise SelectionError(
                    f"parameters: {self.setting} says nothing for {p.native_name!r}\n"
                    "Fix: end its list with - value: NUMBER, which counts where no filter does"
                )
            found.append(self._at_layer(p, numbers[0]))
        return found[0] if self.single else tuple(found)

    def bind(self, parameters: Sequence[Parameter]) -> ByFilter:
        """Return it for a model with these parameters; raise for filters that are in no name, which are misspelt."""
        from xweights.errors import Problems, SelectionError, near

        names = [name for p in parameters for name in (p.native_name, *p.native_aliases)]
        problems = Problems(f"parameters: {self.setting} can't be followed, and nothing was merged")
        for part in dict.fromkeys(part for conditions in self.of_models for part, _ in conditions):
            if not any(part in name for name in names):
                problems.add(SelectionError, f"filter: {part!r} is in no name\n{near(part, names)}")
        problems.check()
        if any(isinstance(number, tuple) for conditions in self.of_models for _, number in conditions):
            return replace(self, layers=count_layers(parameters, f"parameters: {self.setting} is a gradient"))
        return self

    def _at_layer(self, p: Parameter, number: Number) -> float:
        from xweights.errors import SelectionError

        if not isinstance(number, tuple):
            return number
        match = _LAYER.match(p.native_name)
        if match is None:
            raise SelectionError(
                f"parameters: {self.setting} is a gradient over layers, and {p.native_name!r} is in none\n"
                f"Fix: - filter: {p.native_name}, with a number as its value:, before the gradient"
            )
        share = int(match["number"]) / (self.layers - 1) if self.layers > 1 else 1.0
        at = share * (len(number) - 1)
        before = min(int(at), len(number) - 2)
        return (1 - (at - before)) * number[before] + (at - before) * number[before + 1]


def count_layers(parameters: Sequence[Parameter], why: str) -> int:
    """Return how many layers a model has that are numbered in its names."""
    from xweights.errors import SelectionError

    matches = [match for p in parameters if (match := _LAYER.match(p.native_name))]
    stacks = {match["stack"] for match in matches}
    if len(stacks) != 1:
        shown = ", ".join(f"{stack}*" for stack in sorted(stacks)[:4]) or "none with a number in its name"
        raise SelectionError(f"{why}, which needs one stack of layers\ngot: {shown}\nFix: where:, or numbers alone")
    numbers = {int(match["number"]) for match in matches}
    if numbers != set(range(len(numbers))):
        raise SelectionError(f"{why}, and the layers of {stacks.pop()}* aren't numbered from 0 on")
    return len(numbers)


def check_layers(models: Sequence[Sequence[Parameter]], layers: int) -> None:
    """Raise unless each model has as many layers as a slice with all of them says."""
    from xweights.errors import ShapeError, got_expected

    for parameters in models:
        found = count_layers(parameters, "slices: name layers")
        if found != layers:
            raise ShapeError(
                "slices: layer_range: isn't all of the model's layers\n"
                f"{got_expected(f'[0, {layers}]', f'[0, {found}]')}\nFix: merge the models whole, as models:"
            )


def check_dtypes(parameters: Sequence[Parameter], dtypes: Mapping[str, Any]) -> None:
    """Raise if a recipe wants another dtype than the first model has, which a merge keeps."""
    from xweights.errors import ArgumentError, got_expected

    found = ", ".join(sorted({p.dtype.name for p in parameters if p.floating}))
    for key, wanted in dtypes.items():
        if found and wanted != found:
            raise ArgumentError(
                f"{key}: a merge keeps the dtype of the first model\n{got_expected(str(wanted), found)}\n"
                f"Fix: leave it out; afterwards: xweights cast MERGED --dtype {wanted}"
            )


def read_slices(slices: Any, problems: Problems) -> tuple[list[Any], Any, int | None]:
    """Return the models, shared settings and number of layers of one slice that has all layers in their places."""
    from xweights.errors import ArgumentError

    fix = "merge the models whole, as models:, or make the model with mergekit"
    sources = slices[0].get("sources") if isinstance(slices, list) and slices and isinstance(slices[0], dict) else None
    if not isinstance(sources, list) or not sources or not all(isinstance(one, dict) for one in sources):
        problems.add(
            ArgumentError, f"slices: is a list of - sources:, each with model: and layer_range:\ngot: {slices!r:.80}"
        )
        return [], {}, None
    if len(slices) > 1:
        text = f"slices: {len(slices)} slices put layers into another order, or make a model with more or fewer"
        problems.add(ArgumentError, text, fix=fix)
    for key in set(slices[0]) - {"sources", "parameters"}:
        problems.add(
            ArgumentError, f"slices: {key}: isn't known\ngot: {slices[0]!r:.80}", fix="sources: and parameters:"
        )
    ranges = [one.get("layer_range") for one in sources]
    whole = ranges[0]
    good = isinstance(whole, list) and len(whole) == 2 and whole[0] == 0 and type(whole[1]) is int and whole[1] > 0
    if not good or any(one != whole for one in ranges):
        text = "slices: layer_range: is [0, NUMBER OF LAYERS], the same for all sources: each layer keeps its place"
        problems.add(ArgumentError, f"{text}\ngot: {', '.join(map(str, ranges)):.80}", fix=fix)
        return [], {}, None
    models = [{key: value for key, value in one.items() if key != "layer_range"} for one in sources]
    return models, slices[0].get("parameters") or {}, whole[1]


def join_settings(first: Any, second: Any) -> Any:
    """Return settings of which the first count before the second."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return first or second
    both = first.keys() & second.keys()
    return second | first | {key: [*_entries(first[key]), *_entries(second[key])] for key in both - {*_SWITCHES}}


def _entries(value: Any) -> list[Any]:
    conditions = isinstance(value, list) and not all(isinstance(one, (int, float)) for one in value)
    return value if conditions else [{"value": value}]


def _numbers(key: str, of_models: Sequence[Sequence[Any]], problems: Problems, *, single: bool) -> Any:
    conditions = [tuple(pair for value in values for pair in _conditions(key, value, problems)) for values in of_models]
    firsts = [first[0] for first in conditions if first]
    if all(part == "" and not isinstance(number, tuple) for part, number in firsts):
        numbers = tuple(number for _, number in firsts)
        return numbers[0] if single and numbers else numbers
    return ByFilter(key, tuple(conditions), single)


def _conditions(key: str, value: Any, problems: Problems) -> list[tuple[str, Number]]:
    """Return (filter, number or numbers) pairs; an empty filter is in every name."""
    from xweights.errors import ArgumentError

    entries = _entries(value)
    pairs: list[tuple[str, Number]] = []
    for one in entries:
        name: Any = one.get("filter") if isinstance(one, dict) else None
        number = _number(one.get("value")) if isinstance(one, dict) and not set(one) - {"filter", "value"} else None
        if number is not None and (name is None or isinstance(name, str)):
            # As in mergekit: * is any name, and everything else is a part of one.
            pairs.append(("" if name in (None, "*") else name, number))
    if not pairs or len(pairs) < len(entries):
        fix = "a number, several as a gradient over the layers, or a list of filter: and value:"
        problems.add(ArgumentError, f"parameters: {key} can't be understood\ngot: {value!r:.80}", fix=fix)
    return pairs


def _number(value: Any) -> Number | None:
    from xweights.core.casting import is_number

    with suppress(OverflowError):  # a whole number of 400 digits
        if is_number(value):
            return float(value)
        if isinstance(value, list) and len(value) > 1 and all(map(is_number, value)):
            return tuple(map(float, value))
    return None
