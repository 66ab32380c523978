"""Holds on the two models of a port: it moves weights only, and can't move what a hold would undo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xweights.core import hold_registry
from xweights.core.parameter import Parameter
from xweights.edit.read import neutral_view
from xweights.errors import PortError, Problems
from xweights.porting.matching.pairs import Pair
from xweights.porting.session import Run


def report_rules(pairs: Sequence[Pair], run: Run) -> list[str]:
    """Return a note for each rule that is held on the source and isn't on the target: a port moves weights only."""
    hold_registry.refresh()
    there = {repr(rule) for pair in pairs for p in pair.target.parameters for rule in _rules_on(p)}
    held: dict[str, list[str]] = {}
    for p in run.source.parameters:
        for rule in _rules_on(p):
            held.setdefault(repr(rule), []).append(p.name)
    return [
        f"{rule} is held on the source ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''}), and not on the "
        "target: xw.hold(target, ...) holds it there, and xw.handoff takes it along"
        for rule, names in held.items()
        if rule not in there
    ]


def _rules_on(p: Parameter) -> list[Any]:
    entry = hold_registry.find(p)
    return [] if entry is None else [held_rule.rule for held_rule in entry.rules]


def check_holds(run: Run) -> None:
    """Refuse a port that a hold on the target would undo."""
    held = [p for p in run.target.parameters if hold_registry.find(p) is not None]
    if not held:
        return
    before = [neutral_view(p).copy() for p in held]
    hold_registry.check(held)
    hold_registry.reapply(held)
    problems = Problems("this port can't be made, and nothing was changed")
    for p, value in zip(held, before, strict=True):
        if not np.array_equal(neutral_view(p), value, equal_nan=True):
            problems.add(PortError, f"a hold on {p.name!r} would change what is ported", fix="release it first")
    problems.check()
