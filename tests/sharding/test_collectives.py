"""How many collectives a call makes, and how many bytes each rank sends: counted, not timed."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("torch", reason="the collectives are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import numpy as np
from counting import Counting
from ranks import run_ranks
from worlds import WORLDS, shard, small

import xweights as xw

CALLS: dict[str, Any] = {
    "scale": lambda m: xw.scale(m, 0.5),
    "clip": lambda m: xw.clip(m, -1, 1),
    "mask": lambda m: xw.mask(m, np.ones((8, 18), np.bool_), where="up/kernel"),
    "set_entries": lambda m: xw.set_entries(m, (0, 0), 1.0, where="up/kernel"),
    "fill": lambda m: xw.fill(m, 0.0, where="*/bias"),
    "set_params": lambda m: xw.set_params(m, {"up/bias": np.zeros(18, np.float32)}, strict=False),
    "snapshot": lambda m: xw.snapshot(m),
    "hold": lambda m: xw.hold(m, xw.Clip(-1, 1), where="*/kernel").release(),
    "summary": lambda m: xw.summary(m),
    "max_norm, whole axis": lambda m: xw.max_norm(m, 1.0, per="out", where="head/kernel"),
    "clip_norm": lambda m: xw.clip_norm(m, 1.0, scope="global"),
    "prune, first": lambda m: xw.prune(m, fraction=0.5, scope="global"),
    "prune, again": lambda m: xw.prune(m, fraction=0.6, scope="global"),
    "prune, ties": lambda m: (xw.fill(m, 0.5, where="*/kernel"), xw.prune(m, fraction=0.5, scope="global")),
    "threshold": lambda m: xw.prune(m, threshold=0.1),
    "noise": lambda m: xw.noise(m, 0.1, seed=0, where="up/kernel"),
    "checksum": lambda m: xw.checksum(m, where="up/kernel"),
}


def count(rank: int, world: str) -> dict[str, list[int]]:
    model = shard(small(), world)
    counting = Counting()
    found = {}
    for name, call in CALLS.items():
        counting.calls.clear()
        call(model)
        found[name] = list(counting.calls)
    return found


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, list[int]]]:
    return {world: run_ranks(WORLDS[world], count, world)[0] for world in ("fsdp2-2", "2d-4")}


VOTE = 1


@pytest.mark.parametrize("name", ["scale", "clip", "mask", "set_entries", "fill", "set_params", "snapshot", "hold"])
@pytest.mark.parametrize("world", ["fsdp2-2", "2d-4"])
def test_entry_by_entry_the_only_collective_is_the_vote(name, world, counted):
    assert len(counted[world][name]) == VOTE
    assert counted[world][name][0] <= 217


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("summary", 0),
        ("max_norm, whole axis", VOTE),
        ("clip_norm", VOTE + 1),
        ("threshold", VOTE),
        ("prune, first", VOTE + 1 + 3),  # with the owners
        ("prune, again", VOTE + 3),
        ("prune, ties", VOTE + VOTE + 6),
        ("noise", VOTE + 1),
        ("checksum", VOTE + 1),
    ],
)
def test_other_calls_make_few_collectives(name, most, counted):
    assert len(counted["fsdp2-2"][name]) <= most


def test_norms_of_a_mesh_of_two_dimensions_take_one_collective_for_each_that_cuts(counted):
    assert len(counted["2d-4"]["clip_norm"]) <= VOTE + 4
    assert len(counted["2d-4"]["prune, again"]) <= VOTE + 3


def test_a_global_threshold_takes_16_kib_a_digit_whatever_the_size_of_the_model(counted):
    assert max(counted["fsdp2-2"]["prune, again"]) == (1 << 11) * 8


def test_a_checksum_reads_every_byte_once(counted):
    assert counted["fsdp2-2"]["checksum"][-1] == 8 * 18 * 4 / 2
