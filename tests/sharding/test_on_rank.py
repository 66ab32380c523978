"""Values that one rank has, written on all: the bytes of one process, or one error on every rank."""

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
from ranks import run_ranks
from worlds import WORLDS, blocks, shard, small

import xweights as xw

UP = "up/kernel"


def write_all(rank: int, world: str, other: Any, folder: Path) -> dict[str, Any]:
    model = shard(small(), world)
    before = [block.clone() for block in blocks(model)]
    found: dict[str, Any] = {}
    sources = {"mapping": dict(other), "Params": other, "file": folder / "other.safetensors"}
    for name, values in sources.items():
        xw.set_params(model, before_of := xw.get_params(small()))
        report = xw.set_params(model, values if rank == 1 else None, on_rank=1)
        found[name] = xw.checksum(model), len(report.taken)
    xw.set_params(model, before_of)
    held = xw.hold(model, xw.Clip(-0.01, 0.01), where="up/bias")
    xw.set_params(model, {"up/bias": np.ones(18, np.float32)} if rank == 0 else None, on_rank=0, strict=False)
    found["held"] = float(np.abs(xw.get_params(model)["up/bias"]).max())
    held.release()
    xw.set_params(model, before_of)

    def error_of(values: Any, on_rank: Any = 0, **options: Any) -> tuple[str, str]:
        try:
            xw.set_params(model, values if rank == 0 else None, on_rank=on_rank, strict=False, **options)
        except xw.XweightsError as error:
            return type(error).__name__, str(error)
        return "", ""

    damaged = folder / "damaged.npz"
    found["errors"] = {
        "a shape": error_of({UP: np.zeros((3, 3), np.float32)}),
        "NaN": error_of({UP: np.full((8, 18), np.nan, np.float32)}),
        "a name": error_of({"upp/kernel": np.zeros((8, 18), np.float32)}),
        "no values": error_of(None),
        "no such rank": error_of({}, on_rank=9),
        "another rank": error_of({}, on_rank=rank),
        "another option": error_of({}, cast=rank == 1),
        "a damaged file": error_of(damaged),
    }
    found["unchanged"] = all(map(torch.equal, blocks(model), before))
    return found


@pytest.mark.parametrize(
    "world", ["fsdp2-2", "ddp-2", *(pytest.param(w, marks=pytest.mark.thorough) for w in ("2d-4", "hsdp-4", "tp-2"))]
)
def test_values_of_one_rank_reach_all_or_none(world, tmp_path):
    other = small(1)
    xw.save(other, tmp_path / "other.safetensors")
    xw.save(other, tmp_path / "damaged.npz")
    raw = bytearray((tmp_path / "damaged.npz").read_bytes())
    raw[len(raw) // 2] ^= 255
    (tmp_path / "damaged.npz").write_bytes(raw)
    checksum, count = xw.checksum(other), len(xw.parameters(other))
    for answer in run_ranks(WORLDS[world], write_all, world, xw.get_params(other), tmp_path):
        for source in ("mapping", "Params", "file"):
            assert answer[source] == (checksum, count)
        assert answer["held"] == np.float32(0.01)
        kinds = {what: kind for what, (kind, _) in answer["errors"].items()}
        assert kinds["a shape"] == "ShapeError"
        assert kinds["NaN"] == "NonfiniteError"
        assert kinds["a name"] == "SelectionError"
        assert kinds["no such rank"] == "ArgumentError"
        assert kinds["another rank"] == kinds["another option"] == "RankError"
        assert kinds["no values"]
        assert kinds["a damaged file"]
        assert answer["unchanged"]


def test_one_process_has_the_values_itself():
    model = small()
    assert xw.set_params(model, small(1).state_dict(), layout="native", on_rank=0).taken
    assert xw.equal(model, small(1))
    with pytest.raises(xw.ArgumentError, match="on_rank= is no rank of this model"):
        xw.set_params(model, {}, on_rank=1)
    with pytest.raises(xw.ArgumentError, match="is the number of a rank"):
        xw.set_params(model, {}, on_rank="first")  # type: ignore[arg-type]
