"""The same call on every rank gives the bytes of one process: FSDP2, tensor parallelism, both, hybrid, DDP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the worlds are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import torch
import torch.distributed as dist
from ranks import run_ranks
from sharded_calls import PRUNES, UP, VERBS
from worlds import WORLDS, blocks, shard, small

import xweights as xw

BATCH = torch.arange(20).reshape(4, 5)
KEPT = np.arange(8 * 18).reshape(8, 18) % 3 > 0
FROZEN = slice(3, 9)
# Prunes that are made once more of few magnitudes.
TIED = ("half of each", "half of all", "most of everything", "units of all")


def coarse() -> Any:
    """Return a model with few different magnitudes, so that thresholds have ties."""
    model = small()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((p * 4).round() / 4)
    return model


def trained(model: Any, fused: bool) -> dict[str, Any]:
    """Train under holds, and return them."""
    options = {"weight_decay": 0.1, "fused": True} if fused else {"foreach": False}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, **options)
    held = {
        "mask": xw.hold(model, xw.Mask(KEPT), where=UP, optimizer=optimizer),
        "entries": xw.freeze(model, where="emb/embeddings", entries=(FROZEN,), optimizer=optimizer),
        "norm": xw.hold(model, xw.MaxNorm(0.4, per="out"), where="head/kernel"),
        "whole": xw.freeze(model, where="conv/*", optimizer=optimizer),
    }
    for _ in range(3):
        optimizer.zero_grad()
        model(BATCH).backward()
        optimizer.step()
    return held


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    xw.save(small(1), folder / "other.safetensors")
    xw.save(small(1), folder / "other.npz")
    return folder


@pytest.fixture(scope="module")
def expected(files) -> dict[Any, Any]:
    """What one process gets, before the ranks are forked."""
    found: dict[Any, Any] = {"start": xw.get_params(small()), "other": xw.get_params(small(1))}
    found["checksums"] = [xw.checksum(small()), xw.checksum(small(1))]
    found["stats"] = xw.stats(small())
    for name, verb in VERBS.items():
        model = small()
        verb(model)
        found[name] = xw.get_params(model)
    for make in (small, coarse):
        for name, options in PRUNES.items():
            model = make()
            if make is small or name in TIED:
                masks = xw.prune(model, **options)
                found[make.__name__, name] = (xw.get_params(model), {key: masks[key].copy() for key in masks})
    for fused in (False, True):
        model = small()
        trained(model, fused)
        found["trained", fused] = xw.get_params(model)
    return found


def different(model: Any, values: Any) -> int:
    """Return how many entries of this rank's blocks differ in their bits from the whole arrays of one process."""
    count = 0
    for p in xw.parameters(model):
        local = blocks_of(p)
        whole = values[p.name]
        own = whole if p.shard is None else p.shard.cut(whole)
        count += int((np.ascontiguousarray(local).view(np.uint32) != np.ascontiguousarray(own).view(np.uint32)).sum())
    return count


def blocks_of(p: Any) -> Any:
    """Return this rank's entries of a parameter in neutral order, without xweights' reading."""
    tensor = p.handle.tensor
    local = getattr(tensor, "_local_tensor", tensor).detach().numpy()
    layout = p.layout if p.shard is None else p.shard.local_layout
    return layout.to_neutral(local)


def run_all(rank: int, world: str, expected: dict[Any, Any], files: Path) -> dict[str, Any]:
    """Make every call in one world, and return what is wrong: 0 differing entries, True for what is equal."""
    found: dict[str, Any] = {}
    model = shard(small(), world)
    start = [block.clone() for block in blocks(model)]

    def reset() -> None:
        for block, kept in zip(blocks(model), start, strict=True):
            block.copy_(kept)

    for name, verb in VERBS.items():
        reset()
        verb(model)
        found[name] = different(model, expected[name])
    reset()
    found |= run_reading(model, expected, files)
    for source in (expected["other"], dict(expected["other"]), files / "other.safetensors", files / "other.npz"):
        reset()
        xw.set_params(model, source)
        found[f"set_params from {getattr(source, 'suffix', type(source).__name__)}"] = different(
            model, expected["other"]
        )
    reset()
    found |= run_undo(model, expected)
    for fused in (False, True):
        found |= run_training(shard(small(), world), expected, fused)
    for make in (small, coarse):
        model = shard(make(), world)
        start = [block.clone() for block in blocks(model)]
        for name in [name for name in PRUNES if (make.__name__, name) in expected]:
            reset()
            masks = xw.prune(model, **PRUNES[name])
            values, whole = expected[make.__name__, name]
            shards = {p.name: p.shard for p in xw.parameters(model)}
            own = {key: whole[key] if shards[key] is None else shards[key].cut(whole[key]) for key in whole}
            found[f"prune {name}, {make.__name__}"] = different(model, values)
            found[f"masks of {name}, {make.__name__}"] = all(np.array_equal(masks[key], own[key]) for key in own)
    return found


