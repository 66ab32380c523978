"""How a rule reaches the weights: once (:func:`apply`), or again and again from a compiled step (:func:`bind`).

Owns :func:`apply`, :func:`bind` and :class:`Bound`. Imports arrays, backend, errors, parameter, rules, selecting
and targets. Everything that can be refused is checked for every parameter before the first write.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from xweights.core import hold_registry
from xweights.core.backend import Ops, Storage, backend_for
from xweights.core.layout import Layout
from xweights.core.numpy_backend import NumpyOps, strays
from xweights.core.parameter import Array, Parameter
from xweights.core.selection import DEFAULT_EDITED, WhereLike, select
from xweights.core.targets import open_target, tracing
from xweights.errors import (
    ArgumentError,
    Problems,
    SelectionError,
    StaleDrawError,
    TraceError,
    UseBindError,
    WriteError,
    XweightsError,
)
from xweights.rules.base import Function, Rule

NUMPY_OPS = NumpyOps()


def apply(target: Any, rule: Rule | Callable[[Any], Any], *, where: WhereLike) -> None:
    """Apply a rule, or a function of the native tensor, to the selected parameters in place.

    A function gets each tensor of the target's framework in neutral axis order, with no gradient recorded, and returns
    the new one. If it raises, or returns another shape or dtype, everything is as it was before.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        rule: A rule such as ``Clip(-1, 1)``, or a function.
        where: Which parameters; required.

    Raises:
        SelectionError: ``where`` selects nothing.
        WriteError: a selected parameter can't be written.
        XweightsError: whatever the rule refuses; all of it at once.

    Exactness: the rule's.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0, 0.5])}; xw.apply(w, xw.Clip(-1, 1), where="w"); w["w"]
        array([-1. ,  0.5])
    """
    run(target, as_rule(rule), where=where, call="apply", default=where)


def bind(target: Any, rule: Rule | Callable[[Any], Any], *, where: WhereLike) -> Bound:
    """Select now, in plain Python, and return a step that does only array work: for compiled training steps.

    Args:
        target: As for :func:`apply`.
        rule: A rule or a function of the native tensor.
        where: Which parameters; required.

    Returns:
        A :class:`Bound`; call it inside ``tf.function``, ``torch.compile`` or plain code.

    Raises:
        As :func:`apply`; all of it now, none later.

    Exactness: the rule's, also when several bound rules run in one compiled step.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"w": np.array([-2.0])}; clip = xw.bind(w, xw.Clip(-1, 1), where="w"); clip(); w["w"]
        array([-1.])
    """
    rule = as_rule(rule)
    chosen = select(open_target(target), where)
    return Bound(rule, chosen, prepare(rule, chosen, f"bind {rule!r}"))


def as_rule(rule: Rule | Callable[[Any], Any]) -> Rule:
    """Return a rule as it is, and a function as one."""
    if isinstance(rule, Rule):
        return rule
    if callable(rule) and not isinstance(rule, type):
        return Function(rule)
    raise ArgumentError(f"expected a rule or a function\ngot: {rule!r}\nFix: an instance, such as Clip(-1, 1)")


def run(target: Any, rule: Rule, *, where: WhereLike | None, call: str, default: WhereLike = DEFAULT_EDITED) -> None:
    """Do what every editing verb does: select, check everything, then edit."""
    line = bind_line(rule, default if where is None else where)
    chosen = select(open_target(target, bind_line=line), default if where is None else where)
    hold_registry.check(chosen)
    if tracing(target):
        if rule.random:
            raise UseBindError(
                f"{call} draws on the host, so a compiled step would repeat the numbers of its tracing for ever\n"
                f"Fix: outside of the step:\n    {line}\n"
                "    ... before each step: bound.draw(step)    ... in the step: bound()"
            )
        Bound(rule, chosen, prepare(rule, chosen, call))()
    else:
        execute(rule, chosen, prepare(rule, chosen, call))
    hold_registry.obey(chosen)


def bind_line(rule: Rule, where: WhereLike) -> str:
    """Return the call that does bound what a verb would do."""
    return f"bound = xweights.bind(model, {rule!r}, where={'...' if where is ... else repr(where)})"


def prepare(rule: Rule, chosen: Sequence[Parameter], call: str) -> list[tuple[Array, ...]]:
    """Return the operands for each parameter, or raise everything that is wrong; writes nothing."""
    problems = Problems(f"{call} can't be done, and nothing was changed")
    if not chosen:
        problems.add(SelectionError, "the target has no parameters at all")
    prepared: list[tuple[Array, ...]] = []
    known: dict[Any, tuple[Array, ...]] = {}
    by_dtype = rule.by_dtype
    for parameter in chosen:
        reason = parameter.storage.refusal(parameter.handle, writing=True)
        if reason is not None:
            problems.add(WriteError, f"{parameter.name!r} can't be written: {reason}")
            continue
        try:
            rule.check(parameter)
            # Random operands are as large as the weights: drawn one parameter at a time, when it is their turn.
            key = parameter.dtype if by_dtype else len(prepared)
            if key not in known:
                known[key] = () if rule.random else rule.operands(parameter)
            prepared.append(known[key])
        except XweightsError as wrong:
            problems.add(type(wrong), str(wrong))
    problems.check()
    return prepared


def execute(rule: Rule, chosen: Sequence[Parameter], prepared: Sequence[tuple[Array, ...]]) -> None:
    """Edit in eager code. Built-in rules can't fail any more; what runs foreign code is backed up."""
    foreign = is_foreign(rule)
    risky = [p for p in chosen if foreign or p.storage.fallible]
    with ExitStack() as stack:
        if not foreign:
            stack.enter_context(uninterrupted())
            # An overflow is a value like any other. Where the user has NumPy raise, it would raise halfway.
            stack.enter_context(np.errstate(all="ignore"))
        shared = rule.measure_on_host(chosen) if rule.joint else None
        prepared = detached(chosen, prepared)
        stack.enter_context(guarded(chosen))
        stack.enter_context(undone_on_error(risky))
        for position in fallible_first(chosen):
            mine = shared[position] if isinstance(shared, list) else shared
            edit_one(rule, chosen[position], prepared[position], mine)


