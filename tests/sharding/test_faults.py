"""Ranks that disagree, refuse or are late: a typed error on every rank or the right result, never a hang."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

pytest.importorskip("torch", reason="the ranks are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import torch
import torch.distributed as dist
from ranks import caught, run_ranks
from worlds import blocks, shard, small

import xweights as xw
from xweights.errors import ArgumentError, NonfiniteError, RankError, SelectionError, ShapeError

UP = "up/kernel"


class Only:
    """A call that is another one on rank 1."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, here: Any, there: Any) -> Any:
        return there if self.rank == 1 else here


def disagree(rank: int) -> dict[str, Any]:
    model = shard(small(), "fsdp2-2")
    before = [block.clone() for block in blocks(model)]
    of = Only(rank)

    def fails_here(w: torch.Tensor) -> torch.Tensor:
        if rank == 1:
            raise KeyError("only here")
        return w * 2

    def rollback() -> None:
        with xw.transaction(model):
            xw.scale(model, 3.0)
            if rank == 1:
                raise KeyError("only here")

    averages = xw.average(model, decay=0.5, attach=False)

    def updated() -> Any:
        if rank == 1:
            averages.update()
        return averages

    found = {
        "other arguments": caught(lambda: xw.scale(model, of(2.0, 3.0))),
        "another seed": caught(lambda: xw.noise(model, 0.1, seed=rank)),
        "other values": caught(lambda: xw.set_params(model, {UP: torch.full((8, 18), float(rank))}, strict=False)),
        "other parameters": caught(lambda: xw.scale(model, 2.0, where=of(UP, "down/kernel"))),
        "another call": caught(of(lambda: xw.scale(model, 2.0), lambda: xw.checksum(model))),
        "no such name": caught(lambda: xw.scale(model, 2.0, where=of(UP, "upp/kernel"))),
        "a bad bound": caught(lambda: xw.clip(model, *of((1.0, 2.0), (2.0, 1.0)))),
        "a bad number": caught(lambda: xw.scale(model, of(1.0, float("nan")))),
        "a misnamed argument": caught(lambda: xw.scale(model, 2.0, **of({}, {"scope": "x"}))),
        "a bad shape": caught(
            lambda: xw.set_params(model, {UP: torch.zeros(*of((8, 18), (3, 3)))}, strict=False, layout="neutral")
        ),
        "a function that raises": caught(lambda: xw.apply(model, fails_here, where="*")),
        "a block that raises": caught(rollback),
        "averages on one rank": caught(of(lambda: averages.params, lambda: xw.checksum(model))),
        "averages copied on one rank": caught(of(lambda: averages.copy_to(model), lambda: xw.checksum(model))),
        "averages of other steps": caught(lambda: updated().params),
        "a random hold": caught(lambda: xw.hold(model, of(xw.Clip(-1, 1), xw.Noise(0.1, seed=0)), where=UP)),
        "a misnamed freeze": caught(lambda: xw.freeze(model, **of({}, {"entry": 3}))),
        "a misnamed snapshot": caught(lambda: xw.snapshot(model, **of({}, {"only": UP}))),
        "a misnamed transaction": caught(lambda: xw.transaction(model, **of({}, {"only": UP})).__enter__()),
        "a misnamed save": caught(lambda: xw.save(model, "never.npz", **of({}, {"names_of": 3}))),
        "a hold": caught(lambda: xw.hold(model, xw.Clip(-0.01, 0.01), where=of(UP, "nix"))),
    }
    found["unchanged"] = all(map(torch.equal, blocks(model), before))
    if rank == 1:
        blocks(model)[0][0] = float("nan")
    found["NaN"] = caught(lambda: xw.prune(model, fraction=0.5))
    blocks(model)[0].copy_(before[0])
    xw.scale(model, 2.0)
    found["goes on"] = all(map(torch.equal, blocks(model), [block * 2 for block in before]))
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_ranks(2, disagree)


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("other arguments", RankError, "arguments of scale"),
        ("another seed", RankError, "arguments of noise"),
        ("other values", RankError, "arguments of set_params"),
        ("other parameters", RankError, "parameters of scale"),
        ("another call", RankError, "the call that they make"),
        ("averages on one rank", RankError, "the call that they make"),
        ("averages copied on one rank", RankError, "the call that they make"),
        ("averages of other steps", RankError, "rank 1: updates=1"),
        ("no such name", SelectionError, "on rank 1: where='upp/kernel'"),
        ("a bad bound", ArgumentError, "on rank 1: low is greater"),
        ("a bad number", NonfiniteError, "on rank 1: factor= isn't finite"),
        ("a misnamed argument", ArgumentError, "on rank 1: scale() has no argument 'scope'"),
        ("a random hold", ArgumentError, "on rank 1: Noise(std=0.1) is random"),
        ("a misnamed freeze", ArgumentError, "on rank 1: freeze() has no argument 'entry'"),
        ("a misnamed snapshot", ArgumentError, "on rank 1: snapshot() has no argument 'only'"),
        ("a misnamed transaction", ArgumentError, "on rank 1: transaction() has no argument 'only'"),
        ("a misnamed save", ArgumentError, "on rank 1: save() has no argument 'names_of'"),
        ("a hold", SelectionError, "on rank 1: where='nix'"),
        ("NaN", NonfiniteError, "on rank 1: prune can't be done"),
    ],
)
def test_all_ranks_raise_the_same_error_for(what, kind, text, found):
    for answer in found:
        assert answer[what] is not None
        kinds, message = answer[what]
        assert kind.__name__ in kinds
        assert text in message


