"""The example gives the same bytes of masks and frozen rows on 1, 2 and 4 ranks, and what 4 saved is loaded by 2."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the example is PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import worlds  # noqa: F401 - imports before the fork what every rank needs
from ranks import run_ranks

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sharded_training.py"

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not EXAMPLE.exists(), reason="only a checkout has the examples"),
]


def run(rank: int, call: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("sharded_training", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return getattr(example, call)(path)


def test_masks_and_frozen_rows_are_the_same_on_any_number_of_ranks(tmp_path):
    trained = {size: run_ranks(size, run, "train", tmp_path / f"{size}.safetensors") for size in (1, 2, 4)}
    for answers in trained.values():
        for answer in answers:
            assert answer == answers[0]
            assert answer["masks"] == trained[1][0]["masks"]
            assert answer["frozen rows"] == trained[1][0]["frozen rows"]
            assert answer["kept"] == "0.1000"
    for answer in run_ranks(2, run, "load", tmp_path / "4.safetensors"):
        assert answer == trained[4][0]
