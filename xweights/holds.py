"""Rules that stay true while training goes on.

Owns :func:`hold`, :class:`Hold` and :class:`Chain`. Imports backend, errors, ledger, parameter, rules, running,
selecting and targets. When a rule is applied is the framework's business: the backend attaches a chain to its own
update (``Backend.attach``); where there is nothing to attach to, ``held.apply()`` is called by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from xweights import ledger
from xweights.backend import Backend, HoldAttachment, Ops, backend_for
from xweights.errors import ArgumentError, HoldError, Problems, WriteError, XweightsError
from xweights.keeping import Keep
from xweights.parameter import Array, Parameter
from xweights.rules import Mask, Rule
from xweights.running import NUMPY_OPS, as_rule, edit_one, guarded, ops_for, to_neutral, to_stored
from xweights.selecting import WhereLike, select
from xweights.targets import open_target, tracing

LAST = (Mask, Keep)


class Link:
    """One rule on one parameter, with its operands."""

    __slots__ = ("buffers", "live", "native", "operands", "owner", "rule")

    def __init__(self, owner: Hold, rule: Rule, operands: tuple[Array, ...], *, live: bool = False) -> None:
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
            leaf = p.storage.leaf(p.handle, native=True)
            ops = ops_for(leaf)
            self.native = (ops, self.constants(ops, leaf))
        return self.native

    def replace(self, operands: tuple[Array, ...], ops: Ops | None) -> None:
        """Take other operands from now on, also in steps that are compiled already."""
        self.operands, self.native = operands, None
        if self.buffers is not None and ops is not None:
            for buffer, one in zip(self.buffers, operands, strict=True):
                ops.refill(buffer, one)


class Chain:
    """All the rules held on one parameter: in order of attachment, Mask and Keep last."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter
        self.backend = backend_for(_handle(parameter))
        self.links: list[Link] = []

    def add(self, link: Link) -> None:
        """Put a link in its place."""
        self.links.append(link)
        self.links.sort(key=lambda one: isinstance(one.rule, LAST))

    def apply(self) -> None:
        """Edit the parameter in place: in eager code, or traced where a verb would be."""
        p = self.parameter
        with p.storage.guard(), np.errstate(all="ignore"):
            for link in self.links:
                edit_one(link.rule, p, link.operands, None)

    def apply_native(self) -> None:
        """Edit the framework's own tensor, with nothing but its ops: for steps that can't trace a verb."""
        p = self.parameter
        with p.storage.guard():
            for link in self.links:
                leaf = p.storage.leaf(p.handle, native=True)
                ops, constants = link.native_operands(p)
                w = to_neutral(ops, leaf, p.layout)
                new = link.rule(w, ops, p, *constants)
                p.storage.put(p.handle, leaf, leaf if new is w else to_stored(ops, ops.fence(new), p.layout))

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
                    leaf = p.storage.leaf(p.handle, native=True)
                    link.buffers = tuple(ops_for(leaf).buffer(np.array(one), leaf) for one in link.operands)

    def check(self) -> None:
        """Raise if a training step went by without the rules."""
        owners = {id(link.owner): link.owner for link in self.links}
        for owner in owners.values():
            for attachment in owner._attachments:
                attachment.check()

    def violated(self) -> str | None:
        """Return which rule is not true of the weights now, or None."""
        p = self.parameter
        value = p.layout.to_neutral(p.storage.read(p.handle))
        return next((repr(link.rule) for link in self.links if not _true_of(link, value, p)), None)

    def contradiction(self) -> str | None:
        """Return which rule would not be true after all of them were applied, or None."""
        p = self.parameter
        value = p.layout.to_neutral(p.storage.read(p.handle)).copy()
        for link in self.links:
            value = _on_host(link, value, p)
        return next((repr(link.rule) for link in self.links if not _true_of(link, value, p)), None)


def _on_host(link: Link, value: Array, p: Parameter) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(link.rule(value, NUMPY_OPS, p, *link.operands))


