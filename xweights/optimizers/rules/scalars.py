"""Scalars of the update formulas, computed on the host.

Two keys of a variant say how a number reaches the weights, because that is part of a rule, bit for bit:

    cast    "float32": numbers that the framework casts to the dtype of the weights go through float32 first, so that
            0.9 becomes 0.8999999761581421 for float64 weights too; "exact": they don't
    powers  "dtype": beta ** t is computed in the dtype of the weights; "double": in float64, whatever they are
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class HostNumbers:
    """The scalars of update ``t`` as floats. ``lr``: the learning rate, by default that of the hyperparameters."""

    def __init__(
        self,
        hyper: Mapping[str, Any],
        variant: Mapping[str, Any],
        *,
        t: int,
        lr: float | None = None,
        dtype: Any = np.float64,
        factored: tuple[int, int] | None = None,
    ) -> None:
        self._settings = {**hyper, **variant}
        self.t = t
        self.factored = factored
        self._lr = float(hyper["learning_rate"] if lr is None else lr)
        self._dtype = np.dtype(dtype)
        self._single = variant.get("cast") == "float32"
        self._narrow = variant.get("powers") == "dtype"
        # A power can cost more than updating a small array, and formulas ask for it again for each array.
        self._powers: dict[tuple[object, float], float] = {}

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self._lr

    def __getitem__(self, name: str) -> Any:
        return self._settings.get(name)

    def cast(self, name: str) -> float:
        """Return a hyperparameter as the framework casts it."""
        return self._cast(self._settings[name])

    def _cast(self, value: float) -> float:
        return float(np.float32(value)) if self._single else float(value)

    def _power(self, base: float, exponent: float) -> float:
        key = (base, exponent)
        if key not in self._powers:
            kind = self._dtype.type
            self._powers[key] = float(np.power(kind(base), kind(exponent)) if self._narrow else base**exponent)
        return self._powers[key]

    def complement(self, name: str) -> float:
        """Return 1 - beta ** t."""
        if not self._narrow:
            return 1.0 - self._power(float(self._settings[name]), self.t)
        kind = self._dtype.type
        return float(kind(1) - kind(self._power(self.cast(name), self.t)))

    def after_first(self, value: float, first: float) -> float:
        """Return ``first`` in the first update, ``value`` in all others."""
        return first if self.t == 1 else value

    def nadam_momentum(self, ahead: int) -> float:
        """Return the momentum of nadam at t + ahead."""
        base = self._cast(0.96) if self._narrow else 0.96
        return self.cast("beta_1") * (
            1.0 - 0.5 * self._power(base, (self.t + ahead) * self._settings["momentum_decay"])
        )

    def product_factor(self) -> float:
        """Return the momentum of nadam at t, of numbers that weren't cast."""
        factor = float(
            self._settings["beta_1"] * (1.0 - 0.5 * self._power(0.96, self.t * self._settings["momentum_decay"]))
        )
        return float(np.float32(factor)) if self._settings.get("product") == "float32" else factor

    def step_power(self, exponent: float) -> float:
        """Return t ** exponent."""
        return self._power(float(self.t), exponent)

    def sqrt(self, x: float) -> float:
        """Return the square root of a number."""
        return math.sqrt(x)

    def minimum(self, x: float, y: float) -> float:
        """Return the smaller of two numbers."""
        return min(x, y)

    def clock(self) -> int:
        """Return t - 1."""
        return self.t - 1
