"""Sharded models and files are merged with the bytes of one process: block by block, or one parameter at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the ranks are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import numpy as np
import torch
import torch.distributed as dist
from ranks import run_ranks
from worlds import WORLDS, blocks, shard, small

import xweights as xw

CALLS: dict[str, dict[str, Any]] = {
    "average": {"weights": (1, 2, 3)},
    "ema": {"decay": 0.9},
    "task_arithmetic": {"base": "base.safetensors", "scale": 0.5},
    "ties": {"base": "base.npz", "density": 0.5},
    "dare_linear": {"base": "base.safetensors", "density": 0.5, "seed": 3},
    "model_stock": {"base": "base.safetensors"},
}
LINEAR = ("average", "ema", "task_arithmetic")


def call(method: str, targets: Any, folder: Path, **where_to: Any) -> Any:
    options = dict(CALLS[method])
    if "base" in options:
        options["base"] = folder / options["base"]
    return xw.merge(targets, method, **options, **where_to)


def merge_all(rank: int, world: str, folder: Path) -> dict[str, Any]:
    counts: list[int] = []
    for name in ("all_gather", "all_reduce", "gather", "scatter"):
        collective = getattr(dist, name)

        def counted(*args: Any, function: Any = collective, **kwargs: Any) -> Any:
            counts.append(1)
            return function(*args, **kwargs)

        setattr(dist, name, counted)
    one, plain = shard(small(1), world), small(2)
    found: dict[str, Any] = {}
    for method in CALLS:
        into = shard(small(9), world)
        held = xw.hold(into, xw.Clip(-10, 10), where="*/kernel")
        counts.clear()
        call(method, [one, plain, folder / "three.safetensors"], folder, into=into)
        found[method] = len(counts), xw.checksum(into)
        held.release()
    result = xw.merge([one, folder / "three.safetensors"])
    found["whole"] = xw.checksum(result), {name: result.axes[name] for name in result}
    report = xw.merge([one, plain], "slerp", t=0.25, out=folder / "merged.safetensors")
    found["out"] = report.merged
    before = [block.clone() for block in blocks(into)]
    errors = []
    for targets, options in (
        ([one, folder / "nan.safetensors"], {}),
        ([one, folder / "none.safetensors"], {}),
        ([one, plain], {"weights": (1, rank)}),
        ([one, {"up/bias": np.zeros(18, np.float32)}], {}),
    ):
        try:
            xw.merge(targets, into=into, **options)
        except xw.XweightsError as error:
            errors.append(type(error).__name__)
    found["errors"] = errors
    found["unchanged"] = all(map(torch.equal, blocks(into), before))
    return found


@pytest.mark.parametrize(
    "world", ["fsdp2-2", *(pytest.param(w, marks=pytest.mark.thorough) for w in ("2d-4", "tp-2", "hsdp-4", "ddp-2"))]
)
def test_merges_have_the_bytes_of_one_process(world, tmp_path):
    for seed, name in ((3, "three.safetensors"), (4, "base.safetensors"), (4, "base.npz")):
        xw.save(small(seed), tmp_path / name)
    broken = small(5)
    with torch.no_grad():
        broken.emb.weight[0, 0] = np.nan  # in the block of the first rank alone
    xw.save(broken, tmp_path / "nan.safetensors")
    models = [small(1), small(2), tmp_path / "three.safetensors"]
    checksums = {}
    for method in CALLS:
        into = small(9)
        call(method, models, tmp_path, into=into)
        checksums[method] = xw.checksum(into)
    whole = xw.merge([small(1), tmp_path / "three.safetensors"])
    for found in run_ranks(WORLDS[world], merge_all, world, tmp_path):
        assert {method: found[method][1] for method in CALLS} == checksums
        assert found["whole"] == (xw.checksum(whole), {name: whole.axes[name] for name in whole})
        assert found["out"] == len(xw.parameters(small()))
        assert found["errors"] == ["NonfiniteError", "FileAccessError", "RankError", "SelectionError"]
        assert found["unchanged"]
        if world == "fsdp2-2":
            # The vote, and whether all could: the blocks of both models lie alike.
            assert [found[method][0] for method in LINEAR] == [2, 2, 2]
    expected = xw.merge([small(1), small(2)], "slerp", t=0.25)
    assert xw.equal(tmp_path / "merged.safetensors", expected)
