"""Select once, then edit from compiled steps: `bind` and `Bound`."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np

from xweights.core.agreement import Vote
from xweights.core.backend import Backend
from xweights.core.dispatch import ops_for, to_neutral, to_stored
from xweights.core.dtypes import Array
from xweights.core.mappings import replaceable_entries
from xweights.core.parameter import Parameter
from xweights.core.protocols import Storage
from xweights.core.registry import backend_for
from xweights.core.selection import WhereLike, select
from xweights.core.targets import open_target, watch_places
from xweights.edit.execute import as_rule, prepare
from xweights.edit.grouped import BoundGroups, bind_groups
from xweights.edit.shards import has_shards, prepare_blocks
from xweights.errors import ArgumentError, Problems, StaleDrawError, WriteError
from xweights.rules.base import Rule, is_foreign


def bind(target: Any, rule: Rule | Callable[[Any], Any], *, where: WhereLike) -> Bound:
    """Select now, in plain Python, and return a function that does only array work, for compiled training steps.

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
    everything = open_target(target)
    if has_shards(everything):
        return _bind_blocks(rule, everything, where)
    chosen = select(everything, where)
    bound = Bound(rule, chosen, prepare(rule, chosen, f"bind {rule!r}"))
    handles = {id(p.handle) for p in chosen}
    bound._places = [place for place in replaceable_entries(target) if id(place[2]) in handles]
    bound._watches = watch_places(target, chosen)
    return bound


def _bind_blocks(rule: Rule, everything: Sequence[Parameter], where: WhereLike) -> Bound:
    """Bind a rule to this rank's blocks, so that its calls need no other rank."""
    with Vote(everything, "bind", writing=True) as vote:
        vote.agree(repr(rule), rule)
        chosen = vote.open(select(vote.open_all(everything), where), copies=True)
        blocks = prepare_blocks(rule, chosen, f"bind {rule!r}")
        problems = Problems(f"bind {rule!r} can't be done, and nothing was changed")
        for block in blocks:
            is_part = block.shard is not None and not block.shard.is_whole
            if is_part and (block.rule is None or rule.random or rule.joint):
                assert block.shard is not None
                problems.add(
                    WriteError,
                    f"{block.p.name!r}: it looks at more than this rank has of it: {block.shard.label}",
                    fix="call the verb between steps, on every rank",
                )
        problems.check()
        return Bound(
            rule,
            [block.local for block in blocks],
            [block.operands for block in blocks],
            [block.rule or rule for block in blocks],
        )


class _BoundParameter:
    """One parameter of a bound rule, with storage, ops and operands looked up."""

    __slots__ = ("handle", "layout", "operands", "ops", "parameter", "storage")

    def __init__(self, parameter: Parameter, operands: tuple[Array, ...], random: bool) -> None:
        self.parameter = parameter
        self.storage: Storage = parameter.storage
        self.handle = parameter.handle
        self.layout = parameter.layout
        with parameter.storage.guard():
            native = parameter.native(tensor=True)
            self.ops = ops_for(native)
            if random:
                self.operands = (self.ops.buffer(np.zeros(parameter.shape, parameter.dtype), native),)
            else:
                # Copies, since the caller's arrays may change later.
                self.operands = tuple(self.ops.constant(value.copy(), native) for value in operands)

    def native_array(self) -> Any:
        with self.storage.guard():
            return self.storage.native_array(self.handle, tensor=True)


