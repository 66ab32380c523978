"""The rules held on one parameter, in their order.

Backends see a chain as ``backend.HeldChain``.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from xweights.core import hold_registry
from xweights.core.backend import HoldAttachment
from xweights.core.dispatch import NUMPY_OPS, ops_for, to_neutral, to_stored
from xweights.core.dtypes import Array
from xweights.core.parameter import Parameter
from xweights.core.protocols import Ops
from xweights.core.registry import backend_for
from xweights.edit.execute import edit_one
from xweights.rules.base import Function, Rule
from xweights.rules.constraints import Keep
from xweights.rules.elementwise import Mask
from xweights.rules.tying import TiedShare
from xweights.training.hooks import native_of

LAST = (Mask, Keep)


class Owner(Protocol):
    """The hold that a link belongs to."""

    _attachments: list[HoldAttachment]

    def written(self) -> None: ...


class HeldRule:
    """One rule on one parameter, with its operands."""

    __slots__ = ("buffers", "live", "native", "operands", "owner", "rule")

    def __init__(self, owner: Owner, rule: Rule, operands: tuple[Array, ...], *, live: bool = False) -> None:
        self.owner, self.rule, self.operands = owner, rule, operands
        self.live = live  # the operands change while training goes on, and compiled steps must see it
        self.native: tuple[Ops, tuple[Any, ...]] | None = None
        self.buffers: tuple[Any, ...] | None = None

    def constants(self, ops: Ops, like: Any) -> tuple[Any, ...]:
        """Return the operands for a compiled step: constants, or what a buffer holds at run time."""
        if self.buffers is not None:
            return tuple(ops.current(one) for one in self.buffers)
        return tuple(ops.constant(one, like) for one in self.operands)

    def native_operands(self, p: Parameter) -> tuple[Ops, tuple[Any, ...]]:
        """Return the framework's maths and the operands as its tensors; made when the hold begins, not in a step."""
        if self.native is None:
            native = p.native(tensor=True)
            ops = ops_for(native)
            self.native = (ops, self.constants(ops, native))
        return self.native

    def replace(self, operands: tuple[Array, ...], ops: Ops | None) -> None:
        """Take other operands from now on, also in steps that are compiled already."""
        self.operands, self.native = operands, None
        if self.buffers is not None and ops is not None:
            for buffer, one in zip(self.buffers, operands, strict=True):
                ops.refill(buffer, one)


class HeldRules:
    """All the rules held on one parameter: in order of attachment, Mask and Keep last."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter
        self.backend = backend_for(native_of(parameter))
        self.links: list[HeldRule] = []

    def add(self, link: HeldRule) -> None:
        """Put a link in its place."""
        self.links.append(link)
        self.links.sort(key=lambda one: isinstance(one.rule, LAST))

    @property
    def tie(self) -> TiedShare | None:
        """The parameter's part in a tie, if it is tied to others."""
        return next((link.rule for link in self.links if isinstance(link.rule, TiedShare)), None)

    def apply(self) -> None:
        """Edit the parameter in place, and those it is tied to: in eager code, or traced where a verb would be."""
        for one in self._together():
            one._apply()

    def _together(self) -> list[HeldRules]:
        tie = self.tie
        found = [self] if tie is None else [hold_registry.held(p) for p in tie.parameters]
        return [one for one in found if isinstance(one, HeldRules)] or [self]

    def _apply(self) -> None:
        p = self.parameter
        with p.storage.guard(), np.errstate(all="ignore"):
            for link in self.links:
                edit_one(link.rule, p, link.operands, None)

    def apply_native(self) -> None:
        """Edit the framework's own tensor, with nothing but its ops: for steps that can't trace a verb."""
        for one in self._together():
            one._apply_native()

    def _apply_native(self) -> None:
        p = self.parameter
        with p.storage.guard():
            for link in self.links:
                native = p.native(tensor=True)
                ops, constants = link.native_operands(p)
                w = to_neutral(ops, native, p.layout)
                new = link.rule(w, ops, p, *constants)
                p.commit(native, native if new is w else to_stored(ops, ops.fence(new), p.layout))

    def of(self, value: Any, ops: Ops) -> Any:
        """Return what becomes of a stored tensor of the framework; pure, so a step can contain it."""
        layout = self.parameter.layout
        for link in self.links:
            if link.live and link.buffers is None:
                continue  # the backend has no buffers: its attachment applies these after the step
            new = link.rule(to_neutral(ops, value, layout), ops, self.parameter, *link.constants(ops, value))
            value = to_stored(ops, ops.fence(new), layout)
        return value

    def make_live(self) -> None:
        """Give operands that change while training goes on a buffer that compiled steps read."""
        p = self.parameter
        for link in self.links:
            if link.live and link.buffers is None:
                with p.storage.guard():
                    native = p.native(tensor=True)
                    link.buffers = tuple(ops_for(native).buffer(np.array(one), native) for one in link.operands)

    def check(self) -> None:
        """Raise if a training step went by without the rules."""
        owners = {id(link.owner): link.owner for link in self.links}
        for owner in owners.values():
            for attachment in owner._attachments:
                attachment.check()

    def written(self) -> None:
        """Tell the holds that xweights wrote to the parameter, not a training step."""
        for link in self.links:
            link.owner.written()

    def violated(self) -> str | None:
        """Return which rule is not true of the weights now, or None."""
        p = self.parameter
        value = p.layout.to_neutral(p.read())
        return next((repr(link.rule) for link in self.links if not _true_of(link, value, p)), None)

    def contradiction(self) -> str | None:
        """Return which rule would not be true after all of them were applied, or None."""
        p = self.parameter
        value = p.layout.to_neutral(p.read()).copy()
        for link in self.links:
            value = _on_host(link, value, p)
        # What a tie makes of it depends on others, which are not written yet.
        alone = [link for link in self.links if not isinstance(link.rule, TiedShare)]
        return next((repr(link.rule) for link in alone if not _true_of(link, value, p)), None)


def _on_host(link: HeldRule, value: Array, p: Parameter) -> Array:
    if isinstance(link.rule, Function):  # which may know nothing but the framework's own tensors
        with p.storage.guard():
            native = p.native(tensor=True)
            ops = ops_for(native)
            new = link.rule(ops.constant(value, native), ops, p)
        backend = backend_for(new)
        return np.array(new if backend is None else backend.to_host(new))
    with np.errstate(all="ignore"):
        return np.asarray(link.rule(value, NUMPY_OPS, p, *link.operands))


def _true_of(link: HeldRule, value: Array, p: Parameter) -> bool:
    """A rule is true of weights that it leaves as they are: bit for bit, or a close one within its tolerance."""
    again = _on_host(link, value.copy(), p)
    if link.rule.exact:
        bits = np.dtype(f"u{p.dtype.itemsize}")
        return bool(np.array_equal(np.ascontiguousarray(again).view(bits), np.ascontiguousarray(value).view(bits)))
    wide, other = again.astype(np.float64), value.astype(np.float64)
    largest = float(np.max(np.abs(other[np.isfinite(other)]), initial=0.0))
    gap = np.abs(wide - other)
    return not bool(np.any(gap[np.isfinite(gap)] > (1e-2 if p.dtype.itemsize < 4 else 1e-5) * largest))


def as_stored(operand: Array, p: Parameter) -> Array:
    """Return a copy that lies in memory as the weights do: a mask across the grain costs 5 times as much."""
    if operand.shape != p.shape or p.layout.is_identity:
        return np.array(operand)
    return p.layout.to_neutral(np.ascontiguousarray(p.layout.to_stored(operand)))
