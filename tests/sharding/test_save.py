"""A sharded model is saved to one file by one rank, which the others send their blocks; from any number of ranks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the ranks are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import torch
from ranks import run_ranks
from worlds import WORLDS, shard, small

import xweights as xw

ENDINGS = ("safetensors", "pt", "npz")


def save_all(rank: int, world: str, folder: Path) -> Any:
    model = shard(small(), world)
    xw.scale(model, 2.0)
    for ending in ENDINGS:
        xw.save(model, folder / f"whole.{ending}")
    xw.save(model, folder / "kernels.npz", where="*/kernel", names="neutral")
    before = (folder / "whole.npz").read_bytes()
    errors = []
    for path in (folder / "no" / "such" / "folder.npz", folder / "whole.nothing"):
        try:
            xw.save(model, path)
        except xw.XweightsError as error:
            errors.append((isinstance(error, xw.CheckpointError), str(error)))
    xw.scale(model, 0.0)
    xw.set_params(model, folder / "whole.safetensors")
    return xw.checksum(model), errors, before == (folder / "whole.npz").read_bytes()


@pytest.mark.parametrize(
    "world", ["2d-4", *(pytest.param(world, marks=pytest.mark.thorough) for world in ("fsdp2-4", "hsdp-4"))]
)
def test_the_file_is_that_of_one_process_and_loads_anywhere(world, tmp_path):
    model = small()
    xw.scale(model, 2.0)
    (tmp_path / "one").mkdir()
    for checksum, errors, is_untouched in run_ranks(WORLDS[world], save_all, world, tmp_path):
        assert checksum == xw.checksum(model)
        assert [kind for kind, _ in errors] == [True, True]
        assert is_untouched
    for ending in ENDINGS:
        assert xw.equal(tmp_path / f"whole.{ending}", model)
    for ending in ("safetensors", "npz"):
        xw.save(model, tmp_path / "one" / f"whole.{ending}")
        assert (tmp_path / f"whole.{ending}").read_bytes() == (tmp_path / "one" / f"whole.{ending}").read_bytes()
    assert xw.equal(xw.get_params(model, where="*/kernel"), tmp_path / "kernels.npz")
    small(1).load_state_dict(torch.load(tmp_path / "whole.pt", weights_only=True))