class Bound:
    """A rule with its parameters looked up: a call does only array work, so a compiled step can contain it.

    Attributes:
        parameters: The parameters it edits.
        rule: The rule.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.bind({"w": np.ones(2)}, xw.Scale(0.5), where="w")
        <Bound Scale(factor=0.5) on 1 parameter>
    """

    def __init__(
        self,
        rule: Rule,
        chosen: Sequence[Parameter],
        prepared: Sequence[tuple[Array, ...]],
        rules: Sequence[Rule] | None = None,
    ) -> None:
        self.rule = rule
        self._rules = [rule] * len(chosen) if rules is None else list(rules)
        self.parameters = tuple(chosen)
        self._steps = tuple(
            _BoundParameter(p, operands, rule.random) for p, operands in zip(chosen, prepared, strict=True)
        )
        # The entries of mappings at which the arrays are: `weights["b"] = other` replaces the array itself.
        self._places: list[tuple[MutableMapping[str, Any], str, Any]] = []
        # Functions that name the parameters that were replaced in modules.
        self._watches: list[Callable[[], list[str]]] = []
        self._drawn = not rule.random
        self._storages = tuple({id(p.storage): p.storage for p in chosen}.values())
        self._backend: Backend | None = None
        self._groups: BoundGroups | None = None if rules is not None else bind_groups(rule, chosen, prepared)
        self._run = self._edit_all if self._groups is None else self._edit_groups
        if len(self._storages) == 1:
            backend = self._backend = backend_for(self._steps[0].native_array())
            if backend is None:
                self._run = self._edit_quietly if self._groups is None else self._edit_groups
            elif not is_foreign(rule):
                # What a backend compiles is traced, and has the arrays one by one; until then they go in groups.
                self._run = backend.compiled(self._run)
        if rule.joint and len({step.ops.name for step in self._steps}) > 1:
            raise ArgumentError(
                f"{rule!r} looks at all parameters together, and these are of several frameworks\n"
                "Fix: bind one rule for each framework, or call the verb in eager code"
            )

    def __call__(self) -> None:
        """Edit the parameters now. Traceable."""
        if (self._places or self._watches) and (self._backend is None or self._backend.tracing() == "no"):
            self._check_places()
        if self.rule.random:
            self._use_draw()
        self._run()

    def _check_places(self) -> None:
        problems = Problems("what was bound can't be done any more, and nothing was changed")
        replaced = [key for mapping, key, array in self._places if mapping.get(key) is not array]
        replaced += [name for watch in self._watches for name in watch()]
        for name in dict.fromkeys(replaced):
            problems.add(WriteError, f"{name!r} was replaced since it was bound", fix="bind again")
        problems.check()

    def _edit_groups(self) -> None:
        # In a compiled step this is a constant, and the other way is traced.
        if self._backend is None or self._backend.tracing() == "no":
            assert self._groups is not None
            self._groups()
        else:
            self._edit_all()

    def _edit_quietly(self) -> None:
        with np.errstate(all="ignore"):
            self._edit_all()

    def _edit_all(self) -> None:
        for storage in self._storages:
            with storage.guard():
                self._edit(storage)

    def _edit(self, storage: Storage) -> None:
        rule = self.rule
        natives = [step.storage.native_array(step.handle, tensor=True) for step in self._steps]
        ws = [to_neutral(s.ops, native, s.layout) for s, native in zip(self._steps, natives, strict=True)]
        shared = None
        if rule.joint:
            shared = rule.measure(ws, self._steps[0].ops, self.parameters, [step.operands for step in self._steps])
        for position, step in enumerate(self._steps):
            if step.storage is not storage:
                continue
            operands = [step.ops.current(buffer) for buffer in step.operands] if rule.random else step.operands
            own_share = shared[position] if isinstance(shared, list) else shared
            new = self._rules[position](ws[position], step.ops, step.parameter, *operands, shared=own_share)
            if new is ws[position]:
                step.storage.commit(step.handle, natives[position], natives[position])
            else:
                stored = to_stored(step.ops, step.ops.fence(new), step.layout)
                step.storage.commit(step.handle, natives[position], stored)

    def draw(self, step: int) -> None:
        """Draw the numbers of ``step`` on the host; to be called in plain Python before each compiled step."""
        if not self.rule.random:
            raise ArgumentError(f"{self.rule!r} draws nothing\nFix: leave out .draw(...)")
        rule = self.rule.at(step)  # type: ignore[attr-defined]
        for bound_step in self._steps:
            for buffer, value in zip(bound_step.operands, rule.operands(bound_step.parameter), strict=True):
                bound_step.ops.refill(buffer, value)
        self._drawn = True

    def _use_draw(self) -> None:
        if not self._drawn:
            raise StaleDrawError(f"{self.rule!r} has no numbers for this call\nFix: bound.draw(step) before each call")
        self._drawn = False

    def __repr__(self) -> str:
        count = len(self.parameters)
        return f"<Bound {self.rule!r} on {count} parameter{'s' * (count != 1)}>"