def run_reading(model: Any, expected: dict[Any, Any], files: Path) -> dict[str, Any]:
    values, other = expected["start"], expected["other"]
    stats = xw.stats(model)
    alone, own = xw.get_params(model, on_rank=1), xw.get_params(model, on_rank="local", layout="native")
    shards = {p.name: p.shard for p in xw.parameters(model)}
    native = xw.get_params(small(), layout="native")
    return {
        "get_params on one rank": xw.equal(alone, values) if dist.get_rank() == 1 else not alone,
        "get_params of what is here": all(
            np.array_equal(own[n], native[n] if shards[n] is None else shards[n].cut_stored(native[n])) for n in own
        ),
        "checksum": xw.checksum(model) == expected["checksums"][0],
        "get_params": xw.equal(xw.get_params(model), values),
        "numpy": all(np.array_equal(p.numpy(), values[p.name]) for p in xw.parameters(model)),
        "equal to itself": xw.equal(model, model) and xw.equal(model, values),
        "equal to others": xw.equal(model, other) or xw.equal(model, files / "other.npz"),
        "diff": len(xw.diff(model, other).changes) == len(xw.diff(values, other).changes),
        "stats": all(np.isclose(stats[n].std, expected["stats"][n].std, rtol=1e-12, equal_nan=True) for n in values),
        "summary": xw.summary(model) == xw.summary(small()),
    }


def run_undo(model: Any, expected: dict[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    before = xw.snapshot(model)
    xw.scale(model, 3.0)
    before.restore()
    found["snapshot"] = different(model, expected["start"])
    with xw.transaction(model) as block:
        xw.scale(model, 3.0)
        block.rollback()
    found["rollback"] = different(model, expected["start"])
    return found


def run_training(model: Any, expected: dict[Any, Any], fused: bool) -> dict[str, Any]:
    if type(model).__name__ != "DistributedDataParallel" and fused and not is_uniform(model):
        return {}  # torch itself can't: "got mixed torch.Tensor and DTensor"
    held = trained(model, fused)
    for one in held.values():
        one.check()
    found, before, one_process = xw.get_params(model), expected["start"], expected["trained", fused]
    which = "fused" if fused else "plain"
    result = {
        f"masked entries, {which}": int(np.count_nonzero(found[UP][~KEPT])),
        f"frozen entries, {which}": np.array_equal(found["emb/embeddings"][FROZEN], before["emb/embeddings"][FROZEN]),
        f"frozen whole, {which}": np.array_equal(found["conv/kernel"], before["conv/kernel"]),
        f"all else, {which}": all(np.allclose(found[n], one_process[n], atol=1e-5) for n in one_process),
        f"something moved, {which}": not np.array_equal(found["down/kernel"], before["down/kernel"]),
    }
    xw.add(model, 1.0)
    result[f"holds after a write, {which}"] = int(np.count_nonzero(xw.get_params(model)[UP][~KEPT]))
    for one in held.values():
        one.release()
    return result


def is_uniform(model: Any) -> bool:
    return len({type(p) for p in model.parameters()}) == 1


# What isn't True, or 0 differing entries.
EXPECTED_FALSE = ("equal to others",)


# Each takes 5 to 15 seconds of CI's two cores: one world of each number of ranks is enough there, beside DDP.
AT_NIGHT = ("fsdp2-4", "tp-2", "hsdp-4")


@pytest.mark.parametrize("world", [pytest.param(w, marks=pytest.mark.thorough) if w in AT_NIGHT else w for w in WORLDS])
def test_every_call_has_the_bytes_of_one_process_on_every_rank(world, expected, files):
    answers = run_ranks(WORLDS[world], run_all, world, expected, files)
    wrong = {
        f"rank {rank}: {name}": value
        for rank, answer in enumerate(answers)
        for name, value in answer.items()
        if (value is not False if name in EXPECTED_FALSE else value is not True and (value is False or value != 0))
    }
    assert not wrong
    assert len(answers[0]) > 70