def _true_of(link: Link, value: Array, p: Parameter) -> bool:
    """A rule is true of weights that it leaves as they are: bit for bit, or a close one within its tolerance."""
    again = _on_host(link, value.copy(), p)
    if link.rule.exact:
        bits = np.dtype(f"u{p.dtype.itemsize}")
        return bool(np.array_equal(np.ascontiguousarray(again).view(bits), np.ascontiguousarray(value).view(bits)))
    wide, other = again.astype(np.float64), value.astype(np.float64)
    largest = float(np.max(np.abs(other[np.isfinite(other)]), initial=0.0))
    gap = np.abs(wide - other)
    return not bool(np.any(gap[np.isfinite(gap)] > (1e-2 if p.dtype.itemsize < 4 else 1e-5) * largest))


class Hold:
    """A rule kept true on some parameters, until :meth:`release`; also a context manager.

    Attributes:
        parameters: The held parameters.
        rule: The rule.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([3.0])}
        >>> with xw.hold(w, xw.Clip(-1, 1), where="w"):
        ...     xw.add(w, 5.0)
        >>> w["w"]
        array([1.])
    """

    def __init__(self, rule: Rule, chains: Sequence[Chain]) -> None:
        self.rule = rule
        self._chains = list(chains)
        self._attachments: list[HoldAttachment] = []
        self.manual = True

    @property
    def parameters(self) -> list[Parameter]:
        """The held parameters."""
        return [chain.parameter for chain in self._chains]

    def apply(self) -> None:
        """Make the rule true now: after the update of a step that has no optimizer to attach to. Traceable."""
        for chain in self._chains:
            if chain.backend is not None and chain.backend.tracing() == "refuse":
                chain.apply_native()
            else:
                chain.apply()

    def check(self) -> None:
        """Raise StaleTrainFunctionError if a training step went by without the rule, HoldError if it isn't true."""
        for attachment in self._attachments:
            attachment.check()
        problems = Problems("a held rule is not true")
        for chain in self._chains:
            if any(link.owner is self for link in chain.links):
                wrong = chain.violated()
                if wrong is not None:
                    problems.add(
                        HoldError,
                        f"{chain.parameter.name!r} doesn't obey {wrong}",
                        fix="call held.apply() after your update",
                    )
        problems.check()

    def release(self) -> None:
        """Take this rule off again; the others stay. Calling it twice does nothing."""
        self._unlink(self._chains)
        attachments, self._attachments, self._chains = self._attachments, [], []
        for attachment in attachments:
            attachment.detach()

    def let_go(self, parameters: Sequence[Parameter]) -> None:
        """Take this rule off some of its parameters."""
        mine = {ledger.identity(p) for p in parameters}
        leaving = [chain for chain in self._chains if ledger.identity(chain.parameter) in mine]
        self._unlink(leaving)
        self._chains = [chain for chain in self._chains if chain not in leaving]
        for attachment in self._attachments:
            attachment.let_go(leaving)

    def _unlink(self, chains: Sequence[Chain]) -> None:
        for chain in chains:
            chain.links = [link for link in chain.links if link.owner is not self]
            if not chain.links:
                ledger.leave(chain.parameter)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        count = len(self._chains)
        return f"<Hold {self.rule!r} on {count} parameter{'s' * (count != 1)}>"


