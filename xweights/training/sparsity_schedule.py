"""Sparsity schedules: how much is pruned at which step, the same numbers in every framework.

Steps count from the beginning of the hold: 1 is after the first update. A schedule is plain Python on floats, so it
can't differ between frameworks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xweights.errors import ArgumentError, got_expected, shown


class SparsitySchedule:
    """A schedule of when masks are recomputed, and of the share of the final fraction that is pruned then.

    Example:
        >>> import xweights as xw
        >>> [round(xw.Cubic(begin=0, end=4).share(step), 3) for step in range(5)]
        [0.0, 0.578, 0.875, 0.984, 1.0]
    """

    def due(self, step: int) -> bool:
        """Return whether masks are recomputed after this step."""
        raise NotImplementedError(f"{type(self).__name__} must define due")

    def share(self, step: int) -> float:
        """Return the share of the final fraction that is pruned from this step on, 0.0 to 1.0."""
        raise NotImplementedError(f"{type(self).__name__} must define share")


@dataclass(frozen=True)
class OneShot(SparsitySchedule):
    """Prune everything at once, after step ``at`` (0: when the hold begins), and keep the masks.

    Example:
        >>> import xweights as xw
        >>> xw.OneShot(at=100).share(99)
        0.0
    """

    at: int = 0

    def __post_init__(self) -> None:
        _check_step(self.at, "at")

    def due(self, step: int) -> bool:
        return step == self.at

    def share(self, step: int) -> float:
        return 1.0 if step >= self.at else 0.0


@dataclass(frozen=True)
class Constant(SparsitySchedule):
    """Prune the whole fraction from step ``begin`` on, with masks recomputed every ``every`` steps until ``end``.

    Example:
        >>> import xweights as xw
        >>> [step for step in range(10) if xw.Constant(begin=2, end=8, every=3).due(step)]
        [2, 5, 8]
    """

    begin: int = 0
    end: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        _check_span(self.begin, self.begin if self.end is None else self.end, self.every)

    def due(self, step: int) -> bool:
        return _in_span(step, self.begin, self.begin if self.end is None else self.end, self.every)

    def share(self, step: int) -> float:
        return 1.0 if step >= self.begin else 0.0


@dataclass(frozen=True)
class Polynomial(SparsitySchedule):
    """Grow from ``initial`` to the whole fraction between two steps: 1 - (1 - initial) * (1 - t) ** power.

    Zhu & Gupta, arXiv:1710.01878, with power 3.

    Example:
        >>> import xweights as xw
        >>> xw.Polynomial(begin=0, end=10, power=1).share(5)
        0.5
    """

    begin: int
    end: int
    power: float = 3.0
    initial: float = 0.0
    every: int = 1

    def __post_init__(self) -> None:
        _check_span(self.begin, self.end, self.every)
        if not self.power > 0:
            raise ArgumentError(f"power= must be positive\ngot: {self.power!r}")
        if not 0.0 <= self.initial <= 1.0:
            raise ArgumentError(f"initial= is a share of the final fraction, 0.0 to 1.0\ngot: {self.initial!r}")

    def due(self, step: int) -> bool:
        return _in_span(step, self.begin, self.end, self.every)

    def share(self, step: int) -> float:
        if step < self.begin:
            return 0.0
        if step >= self.end:
            return 1.0
        left = 1.0 - (step - self.begin) / (self.end - self.begin)
        return float(1.0 - (1.0 - self.initial) * left**self.power)


def Cubic(begin: int, end: int, *, initial: float = 0.0, every: int = 1) -> Polynomial:  # noqa: N802 - a kind of schedule
    """Return the usual pruning schedule: a polynomial of power 3.

    Example:
        >>> import xweights as xw
        >>> xw.Cubic(begin=0, end=100, every=10).power
        3.0
    """
    return Polynomial(begin, end, 3.0, initial, every)


@dataclass(frozen=True)
class ByStep(SparsitySchedule):
    """A function of the step: the share of the final fraction (0.0 to 1.0), or None for "leave the masks as they are".

    Example:
        >>> import xweights as xw
        >>> xw.ByStep(lambda step: 1.0 if step == 3 else None).due(2)
        False
    """

    function: Callable[[int], float | None]

    def due(self, step: int) -> bool:
        return self.function(step) is not None

    def share(self, step: int) -> float:
        share = self.function(step)
        if share is None:
            return 0.0
        if not 0.0 <= share <= 1.0:
            raise ArgumentError(f"a schedule gives a share between 0.0 and 1.0\ngot: {share!r} at step {step}")
        return float(share)


def _check_step(step: object, name: str) -> None:
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ArgumentError(f"{name}= is a step, a whole number >= 0\ngot: {step!r}")


def _check_span(begin: int, end: int, every: int) -> None:
    _check_step(begin, "begin")
    _check_step(end, "end")
    if end < begin:
        raise ArgumentError(f"the schedule ends before it begins\nbegin: {begin}\nend:   {end}")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ArgumentError(f"every= is a whole number >= 1\ngot: {every!r}")


def _in_span(step: int, begin: int, end: int, every: int) -> bool:
    # The last step is always due, so that the final fraction is reached whatever ``every`` is.
    return begin <= step <= end and ((step - begin) % every == 0 or step == end)


def check_schedule(schedule: object) -> None:
    """Raise ArgumentError for what is no schedule: a word, a class instead of an object of it."""
    if isinstance(schedule, SparsitySchedule):
        return
    fixes = {
        "cubic": "Cubic(begin=0, end=1000)",
        "polynomial": "Polynomial(begin=0, end=1000)",
        "linear": "Polynomial(begin=0, end=1000, power=1)",
        "constant": "Constant(begin=0)",
        "oneshot": "OneShot()",
    }
    word = (schedule if isinstance(schedule, str) else getattr(schedule, "__name__", "")).lower().replace("_", "")
    expected = (
        "Cubic(...), Polynomial(...), Constant(...), OneShot(...), ByStep(...) or a SparsitySchedule of one's own"
    )
    fix = fixes.get(word, fixes["cubic"])
    raise ArgumentError(
        f"schedule= is no schedule\n{got_expected(shown(schedule), expected)}\nFix: schedule=xweights.{fix}"
    )
