"""Learning-rate schedules, defined once for every framework.

Steps count from 0: the learning rate of the first update is ``at(0)``. The formulas are those of Keras' schedules,
written in functions that have the same names in NumPy and in the frameworks, and evaluated in float32 or float64, as
the framework that a schedule comes from does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xweights.core.casting import is_number
from xweights.core.dtypes import Array
from xweights.errors import ArgumentError, near

# Required and optional settings of each kind.
KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "constant": ((), {}),
    "exponential": (("steps", "decay"), {"staircase": False}),
    "inverse_time": (("steps", "decay"), {"staircase": False}),
    "piecewise": (("boundaries", "values"), {}),
    "polynomial": (("steps",), {"end": 0.0, "power": 1.0, "cycle": False}),
    "cosine": (("steps",), {"alpha": 0.0, "warmup_target": None, "warmup_steps": 0, "climbs": False}),
    "cosine_restarts": (("steps",), {"t_mul": 1.0, "m_mul": 1.0, "alpha": 0.0}),
    "table": (("values",), {}),
}


@dataclass(frozen=True)
class LRSchedule:
    """A learning rate as a function of the step, as data, from :func:`schedule` or read from an optimizer.

    Attributes:
        kind: The kind of schedule, as for :func:`schedule`.
        rate: The learning rate at step 0 (of a warm-up: where it begins).
        options: The other settings of the kind.
        precision: "float32" (as Keras evaluates) or "float64".
        live: A function that asks the framework it comes from, where a formula would differ in a last bit; not saved.
        known: Values of that framework for the steps from ``first_known`` on, recorded when it was saved.

    Example:
        >>> import xweights as xw
        >>> xw.schedule("exponential", 0.1, steps=10, decay=0.5).at(20)
        0.025
    """

    kind: str
    rate: float
    options: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "float64"
    known: Array | None = field(default=None, repr=False, compare=False)
    first_known: int = 0
    live: Callable[[int], float] | None = field(default=None, repr=False, compare=False)

    def at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0.

        Example:
            >>> import xweights as xw
            >>> xw.schedule("piecewise", 1.0, boundaries=[2], values=[1.0, 0.5]).at(3)
            0.5
        """
        if self.live is not None:
            return self.live(step)
        if self.known is not None and 0 <= step - self.first_known < len(self.known):
            return float(self.known[step - self.first_known])
        kind = np.dtype(self.precision).type
        with np.errstate(all="ignore"):
            return float(evaluate_schedule(np, self, kind(step), kind))

    __call__ = at

    def tabulated(self, first: int, count: int = 1000) -> LRSchedule:
        """Return the same schedule with its next values recorded, for use without its framework.

        Example:
            >>> import xweights as xw
            >>> xw.schedule("constant", 0.1).tabulated(0).known is None
            True
        """
        if self.live is None:
            return self
        known = np.array([self.live(step) for step in range(first, first + count)], self.precision)
        return replace(self, known=known, first_known=first, live=None)

    def to_json(self) -> dict[str, Any]:
        """Return the data that :meth:`from_json` reads, without the known values."""
        options = {key: _plain(value) for key, value in self.options.items()}
        return {"kind": self.kind, "rate": self.rate, "options": options, "precision": self.precision,
                "first_known": self.first_known}  # fmt: skip

    @classmethod
    def from_json(cls, given: Mapping[str, Any], known: Array | None = None) -> LRSchedule:
        """Return the schedule that :meth:`to_json` described."""
        return cls(**given, known=known)


