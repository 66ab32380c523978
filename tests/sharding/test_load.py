"""A file goes into a sharded model by slices: each rank reads its own, once; counted, not timed."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the ranks are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from ranks import run_ranks
from torch import nn
from worlds import WORLDS, Small, blocks, shard, small

import xweights as xw
from xweights.files.io.open_file import OpenFile

MIB = 1 << 20
SOURCES = ("safetensors", "safetensors.index.json", "neutral.safetensors", "npz", "pt", "dcp")
# Formats whose checksums are over whole arrays, and are read for them.
SUMMED = ("npz", "pt")


class Wide(Small):
    """The same layers, wide enough that the names in a file are a small part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(2200, 512)
        self.up, self.down = nn.Linear(512, 1028), nn.Linear(1028, 512)
        self.norm, self.conv, self.head = nn.LayerNorm(512), nn.Conv1d(512, 64, 3), nn.Linear(512, 2)


def wide(seed: int) -> Wide:
    torch.manual_seed(seed)
    return Wide()


class Counting:
    """The bytes that this process reads of files."""

    def __init__(self) -> None:
        self.count = 0
        read_some = OpenFile._read_some

        def counted(file: OpenFile, offset: int, out: memoryview) -> int:
            self.count += len(out)
            return read_some(file, offset, out)

        OpenFile._read_some = counted  # type: ignore[method-assign]


def load_all(rank: int, world: str, folder: Path) -> dict[str, Any]:
    model = shard(wide(0), world)
    dcp.save(model.state_dict(), checkpoint_id=folder / "model.dcp")
    share = sum(block.nbytes for block in blocks(model))
    counting = Counting()
    found: dict[str, Any] = {}
    for ending in SOURCES:
        for checked in (True, False):
            with torch.no_grad():
                for block in blocks(model):
                    block.zero_()
            source = folder / f"model.{ending}"
            counting.count = 0
            tracemalloc.start()
            xw.set_params(model, source, allow_nonfinite=not checked, layout=None if ending != "dcp" else "native")
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            found[ending, checked] = xw.checksum(model), counting.count / share, peak
    return found


@pytest.mark.parametrize(
    "world", ["tp-2", *(pytest.param(w, marks=pytest.mark.thorough) for w in ("fsdp2-2", "fsdp2-4", "2d-4", "hsdp-4"))]
)
def test_each_rank_reads_its_share_once(world, tmp_path):
    model = wide(0)
    for ending in ("safetensors", "safetensors.index.json", "npz", "pt"):
        xw.save(model, tmp_path / f"model.{ending}", shard_bytes=4 * MIB)
    values = xw.get_params(model)
    xw.save(values, tmp_path / "model.neutral.safetensors")
    checksum = xw.checksum(model)
    for answer in run_ranks(WORLDS[world], load_all, world, tmp_path):
        for (ending, checked), (loaded, share, peak) in answer.items():
            assert loaded == checksum, ending
            if ending not in SUMMED:
                assert share <= 1.02, (ending, checked, share)
            if ending != "pt" and not checked:
                assert peak <= 16 * MIB, (ending, checked, peak)


def fail_all(rank: int, world: str, folder: Path) -> Any:
    model = shard(small(), world)
    before = [block.clone() for block in blocks(model)]
    errors = []
    for name, where in (("nan", ...), ("short", ...), ("wide", "up/*")):
        try:
            xw.set_params(model, folder / f"{name}.safetensors", where=where)
        except xw.XweightsError as error:
            errors.append((type(error).__name__, str(error)))
    return errors, all(map(torch.equal, blocks(model), before))


def test_what_one_rank_finds_in_its_slice_all_ranks_raise(tmp_path):
    model = small(1)
    xw.save(model, tmp_path / "short.safetensors", where="*/kernel")
    with torch.no_grad():
        model.emb.weight[0, 0] = np.nan  # in the block of the first rank alone
    xw.save(model, tmp_path / "nan.safetensors")
    model.up = nn.Linear(9, 18)
    xw.save(model, tmp_path / "wide.safetensors", where="up/*")
    for errors, is_unchanged in run_ranks(2, fail_all, "fsdp2-2", tmp_path):
        assert [kind for kind, _ in errors] == ["NonfiniteError", "SelectionError", "ShapeError"]
        assert "emb/embeddings" in errors[0][1]
        assert is_unchanged
