"""Averages, learning rates and bound rules on shards: the bytes of one process."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("torch", reason="the worlds are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import numpy as np
import torch
from ranks import run_ranks
from worlds import WORLDS, shard, small

import xweights as xw
from xweights.errors import XweightsError

UP = "up/kernel"
KEPT = np.arange(8 * 18).reshape(8, 18) % 3 > 0


def step(model: Any, optimizer: Any) -> None:
    """Step with a gradient that is the same number everywhere, so that worlds can be compared bit for bit."""
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.5)
    optimizer.step()


def averaged(model: Any) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    averages = xw.average(model, decay=0.75, optimizer=optimizer)
    by_hand = xw.average(model, decay="swa", where="*/kernel", attach=False)
    for _ in range(3):
        step(model, optimizer)
        by_hand.update()
    found = {"ema": averages.params, "swa": by_hand.params}
    with averages.swapped_in():
        found["swapped in"] = xw.get_params(model)
    found["afterwards"] = xw.get_params(model)
    averages.copy_to(model)
    found["copied"] = xw.get_params(model)
    averages.release()
    return found


def multiplied(model: Any) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=False)
    factors = xw.multiply_lr(model, {"*": 0.3, "head/*": 0.0, UP: 1.0}, optimizer=optimizer)
    for _ in range(2):
        step(model, optimizer)
    factors.release()
    step(model, optimizer)
    return {"multiplied": xw.get_params(model)}


def bound(model: Any) -> dict[str, Any]:
    rules = [
        xw.bind(model, xw.Clip(-0.1, 0.1), where="*/bias"),
        xw.bind(model, xw.Mask(KEPT), where=UP),
        xw.bind(model, xw.SetEntries({"in": slice(1, 7, 2)}, 4.0), where=UP),
    ]
    found = {}
    for number in range(2):
        for rule in rules:
            rule()
        found[f"bound, {number}"] = xw.get_params(model)
        xw.add(model, 1.0)
    return found


def run_all(rank: int, world: str) -> dict[str, Any]:
    found = {}
    for work in (averaged, multiplied, bound):
        found |= work(shard(small(), world))
    model = shard(small(), world)
    for name, call in {
        "norm": lambda: xw.bind(model, xw.MaxNorm(0.1, per="in"), where="*/kernel"),
        "noise": lambda: xw.bind(model, xw.Noise(0.1, seed=0), where="*/kernel"),
        "average": lambda: xw.average(model, decay=0.5, where=UP if rank else "upp/kernel"),
        "decay": lambda: xw.average(model, decay=0.5 if rank else 2.0),
        "factors": lambda: xw.multiply_lr(
            model, {"*": 0.5 if rank else -1.0}, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
        ),
    }.items():
        try:
            call()
        except XweightsError as error:
            found[name] = type(error).__name__
        else:
            found[name] = None
    return found


@pytest.mark.parametrize(
    "world", ["fsdp2-2", "ddp-2", *(pytest.param(w, marks=pytest.mark.thorough) for w in ("2d-4", "hsdp-4", "tp-2"))]
)
def test_training_tools_have_the_bytes_of_one_process(world):
    expected = averaged(small()) | multiplied(small()) | bound(small())
    for answer in run_ranks(WORLDS[world], run_all, world):
        for name, values in expected.items():
            assert list(answer[name]) == list(values)
            wrong = [key for key in values if not np.array_equal(answer[name][key], values[key])]
            assert not wrong, name
        assert answer["average"] == "SelectionError"
        assert answer["decay"] == answer["factors"] == "ArgumentError"
        if world != "ddp-2":
            assert answer["norm"] == "WriteError"
            assert answer["noise"] == "WriteError"
