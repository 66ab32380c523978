"""Plan the edits of a file: check all of them before anything is written, then apply them array by array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xweights.core.dispatch import NUMPY_OPS
from xweights.core.dtypes import Array
from xweights.core.mappings import NUMPY
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike, select
from xweights.edit.execute import as_rule, edit_parameter, prepare
from xweights.files.io.records import Record
from xweights.files.io.storage import FileStorage
from xweights.rules.base import Rule, is_foreign, where_of
from xweights.rules.order_statistics import LazyArrays
from xweights.rules.pruning import Prune, stream_masks

Edit = Rule | Callable[[Any], Any] | tuple[Any, Any]


class _Editable(FileStorage):
    """Writable stand-in for the arrays of a file while rules are checked against them."""

    def refusal(self, handle: Record, *, writing: bool) -> str | None:
        return None


_EDITABLE = _Editable()


class _Step:
    """One rule, the positions of its parameters, and its operands for each."""

    def __init__(self, rule: Rule, chosen: list[int], operands: list[tuple[Array, ...]]) -> None:
        self.rule, self.chosen = rule, chosen
        self.operands = dict(zip(chosen, operands, strict=True))
        self.shared: Callable[[int, Parameter], Any] = lambda position, p: None


class Steps:
    """The edits in order; the constructor refuses everything that can be refused without looking at values.

    Attributes:
        parameters: All parameters of the file.
        touched: The positions of the parameters that any edit selects.
    """

    def __init__(self, edits: Sequence[tuple[Any, WhereLike | None]], parameters: Sequence[Parameter]) -> None:
        self.parameters = parameters
        self.steps: list[_Step] = []
        stand_ins = [_copy_parameter(p, _EDITABLE, p.handle) for p in parameters]
        position_of = {id(p): position for position, p in enumerate(stand_ins)}
        for edit, where in edits:
            rule = as_rule(edit)
            chosen = select(stand_ins, _where_of(rule, where))
            operands = prepare(rule, chosen, "edit_file")
            self.steps.append(_Step(rule, [position_of[id(p)] for p in chosen], operands))
        self.touched = {position for step in self.steps for position in step.chosen}

    def measure(self) -> None:
        """Let joint rules measure the values, one array at a time."""
        for number, step in enumerate(self.steps):
            if step.rule.joint:
                self._measure(number, step)

    def _measure(self, number: int, step: _Step) -> None:
        before = [self.parameters[position] for position in step.chosen]

        def loaded(index: int) -> Parameter:
            return self._apply_first(step.chosen[index], number)

        if isinstance(step.rule, Prune):
            masks = stream_masks(step.rule, before, loaded)
            index_of = {position: index for index, position in enumerate(step.chosen)}
            step.shared = lambda position, p: masks(index_of[position], p)
            return
        views = LazyArrays(
            lambda index: _to_neutral(loaded(index)), [p.size for p in before], [p.dtype for p in before]
        )
        operands = [step.operands[position] for position in step.chosen]
        shared = step.rule.measure(views, NUMPY_OPS, before, operands)
        if isinstance(shared, list):
            by_position = dict(zip(step.chosen, shared, strict=True))
            step.shared = lambda position, p: by_position[position]
        else:
            step.shared = lambda position, p: shared

    def apply(self, position: int) -> Array:
        """Return one array, in its stored order, after all edits."""
        array: Array = self._apply_first(position, len(self.steps)).handle
        return array

    def _apply_first(self, position: int, number: int) -> Parameter:
        """Return one parameter in memory, after the first ``number`` edits."""
        array = self.parameters[position].handle.read()
        p = _copy_parameter(self.parameters[position], NUMPY, array)
        for step in self.steps[:number]:
            if position in step.operands:
                shared = step.shared(position, p) if step.rule.joint else None
                if is_foreign(step.rule):
                    edit_parameter(step.rule, p, step.operands[position], shared)
                else:
                    with np.errstate(all="ignore"):
                        edit_parameter(step.rule, p, step.operands[position], shared)
        return p


def _to_neutral(p: Parameter) -> Array:
    return p.layout.to_neutral(p.handle)


def _where_of(rule: Rule, where: WhereLike | None) -> WhereLike:
    # A user's rule that says nothing of its default may mean anything.
    says_it = not is_foreign(rule) or type(rule).default_where is not Rule.default_where
    return where_of(rule, where, "edit_file", default=says_it)


def _copy_parameter(p: Parameter, storage: Any, handle: Any) -> Parameter:
    return p.replace(storage=storage, handle=handle)
