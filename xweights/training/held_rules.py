"""The rules held on one parameter, in the order in which they apply.

Backends see them as ``backend.HeldChain``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from xweights.core import hold_registry
from xweights.core.backend import HoldAttachment
from xweights.core.dispatch import NUMPY_OPS, ops_for, to_neutral, to_stored
from xweights.core.dtypes import Array, bits_differ, widen
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.registry import backend_for, backend_of
from xweights.edit.execute import edit_parameter
from xweights.errors import HoldError, got_expected
from xweights.rules.base import Function, Rule
from xweights.rules.constraints import Keep
from xweights.rules.elementwise import Mask
from xweights.rules.tying import TiedShare

APPLIED_LAST = (Mask, Keep)

_changes = 0


def count_changes() -> int:
    """Return how often held rules or their operands have changed so far, on any parameter."""
    return _changes


def _note_change() -> None:
    global _changes
    _changes += 1


class Owner(Protocol):
    """The hold that a held rule belongs to."""

    _attachments: list[HoldAttachment]

    def written(self) -> None: ...


class HeldRule:
    """One rule on one parameter, with its operands."""

    __slots__ = ("buffers", "live", "native", "operands", "owner", "rule")

    def __init__(self, owner: Owner, rule: Rule, operands: tuple[Array, ...], *, live: bool = False) -> None:
        self.owner, self.rule, self.operands = owner, rule, operands
        self.live = live  # the operands change during training, and compiled steps must see it
        self.native: tuple[Ops, tuple[Any, ...]] | None = None
        self.buffers: tuple[Any, ...] | None = None

    def constants(self, ops: Ops, like: Any) -> tuple[Any, ...]:
        """Return the operands for a compiled step: constants, or the values of buffers at run time."""
        if self.buffers is not None:
            return tuple(ops.current(buffer) for buffer in self.buffers)
        return tuple(ops.constant(operand, like) for operand in self.operands)

    def native_operands(self, p: Parameter) -> tuple[Ops, tuple[Any, ...]]:
        """Return the framework's ops and the operands as its tensors; made when the hold begins, not in a step."""
        if self.native is None:
            native = p.native(tensor=True)
            ops = ops_for(native)
            self.native = (ops, self.constants(ops, native))
        return self.native

    def replace(self, operands: tuple[Array, ...], ops: Ops | None) -> None:
        """Replace the operands, also in steps that are compiled already."""
        self.operands, self.native = operands, None
        _note_change()
        if self.buffers is not None and ops is not None:
            for buffer, operand in zip(self.buffers, operands, strict=True):
                ops.refill(buffer, operand)


