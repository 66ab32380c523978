"""A sharded model is saved by all ranks: to the file of one process, to shards, to a folder of PyTorch's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the ranks are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import run_ranks
from worlds import WORLDS, shard, small

import xweights as xw

ENDINGS = ("safetensors", "safetensors.index.json", "pt", "npz")


def save_all(rank: int, world: str, folder: Path) -> Any:
    model = shard(small(), world)
    xw.scale(model, 2.0)
    for ending in ENDINGS:
        xw.save(model, folder / f"whole.{ending}", shard_bytes=1000)
    sent = collectives(lambda: xw.save(model, folder / "sent.safetensors"))
    xw.save(model, f"{folder / 'whole.dcp'}/")
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
    loaded = xw.checksum(model)
    xw.scale(model, 0.0)
    xw.set_params(model, folder / "whole.dcp")
    found = {"loaded": loaded, "from the folder": xw.checksum(model), "errors": errors, "sent": sent}
    xw.scale(model, 0.0)
    state = model.state_dict()
    dcp.load(state, checkpoint_id=folder / "whole.dcp")
    model.load_state_dict(state)
    found |= {"by PyTorch": xw.checksum(model), "untouched": before == (folder / "whole.npz").read_bytes()}
    return found


def collectives(call: Any) -> list[int]:
    """Return the bytes of each collective of a call that this rank hands in."""
    sent: list[int] = []
    former = {name: getattr(dist, name) for name in ("all_gather", "all_reduce", "gather", "scatter")}
    for name, function in former.items():

        def counted(*args: Any, function: Any = function, at: int = name == "all_gather", **kwargs: Any) -> Any:
            sent.append(args[at].nbytes)
            return function(*args, **kwargs)

        setattr(dist, name, counted)
    call()
    for name, function in former.items():
        setattr(dist, name, function)
    return sent


@pytest.mark.parametrize(
    "world", ["2d-4", *(pytest.param(world, marks=pytest.mark.thorough) for world in ("fsdp2-4", "hsdp-4"))]
)
def test_the_file_is_that_of_one_process_and_loads_anywhere(world, tmp_path):
    model = small()
    xw.scale(model, 2.0)
    (tmp_path / "one").mkdir()
    for found in run_ranks(WORLDS[world], save_all, world, tmp_path):
        assert found["loaded"] == found["from the folder"] == found["by PyTorch"] == xw.checksum(model)
        assert [kind for kind, _ in found["errors"]] == [True, True]
        assert found["untouched"]
        # The vote, the places, the owners, and words of a few bytes: no block of weights.
        assert len(found["sent"]) <= 12
        assert max(found["sent"]) <= 1500
    for ending in (*ENDINGS, "dcp"):
        assert xw.equal(tmp_path / f"whole.{ending}", model)
    distinct = 2 if world == "hsdp-4" else WORLDS[world]  # copies are written once
    assert len(list((tmp_path / "whole.dcp").glob("*.distcp"))) == distinct
    assert {p.name: p.axes for p in xw.parameters(tmp_path / "whole.dcp")} == {
        p.name: p.axes for p in xw.parameters(model)
    }
    for ending in ("safetensors", "safetensors.index.json", "npz"):
        xw.save(model, tmp_path / "one" / f"whole.{ending}", shard_bytes=1000)
    for one in (tmp_path / "one").iterdir():
        assert (tmp_path / one.name).read_bytes() == one.read_bytes(), one.name
    assert xw.equal(xw.get_params(model, where="*/kernel"), tmp_path / "kernels.npz")
    small(1).load_state_dict(torch.load(tmp_path / "whole.pt", weights_only=True))


def save_and_die(rank: int, path: str, victim: int, moment: str, count: int) -> str:
    """Save other weights; one rank dies at a call of the system, and the others say what they got."""
    model = shard(small(1), "fsdp2-2")
    if rank == victim:
        called = 0
        function = getattr(os, moment)

        def dying(*args: Any, **kwargs: Any) -> Any:
            nonlocal called
            called += 1
            if called == count:
                os._exit(9)
            return function(*args, **kwargs)

        setattr(os, moment, dying)
    try:
        xw.save(model, path, shard_bytes=1000)
    except xw.XweightsError as error:
        return type(error).__name__
    return "saved"


DEATHS = [(1, "fsync", 1), (0, "replace", 1), (0, "fsync", 1), (1, "pwrite", 1), (0, "replace", 2), (0, "unlink", 1)]
IN_CI = [("safetensors", *DEATHS[3]), ("safetensors.index.json", *DEATHS[1]), ("dcp/", *DEATHS[0])]


@pytest.mark.parametrize(
    ("ending", "victim", "moment", "count"),
    [
        *IN_CI,
        *(
            pytest.param(ending, *death, marks=pytest.mark.thorough)
            for ending in ("safetensors", "safetensors.index.json", "dcp/")
            for death in DEATHS
            if (ending, *death) not in IN_CI
        ),
    ],
)
def test_a_rank_that_is_killed_leaves_the_old_file_or_the_new_one(ending, victim, moment, count, tmp_path):
    path = f"{tmp_path}/model.{ending}"
    xw.save(small(), path, shard_bytes=1000)
    try:
        answers = run_ranks(2, save_and_die, path, victim, moment, count)
    except AssertionError as died:
        answers = []
        assert f"rank {victim}" in str(died)  # noqa: PT017
        assert f"rank {1 - victim}" not in str(died)  # noqa: PT017
    assert xw.equal(path, small()) or xw.equal(path, small(1))
    if answers:
        assert set(answers) == {"saved"}  # the moment never came
        assert xw.equal(path, small(1))
    xw.save(small(2), path, shard_bytes=1000)
    assert xw.equal(path, small(2))
    left = [file.name for file in tmp_path.rglob("*") if file.name.startswith(".model") or "tmp" in file.name]
    assert not left
    if ending == "dcp/":
        assert len(list((tmp_path / "model.dcp").iterdir())) == 2


def save_onto_a_full_disk(rank: int, path: str, full: int, moment: str, is_apart: bool) -> Any:
    """Save other weights; on one rank the disk is full."""
    model = shard(small(1), "fsdp2-2")

    def fail(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    if rank == full:
        setattr(os, moment, fail)
    if is_apart and rank == 1:
        hide_temporaries()
    try:
        xw.save(model, path, shard_bytes=1000)
    except xw.XweightsError as error:
        return isinstance(error, xw.FileAccessError), str(error)
    return "saved"


@pytest.mark.parametrize(
    ("ending", "full", "moment", "is_apart"),
    [
        ("safetensors", 1, "pwrite", False),
        ("dcp/", 1, "fsync", False),
        ("safetensors", 0, "pwrite", True),
        pytest.param("safetensors.index.json", 1, "fsync", False, marks=pytest.mark.thorough),
        pytest.param("safetensors", 0, "replace", False, marks=pytest.mark.thorough),
        pytest.param("dcp/", 0, "replace", False, marks=pytest.mark.thorough),
    ],
)
def test_a_full_disk_of_one_rank_is_an_error_of_all_and_leaves_the_old_file(ending, full, moment, is_apart, tmp_path):
    path = f"{tmp_path}/model.{ending}"
    xw.save(small(), path, shard_bytes=1000)
    before = {file.name for file in tmp_path.rglob("*")}
    for is_access, text in run_ranks(2, save_onto_a_full_disk, path, full, moment, is_apart):
        assert is_access
        assert "No space left" in text
    assert xw.equal(path, small())
    after = {file.name for file in tmp_path.rglob("*")}
    assert {name for name in after - before if not name.endswith(".distcp")} == set()


def hide_temporaries() -> None:
    """Have this rank not see what the first one writes."""
    opened = os.open

    def lost(path: Any, *args: Any, **kwargs: Any) -> int:
        return opened(f"{path}.gone" if "tmp" in str(path) else path, *args, **kwargs)

    os.open = lost


def save_apart(rank: int, folder: Path) -> Any:
    """Save where only the first rank sees the file, as on disks of its own."""
    model = shard(small(), "fsdp2-2")
    if rank == 1:
        hide_temporaries()
    xw.save(model, folder / "apart.safetensors")
    return True


def test_ranks_that_do_not_see_the_file_send_their_blocks(tmp_path):
    assert run_ranks(2, save_apart, tmp_path) == [True, True]
    assert xw.equal(tmp_path / "apart.safetensors", small())