def hold(target: Any, rule: Rule | Callable[[Any], Any], *, where: WhereLike, optimizer: Any = None) -> Hold:
    """Keep a rule true on the selected parameters: after every optimizer step, and after every write by xweights.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        rule: A rule such as ``Clip(-1, 1)``, ``Mask(masks)`` or ``Keep()``; or a function of the native tensor.
        where: Which parameters; required.
        optimizer: The optimizer that trains them. Default: in torch any optimizer that steps them, in Keras the one the
            model was compiled with.

    Returns:
        A :class:`Hold`. Its ``manual`` is True where there is no optimizer to attach to (``tf.Module``, arrays): call
        ``held.apply()`` after each update then.

    The rule is applied at once. Holds on one parameter run in the order of attachment, after a constraint that was
    there before; Mask and Keep last. Optimizer slots are left alone. As exact as the rule.
    Raises ArgumentError (a random or joint rule), HoldError (a rule that contradicts another hold, an optimizer that
    doesn't own a parameter), SelectionError, WriteError; nothing is attached then, and nothing changed.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([3.0])}; held = xw.hold(w, xw.Clip(-1, 1), where="w"); xw.fill(w, -5.0); w["w"]
        array([-1.])
    """
    rule = as_rule(rule)
    if rule.random:
        raise ArgumentError(
            f"{rule!r} is random: it is never true, so it can't be held\nFix: bind it and draw each step"
        )
    if rule.joint:
        raise ArgumentError(f"{rule!r} looks at several parameters together, and holds work on each by itself")
    if tracing(target):
        raise ArgumentError("a hold can't begin inside a compiled step\nFix: hold before the step is traced")
    return begin(Hold(rule, []), target, select(open_target(target), where), optimizer)


def begin(
    made: Hold,
    target: Any,
    chosen: Sequence[Parameter],
    optimizer: Any,
    *,
    operands: Callable[[Parameter], tuple[Array, ...]] | None = None,
    after_step: Callable[[Any], None] | None = None,
) -> Hold:
    """Link a hold to its parameters and attach it, or change nothing. ``operands``: live ones instead of the rule's."""
    problems = Problems("this can't be held, and nothing was changed")
    chains: list[Chain] = []
    for p in chosen:
        reason = p.storage.refusal(p.handle, writing=True)
        if reason is not None:
            problems.add(WriteError, f"{p.name!r} can't be written: {reason}")
            continue
        try:
            made.rule.check(p)
            ready = tuple(as_stored(one, p) for one in (operands or made.rule.operands)(p))
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
            continue
        known = ledger.held(p)
        chain = known if isinstance(known, Chain) else Chain(p)
        chain.add(Link(made, made.rule, ready, live=operands is not None))
        chains.append(chain)
        wrong_rule = chain.contradiction()
        if wrong_rule is not None:
            others = ", ".join(repr(link.rule) for link in chain.links if repr(link.rule) != wrong_rule)
            problems.add(HoldError, f"{p.name!r}: {wrong_rule} can't stay true together with {others or 'itself'}")
    made._chains = chains
    try:
        problems.check()
        _attach(made, target, optimizer, after_step)
    except BaseException:
        made.release()
        raise
    for chain in chains:
        ledger.enter(chain.parameter, chain)
    with guarded(chosen):
        for chain in chains:
            chain.apply()
            for link in chain.links:
                link.native_operands(chain.parameter)
    return made


def _attach(made: Hold, target: Any, optimizer: Any, after_step: Callable[[Any], None] | None) -> None:
    groups: dict[str, tuple[Backend, list[Chain]]] = {}
    for chain in made._chains:
        if chain.backend is not None:
            groups.setdefault(chain.backend.name, (chain.backend, []))[1].append(chain)
    for backend, chains in groups.values():
        attachment = backend.attach(chains, target=target, optimizer=optimizer, after_step=after_step)
        if attachment is not None:
            made._attachments.append(attachment)
            after_step = None  # one framework counts the steps
    if optimizer is not None and not made._attachments:
        raise HoldError("optimizer= was given, and nothing here is trained by an optimizer that can be attached to")
    made.manual = not made._attachments


def _handle(parameter: Parameter) -> Any:
    """Return the native object of a parameter, by whose type its backend is found."""
    return getattr(parameter.handle, "tensor", parameter.handle)


def as_stored(operand: Array, p: Parameter) -> Array:
    """Return a copy that lies in memory as the weights do: a mask across the grain costs 5 times as much."""
    if operand.shape != p.shape or p.layout.is_identity:
        return np.array(operand)
    return p.layout.to_neutral(np.ascontiguousarray(p.layout.to_stored(operand)))