def is_foreign(rule: Rule) -> bool:
    """Return True for code that isn't ours: it may fail halfway, and what it does may not be compiled away."""
    return type(rule).__module__.partition(".")[0] != __name__.partition(".")[0] or isinstance(rule, Function)


def fallible_first(chosen: Sequence[Parameter]) -> list[int]:
    """Return the positions with those first whose write may fail: then nothing else has been written yet."""
    return sorted(range(len(chosen)), key=lambda position: not chosen[position].storage.fallible)


def detached(chosen: Sequence[Parameter], values: Sequence[tuple[Array, ...]]) -> list[tuple[Array, ...]]:
    """Return the values with copies of those that lie in the memory of another of these parameters."""
    mine = [
        (position, value)
        for position, p in enumerate(chosen)
        for value in values[position]
        # What had to be cast is an array of our own.
        if value.shape and value.size and value.dtype == p.dtype
    ]
    # A storage that puts a new buffer in the old one's place never writes where somebody may still look.
    homes = [p for p in chosen if not getattr(p.storage, "replaces", False)]
    if not mine or len(chosen) < 2 or not homes:
        return list(values)
    at = {id(p): position for position, p in enumerate(homes)}
    placed = [(at.get(id(chosen[position]), -1), value) for position, value in mine]
    astray = strays(placed, [p.storage.read(p.handle) for p in homes])
    moved = {id(placed[position][1]) for position in astray}
    return [tuple(one.copy() if id(one) in moved else one for one in some) for some in values]


