"""Late attachments and their outcomes: applied, raised, detected, or silently ignored.

Kernels are read by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import xweights as xw

Array = np.ndarray[Any, Any]

APPLIED, RAISES, DETECTED, FREE, IGNORED = "applied", "raises", "detected", "not on the copy", "IGNORED"
HOLD, FREEZE, RATE, SCHEDULE = "hold", "freeze", "multiply_lr", "prune(schedule=)"


@dataclass(frozen=True)
class Thing:
    """A kind of attachment: ``begin(target, where, optimizer)`` attaches it.

    ``in_effect(first, before, now)`` decides from a kernel's values whether it is: at the beginning, before the last
    training, and now.
    """

    begin: Callable[[Any, Any, Any], Any]
    in_effect: Callable[[Array, Array, Array], bool]
    needs_optimizer: bool = False


THINGS = {
    HOLD: Thing(
        lambda target, where, optimizer: xw.hold(target, xw.Clip(-0.01, 0.01), where=where, optimizer=optimizer),
        lambda first, before, now: bool(np.abs(now).max() <= np.float32(0.01)),
    ),
    FREEZE: Thing(
        lambda target, where, optimizer: xw.freeze(target, where=where, optimizer=optimizer),
        lambda first, before, now: now.astype(first.dtype).tobytes() == first.tobytes(),
    ),
    RATE: Thing(
        lambda target, where, optimizer: xw.multiply_lr(target, {where: 0.0}, optimizer=optimizer),
        lambda first, before, now: now.tobytes() == before.tobytes(),
        needs_optimizer=True,
    ),
    SCHEDULE: Thing(
        lambda target, where, optimizer: xw.prune(
            target, fraction=0.5, where=where, schedule=xw.OneShot(at=1), optimizer=optimizer
        ),
        # Collecting gradients is no step.
        lambda first, before, now: 2 * int((now == 0).sum()) == now.size or now.tobytes() == first.tobytes(),
    ),
}


class Nothing:
    """A handle for cases where nothing was attached."""

    def check(self) -> None:
        """Do nothing."""

    def apply(self) -> None:
        """Do nothing."""


@dataclass
class Scene:
    """A model in training. ``train`` continues it, ``kernel`` reads the attached kernel, ``copied`` the copy's.

    ``seen`` has kernels that were read during a fit: (before a step, after it).
    """

    thing: Thing
    kernel: Callable[[], Array]
    train: Callable[[], None]
    copied: Callable[[], Array] | None = None
    times: int = 2
    handle: Any = None
    first: Any = None
    seen: list[tuple[Array, Array]] = field(default_factory=list)

    def begin(self, target: Any, where: Any, optimizer: Any = None) -> None:
        """Attach the thing now."""
        self.handle = self.thing.begin(target, where, optimizer)
        self.first = self.kernel()


@dataclass(frozen=True)
class Way:
    """A way to come late. ``make(thing)`` attaches it so; ``expected`` is the outcome for each kind of thing.

    ``why``: a remark for the page. ``skipped``: why this process can't run it.
    """

    framework: str
    moment: str
    make: Callable[[Thing], Scene]
    expected: dict[str, str]
    why: str = ""
    skipped: str = ""


def outcome(way: Way, thing: Thing) -> str:
    """Attach the thing, continue training, and return what became of it."""
    try:
        scene = way.make(thing)
    except xw.XweightsError:
        return RAISES
    kept, free = True, True
    for before, now in scene.seen:
        kept = kept and thing.in_effect(scene.first, before, now)
    for _ in range(scene.times):
        before, copy_before = scene.kernel(), scene.copied() if scene.copied else None
        try:
            scene.train()
        except xw.XweightsError:
            return RAISES
        kept = kept and thing.in_effect(scene.first, before, scene.kernel())
        if scene.copied is not None:
            free = free and not thing.in_effect(scene.first, copy_before, scene.copied())
    try:
        scene.handle.check()
    except xw.XweightsError:
        return DETECTED
    if not kept:
        return IGNORED
    return FREE if scene.copied is not None and free else APPLIED
