"""FSDP's life cycle: calls between steps keep training as it was, and copies that would lose a write are found."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest

pytest.importorskip("torch", reason="FSDP is PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import numpy as np
import torch
from ranks import run_ranks
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from worlds import blocks, shard, small

import xweights as xw
from xweights.errors import TargetError, WriteError

BATCH = torch.arange(20).reshape(4, 5)
KEPT = np.arange(8 * 18).reshape(8, 18) % 3 > 0


def evaluate(model: Any) -> None:
    with torch.no_grad():
        model(BATCH)


def step(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(BATCH).backward()
    optimizer.step()


def refusal(call: Any) -> str:
    with pytest.raises((WriteError, TargetError)) as caught:
        call()
    return str(caught.value)


def run_fsdp2(rank: int, expected: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    model = shard(small(), "fsdp2-2")
    evaluate(model)
    found["a copy is in the place of the root's shards"] = not isinstance(model.norm.weight, DTensor)
    copy = model.norm.weight
    found["a lone copy"] = refusal(lambda: xw.scale(copy, 2.0))
    found["a copy in a dict"] = refusal(lambda: xw.checksum({"w": copy}))
    xw.checksum(model.norm)
    xw.scale(model.norm, 2.0)
    found["a submodule has its shards back"] = isinstance(model.norm.weight, DTensor)
    evaluate(model)
    xw.scale(model, 0.5, where="head/*")
    model(BATCH).backward()  # "Trying to resize storage that is not resizable", if a view was taken
    model.zero_grad()
    step(model)
    found["trained as one process"] = xw.checksum(model) == expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen: list[str] = []
        model.head.register_forward_pre_hook(lambda *_: seen.append(refusal(lambda: xw.scale(model, 2.0))))
        evaluate(model)
    found["inside of a forward pass"] = seen[0]
    return found


def one_process() -> str:
    model = small()
    xw.scale(model.norm, 2.0)
    xw.scale(model, 0.5, where="head/*")
    model(BATCH).backward()
    model.zero_grad()
    step(model)
    return xw.checksum(model)


def test_calls_after_an_evaluation_neither_break_training_nor_are_lost():
    for answer in run_ranks(2, run_fsdp2, one_process()):
        assert answer["a copy is in the place of the root's shards"]
        assert answer["a submodule has its shards back"]
        assert answer["trained as one process"]
        assert "FSDP2 gathered" in answer["a lone copy"]
        assert "FSDP2 gathered" in answer["a copy in a dict"]
        assert "going on" in answer["inside of a forward pass"]


def run_kinds(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    mesh = init_device_mesh("cpu", (2,))
    halves = small()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    fully_shard(halves, mesh=mesh, mp_policy=policy)
    evaluate(halves)
    xw.scale(halves, 2.0)
    found["mixed precision"] = {p.dtype.name for p in xw.parameters(halves)}, xw.checksum(halves)
    tied = small()
    tied.again = tied.emb
    fully_shard(tied, mesh=mesh)
    xw.scale(tied, 2.0)
    found["tied"] = xw.checksum(tied), [p.aliases for p in xw.parameters(tied) if p.aliases]
    with torch.device("meta"):
        empty = nn.Linear(4, 4)
    fully_shard(empty, mesh=mesh)
    found["meta"] = refusal(lambda: xw.fill(empty, 1.0))
    empty.to_empty(device="cpu")
    xw.fill(empty, 1.0)
    found["materialized"] = float(blocks(empty)[0].min())
    summand = nn.Module()
    summand.w = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Partial()]))
    found["partial"] = refusal(lambda: xw.scale(summand, 2.0, where="w"))
    crossed = nn.Module()
    crossed.w = nn.Parameter(distribute_tensor(torch.ones(4, 2), DeviceMesh("cpu", [1, 0]), [Shard(0)]))
    found["crossed"] = refusal(lambda: xw.set_params(crossed, {"w": np.ones((4, 2), np.float32)}))
    copied = nn.Module()
    copied.w = nn.Parameter(distribute_tensor(torch.ones(4, 2), DeviceMesh("cpu", [1, 0]), [Replicate()]))
    xw.scale(copied, 2.0, where="w")
    found["crossed copies"] = float(copied.w.to_local().sum())
    wide = nn.Linear(3, 2, dtype=torch.float64)
    narrow = nn.Linear(3, 2, dtype=torch.bfloat16)
    for layer in (wide, narrow):
        torch.nn.init.constant_(layer.weight, 1 / 3)
        fully_shard(layer, mesh=mesh)
        xw.scale(layer, 0.7)
        xw.max_norm(layer, 0.1, per="out")
    found["dtypes"] = [xw.checksum(layer, where="kernel") for layer in (wide, narrow)]
    return found


def test_mixed_precision_tied_meta_and_partial_parameters_and_crossed_ranks():
    model = small()
    xw.scale(model, 2.0)
    alike = []
    for dtype in (torch.float64, torch.bfloat16):
        layer = nn.Linear(3, 2, dtype=dtype)
        torch.nn.init.constant_(layer.weight, 1 / 3)
        xw.scale(layer, 0.7)
        xw.max_norm(layer, 0.1, per="out")
        alike.append(xw.checksum(layer, where="kernel"))
    for answer in run_ranks(2, run_kinds):
        assert answer["mixed precision"] == ({"float32"}, xw.checksum(model))  # the shard is the master
        assert answer["tied"] == (xw.checksum(model), [("again/embeddings",)])
        assert "to_empty" in answer["meta"]
        assert answer["materialized"] == 1.0
        assert "redistribute" in answer["partial"]
        assert "as init_device_mesh makes it" in answer["crossed"]
        assert answer["crossed copies"] == 16.0
        assert answer["dtypes"] == alike


def run_one_rank(rank: int) -> dict[str, Any]:
    model = small()
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    copies = xw.get_params(model)
    before = xw.checksum(copies)
    xw.scale(model, 2.0)
    masks = xw.prune(model, fraction=0.5, scope="global")
    xw.noise(model, 0.1, seed=0)
    return {
        "no aliases": xw.checksum(copies) == before,
        "checksum": xw.checksum(model),
        "masks": sum(int(mask.sum()) for mask in masks.values()),
    }


def test_one_rank_is_a_world_like_any_other():
    model = small()
    xw.scale(model, 2.0)
    masks = xw.prune(model, fraction=0.5, scope="global")
    xw.noise(model, 0.1, seed=0)
    (answer,) = run_ranks(1, run_one_rank)
    assert answer["no aliases"]
    assert answer["checksum"] == xw.checksum(model)
    assert answer["masks"] == sum(int(mask.sum()) for mask in masks.values())


def train_held(model: Any) -> str:
    """Take a step under holds, of which some look at the whole of what FSDP2 cuts, and return the checksum."""
    held = [
        xw.hold(model, xw.Mask(KEPT), where="up/kernel"),
        xw.hold(model, xw.MaxNorm(0.4, per="in"), where="down/kernel"),
        xw.hold(model, xw.SpectralNorm(0.5), where="head/kernel"),
        xw.freeze(model, where="emb/embeddings", entries=(slice(3, 9),)),
        xw.freeze(model, where="conv/*"),
    ]
    before = xw.get_params(model, where=["emb/embeddings", "conv/kernel"])
    step(model)
    for one in held:
        one.check()
    after = xw.get_params(model)
    assert np.array_equal(after["conv/kernel"], before["conv/kernel"])
    assert np.array_equal(after["emb/embeddings"][3:9], before["emb/embeddings"][3:9])
    assert not np.array_equal(after["emb/embeddings"], before["emb/embeddings"])
    assert not after["up/kernel"][~KEPT].any()
    return xw.checksum(model)


def train_one_rank(rank: int) -> str:
    model = small()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return train_held(model)


def test_a_world_of_one_rank_holds_and_freezes_as_a_model_that_nobody_sharded():
    assert run_ranks(1, train_one_rank) == [train_held(small())]


def run_fsdp1(rank: int, keep: bool) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"), use_orig_params=keep)
        found = {
            "wrapped": refusal(lambda: xw.scale(model, 0.5, where=...)),
            "inside": refusal(lambda: xw.scale(model.module, 0.5, where=...)),
        }
        with FullyShardedDataParallel.summon_full_params(model, writeback=True):
            xw.fill(model, 0.25)
        with FullyShardedDataParallel.summon_full_params(model):
            found["kept"] = all(bool((p == 0.25).all()) for p in model.parameters())
    return found


@pytest.mark.parametrize("keep", [True, False], ids=["original parameters", "flat parameter"])
def test_fsdp1_is_refused_but_for_its_full_parameters(keep):
    for answer in run_ranks(2, run_fsdp1, keep):
        assert "summon_full_params" in answer["wrapped"]
        assert "summon_full_params" in answer["inside"]
        assert answer["kept"]


UNBUILT = {
    "a hold over a cut axis": lambda model, _: xw.hold(model, xw.MaxNorm(1.0, per="in"), where="up/kernel"),
    "effective_params": lambda model, _: xw.effective_params(model),
    "plot": lambda model, _: xw.plot(model),
}


def run_unbuilt(rank: int, folder: str) -> dict[str, str]:
    model = shard(small(), "fsdp2-2")
    found = {}
    for name, call in UNBUILT.items():
        try:
            call(model, f"{folder}/{rank}.npz")
        except xw.XweightsError as error:
            found[name] = str(error)
        except Exception as error:  # noqa: BLE001 - shown by the test
            found[name] = f"untyped {type(error).__name__}: {error}"
        else:
            found[name] = "done"
    return found


def test_calls_that_do_not_work_on_shards_are_refused_by_name(tmp_path):
    for answer in run_ranks(2, run_unbuilt, str(tmp_path)):
        silent = {name: text for name, text in answer.items() if "sharded" not in text and "has of it" not in text}
        assert not silent
        assert all("Fix: " in text for text in answer.values())
    assert not list(tmp_path.iterdir())


def prune_attention(rank: int) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    whole = xw.prune(model, fraction=0.5, where="*/qkv/kernel")
    torch.manual_seed(0)
    cut = nn.Sequential(nn.MultiheadAttention(8, 2))
    fully_shard(cut, mesh=init_device_mesh("cpu", (2,)))
    masks = xw.prune(cut, fraction=0.5, where="*/qkv/kernel")
    (p,) = [p for p in xw.parameters(cut) if p.name.endswith("qkv/kernel")]
    stored = p.layout.to_stored(whole[p.name])
    return p.shard.ranges, masks.axes[p.name], bool((masks[p.name] == p.shard.cut_stored(stored)).all())


def test_a_block_that_ends_within_query_key_and_value_has_the_mask_of_its_stored_entries():
    assert run_ranks(2, prune_attention) == [(None, None, True)] * 2