def schedule(kind: str, rate: float = 0.0, **options: Any) -> LRSchedule:
    """Describe a learning-rate schedule that is the same in every framework.

    Args:
        kind: "constant"; "exponential" and "inverse_time" (steps, decay, staircase); "piecewise" (boundaries, values:
            value i up to and including boundary i); "polynomial" (steps, end, power, cycle); "cosine" (steps, alpha,
            warmup_target, warmup_steps; constant after the last step, unless climbs=True); "cosine_restarts"
            (steps, t_mul, m_mul, alpha); "table" (values: one per step, the last one stays).
        rate: The learning rate at step 0, >= 0.
        options: See ``kind``; steps are optimizer updates (in Keras: calls of the optimizer), counted from 0.

    Close (rtol 5e-7): cosines differ in the last bit of float32 between frameworks; the other kinds are equal.
    Raises ArgumentError. Source of the formulas: the schedules of Keras; Loshchilov & Hutter, arXiv:1608.03983.

    Example:
        >>> import xweights as xw
        >>> xw.schedule("cosine", 0.1, steps=100).at(50)
        0.05
    """
    if kind not in KINDS:
        raise ArgumentError(f"there is no such schedule\ngot: {kind!r}\n{near(str(kind), KINDS)}")
    needed, optional = KINDS[kind]
    if not is_number(rate) or not 0 <= rate < math.inf:
        raise ArgumentError(f"rate= is a number >= 0\ngot: {rate!r}")
    for name in options:
        if name not in (*needed, *optional):
            raise ArgumentError(f"a {kind} schedule takes no {name}=\n{near(name, (*needed, *optional))}")
    for name in needed:
        if name not in options:
            raise ArgumentError(f"a {kind} schedule needs {name}=\nFix: pass {name}=")
    settings = {**optional, **{key: _plain(value) for key, value in options.items()}}
    if "steps" in settings and not (is_number(settings["steps"]) and settings["steps"] > 0):
        raise ArgumentError(f"steps= is a number > 0\ngot: {settings['steps']!r}")
    if kind == "piecewise" and len(settings["values"]) != len(settings["boundaries"]) + 1:
        raise ArgumentError(
            "values= has one more entry than boundaries=\n"
            f"got:      {len(settings['values'])}\nexpected: {len(settings['boundaries']) + 1}"
        )
    if kind in ("piecewise", "table") and not len(settings["values"]):
        raise ArgumentError("values= is empty")
    if kind in ("piecewise", "table"):
        rate = settings["values"][0]
    return LRSchedule(kind, float(rate), settings)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def evaluate_schedule(xp: Any, schedule: LRSchedule, step: Any, number: Callable[[Any], Any]) -> Any:
    """Return the learning rate of a step, by functions of ``xp``; ``number`` makes a scalar of the computing dtype."""
    o = schedule.options
    lr = number(schedule.rate)
    if schedule.kind == "constant":
        return lr
    if schedule.kind in ("exponential", "inverse_time"):
        past = step / number(o["steps"])
        past = xp.floor(past) if o["staircase"] else past
        decay = number(o["decay"])
        return lr * xp.power(decay, past) if schedule.kind == "exponential" else lr / (number(1) + decay * past)
    if schedule.kind == "piecewise":
        lr = number(o["values"][-1])
        for boundary, value in zip(reversed(o["boundaries"]), reversed(o["values"][:-1]), strict=True):
            lr = xp.where(step <= number(boundary), number(value), lr)
        return lr
    if schedule.kind == "polynomial":
        return _polynomial(xp, o, lr, step, number)
    if schedule.kind == "cosine":
        return _cosine(xp, o, lr, step, number)
    if schedule.kind == "cosine_restarts":
        return _cosine_restarts(xp, o, lr, step, number)
    values = [number(value) for value in o["values"]]
    index = xp.minimum(step, number(len(values) - 1))
    return xp.take(xp.stack(values), xp.floor(index).astype("int64") if xp is np else xp.cast(index, "int32"))


def _polynomial(xp: Any, o: Mapping[str, Any], lr: Any, step: Any, number: Callable[[Any], Any]) -> Any:
    end, steps = number(o["end"]), number(o["steps"])
    if o["cycle"]:
        steps = steps * xp.where(step == 0, number(1), xp.ceil(step / steps))
    else:
        step = xp.minimum(step, steps)
    return (lr - end) * xp.power(number(1) - step / steps, number(o["power"])) + end


def _cosine(xp: Any, o: Mapping[str, Any], lr: Any, step: Any, number: Callable[[Any], Any]) -> Any:
    steps, warm = number(o["steps"]), number(o["warmup_steps"])
    high = lr if o["warmup_target"] is None else number(o["warmup_target"])
    elapsed = step if o["warmup_target"] is None else step - warm
    if not o["climbs"]:
        elapsed = xp.minimum(elapsed, steps)
    wave = number(0.5) * (number(1) + xp.cos(number(math.pi) * (elapsed / steps)))
    decayed = high * (number(1 - o["alpha"]) * wave + number(o["alpha"]))
    if o["warmup_target"] is None or not o["warmup_steps"]:
        return decayed
    return xp.where(step < warm, (high - lr) * (step / warm) + lr, decayed)


def _cosine_restarts(xp: Any, o: Mapping[str, Any], lr: Any, step: Any, number: Callable[[Any], Any]) -> Any:
    past = step / number(o["steps"])
    growth = number(o["t_mul"])
    if o["t_mul"] == 1:
        restarts = xp.floor(past)
        past = past - restarts
    else:
        restarts = xp.floor(xp.log(number(1) - past * (number(1) - growth)) / xp.log(growth))
        past = (past - (number(1) - xp.power(growth, restarts)) / (number(1) - growth)) / xp.power(growth, restarts)
    height = xp.power(number(o["m_mul"]), restarts)
    wave = number(0.5) * height * (number(1) + xp.cos(number(math.pi) * past))
    return lr * (number(1 - o["alpha"]) * wave + number(o["alpha"]))
