"""The counts for hundreds of ranks: what two layers show is what more of them cost, and the page lists every call."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the ranks are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import torch.distributed as dist
import worlds  # noqa: F401 - imports before the fork what every rank needs
from ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
SCRIPT, PAGE = ROOT / "benchmarks" / "sharded_counts.py", ROOT / "docs" / "sharded.md"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="only a checkout has the benchmarks")


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("sharded_counts", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["sharded_counts"] = script
    spec.loader.exec_module(script)
    return script


def count(rank: int) -> Any:
    dist.destroy_process_group()
    script = load_script()
    sizes = script.Sizes(vocab=640, width=64, hidden=128, keys=32, layers=4)
    simulation = script.start(8)
    share, expected = script.extrapolate(sizes, script.CALLS, simulation)
    real_share, real = script.measure(sizes, 4, script.CALLS, simulation)
    exact = ("collectives", "sent", "read", "written")
    pick = lambda found: {name: [getattr(c, word) for word in exact] for name, c in found.items()}  # noqa: E731
    return (share, pick(expected)), (real_share, pick(real))


def test_two_layers_tell_what_four_of_them_cost():
    ((share, expected), (real_share, real)) = run_ranks(1, count)[0]
    assert share == real_share
    read = {name: counts[2] for name, counts in real.items()}
    for name, counts in real.items():
        assert counts[0] == expected[name][0], name
        # Numbers of more digits take a few bytes more.
        assert counts[1:] == pytest.approx(expected[name][1:], rel=0.01), name
    assert real["`scale`, `clip`, `mask`, `set_entries`"][0] == 1
    assert real['`prune(fraction=0.5, scope="global")`'][0] <= 8
    assert read["`set_params` from a file"] <= 1.02 * share + 8192  # the names take more than 2 % of so little
    assert real["`save` to safetensors"][1] < share / 8


def test_the_page_lists_every_call():
    script = load_script()
    table = PAGE.read_text(encoding="utf-8").partition(script.BEGIN)[2].partition(script.END)[0]
    assert [name for name in script.CALLS if f"| {name} |" not in table] == []