def test_a_wrong_shape_on_one_rank_is_an_error_on_all(found):
    for answer in found:
        assert {ShapeError.__name__, RankError.__name__} & set(answer["a bad shape"][0])


@pytest.mark.parametrize("what", ["a function that raises", "a block that raises"])
def test_what_a_user_s_code_raises_on_one_rank_undoes_the_call_on_all(what, found):
    assert found[1][what] == (["KeyError"], "'only here'")
    assert "RankError" in found[0][what][0]
    assert "on rank 1: KeyError: 'only here'" in found[0][what][1]


@pytest.mark.parametrize("rank", [0, 1])
def test_nothing_was_changed_and_the_ranks_can_go_on(rank, found):
    assert found[rank]["unchanged"]
    assert found[rank]["goes on"]


def wait(rank: int) -> Any:
    model = shard(small(), "fsdp2-2")
    if rank == 1:
        time.sleep(5)
    xw.scale(model, 2.0)
    return xw.checksum(model)


@pytest.mark.thorough
def test_a_rank_that_is_late_is_waited_for():
    model = small()
    xw.scale(model, 2.0)
    assert run_ranks(2, wait) == [xw.checksum(model)] * 2


def call_alone(rank: int) -> Any:
    model = shard(small(), "fsdp2-2")
    before = [block.clone() for block in blocks(model)]
    if rank == 1:
        time.sleep(3)
        return None
    return caught(lambda: xw.scale(model, 2.0)), all(map(torch.equal, blocks(model), before))


def test_a_call_on_one_rank_only_is_named_within_the_group_s_timeout():
    (kinds, text), unchanged = run_ranks(2, call_alone, timeout=1.0)[0]
    assert "RankError" in kinds
    assert "every rank" in text
    assert unchanged


def read_alone(rank: int, folder: str) -> Any:
    model = shard(small(), "ddp-2")
    if rank == 1:
        return None
    xw.save(model, f"{folder}/copy.npz")
    return xw.checksum(model), xw.equal(f"{folder}/copy.npz", small()), xw.summary(model) == xw.summary(small())


def test_one_rank_may_read_and_save_what_every_rank_has(tmp_path):
    assert run_ranks(2, read_alone, str(tmp_path))[0] == (xw.checksum(small()), True, True)


def call_without_group(rank: int) -> Any:
    model = shard(small(), "fsdp2-2")
    xw.scale(model, 2.0)
    dist.destroy_process_group()
    return caught(lambda: xw.scale(model, 2.0))


def test_a_process_group_that_was_destroyed_is_a_typed_error():
    for answer in run_ranks(2, call_without_group):
        assert answer is not None
        assert {"RankError", "WriteError"} & set(answer[0])


def edit_one_copy(rank: int) -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    model = torch.nn.parallel.DistributedDataParallel(model)
    xw.fill(model, 0.5)
    if rank == 1:
        with torch.no_grad():
            model.module[0].weight[2, 1] = 1.0
            model.module[1].running_mean.fill_(3.0)
    found = {
        "scale": caught(lambda: xw.scale(model, 2.0)),
        "prune": caught(lambda: xw.prune(model, fraction=0.5)),
        "hold": caught(lambda: xw.hold(model, xw.Clip(-1, 1), where="*")),
        "of others": caught(lambda: xw.scale(model, 2.0, where="1/*")),
        "statistics": caught(lambda: xw.scale(model, 2.0, where="1/moving_mean")),
        "unchanged": float(xw.get_params(model)["0/kernel"].sum()),
    }
    xw.set_params(model, xw.get_params(model) if rank == 0 else None, on_rank=0)
    found["healed"] = caught(lambda: xw.scale(model, 2.0))
    return found


def test_copies_of_trained_weights_that_differ_are_named_and_can_be_mended():
    for rank, answer in enumerate(run_ranks(2, edit_one_copy)):
        for call in ("scale", "prune", "hold"):
            kinds, message = answer[call]
            assert "RankError" in kinds
            assert "different values of parameters" in message
            assert "'0/kernel'" in message
        assert answer["of others"] is None
        assert answer["statistics"] is None
        assert answer["unchanged"] == 8 + rank / 2
        assert answer["healed"] is None
