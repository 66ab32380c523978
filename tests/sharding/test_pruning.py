"""Pruning held while training goes on, on shards: the masks of one process after every step."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("torch", reason="the worlds are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import torch
from counting import Counting
from ranks import caught, check_that_all_raised, run_ranks
from worlds import WORLDS, blocks, shard, small

import xweights as xw
from xweights.errors import XweightsError

UP = "up/kernel"
HELD: dict[str, dict[str, Any]] = {
    "at once": {"fraction": 0.5, "hold": True},
    "cubic": {"fraction": 0.6, "schedule": xw.Cubic(0, 4, every=2)},
    "of all together": {"fraction": 0.7, "scope": "global", "schedule": xw.Polynomial(1, 3)},
    "units": {"fraction": 0.5, "per": "out", "where": "*/kernel", "schedule": xw.Constant(1)},
    "a count, later": {"count": 9, "schedule": xw.OneShot(2)},
    "2 of 4": {"pattern": (2, 4, "in"), "where": UP, "hold": True},
    "a threshold": {"threshold": 0.2, "hold": True},
    "everything": {"fraction": 0.9, "scope": "global", "where": ..., "schedule": xw.Constant(0, 4, every=3)},
}

# Those that are held once more beside frozen entries: in shares, by units, and of gathered arrays.
WITH_FROZEN = ("of all together", "units", "2 of 4")


def step(model: Any, optimizer: Any, number: int) -> None:
    """Step with gradients that are the same numbers in every world."""
    for position, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, 0.5 + position - 2 * number)
    optimizer.step()


def run_all(rank: int, world: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, options in HELD.items():
        for frozen in (False, True) if name in WITH_FROZEN else (False,):
            model = small() if world is None else shard(small(), world)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
            if frozen:
                xw.freeze(model, where=UP, entries=(slice(0, 2),), optimizer=optimizer)
            try:
                held = xw.prune(model, optimizer=optimizer, **options)
            except XweightsError as error:
                found[name, frozen] = "wants to prune what is frozen" in str(error)
                continue
            for number in range(5):
                step(model, optimizer, number)
                found[name, frozen, number] = xw.get_params(model)
            held.check()
            xw.add(model, 1.0)
            found[name, frozen, "after a write"] = xw.get_params(model)
            held.release()
    return found


@pytest.mark.parametrize(
    "world", ["fsdp2-2", *(pytest.param(w, marks=pytest.mark.thorough) for w in ("ddp-2", "tp-2", "2d-4", "fsdp2-4"))]
)
def test_pruned_training_has_the_bits_of_one_process(world):
    expected = run_all(0, None)
    for answer in run_ranks(WORLDS[world], run_all, world):
        wrong = [
            key
            for key, value in expected.items()
            if (answer[key] != value if isinstance(value, bool) else not xw.equal(answer[key], value))
        ]
        assert not wrong
        assert set(answer) == set(expected)


def disagree(rank: int) -> dict[str, Any]:
    model = shard(small(), "fsdp2-2")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    stranger = torch.optim.SGD(small().parameters(), lr=0.1)
    before = [block.clone() for block in blocks(model)]
    here = rank == 1
    found = {
        "another schedule": caught(lambda: xw.prune(model, fraction=0.5, schedule=xw.Cubic(0, 7 if here else 9))),
        "another share": caught(lambda: xw.prune(model, fraction=0.5 if here else 0.6, hold=True)),
        "a stranger": caught(
            lambda: xw.prune(model, fraction=0.5, hold=True, optimizer=stranger if here else optimizer)
        ),
        "no amount": caught(lambda: xw.prune(model, threshold=0.5, schedule=xw.Cubic(0, 7))),
    }
    found["unchanged"] = all(map(torch.equal, blocks(model), before))
    counting = Counting()
    held = xw.prune(model, fraction=0.5, scope="global", schedule=xw.Cubic(0, 4, every=2), optimizer=optimizer)
    for number in range(6):
        counting.calls.clear()
        step(model, optimizer, number)
        found["collectives of step", number + 1] = len(counting.calls)
    found["masks"] = all(
        mask.shape == tuple(hi - lo for lo, hi in p.shard.ranges) and mask.any()
        for p, mask in ((p, held.masks[p.name]) for p in xw.parameters(model) if p.name in held.masks)
        if p.shard.size
    )
    kept = [block.clone() for block in blocks(model)]
    with xw.transaction(model) as block:
        for number in range(2):
            step(model, optimizer, number)
        block.rollback()
    found["undone"] = all(map(torch.equal, blocks(model), kept)) and held.step == 6
    held.release()
    held = xw.prune(model, fraction=0.5, schedule=xw.Constant(1), optimizer=optimizer)
    if here:
        blocks(model)[0][0] = float("nan")
    found["NaN in a step"] = caught(lambda: step(model, optimizer, 0))
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_ranks(2, disagree)


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("another schedule", "RankError", "arguments of prune"),
        ("another share", "RankError", "arguments of prune"),
        ("a stranger", "HoldError", "on rank 1: this optimizer can't keep the hold"),
        ("no amount", "ArgumentError", "needs fraction= or count="),
        ("NaN in a step", "NonfiniteError", "on rank 1: prune can't be done"),
    ],
)
def test_all_ranks_raise_the_same_error_for(what, kind, text, found):
    check_that_all_raised(found, what, kind, text)


def test_a_refused_pruning_changes_and_holds_nothing(found):
    assert all(answer["unchanged"] for answer in found)


def test_only_steps_in_which_masks_grow_make_collectives(found):
    for answer in found:
        counts = [answer["collectives of step", number] for number in range(1, 7)]
        assert counts[0] == counts[2] == counts[4] == counts[5] == 0
        assert max(counts) <= 1 + 1 + 6  # the vote, the owners, the threshold with ties
        assert min(counts[1], counts[3]) >= 1 + 3


def test_masks_are_those_of_the_blocks_and_undo_counts_steps_back(found):
    assert all(answer["masks"] and answer["undone"] for answer in found)
