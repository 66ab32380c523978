"""Hands: the verbs, called on a target directly, or bound for a compiled step.

The referee, :class:`harness.naive.Naive`, is the third hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xweights as xw
from harness.naive import narrow
from harness.twins import KERNELS
from xweights.core.selection import DEFAULT_KERNELS


def rule_class(verb: str) -> Any:
    """Return the rule of a verb, which has its name: `clip_norm` applies `ClipNorm`."""
    return getattr(xw, "".join(part.title() for part in verb.split("_")))


class Now:
    """A hand that calls each verb as a user calls it."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, verb: str) -> Any:
        function = getattr(xw, verb)
        return lambda *args, **kwargs: function(self.target, *args, **kwargs)


class Bound:
    """A hand that binds each verb as a rule with the verb's default selection; a compiled step calls its ``steps``.

    A random verb is bound once, however often it is called; ``draws`` are the steps to draw, one for each call.
    ``few``: a selection keeps only these where it has any of them (see :func:`harness.naive.narrow`).
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
            rule = rule_class(verb)(*args, **kwargs)
        if where is None:
            value = args[0] if verb in ("fill", "scale", "add", "mask") else None
            where = (
                value
                if isinstance(value, Mapping)
                else KERNELS
                if rule.default_where is DEFAULT_KERNELS
                else self.trained
            )
        if verb == "noise":
            self.draws.append(kwargs.get("step", 0))
            if self.steps:
                return
        self.steps.append(xw.bind(self.target, rule, where=narrow(where, self.few)))
