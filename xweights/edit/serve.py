"""Run a piece of work on one rank, while the others send it the blocks that it reads, and take those that it writes.

The rank that works may read and write in any order, several times or never: before each it says which parameter it
means, so that all take part in the same collective. One whole parameter at a time is in its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from xweights.core.agreement import Outcome, is_voted, shard_of
from xweights.core.dtypes import Array
from xweights.core.groups import Group
from xweights.core.parameter import Parameter
from xweights.core.protocols import BaseStorage
from xweights.edit.shards import local_parameter

DONE = -1
# The worker wants a piece of work from every rank.
JOIN = -2
WORKER = 0


class ServedStorage(BaseStorage):
    """Storage of a parameter that one rank reads whole; ``write`` is None if nobody writes it."""

    fresh = True
    # No value shares the memory of what is served, and to read it to find out would be a collective.
    replaces = True

    def __init__(self, p: Parameter, read: Callable[[], Array], write: Callable[[Array], None] | None = None) -> None:
        self._p, self._read, self._write = p, read, write

    def identity(self, handle: Any) -> Hashable:
        return self._p.identity()

    def refusal(self, handle: Any, *, writing: bool) -> str | None:
        return self._p.refusal(writing=True) if self._write else "it is only read here" if writing else None

    def trainable(self, handle: Any) -> bool:
        return self._p.trainable

    def read(self, handle: Any) -> Array:
        return self._read()

    def write(self, handle: Any, value: Array) -> None:
        assert self._write is not None
        self._write(value)

    def native_array(self, handle: Any, *, tensor: bool = False) -> Any:
        return self._read()

    def commit(self, handle: Any, native: Any, value: Any) -> None:
        self.write(handle, value)

    def guard(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def backup(self, handle: Any) -> Any:
        return None  # what was written is undone on all ranks together

    def restore(self, handle: Any, kept: Any) -> None:
        pass


def work_on_one_rank(
    group: Group | None,
    chosen: Sequence[Parameter],
    work: Callable[[list[Parameter]], None],
    join: Callable[[], None] | None = None,
) -> None:
    """Call ``work`` with parameters to read on the first rank of the group; if it raises, all ranks do.

    ``join`` is what the others do when the first announces JOIN.
    """
    if group is None:
        work(list(chosen))
        return
    if group.rank != WORKER:
        while (wanted := announce(group, DONE)) != DONE:
            if wanted != JOIN:
                join_read(group, chosen[wanted])
            elif join is not None:
                join()
        Outcome(group).settle(None)
        return
    served = [
        p.replace(storage=ServedStorage(p, reader_of(group, chosen, position))) for position, p in enumerate(chosen)
    ]
    try:
        work(served)
    except BaseException as error:
        if is_voted(error):
            raise  # the others know of it, and wait for nothing any more
        announce(group, DONE)
        Outcome(group).settle(error)
        raise
    announce(group, DONE)
    Outcome(group).settle(None)


def announce(group: Group, wanted: int, worker: int = WORKER) -> int:
    """Return which parameter the worker wants; only its own word counts."""
    return int(group.all_gather(np.array([wanted], np.int64))[worker][0])


def reader_of(group: Group, chosen: Sequence[Parameter], position: int, worker: int = WORKER) -> Callable[[], Array]:
    """Return what reads one whole parameter on the worker, with a collective where other ranks have blocks of it."""

    def read() -> Array:
        p = chosen[position]
        shard = shard_of(p)
        if shard is None or shard.is_whole:
            return (p if shard is None else local_parameter(p, shard)).read().copy(order="K")
        announce(group, position, worker)
        whole = join_read(group, p, worker)
        assert whole is not None
        return whole

    return read


def join_read(group: Group, p: Parameter, worker: int = WORKER) -> Array | None:
    """Return the whole array on the worker; the ranks whose blocks it needs send them, others do nothing."""
    shard = shard_of(p)
    assert shard is not None
    holders = list(shard.holders.ranks)
    rank = group.ranks[worker]
    return shard.gather_to(local_parameter(p, shard).read(), holders.index(rank)) if rank in holders else None
