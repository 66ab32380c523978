"""A model that every rank has, or one rank, is ported into a sharded one, and out of it: proved on a plain copy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the ranks are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import numpy as np
import torch
from ranks import run_ranks
from torch import nn
from worlds import WORLDS, blocks, shard, small

import xweights as xw


class Renamed(nn.Module):
    """The same layers under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(22, 8)
        self.widen = nn.Linear(8, 18)
        self.narrow = nn.Linear(18, 8)
        self.scale = nn.LayerNorm(8)
        self.filters = nn.Conv1d(8, 6, 3)
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.scale(self.narrow(torch.relu(self.widen(self.tokens(x)))))
        return self.last(h).sum() + self.filters(h.transpose(-1, -2)).sum()


SAMPLE = np.arange(20).reshape(4, 5)


def renamed(seed: int) -> Renamed:
    torch.manual_seed(seed)
    return Renamed()


def port_all(rank: int, world: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    source = renamed(1)

    model = shard(small(), world)
    report = xw.port(source, model, sample=SAMPLE)
    found["every rank"] = report.ok, len(report.entries), xw.checksum(model)
    model(torch.from_numpy(SAMPLE)).backward()  # it still trains
    found["verify"] = xw.verify(source, model, sample=SAMPLE).ok, xw.verify(renamed(2), model, sample=SAMPLE).ok

    model = shard(small(), world)
    report = xw.port(source if rank == 1 else None, model, sample=SAMPLE, on_rank=1)
    found["one rank"] = report.ok, bool(report.entries), xw.checksum(model)
    found["verify on one"] = xw.verify(source if rank == 1 else None, model, sample=SAMPLE, on_rank=1).ok

    plain = renamed(3)
    xw.port(model, plain, sample=SAMPLE)
    found["out of shards"] = xw.checksum(plain)

    model = shard(small(), world)
    xw.port(source, model, sample=SAMPLE, where=["up/*", "emb/*"])
    values = xw.get_params(model)
    found["a part"] = [np.array_equal(values[n], xw.get_params(small())[n]) for n in ("up/kernel", "down/kernel")]

    before = [block.clone() for block in blocks(model)]
    errors = []
    for call in (
        lambda: xw.port(renamed(rank), model, sample=SAMPLE),
        lambda: xw.port(None if rank else source, model, sample=SAMPLE),
        lambda: xw.port(source, model, sample=SAMPLE[:, : 5 - rank]),
        lambda: xw.port(source, model, sample="nothing" if rank else SAMPLE),
        lambda: xw.port(source, model, sample=SAMPLE, attributes="fix"),
        lambda: xw.port(nn.Linear(3, 3), model, sample=np.ones((1, 3), np.float32)),
        lambda: xw.port(source, model, sample=SAMPLE, on_rank=7),
    ):
        try:
            call()
            errors.append("none")
        except xw.XweightsError as error:
            errors.append(type(error).__name__)
    found["errors"] = errors
    found["unchanged"] = all(map(torch.equal, blocks(model), before))
    return found


@pytest.mark.parametrize(
    "world", ["fsdp2-2", *(pytest.param(w, marks=pytest.mark.thorough) for w in ("2d-4", "tp-2", "hsdp-4"))]
)
def test_a_port_into_shards_has_the_bytes_of_one_process(world):
    target, plain = small(), renamed(3)
    xw.port(renamed(1), target, sample=SAMPLE)
    xw.port(target, plain, sample=SAMPLE)
    for rank, found in enumerate(run_ranks(WORLDS[world], port_all, world)):
        assert found["every rank"] == (True, 6, xw.checksum(target))
        assert found["verify"] == (True, False)
        assert found["one rank"] == (True, rank == 1, xw.checksum(target))
        assert found["verify on one"]
        assert found["out of shards"] == xw.checksum(plain)
        assert found["a part"] == [False, True]
        kinds = ["RankError", "TargetError", "RankError", "RankError", "PortError", "PortError", "ArgumentError"]
        assert found["errors"] == kinds
        assert found["unchanged"]


KERAS = """
import os, sys
rank, meeting = int(sys.argv[1]), sys.argv[2]
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
import keras, numpy as np, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import xweights as xw

dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
keras.utils.set_random_seed(1)
source = keras.Sequential([keras.Input((12, 3)), keras.layers.Conv1D(8, 3), keras.layers.ReLU(),
                           keras.layers.Flatten(), keras.layers.Dense(5)])

class Twin(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dense = torch.nn.Conv1d(3, 8, 3), torch.nn.Linear(80, 5)

    def forward(self, x):
        return self.dense(torch.relu(self.conv(x)).transpose(1, 2).flatten(1))

x = np.random.default_rng(0).normal(size=(2, 12, 3)).astype("float32")
for on_rank in ("all", 1):
    torch.manual_seed(0)
    model = Twin()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    here = source if on_rank in ("all", rank) else None
    report = xw.port(here, model, sample=x, on_rank=on_rank)
    out = model(torch.from_numpy(np.moveaxis(x, 2, 1).copy())).detach().numpy()
    again = xw.verify(here, model, sample=x, on_rank=on_rank)
    print(report.ok, bool(np.allclose(out, np.asarray(source(x)), atol=1e-5)), again.ok)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_keras_model_is_ported_into_a_sharded_one(tmp_path: Path):
    pytest.importorskip("keras", reason="the source is a Keras model")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", KERAS, str(rank), str(tmp_path / "meeting")], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank in ranks:
        out, _ = rank.communicate(timeout=300)
        assert rank.returncode == 0
        assert out.split() == ["True"] * 6
