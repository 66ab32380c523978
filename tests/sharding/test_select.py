"""The value of a rank among entries of several ranks: by a bracket of samples, and without."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the ranks are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import torch.distributed as dist
from ranks import run_ranks

from xweights.training import select_shards
from xweights_torch.sharding.placements import group_of_parts

NUMBERS = np.random.default_rng(0).normal(size=20000)
# name: (all entries, where the first rank's part ends)
ENTRIES: dict[str, tuple[Any, int]] = {
    "float32": (NUMBERS.astype(np.float32), 10000),
    "float64": (NUMBERS, 10000),
    "float16": (NUMBERS.astype(np.float16), 10000),
    "ranks with other numbers": (np.sort(NUMBERS.astype(np.float32)), 3000),
    "a rank with few entries": (NUMBERS.astype(np.float32), 19990),
    "a rank with none": (NUMBERS.astype(np.float32), 20000),
    "mostly zeros": (np.where(NUMBERS > 1, NUMBERS, 0).astype(np.float32), 10000),
    "few values": (NUMBERS.round().astype(np.float32), 10000),
    "infinities": (np.where(np.abs(NUMBERS) > 0.5, np.inf, NUMBERS).astype(np.float32), 10000),
    "subnormal": (NUMBERS.astype(np.float32) * np.float32(1e-42), 10000),
}
RANKS = (1, 2, 1999, 10000, 13001, 19000, 19999, 20000)


def select_all(rank: int) -> dict[Any, Any]:
    select_shards.SAMPLE = 4096
    group = group_of_parts((dist.group.WORLD,))
    found = {}
    for name, (values, end) in ENTRIES.items():
        wide = np.result_type(values.dtype, np.float32)
        own = [values[:end], values[end:]][rank]
        for k in RANKS:
            found[name, k] = select_shards.select_in_bracket([own[:7], own[7:]], values.size, k, wide, group)
    return found


def test_a_bracket_finds_the_exact_value_or_is_a_miss_on_all_ranks():
    first, second = run_ranks(2, select_all)
    assert first == second
    for (name, k), found in first.items():
        magnitudes = np.abs(ENTRIES[name][0]).astype(np.result_type(ENTRIES[name][0].dtype, np.float32))
        edge = np.partition(magnitudes, k - 1)[k - 1]
        if found is not None:
            assert found.bits == int(edge.view(f"u{edge.itemsize}")), (name, k)
            assert found.below == np.count_nonzero(magnitudes < edge)
            assert found.equal == np.count_nonzero(magnitudes == edge)
    hits = {name: sum(first[name, k] is not None for k in RANKS) for name in ENTRIES}
    assert all(hits[name] == len(RANKS) for name in ("float32", "float64", "ranks with other numbers", "mostly zeros"))
    assert hits["few values"] < len(RANKS)
