"""The demo of pruning during training keeps its promises, in a shorter run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def demo():
    for framework in ("keras", "torch", "sklearn"):
        pytest.importorskip(framework, reason=f"the demo needs {framework}, which is not installed")
    import torch

    threads = torch.get_num_threads()
    sys.path.insert(0, str(EXAMPLES))
    try:
        import pruned_training
    finally:
        sys.path.remove(str(EXAMPLES))
    yield pruned_training
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def start(demo):
    return xw.get_params(demo.keras_twin()[0])


def test_each_twin_ends_with_exact_sparsity_and_its_frozen_rows_bit_for_bit(demo, start) -> None:
    runs = [demo.train_both_ways(framework, [start], 1) for framework in demo.TWINS]
    for run in runs:
        assert run.zeros == run.promised > 0
        assert run.frozen_equal


def test_equal_weights_get_equal_masks_at_every_step(demo, start) -> None:
    dropped = []
    for _, count, checksums in demo.masks_of_equal_weights(start, 3):
        assert len(checksums) == 3
        assert len(set(checksums)) == 1
        dropped.append(count)
    entries = sum(start[name].size for name in demo.PRUNED)
    assert dropped[-1] == int(demo.FRACTION * entries + 0.5)
    assert dropped == sorted(set(dropped))


def test_the_demo_fails_if_a_promise_is_broken(demo) -> None:
    kept = demo.Run("x", dense=0.98, pruned=0.975, zeros=90, entries=100, frozen_equal=True)
    assert kept.kept
    for wrong in ({"pruned": 0.96}, {"zeros": 89}, {"zeros": 91}, {"frozen_equal": False}):
        assert not replace(kept, **wrong).kept
