"""Shards, votes and owners without any framework: ranks are threads here."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xweights.core.agreement import Outcome, Vote, exchange_texts
from xweights.core.digests import digest_of
from xweights.core.groups import SINGLE, join_rank, split_rank
from xweights.core.layout import layout_of, plain_layout
from xweights.core.shards import Shard
from xweights.errors import RankError, ShapeError
from xweights.rules.entries import SetEntries, placeholder_parameter
from xweights.rules.shards import cut_rule


class ThreadGroup:
    """A group whose ranks are threads of one process."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ranks: Sequence[int] = range(size)
        self._local = threading.local()
        self._barrier = threading.Barrier(size, timeout=10)
        self._slots: list[Any] = [None] * size

    @property
    def rank(self) -> int:
        return int(self._local.rank)

    def all_gather(self, array: Any) -> list[Any]:
        self._barrier.wait()
        self._slots[self.rank] = array.copy()
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def run(self, function: Any) -> list[Any]:
        def on(rank: int) -> Any:
            self._local.rank = rank
            try:
                return function(rank)
            except Exception as error:  # noqa: BLE001 - the tests look at it
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(on, range(self.size)))


def vote(group: Any, call: str = "scale") -> Vote:
    found = Vote((), call, writing=True)
    found.group = group
    return found


def test_ranks_that_agree_go_on():
    group = ThreadGroup(3)

    def call(rank: int) -> str:
        with vote(group) as found:
            found.agree("2.0", 2.0, np.ones(3))
        return "done"

    assert group.run(call) == ["done"] * 3


def test_ranks_with_other_arguments_raise_what_each_has():
    group = ThreadGroup(3)

    def call(rank: int) -> None:
        with vote(group) as found:
            found.agree(f"factor {rank // 2}", rank // 2)

    errors = group.run(call)
    assert all(isinstance(error, RankError) for error in errors)
    assert "ranks 0, 1: factor 0" in str(errors[0])
    assert "rank 2: factor 1" in str(errors[0])
    assert len({str(error) for error in errors}) == 1


def test_one_rank_that_refuses_raises_on_all_with_its_number():
    group = ThreadGroup(3)

    def call(rank: int) -> None:
        with vote(group):
            if rank == 1:
                raise ShapeError("two axes\nexpected: three")

    errors = group.run(call)
    assert all(isinstance(error, ShapeError) for error in errors)
    assert {str(error) for error in errors} == {"on rank 1: two axes\nexpected: three"}


def test_what_all_ranks_refuse_alike_stays_as_it_is():
    group = ThreadGroup(2)

    def call(rank: int) -> None:
        with vote(group):
            raise ShapeError("no")

    assert [str(error) for error in group.run(call)] == ["no", "no"]


def test_an_outcome_that_failed_on_one_rank_fails_on_all():
    group = ThreadGroup(2)

    def call(rank: int) -> None:
        with Outcome(group):
            if rank:
                raise KeyError("x")

    first, second = group.run(call)
    assert isinstance(first, RankError)
    assert "rank 1: KeyError" in str(first)
    assert isinstance(second, KeyError)


def test_texts_of_any_length_are_exchanged():
    group = ThreadGroup(3)
    assert group.run(lambda rank: exchange_texts(group, "é" * rank))[0] == ["", "é", "éé"]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_a_rank_and_its_coordinates_are_one_to_one(sizes, data):
    rank = data.draw(st.integers(0, int(np.prod(sizes)) - 1))
    assert join_rank(split_rank(rank, sizes), sizes) == rank


def test_digests_tell_values_apart_and_know_no_addresses():
    class Anything:
        pass

    values = [
        0,
        0.0,
        False,
        None,
        "0",
        np.zeros(3),
        np.zeros(3, np.float32),
        np.zeros((3, 1)),
        {"a": 1},
        {"b": 1},
        (0,),
    ]
    assert len({digest_of(value) for value in values}) == len(values)
    assert digest_of(Anything()) == digest_of(Anything())
    assert digest_of(np.ones((2, 3)).T) == digest_of(np.ones((3, 2)))
    changed = np.zeros(1 << 19, np.float32)
    changed[-1] = -0.0
    assert digest_of(changed) != digest_of(np.zeros(1 << 19, np.float32))


LAYOUTS = {
    "dense": layout_of("out in -> in out", (6, 4)),
    "depthwise": layout_of("(in mult) 1 h w -> h w in mult", (8, 1, 3, 3), mult=2),
    "heads": layout_of("(qkv head key) in -> in qkv head key", (24, 8), qkv=3, head=2),
    "plain": plain_layout((7,)),
}


def shards_of(layout: Any, size: int) -> list[Shard]:
    """Return the shards of ranks that split the first stored axis evenly, as torch does."""
    rows = layout.stored[0]
    step = -(-rows // size)
    rest = tuple((0, n) for n in layout.stored[1:])

    def ranges_of(rank: int) -> Any:
        return ((min(rank * step, rows), min((rank + 1) * step, rows)), *rest)

    group = ThreadGroup(size)
    groups = (group, *[SINGLE] * len(rest))
    return [Shard(layout, ranges_of(rank), group, group, groups, ranges_of) for rank in range(size)]


@pytest.mark.parametrize(("name", "size"), list(product(LAYOUTS, [2, 3, 5])))
def test_the_cuts_of_all_ranks_are_the_whole_array(name, size):
    layout = LAYOUTS[name]
    stored = np.arange(np.prod(layout.stored), dtype=np.float32).reshape(layout.stored)
    shards = shards_of(layout, size)
    blocks = [shard.cut_stored(stored) for shard in shards]
    wholes = shards[0].holders.run(lambda rank: shards[rank].gather(blocks[rank]))  # type: ignore[attr-defined]
    for whole in wholes:
        assert np.array_equal(whole, stored)
    for shard, block in zip(shards, blocks, strict=True):
        if shard.ranges is not None:
            assert np.array_equal(shard.cut(layout.to_neutral(stored)), shard.local_layout.to_neutral(block))


def test_all_ranks_agree_whether_their_parts_are_blocks_of_the_axes():
    # A head ends within the first of three parts, and not within the last.
    shards = shards_of(LAYOUTS["heads"], 5)
    assert {shard.ranges is None for shard in shards} == {True}
    assert shards_of(LAYOUTS["heads"], 3)[0].ranges == ((0, 8), (0, 1), (0, 2), (0, 4))


INDEX = st.one_of(st.integers(-7, 6), st.slices(7).filter(lambda cut: len(range(*cut.indices(7))) > 0))


@given(INDEX, st.integers(1, 7), st.integers(0, 3))
def test_entries_by_global_index_are_those_of_the_whole_array(index, step, seed):
    p = placeholder_parameter("w", (7, 3), np.dtype(np.float32))
    rule = SetEntries((index,), np.random.default_rng(seed).random(3).astype(np.float32))
    expected = np.zeros((7, 3), np.float32)
    expected[index] = rule.value
    found = []
    for first in range(0, 7, step):
        ranges = ((first, min(first + step, 7)), (0, 3))
        shard = Shard(p.layout, ranges, SINGLE, ThreadGroup(2), (SINGLE, SINGLE), lambda _, own=ranges: own)
        cut = cut_rule(rule, p, shard, rule.operands(p))
        assert cut is not None
        local, operands = cut
        from xweights.core.dispatch import NUMPY_OPS

        block = p.replace(layout=shard.local_layout)
        found.append(local(np.zeros(shard.shape, np.float32), NUMPY_OPS, block, *operands))
    assert np.array_equal(np.concatenate(found), expected)
