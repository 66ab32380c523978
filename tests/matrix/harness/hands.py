"""Hands: the verbs, done to a target now, or bound for a compiled step.

The referee, :class:`harness.naive.Naive`, is the third hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xweights as xw
from harness.naive import narrowed
from harness.twins import KERNELS

RULES: dict[str, Any] = {
    "fill": xw.Fill, "scale": xw.Scale, "add": xw.Add, "clip": xw.Clip, "clip_norm": xw.ClipNorm, "mask": xw.Mask,
    "max_norm": xw.MaxNorm, "unit_norm": xw.UnitNorm, "non_negative": xw.NonNegative, "spectral_norm": xw.SpectralNorm,
    "prune": xw.Prune, "set_entries": xw.SetEntries, "noise": xw.Noise,
}  # fmt: skip
ON_KERNELS = ("max_norm", "unit_norm", "spectral_norm", "mask", "prune", "init")


class Now:
    """Each verb is called as a user calls it."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, verb: str) -> Any:
        function = getattr(xw, verb)
        return lambda *args, **kwargs: function(self.target, *args, **kwargs)


class Bound:
    """Each verb becomes a bound rule with the verb's own default selection; ``steps`` are what a compiled step calls.

    A random verb is bound once, however often it is called; ``draws`` are the steps to draw, one for each call.
    ``few``: a selection keeps only these where it has any of them (see :func:`harness.naive.narrowed`).
    """

    def __init__(self, target: Any, trained: Sequence[str], few: Sequence[str] = ()) -> None:
        self.target, self.trained, self.few = target, trained, few
        self.steps: list[Any] = []
        self.draws: list[int] = []

    def __getattr__(self, verb: str) -> Any:
        return lambda *args, **kwargs: self._bind(verb, args, kwargs)

    def _bind(self, verb: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        where = kwargs.pop("where", None)
        if verb == "apply":
            (rule,) = args
        elif verb == "init":
            seed = kwargs.pop("seed")
            rule = xw.Init(args[0], seed, kwargs)
        else:
            rule = RULES[verb](*args, **kwargs)
        if where is None:
            given = args[0] if verb in ("fill", "scale", "add", "mask") else None
            where = given if isinstance(given, Mapping) else KERNELS if verb in ON_KERNELS else self.trained
        if verb == "noise":
            self.draws.append(kwargs.get("step", 0))
            if self.steps:
                return
        self.steps.append(xw.bind(self.target, rule, where=narrowed(where, self.few)))
