"""Undo: restore exactly the same bits, whoever wrote in between."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from types import TracebackType
from typing import Any, Self

from xweights.core import hold_registry
from xweights.core.mappings import replaceable_entries
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike, select
from xweights.core.targets import open_eagerly
from xweights.edit.guards import defer_interrupts, enter_guards
from xweights.edit.read import check_readable
from xweights.errors import TraceError


class Snapshot:
    """The values and trainable flags of parameters at one moment.

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

    def restore(self) -> None:
        """Write everything back, bit for bit, trainable flags included. Can be called again."""
        with enter_guards(self.parameters), defer_interrupts():
            for p, backup, trainable in self._kept:
                p.restore(backup)
                if p.trainable != trainable:
                    p.set_trainable(trainable)
            # `weights["b"] = other` replaces the array itself.
            for mapping, key, value in self._places:
                if mapping.get(key) is not value:
                    mapping[key] = value
        hold_registry.reapply(self.parameters)

    def __repr__(self) -> str:
        count = len(self.parameters)
        return f"<Snapshot of {count} parameter{'s' * (count != 1)}>"


def snapshot(target: Any, *, where: WhereLike = ...) -> Snapshot:
    """Remember the values and trainable flags of the selected parameters.

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
    chosen = select(everything, where)
    check_readable(chosen)
    return Snapshot(chosen, replaceable_entries(target))


class Transaction:
    """The context of ``with transaction(target) as tx``: ``tx.rollback()`` undoes everything since the beginning."""

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
        self._snapshots[-1].restore()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = self._snapshots.pop()
        if kind is not None:
            before.restore()


def transaction(target: Any, *, where: WhereLike = ...) -> Transaction:
    """Make a block all or nothing: an exception restores values and trainable flags, also after your own writes.

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
