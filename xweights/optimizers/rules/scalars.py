"""Numbers on the host for the formulas.

Two words of a variant say how a number reaches the weights, because that is part of a rule, bit for bit:

    cast    "float32": what the framework casts to the dtype of the weights goes through float32 first, so that 0.9
            becomes 0.8999999761581421 for float64 weights too; "exact": it doesn't
    powers  "dtype": beta ** t is computed in the dtype of the weights; "double": in float64, whatever they are
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class HostNumbers:
    """The numbers of update ``t`` as floats. ``rate``: the learning rate, by default that of the hyperparameters."""

    def __init__(
        self,
        hyper: Mapping[str, Any],
        variant: Mapping[str, Any],
        *,
        t: int,
        rate: float | None = None,
        dtype: Any = np.float64,
        factored: tuple[int, int] | None = None,
    ) -> None:
        self._words = {**hyper, **variant}
        self.t = t
        self.factored = factored
        self._rate = float(hyper["learning_rate"] if rate is None else rate)
        self._dtype = np.dtype(dtype)
        self._single = variant.get("cast") == "float32"
        self._narrow = variant.get("powers") == "dtype"
        # A power costs more than some arrays take, and formulas ask again for each array.
        self._powers: dict[tuple[object, float], float] = {}

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self._rate

    def __getitem__(self, name: str) -> Any:
        return self._words.get(name)

    def cast(self, name: str) -> float:
        """A hyperparameter, after the framework has cast it."""
        return self._cast(self._words[name])

    def _cast(self, value: float) -> float:
        return float(np.float32(value)) if self._single else float(value)

    def _power(self, base: float, exponent: float) -> float:
        key = (base, exponent)
        if key not in self._powers:
            kind = self._dtype.type
            self._powers[key] = float(np.power(kind(base), kind(exponent)) if self._narrow else base**exponent)
        return self._powers[key]

    def complement(self, name: str) -> float:
        """1 - beta ** t."""
        if not self._narrow:
            return 1.0 - self._power(float(self._words[name]), self.t)
        kind = self._dtype.type
        return float(kind(1) - kind(self._power(self.cast(name), self.t)))

    def later(self, value: float, first: float) -> float:
        """``first`` in the first update, ``value`` in all others."""
        return first if self.t == 1 else value

    def warmed(self, ahead: int) -> float:
        """The momentum of nadam at t + ahead."""
        base = self._cast(0.96) if self._narrow else 0.96
        return self.cast("beta_1") * (1.0 - 0.5 * self._power(base, (self.t + ahead) * self._words["momentum_decay"]))

    def product_factor(self) -> float:
        """The same at t, of numbers that weren't cast."""
        made = float(self._words["beta_1"] * (1.0 - 0.5 * self._power(0.96, self.t * self._words["momentum_decay"])))
        return float(np.float32(made)) if self._words.get("product") == "float32" else made

    def step_power(self, exponent: float) -> float:
        """T ** exponent."""
        return self._power(float(self.t), exponent)

    def sqrt(self, x: float) -> float:
        """The root of a number."""
        return math.sqrt(x)

    def minimum(self, x: float, y: float) -> float:
        """The smaller of two numbers."""
        return min(x, y)

    def clock(self) -> int:
        """T - 1."""
        return self.t - 1