class HeldRules:
    """All the rules held on one parameter: in order of attachment, Mask and Keep last."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter
        self.backend = backend_of(parameter)
        self._rules: list[HeldRule] = []

    @property
    def rules(self) -> list[HeldRule]:
        """The rules, in the order in which they apply."""
        return self._rules

    @rules.setter
    def rules(self, rules: list[HeldRule]) -> None:
        self._rules = rules
        _note_change()

    def add(self, held_rule: HeldRule) -> None:
        """Insert a rule in its place in the order."""
        self.rules = sorted([*self.rules, held_rule], key=lambda member: isinstance(member.rule, APPLIED_LAST))

    def owners(self) -> list[Any]:
        """Return the holds of the rules, in the order in which these apply."""
        return [held_rule.owner for held_rule in self.rules]

    def arrange(self, owners: Sequence[Any]) -> None:
        """Bring the rules into the order of their holds; rules of others come after these, Mask and Keep last."""
        places = {id(owner): place for place, owner in enumerate(owners)}
        self.rules = sorted(
            self.rules,
            key=lambda member: (isinstance(member.rule, APPLIED_LAST), places.get(id(member.owner), len(places))),
        )

    @property
    def tie(self) -> TiedShare | None:
        """The parameter's part in a tie, if it is tied to others."""
        return next((held_rule.rule for held_rule in self.rules if isinstance(held_rule.rule, TiedShare)), None)

    def apply(self) -> None:
        """Edit the parameter and those it is tied to in place, in eager code or traced where a verb would be."""
        for tied in self._tied_rules():
            tied._apply()

    def _tied_rules(self) -> list[HeldRules]:
        tie = self.tie
        entries = [self] if tie is None else [hold_registry.find(p) for p in tie.parameters]
        return [entry for entry in entries if isinstance(entry, HeldRules)] or [self]

    def _apply(self) -> None:
        p = self.parameter
        if self.backend is None or self.backend.tracing() == "no":
            self._refuse_another_dtype()
        with p.storage.guard(), np.errstate(all="ignore"):
            for held_rule in self.rules:
                edit_parameter(held_rule.rule, p, held_rule.operands, None)

    def _refuse_another_dtype(self) -> None:
        """Raise if the weights have become of a dtype that the operands don't fit into, as after ``model.half()``."""
        p = self.parameter
        # Not p.read(), which would copy an array from its device at each step.
        dtype = p.native().dtype
        now = getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]
        if now == p.dtype.name or np.can_cast(p.dtype, np.dtype(now)):
            return
        # torch views a bfloat16 number as float16 without a word, and refuses other widths by an error of its own.
        for held_rule in self.rules:
            if any(operand.dtype == p.dtype for operand in held_rule.operands):
                raise HoldError(
                    f"{p.name!r} isn't of the dtype any more in which {held_rule.rule!r} holds it\n"
                    f"{got_expected(now, p.dtype.name)}\n"
                    "Fix: release() before the model is cast, and hold again after it"
                )

    def prepare_native(self) -> None:
        """Make the operands of the framework now, as tensors that a step doesn't have to make."""
        with self.parameter.storage.guard():
            for held_rule in self.rules:
                held_rule.native_operands(self.parameter)

    def apply_native(self) -> None:
        """Edit the framework's own tensor, by its ops alone, for steps that can't trace a verb."""
        for tied in self._tied_rules():
            tied._apply_native()

    def _apply_native(self) -> None:
        p = self.parameter
        with p.storage.guard():
            for held_rule in self.rules:
                native = p.native(tensor=True)
                ops, constants = held_rule.native_operands(p)
                w = to_neutral(ops, native, p.layout)
                new = held_rule.rule(w, ops, p, *constants)
                p.commit(native, native if new is w else to_stored(ops, ops.fence(new), p.layout))

    def of(self, value: Any, ops: Ops) -> Any:
        """Return a stored tensor of the framework with all rules applied; pure, so a step can contain it."""
        layout = self.parameter.layout
        for held_rule in self.rules:
            if held_rule.live and held_rule.buffers is None:
                continue  # the backend has no buffers: its attachment applies these after the step
            new = held_rule.rule(to_neutral(ops, value, layout), ops, self.parameter, *held_rule.constants(ops, value))
            value = to_stored(ops, ops.fence(new), layout)
        return value

    def make_live(self) -> None:
        """Move operands that change during training into buffers, so that compiled steps see updates."""
        p = self.parameter
        for held_rule in self.rules:
            if held_rule.live and held_rule.buffers is None:
                with p.storage.guard():
                    native = p.native(tensor=True)
                    held_rule.buffers = tuple(
                        ops_for(native).buffer(np.array(operand), native) for operand in held_rule.operands
                    )

    def attachments(self) -> list[HoldAttachment]:
        """Return what attaches the rules to training."""
        return [attachment for held_rule in self.rules for attachment in held_rule.owner._attachments]

    def written(self) -> None:
        """Notify the holds that xweights wrote to the parameter, not a training step."""
        for held_rule in self.rules:
            held_rule.owner.written()

    def find_violation(self) -> str | None:
        """Return the first rule that the weights don't satisfy now, or None."""
        p = self.parameter
        value = p.layout.to_neutral(p.read())
        return next((repr(held_rule.rule) for held_rule in self.rules if not _is_satisfied(held_rule, value, p)), None)

    def find_contradiction(self) -> str | None:
        """Return the first rule that would not be satisfied after all of them were applied, or None."""
        p = self.parameter
        value = p.layout.to_neutral(p.read()).copy()
        for held_rule in self.rules:
            value = _apply_on_host(held_rule, value, p)
        # The result of a tie depends on other parameters, which are not written yet.
        untied = [held_rule for held_rule in self.rules if not isinstance(held_rule.rule, TiedShare)]
        return next((repr(held_rule.rule) for held_rule in untied if not _is_satisfied(held_rule, value, p)), None)


def _apply_on_host(held_rule: HeldRule, value: Array, p: Parameter) -> Array:
    if isinstance(held_rule.rule, Function):  # it may accept nothing but the framework's own tensors
        with p.storage.guard():
            native = p.native(tensor=True)
            ops = ops_for(native)
            new = held_rule.rule(ops.constant(value, native), ops, p)
        backend = backend_for(new)
        return np.array(new if backend is None else backend.to_host(new))
    with np.errstate(all="ignore"):
        return np.asarray(held_rule.rule(value, NUMPY_OPS, p, *held_rule.operands))


def _is_satisfied(held_rule: HeldRule, value: Array, p: Parameter) -> bool:
    """Return True if a rule leaves the weights as they are: bit for bit, or within the tolerance of a close rule."""
    again = _apply_on_host(held_rule, value.copy(), p)
    if held_rule.rule.exact:
        flat, other_flat = (np.ascontiguousarray(array).reshape(-1) for array in (again, value))
        return not bool(bits_differ(flat, other_flat).any())
    wide, other = widen(again), widen(value)
    largest = float(np.max(np.abs(other[np.isfinite(other)]), initial=0.0))
    gap = np.abs(wide - other)
    return not bool(np.any(gap[np.isfinite(gap)] > (1e-2 if p.dtype.itemsize < 4 else 1e-5) * largest))


def copy_in_stored_order(operand: Array, p: Parameter) -> Array:
    """Return a copy with the memory order of the weights: a mask in the other order costs 5 times as much."""
    if operand.shape != p.shape or p.layout.is_identity:
        return np.array(operand)
    return p.layout.to_neutral(np.ascontiguousarray(p.layout.to_stored(operand)))
