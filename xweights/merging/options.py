"""Check the options of a merge method and resolve them for each parameter.

A number may be given as it is, as one per target, or as a mapping of ``where`` to either; of several that match a
parameter the last one counts, and where none matches, the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xweights.core.casting import is_number
from xweights.core.parameter import Parameter
from xweights.core.selection import select
from xweights.errors import ArgumentError, Problems, SelectionError, XweightsError, near
from xweights.merging.methods import METHODS, REQUIRED, Method
from xweights.rules.noise import check_seed

# The allowed values of numbers, and their description in errors.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "weights": (math.isfinite, "finite"),
    "t": (math.isfinite, "finite"),
    "scale": (math.isfinite, "finite"),
    "decay": (lambda x: 0 <= x < 1, ">= 0 and < 1"),
    "density": (lambda x: 0 <= x <= 1, "between 0 and 1"),
    "gamma": (lambda x: 0 <= x < 1, ">= 0 and < 1"),
    "epsilon": (lambda x: 0 <= x <= 0.5, "between 0 and 0.5"),
}
_PER_TARGET = ("weights", "density", "gamma", "epsilon")
_RESCALE = (None, "density", "l1")


class Settings:
    """The checked options of one call; :meth:`at` returns those of one parameter."""

    def __init__(
        self,
        method: Method,
        options: Mapping[str, Any],
        targets: int,
        parameters: Sequence[Parameter],
        problems: Problems,
    ) -> None:
        self.method = method
        self._targets = targets
        self._numbers: dict[str, Any] = {}
        self._others: dict[str, Any] = {}
        self._by_parameter: dict[str, dict[str, Any]] = {}  # option -> name of a parameter -> value
        accepted: list[str] = []
        for name in options:
            if name not in self.method.options:
                problems.add(ArgumentError, f"the method has no option {name!r}\n{near(name, self.method.options)}")
        for name, default in self.method.options.items():
            value = options.get(name, default)
            if value is REQUIRED:
                problems.add(ArgumentError, f"the method needs {name}=")
                continue
            try:
                if name in _RANGES:
                    self._take(name, value, default, parameters)
                else:
                    self._others[name] = _check_option(name, value)
                accepted.append(name)
            except XweightsError as wrong:
                problems.add(type(wrong), str(wrong))
        if len(accepted) == len(self.method.options):
            for text in dict.fromkeys(filter(None, map(self._find_contradiction, parameters))):
                problems.add(ArgumentError, text)

    def at(self, parameter: Parameter) -> dict[str, Any]:
        """Return the options for one parameter: numbers, or a tuple of one number per target."""
        chosen = {
            name: self._by_parameter[name].get(parameter.name, default) for name, default in self._numbers.items()
        }
        return {**self._others, **chosen}

    def _take(self, name: str, value: Any, default: Any, parameters: Sequence[Parameter]) -> None:
        self._by_parameter[name] = {}
        if callable(value):  # as the command line makes it of a recipe
            found = {p.name: self._number(name, value(p)) for p in parameters if p.floating}
            self._by_parameter[name], self._numbers[name] = found, None
            return
        if not isinstance(value, Mapping):
            self._numbers[name] = self._number(name, value)
            return
        for where, part in value.items():
            number = self._number(name, part)
            self._by_parameter[name].update({p.name: number for p in select(parameters, where)})
        missing = [p.name for p in parameters if p.floating and p.name not in self._by_parameter[name]]
        if default is REQUIRED and missing:
            raise SelectionError(
                f"{name}= says nothing for {missing[0]!r}{f' and {len(missing) - 1} more' * (len(missing) > 1)}\n"
                f'Fix: begin the mapping with "*", as in {name}={{"*": ..., ...}}'
            )
        self._numbers[name] = None if default is REQUIRED else self._number(name, default)

    def _number(self, name: str, value: Any) -> Any:
        fits, range_text = _RANGES[name]
        several = isinstance(value, (list, tuple, np.ndarray)) and name in _PER_TARGET
        numbers = list(value) if several and np.ndim(value) else [value]
        for number in numbers:
            if not is_number(number) or not fits(float(number)):
                also = ", or one for each target" if name in _PER_TARGET else ""
                raise ArgumentError(
                    f"{name}= is a number, {range_text}{also}, or a mapping of where to these\ngot: {value!r}"
                )
        if name not in _PER_TARGET:
            return float(value)
        if len(numbers) == 1 and not several:
            numbers *= self._targets
        if len(numbers) != self._targets:
            raise ArgumentError(
                f"{name}= has a number for each target\ngot:      {len(numbers)}\nexpected: {self._targets}"
            )
        return tuple(float(number) for number in numbers)

    def _find_contradiction(self, p: Parameter) -> str | None:
        chosen = self.at(p)
        if chosen.get("normalize") and not math.fsum(chosen["weights"]):
            return f"the weights add up to 0, and are divided by their sum\ngot: {chosen['weights']}"
        for density, epsilon in zip(chosen.get("density", ()), chosen.get("epsilon", ()), strict=False):
            if density < 1 and not 0 <= density - epsilon <= density + epsilon <= 1:
                return (
                    "density - epsilon and density + epsilon are probabilities\n"
                    f"got: density={density:g}, epsilon={epsilon:g}"
                )
        return None


def find_method(name: Any) -> Method:
    """Return a method by its name."""
    if not isinstance(name, str) or name not in METHODS:
        raise ArgumentError(f"there is no method {name!r}\n{near(str(name), METHODS)}")
    return METHODS[name]


def _check_option(name: str, value: Any) -> Any:
    if name == "seed":
        check_seed(value)
    elif name == "normalize" and not isinstance(value, bool):
        raise ArgumentError(f"normalize= is True or False\ngot: {value!r}")
    elif name == "rescale" and value not in _RESCALE:
        raise ArgumentError(f'rescale= is "density", "l1" or None\ngot: {value!r}')
    elif name == "per":
        parts = value if isinstance(value, (tuple, list)) else [value]
        if value is not None and not all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in parts):
            raise ArgumentError(f"per= is the name or the number of an axis, or a tuple of these\ngot: {value!r}")
    return value