def edit_one(rule: Rule, p: Parameter, operands: tuple[Array, ...], shared: Any) -> None:
    """Edit one parameter by the quickest way: in place on the host where its memory can be seen, else by its ops."""
    leaf = p.storage.leaf(p.handle, native=isinstance(rule, Function))
    if isinstance(leaf, np.ndarray) and leaf.flags.writeable:
        w = p.layout.to_neutral(leaf)
        if rule.on_host(w, p):
            p.storage.put(p.handle, leaf, leaf)
            return
    if rule.random:
        operands = rule.operands(p)
    ops = ops_for(leaf)
    w = to_neutral(ops, leaf, p.layout)
    if shared is not None and not isinstance(leaf, np.ndarray):
        shared = ops.constant(shared, leaf)
    new = rule(w, ops, p, *[ops.constant(one, leaf) for one in operands], shared=shared)
    p.storage.put(p.handle, leaf, leaf if new is w else to_stored(ops, new, p.layout))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the checked writes inside are all done, so that it never leaves half of them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.getsignal(signal.SIGINT)
    if former is None:  # set by something that isn't Python, which couldn't be put back
        yield
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
        if waiting:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def undone_on_error(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Back up now, and restore these parameters if anything is raised inside."""
    kept = [(p, p.storage.backup(p.handle)) for p in parameters]
    try:
        yield
    except BaseException:
        with uninterrupted():
            for p, backup in kept:
                p.storage.restore(p.handle, backup)
        raise


@contextmanager
def guarded(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Enter the edit context of each framework involved, once."""
    with ExitStack() as stack:
        for storage in {id(p.storage): p.storage for p in parameters}.values():
            stack.enter_context(storage.guard())
        yield


def ops_for(leaf: Any) -> Ops:
    """Return the maths for an array: by the array's own type."""
    if isinstance(leaf, np.ndarray):
        return NUMPY_OPS
    backend = backend_for(leaf)
    if backend is None:
        raise TraceError(f"no backend knows arrays of {type(leaf).__module__}.{type(leaf).__qualname__}")
    return backend.ops(leaf)


def to_neutral(ops: Ops, leaf: Any, layout: Layout) -> Any:
    """Return the neutral view of a stored array of any framework."""
    if layout.is_identity:
        return leaf
    return ops.transpose(ops.reshape(leaf, layout.split), layout.order)


def to_stored(ops: Ops, new: Any, layout: Layout) -> Any:
    """Return a neutral array of any framework in the stored order."""
    if layout.is_identity:
        return new
    return ops.reshape(ops.transpose(new, layout.inverse), layout.stored)


class _Step:
    """One parameter of a bound rule, with everything looked up."""

    __slots__ = ("handle", "layout", "operands", "ops", "parameter", "storage")

    def __init__(self, parameter: Parameter, operands: tuple[Array, ...], random: bool) -> None:
        self.parameter = parameter
        self.storage: Storage = parameter.storage
        self.handle = parameter.handle
        self.layout = parameter.layout
        with parameter.storage.guard():
            leaf = parameter.storage.leaf(parameter.handle, native=True)
            self.ops = ops_for(leaf)
            if random:
                self.operands = (self.ops.buffer(np.zeros(parameter.shape, parameter.dtype), leaf),)
            else:
                # Copies, since the step lives on when the caller's arrays change.
                self.operands = tuple(self.ops.constant(one.copy(), leaf) for one in operands)

    def leaf_of(self) -> Any:
        with self.storage.guard():
            return self.storage.leaf(self.handle, native=True)


class Bound:
    """A rule with its parameters looked up: calling it does only array work, so a compiled step can contain it.

    Attributes:
        parameters: The parameters it edits.
        rule: The rule.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.bind({"w": np.ones(2)}, xw.Scale(0.5), where="w")
        <Bound Scale(factor=0.5) on 1 parameter>
    """

    def __init__(self, rule: Rule, chosen: Sequence[Parameter], prepared: Sequence[tuple[Array, ...]]) -> None:
        self.rule = rule
        self.parameters = tuple(chosen)
        self._steps = tuple(_Step(p, one, rule.random) for p, one in zip(chosen, prepared, strict=True))
        self._drawn = not rule.random
        self._storages = tuple({id(p.storage): p.storage for p in chosen}.values())
        self._run = self._edit_all
        if len(self._storages) == 1:
            backend = backend_for(self._steps[0].leaf_of())
            if backend is None:
                self._run = self._edit_quietly
            elif not is_foreign(rule):
                self._run = backend.compiled(self._edit_all)
        if rule.joint and len({step.ops.name for step in self._steps}) > 1:
            raise ArgumentError(
                f"{rule!r} looks at all parameters together, and these are of several frameworks\n"
                "Fix: bind one rule for each framework, or call the verb in eager code"
            )

    def __call__(self) -> None:
        """Edit the parameters now. Traceable."""
        if self.rule.random:
            self._use_draw()
        self._run()

    def _edit_quietly(self) -> None:
        with np.errstate(all="ignore"):
            self._edit_all()

    def _edit_all(self) -> None:
        for storage in self._storages:
            with storage.guard():
                self._edit(storage)

    def _edit(self, storage: Storage) -> None:
        rule = self.rule
        leaves = [step.storage.leaf(step.handle, native=True) for step in self._steps]
        ws = [to_neutral(s.ops, leaf, s.layout) for s, leaf in zip(self._steps, leaves, strict=True)]
        shared = None
        if rule.joint:
            shared = rule.measure(ws, self._steps[0].ops, self.parameters, [step.operands for step in self._steps])
        for position, step in enumerate(self._steps):
            if step.storage is not storage:
                continue
            operands = [step.ops.current(one) for one in step.operands] if rule.random else step.operands
            mine = shared[position] if isinstance(shared, list) else shared
            new = rule(ws[position], step.ops, step.parameter, *operands, shared=mine)
            if new is ws[position]:
                step.storage.put(step.handle, leaves[position], leaves[position])
            else:
                stored = to_stored(step.ops, step.ops.fence(new), step.layout)
                step.storage.put(step.handle, leaves[position], stored)

    def draw(self, step: int) -> None:
        """Draw the numbers of ``step`` on the host; call it in plain Python before each compiled step."""
        if not self.rule.random:
            raise ArgumentError(f"{self.rule!r} draws nothing\nFix: leave out .draw(...)")
        rule = self.rule.at(step)  # type: ignore[attr-defined]
        for one in self._steps:
            for buffer, value in zip(one.operands, rule.operands(one.parameter), strict=True):
                one.ops.refill(buffer, value)
        self._drawn = True

    def _use_draw(self) -> None:
        if not self._drawn:
            raise StaleDrawError(f"{self.rule!r} has no numbers for this call\nFix: bound.draw(step) before each call")
        self._drawn = False

    def __repr__(self) -> str:
        count = len(self.parameters)
        return f"<Bound {self.rule!r} on {count} parameter{'s' * (count != 1)}>"
