"""A penalty on shards: the value of the whole model on every rank, and the gradient of this rank's block."""

from __future__ import annotations

import os
from typing import Any

import pytest

pytest.importorskip("torch", reason="the worlds are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import numpy as np
import torch
from counting import Counting
from ranks import caught, check_that_all_raised, run_ranks
from worlds import WORLDS, shard, small

import xweights as xw

TERMS: dict[str, dict[str, Any]] = {
    "l1": {"l1": 0.1},
    "l2": {"l2": 0.2},
    "everything": {"l1": 0.1, "l2": 0.2, "where": ...},
    "units along the cut axis": {"group": 0.3, "per": "out", "where": "*/kernel"},
    "units across the cut axis": {"group": 0.3, "per": "in", "where": "*/kernel"},
    "units of two axes": {"group": 0.3, "per": ("in", "out"), "where": "*/kernel"},
    "orthogonal": {"orthogonal": 0.4, "where": "*/kernel"},
    "all": {"l1": 0.1, "l2": 0.2, "group": 0.3, "per": "out", "orthogonal": 0.4, "where": "*/kernel"},
}
BATCH = torch.arange(20).reshape(4, 5)


def penalised(model: Any, terms: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Return the value, and the gradients of twice the value by native name: this rank's blocks."""
    model.zero_grad()
    value = xw.penalty(model, **terms)
    (2.0 * value).backward()
    grads = {
        name.removeprefix("module."): getattr(p.grad, "_local_tensor", p.grad).clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return float(value), grads


def trained(model: Any) -> Any:
    """Train with penalties between the forward and the backward pass, and return the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, foreach=False)
    bound = xw.bind_penalty(model, l2=0.1, where=...)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(BATCH)
        (loss + bound() + xw.penalty(model, group=0.05, per="out", where="*/kernel")).backward()
        optimizer.step()
    return xw.get_params(model)


def run_all(rank: int, world: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    model = shard(small(), world)
    for name, terms in TERMS.items():
        value, grads = penalised(model, terms)
        plain = small()
        expected, whole = penalised(plain, terms)
        shards = {p.native_name.removeprefix("module."): p.shard for p in xw.parameters(model)}
        found[f"value of {name}"] = np.isclose(value, expected, rtol=1e-6)
        found[f"names of {name}"] = set(grads) == set(whole)
        for key, grad in grads.items():
            own = whole[key].numpy() if shards[key] is None else shards[key].cut_stored(whole[key].numpy())
            if name in ("l1", "l2", "everything", "orthogonal"):
                found[f"gradient of {name}, {key}"] = np.array_equal(grad.numpy(), own)
            else:
                found[f"gradient of {name}, {key}"] = np.allclose(grad.numpy(), own, rtol=1e-6)
    weights, expected = trained(shard(small(), world)), trained(small())
    found["trained"] = all(np.allclose(weights[name], expected[name], atol=1e-5) for name in expected)
    return found


@pytest.mark.parametrize(
    "world", ["fsdp2-2", *(pytest.param(w, marks=pytest.mark.thorough) for w in ("ddp-2", "tp-2", "2d-4", "hsdp-4"))]
)
def test_a_penalty_has_the_value_and_the_gradients_of_one_process(world):
    for answer in run_ranks(WORLDS[world], run_all, world):
        assert [name for name, good in answer.items() if not good] == []


def disagree(rank: int) -> dict[str, Any]:
    model = shard(small(), "fsdp2-2")
    here = rank == 1
    found: dict[str, Any] = {
        "other weights": caught(lambda: xw.penalty(model, l2=0.1 if here else 0.2)),
        "no such name": caught(lambda: xw.penalty(model, l2=0.1, where="upp/*" if here else "up/*")),
        "another call": caught(lambda: xw.checksum(model) if here else xw.penalty(model, l2=0.1)),
        "no such axis": caught(lambda: xw.bind_penalty(model, group=0.1, per="heads" if here else "out")),
    }
    counting = Counting()
    bound = xw.bind_penalty(model, l1=0.1, l2=0.1)
    found["binding"] = list(counting.calls)
    for name, penalty in {
        "sums": bound,
        "units": xw.bind_penalty(model, group=0.1, per="out", where="*/kernel"),
        "matrices": xw.bind_penalty(model, orthogonal=0.1, where="up/kernel"),
    }.items():
        counting.calls.clear()
        value = penalty()
        found[name] = list(counting.calls)
        counting.calls.clear()
        value.backward()
        found[f"{name}, backwards"] = list(counting.calls)
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_ranks(2, disagree)


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("other weights", "RankError", "arguments of penalty"),
        ("no such name", "SelectionError", "on rank 1: where='upp/*'"),
        ("another call", "RankError", "the call that they make"),
        ("no such axis", "LayoutError", "on rank 1: "),
    ],
)
def test_all_ranks_raise_the_same_error_for(what, kind, text, found):
    check_that_all_raised(found, what, kind, text)


def test_a_bound_penalty_makes_one_collective_of_8_bytes_a_term_and_none_backwards(found):
    for answer in found:
        assert len(answer["binding"]) == 1
        assert answer["sums"] == [2 * 8 * 5]  # two terms of five kernels and embeddings
        assert len(answer["units"]) == 1
        assert len(answer["matrices"]) == 1
        assert not any(answer[name] for name in answer if name.endswith("backwards"))
