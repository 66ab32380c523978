"""Write values that one rank has into parameters that several ranks hold.

The rank with the values makes the whole call; the others take their blocks of each parameter that it writes. What each
rank overwrites is kept until all of them are done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xweights.core import hold_registry
from xweights.core.agreement import Outcome, Vote, shard_of
from xweights.core.dtypes import Array
from xweights.core.groups import SINGLE, Group
from xweights.core.parameter import Parameter
from xweights.core.selection import WhereLike, select
from xweights.core.shards import Ranges, pad_bytes
from xweights.core.targets import open_target
from xweights.edit.guards import defer_interrupts, enter_guards
from xweights.edit.load_report import LoadReport
from xweights.edit.serve import DONE, ServedStorage, announce, join_read, reader_of
from xweights.edit.shards import local_parameter
from xweights.errors import ArgumentError, got_expected

SetAll = Callable[[list[Parameter]], LoadReport]


def set_params_on(target: Any, on_rank: int, where: WhereLike, set_all: SetAll, *options: Any) -> LoadReport:
    """Call ``set_all`` with all parameters on one rank, and write what it writes on all ranks, or nothing on any.

    ``options`` are the arguments that have to be the same on every rank. The report of the other ranks has the names
    alone.
    """
    if isinstance(on_rank, bool) or not isinstance(on_rank, int):
        raise ArgumentError(f'on_rank= is the number of a rank, or "all"\ngot: {on_rank!r}')
    everything = open_target(target)
    with Vote(everything, "set_params", writing=True) as vote:
        group = vote.group or SINGLE
        vote.agree(f"on_rank={on_rank}", on_rank, *options)
        everything = vote.open_all(everything)
        chosen = vote.open(select(everything, where))
        hold_registry.check(chosen)
        if on_rank not in group.ranks:
            expected = f"one of the ranks that hold the model: {', '.join(map(str, group.ranks[:16]))}"
            raise ArgumentError(f"on_rank= is no rank of this model\n{got_expected(on_rank, expected)}")
    if vote.group is None:
        return set_all(everything)
    return _Scattering(group, list(group.ranks).index(on_rank), everything).run(set_all, chosen)


class _Scattering:
    """The writes of one rank, in which all ranks take part."""

    def __init__(self, group: Group, worker: int, everything: Sequence[Parameter]) -> None:
        self.group, self.worker, self.everything = group, worker, everything
        self.blocks = [self._block_of(p) for p in everything]
        self.ranges = self._gather_ranges()
        self.kept: dict[int, Any] = {}

    @property
    def is_here(self) -> bool:
        """True on the rank that has the values."""
        return self.group.rank == self.worker

    def run(self, set_all: SetAll, chosen: Sequence[Parameter]) -> LoadReport:
        """Write, or raise on all ranks what the one with the values found, with every block as it was."""
        report: LoadReport | None = None
        try:
            with enter_guards(self.blocks):
                if self.is_here:
                    report = self._lead(set_all)
                else:
                    self._follow()
        except BaseException:
            with defer_interrupts():
                for position, backup in self.kept.items():
                    self.blocks[position].restore(backup)
            raise
        if report is None:
            hold_registry.reapply(chosen)
            written = {self.everything[position].name: () for position in self.kept}
            report = LoadReport(f"the values of rank {self.group.ranks[self.worker]}", taken=written)
        return report

    def _lead(self, set_all: SetAll) -> LoadReport:
        served = [
            p.replace(
                storage=ServedStorage(
                    p, reader_of(self.group, self.everything, position, self.worker), self._writer(position)
                )
            )
            for position, p in enumerate(self.everything)
        ]
        try:
            report = set_all(served)
        except BaseException as error:
            self._announce(DONE)
            Outcome(self.group).settle(error)
            raise
        self._announce(DONE)
        Outcome(self.group).settle(None)
        return report

    def _follow(self) -> None:
        count = len(self.everything)
        while (wanted := self._announce(DONE)) != DONE:
            if wanted < count:
                join_read(self.group, self.everything[wanted], self.worker)
            else:
                self._take(wanted - count, None)
        Outcome(self.group).settle(None)

    def _announce(self, wanted: int) -> int:
        return announce(self.group, wanted, self.worker)

    def _writer(self, position: int) -> Callable[[Array], None]:
        def write(value: Array) -> None:
            self._announce(len(self.everything) + position)
            self._take(position, value)

        return write

    def _take(self, position: int, whole: Array | None) -> None:
        """Write this rank's block of an array, in stored order, that one rank has."""
        block = self.blocks[position]
        sizes = [math.prod(last - first for first, last in ranges[position]) for ranges in self.ranges]
        most = max(sizes) * block.dtype.itemsize
        parts = None
        if whole is not None:
            parts = [pad_bytes(whole[tuple(slice(*own) for own in ranges[position])], most) for ranges in self.ranges]
        raw = self.group.scatter(parts, np.empty(most, np.uint8), self.worker)
        if position not in self.kept:
            self.kept[position] = block.backup()
        size = sizes[self.group.rank] * block.dtype.itemsize
        block.write(raw[:size].view(block.dtype).reshape(block.layout.stored))

    def _block_of(self, p: Parameter) -> Parameter:
        shard = shard_of(p)
        return p if shard is None else local_parameter(p, shard)

    def _gather_ranges(self) -> list[list[Ranges]]:
        """Return for each rank the stored ranges of each parameter: one collective."""
        own: list[int] = []
        for p in self.everything:
            shard = shard_of(p)
            ranges = tuple((0, length) for length in p.layout.stored) if shard is None else shard.stored
            own += [end for span in ranges for end in span]
        return [self._split(numbers.tolist()) for numbers in self.group.all_gather(np.array(own, np.int64))]

    def _split(self, numbers: Sequence[int]) -> list[Ranges]:
        pairs = iter(zip(numbers[::2], numbers[1::2], strict=True))
        return [tuple(next(pairs) for _ in p.layout.stored) for p in self.everything]
