"""The edits of a file, checked before anything is written, and carried out on one array at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xweights.core.dispatch import NUMPY_OPS
from xweights.core.dtypes import Array
from xweights.core.mappings import NUMPY
from xweights.core.parameter import Parameter
from xweights.core.selection import DEFAULT_EDITED, DEFAULT_KERNELS, WhereLike, select
from xweights.edit.execute import as_rule, edit_one, is_foreign, prepare
from xweights.errors import ArgumentError
from xweights.files.io.records import Record
from xweights.files.load import FileStorage
from xweights.rules.base import Function, Rule
from xweights.rules.elementwise import Mask
from xweights.rules.initializers import Init
from xweights.rules.norms import MaxNorm, SpectralNorm, UnitNorm
from xweights.rules.order_statistics import LazyArrays
from xweights.rules.pruning import Prune, streamed_masks

Edit = Rule | Callable[[Any], Any] | tuple[Any, Any]
_KERNELS = (Prune, Mask, MaxNorm, UnitNorm, SpectralNorm, Init)


class _Editable(FileStorage):
    """What stands for the arrays of a file while it is found out whether a rule can be applied to them."""

    def refusal(self, handle: Record, *, writing: bool) -> str | None:
        return None


_EDITABLE = _Editable()


class _Step:
    """One rule, the positions of its parameters, and what it needs for each."""

    def __init__(self, rule: Rule, chosen: list[int], operands: list[tuple[Array, ...]]) -> None:
        self.rule, self.chosen = rule, chosen
        self.operands = dict(zip(chosen, operands, strict=True))
        self.shared: Callable[[int, Parameter], Any] = lambda position, p: None


class Steps:
    """Edits in their order. Making it refuses whatever can be refused without looking at values.

    Attributes:
        parameters: All of the file.
        touched: The positions of those that any edit selects.
    """

    def __init__(self, edits: Sequence[tuple[Any, WhereLike | None]], parameters: Sequence[Parameter]) -> None:
        self.parameters = parameters
        self.steps: list[_Step] = []
        shown = [_standing_in(p, _EDITABLE, p.handle) for p in parameters]
        place = {id(p): position for position, p in enumerate(shown)}
        for given, where in edits:
            rule = as_rule(given)
            chosen = select(shown, _default(rule) if where is None else where)
            operands = prepare(rule, chosen, "edit_file")
            self.steps.append(_Step(rule, [place[id(p)] for p in chosen], operands))
        self.touched = {position for step in self.steps for position in step.chosen}

    def measure(self) -> None:
        """Let joint rules look at the values, one array at a time."""
        for number, step in enumerate(self.steps):
            if step.rule.joint:
                self._measure(number, step)

    def _measure(self, number: int, step: _Step) -> None:
        before = [self.parameters[position] for position in step.chosen]

        def loaded(place: int) -> Parameter:
            return self._after(step.chosen[place], number)

        if isinstance(step.rule, Prune):
            masks = streamed_masks(step.rule, before, loaded)
            place_of = {position: place for place, position in enumerate(step.chosen)}
            step.shared = lambda position, p: masks(place_of[position], p)
            return
        views = LazyArrays(lambda place: _neutral(loaded(place)), [p.size for p in before], [p.dtype for p in before])
        operands = [step.operands[position] for position in step.chosen]
        shared = step.rule.measure(views, NUMPY_OPS, before, operands)
        if isinstance(shared, list):
            by_position = dict(zip(step.chosen, shared, strict=True))
            step.shared = lambda position, p: by_position[position]
        else:
            step.shared = lambda position, p: shared

    def edited(self, position: int) -> Array:
        """Return one array, in its stored order, after all edits."""
        found: Array = self._after(position, len(self.steps)).handle
        return found

    def _after(self, position: int, number: int) -> Parameter:
        """Return one parameter in memory, after the first so many edits."""
        array = self.parameters[position].handle.read()
        p = _standing_in(self.parameters[position], NUMPY, array)
        for step in self.steps[:number]:
            if position in step.operands:
                shared = step.shared(position, p) if step.rule.joint else None
                if is_foreign(step.rule):
                    edit_one(step.rule, p, step.operands[position], shared)
                else:
                    with np.errstate(all="ignore"):
                        edit_one(step.rule, p, step.operands[position], shared)
        return p


def _neutral(p: Parameter) -> Array:
    return p.layout.to_neutral(p.handle)


def _default(rule: Rule) -> WhereLike:
    from xweights.rules.entries import SetEntries

    if isinstance(rule, (Function, SetEntries)) or is_foreign(rule):
        raise ArgumentError(f"edit_file with {rule!r} needs to know where\nFix: where='*/kernel', or ... for all")
    return DEFAULT_KERNELS if isinstance(rule, _KERNELS) else DEFAULT_EDITED


def _standing_in(p: Parameter, storage: Any, handle: Any) -> Parameter:
    return Parameter(
        name=p.name,
        native_name=p.native_name,
        role=p.role,
        layer=p.layer,
        layout=p.layout,
        dtype=p.dtype,
        storage=storage,
        handle=handle,
        gates=p.gates,
        aliases=p.aliases,
        hidden=p.hidden,
    )
