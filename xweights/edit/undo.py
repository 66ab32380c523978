"""Undo: restore exactly the same bits, whoever wrote in between, and what was attached to training."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from xweights.core import attachments, hold_registry
from xweights.core.agreement import Outcome, Vote, group_of, is_voted
from xweights.core.mappings import replaceable_entries
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike, select
from xweights.core.targets import open_eagerly
from xweights.edit.guards import alone, defer_interrupts, enter_guards, keys_of
from xweights.edit.read import check_readable
from xweights.errors import HoldError, Problems, TraceError, XweightsError

if TYPE_CHECKING:
    from typing import Self  # Python 3.11


class Snapshot:
    """The values and trainable flags of parameters at one moment, and what xweights had attached to their training.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.zeros(1)}; before = xw.snapshot(w); xw.fill(w, 1.0); before.restore(); w["b"]
        array([0.])
    """

    def __init__(
        self, parameters: list[Parameter], places: Sequence[tuple[MutableMapping[str, Any], str, Any]] = ()
    ) -> None:
        self.parameters = tuple(parameters)
        handles = {id(p.handle) for p in parameters}
        self._places = [entry for entry in places if id(entry[2]) in handles]
        self._kept = [(p, p.backup(), p.trainable) for p in parameters]
        hold_registry.refresh()
        self._owners = [hold_registry.owners(p) for p in parameters]
        self._attached = [(handle, handle.remember()) for handle in attachments.handles_on(parameters)]

    def restore(self, *, release: bool = False) -> None:
        """Write everything back, bit for bit, trainable flags included. Can be called again.

        Holds, freezes, learning-rate factors and averages are as they were, too: a released one is attached again, a
        schedule is at the step and has the masks of then, averages have the values and counts of then.

        Args:
            release: What was attached since then: False, it stays, and its rules are true of the restored values, as
                when weights are rewound under a mask; True, it is released.

        On a sharded model every rank makes this call, and restores its own blocks.
        Raises HoldError if something can't be attached again; all else is restored then.
        """
        with Vote(self.parameters, "restore", writing=True) as vote:
            vote.open(self.parameters)
        self.write_back(release=release)

    def write_back(self, *, release: bool) -> None:
        """Restore what this rank has, without asking the others: they do the same."""
        problems = Problems("the values were restored, and not all that was attached to their training")
        if release:
            former = [handle for handle, _ in self._attached]
            for handle in reversed(attachments.handles_on(self.parameters)):
                if all(handle is not known for known in former):
                    handle.withdraw(self.parameters)
        for handle, attach_again in self._attached:
            try:
                attach_again()
            except XweightsError as wrong:
                problems.add(HoldError, f"{handle!r}: {wrong}")
        hold_registry.refresh()
        for p, owners in zip(self.parameters, self._owners, strict=True):
            hold_registry.arrange(p, owners)
        with alone(keys_of(self.parameters)), enter_guards(self.parameters), defer_interrupts():
            for p, backup, trainable in self._kept:
                p.restore(backup)
                if p.trainable != trainable:
                    p.set_trainable(trainable)
            # `weights["b"] = other` replaces the array itself.
            for mapping, key, value in self._places:
                if mapping.get(key) is not value:
                    mapping[key] = value
        # Rules that were held then are true of these values; applying a norm again could change a last bit.
        owners_then = zip(self.parameters, self._owners, strict=True)
        hold_registry.reapply([p for p, owners in owners_then if hold_registry.owners(p) != owners])
        hold_registry.note_write(self.parameters)
        problems.check()

    def __repr__(self) -> str:
        count = len(self.parameters)
        return f"<Snapshot of {count} parameter{'s' * (count != 1)}>"


def snapshot(target: Any, *, where: WhereLike = ...) -> Snapshot:
    """Remember the values and trainable flags of the selected parameters, and what is attached to their training.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        where: Default: all.

    Exact: bits, -0.0 and NaN payloads included. By reference where the framework replaces buffers, else by copy.
    Raises TargetError, SelectionError, TraceError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> xw.snapshot({"b": np.zeros(1)})
        <Snapshot of 1 parameter>
    """
    everything = open_eagerly(
        target, TraceError("a snapshot can't be taken inside a compiled step\nFix: take it before the step")
    )
    with Vote(everything, "snapshot", writing=False) as vote:
        chosen = vote.open(select(everything, where))
        check_readable(chosen)
    return Snapshot(chosen, replaceable_entries(target))


class Transaction:
    """The context of ``with transaction(target) as tx``: ``tx.rollback()`` undoes everything since the beginning.

    What was attached to training since then is released, what was released is attached again.
    """

    def __init__(self, target: Any, where: WhereLike) -> None:
        self._target, self._where = target, where
        self._snapshots: list[Snapshot] = []  # one for each time it was entered

    def __enter__(self) -> Self:
        self._snapshots.append(snapshot(self._target, where=self._where))
        return self

    def rollback(self) -> None:
        """Restore the state at the beginning of the block; the block goes on."""
        if not self._snapshots:
            raise TraceError("this transaction has not begun\nFix: with transaction(target) as tx: ... tx.rollback()")
        self._snapshots[-1].restore(release=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = self._snapshots.pop()
        if error is None or not is_voted(error):
            try:
                # If the block failed on one rank, it failed on all.
                Outcome(group_of(before.parameters)).settle(error)
            except BaseException:
                before.write_back(release=True)
                raise
        if kind is not None:
            before.write_back(release=True)


def transaction(target: Any, *, where: WhereLike = ...) -> Transaction:
    """Make a block all or nothing: an exception restores values and trainable flags, also after your own writes.

    So it does with holds, freezes, learning-rate factors and averages: one that began in the block is released, one
    that was released there is attached again, schedules and averages are where they were.

    Args:
        target: Model, layer, module, variable, mapping of arrays, or a list of these.
        where: Default: all.

    Exact. Raises TargetError, SelectionError.

    Example:
        >>> import numpy as np, xweights as xw
        >>> w = {"b": np.zeros(1)}
        >>> with xw.transaction(w) as tx:
        ...     w["b"][:] = 1.0
        ...     tx.rollback()
        >>> w["b"]
        array([0.])
    """
    return Transaction(target, where)
