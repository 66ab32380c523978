"""A half-trained experiment goes on in a sharded model, and out of one: weights, slots, and what is attached."""

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
from ranks import caught, check_that_all_raised, run_ranks
from worlds import WORLDS, blocks, shard, small

import xweights as xw
from xweights.core.attachments import handles_on

SAMPLE = np.arange(20).reshape(4, 5)
KEPT = np.arange(8 * 18).reshape(8, 18) % 3 > 0


def step(model: Any, optimizer: Any, first: int, steps: int = 2) -> None:
    """Step with gradients that are the same numbers in every world."""
    for number in range(first, first + steps):
        for position, p in enumerate(model.parameters()):
            if p.requires_grad:
                p.grad = torch.full_like(p, 0.5 + position - 2 * number)
        optimizer.step()


def begun(model: Any) -> tuple[Any, Any]:
    """Train two steps with something of every kind attached; return the optimizer and the averages."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, foreach=False)
    xw.hold(model, xw.Mask(KEPT), where="up/kernel", optimizer=optimizer)
    xw.freeze(model, where="emb/embeddings", entries=(slice(3, 9),), optimizer=optimizer)
    xw.prune(model, fraction=0.6, schedule=xw.Cubic(0, 6, every=2), where="down/kernel", optimizer=optimizer)
    xw.multiply_lr(model, {"head/*": 0.5}, optimizer=optimizer)
    averages = xw.average(model, decay=0.9, optimizer=optimizer)
    step(model, optimizer, 0)
    return optimizer, averages


def hand_over(rank: int, world: str) -> dict[str, Any]:
    found = {}
    sides = {
        "into shards": (small(), shard(small(1), world)),
        "out of shards": (shard(small(), world), small(1)),
        "between shards": (shard(small(), world), shard(small(1), world)),
    }
    for name, (source, target) in sides.items():
        optimizer, averages = begun(source)
        before = xw.get_params(source)
        report = xw.handoff((source, optimizer), (target, None), sample=SAMPLE)
        found[f"{name}, the source is as it was"] = xw.equal(source, before)
        found[f"{name}, at once"] = xw.equal(source, target) and len(report.held) == 5
        state = xw.get_optimizer(target, report.optimizer)
        lines = xw.get_optimizer(source, optimizer).diff(state)
        found[f"{name}, slots"] = not [line for line in lines if " of " in line]
        for model, its in ((source, optimizer), (target, report.optimizer)):
            step(model, its, 2)
        found[f"{name}, later"] = xw.equal(source, target)
        taken = next(handle for handle in report.held if isinstance(handle, xw.Averages))
        found[f"{name}, averages"] = xw.equal(averages.params, taken.params)
        report.release()
    target = shard(small(1), world)
    report = xw.handoff((small(), None), (target, None), grade="weights", sample=SAMPLE)
    found["weights alone"] = xw.equal(target, small()) and report.grade == "weights"
    return found


@pytest.mark.parametrize(
    "world", ["fsdp2-2", *(pytest.param(w, marks=pytest.mark.thorough) for w in ("tp-2", "2d-4", "hsdp-4"))]
)
def test_an_experiment_goes_on_with_the_bits_that_it_would_have_had(world):
    for answer in run_ranks(WORLDS[world], hand_over, world):
        assert [name for name, good in answer.items() if not good] == []


def squared(outputs: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (outputs - expected).square().mean()


def disagree(rank: int) -> dict[str, Any]:
    here = rank == 1
    source, target = small(2 if here else 0), shard(small(1), "fsdp2-2")
    optimizer = torch.optim.AdamW(source.parameters(), lr=0.01, foreach=False)
    step(source, optimizer, 0)
    before = [block.clone() for block in blocks(target)]

    def hand(*, of: Any = source, its: Any = optimizer, to: Any = None, **options: Any) -> Any:
        return caught(lambda: xw.handoff((of, its), (target, to), sample=SAMPLE, **options))

    same = small()
    lamb = xw.set_optimizer(same, None, xw.optimizer_state(same, "lamb", learning_rate=0.1)).optimizer
    adam = torch.optim.AdamW(same.parameters(), lr=0.01, foreach=False)
    step(same, adam, 0)
    own = torch.optim.SGD(target.parameters(), lr=0.1, foreach=False)
    found = {
        "other weights": hand(),
        "another grade": hand(of=same, its=adam, grade="stock" if here else "exact"),
        "a stranger": hand(of=same, its=optimizer if here else adam),
        "lamb": hand(of=same, its=lamb),
        "another class": hand(of=same, its=adam, to=own),
    }
    same, cut = small(), shard(small(1), "fsdp2-2")
    adam = torch.optim.AdamW(same.parameters(), lr=0.01, foreach=False)
    step(same, adam, 0)
    report = xw.handoff((same, adam), (cut, None), sample=SAMPLE)
    batches, sides = [(SAMPLE, np.zeros(4, np.float32))], ((same, adam), report.training)
    proof = xw.verify_handoff(*sides, batches=batches, loss=squared, steps=3, dtypes=(None,))
    found["proved"] = proof.ok and xw.equal(same, cut)
    held = xw.hold(target, xw.Clip(-10, 10), where="up/kernel")
    found["a held target"] = hand(of=same, its=adam)
    held.release()
    found["unchanged"] = all(map(torch.equal, blocks(target), before)) and not handles_on(xw.parameters(target))
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_ranks(2, disagree)


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("other weights", "RankError", "arguments of handoff"),
        ("another grade", "RankError", "arguments of handoff"),
        ("a stranger", "HandoffError", "on rank 1: this optimizer can't be read"),
        ("lamb", "HandoffError", "lamb looks at whole arrays"),
        ("another class", "HandoffError", "the optimizer given is SGD"),
        ("a held target", "HandoffError", "is held: 'up/kernel'"),
    ],
)
def test_all_ranks_raise_the_same_error_for(what, kind, text, found):
    check_that_all_raised(found, what, kind, text)


def test_a_refused_handoff_leaves_the_target_as_it_was(found):
    assert all(answer["unchanged"] for answer in found)


def test_the_proof_of_a_handoff_trains_a_plain_copy(found):
    assert all(answer["proved"] for answer in found)


KERAS = """
import numpy as np, torch, keras
from ranks import run_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
import xweights as xw

X = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
Y = np.ones((6, 3), np.float32)

def twins():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(18, activation="relu"), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    xw.init(model, "glorot_uniform", seed=0)
    net = nn.Sequential(nn.Linear(8, 18), nn.ReLU(), nn.Linear(18, 3))
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(net[0], mesh=mesh)
    return model, fully_shard(net, mesh=mesh)

def work(rank):
    model, net = twins()
    model.fit(X, Y, epochs=3, verbose=0)
    report = xw.handoff((model, model.optimizer), (net, None), sample=X)
    for _ in range(3):
        report.optimizer.zero_grad()
        nn.functional.mse_loss(net(torch.from_numpy(X)), torch.from_numpy(Y)).backward()
        report.optimizer.step()
    model.fit(X, Y, epochs=3, verbose=0)
    kernels = [xw.get_params(m, where="*/kernel").values() for m in (model, net)]
    gap = max(float(abs(a - b).max()) for a, b in zip(*kernels, strict=True))
    back, _ = twins()
    second = xw.handoff((net, report.optimizer), (back, back.optimizer), sample=X)
    first = xw.get_optimizer(net, report.optimizer)
    again = [*xw.get_params(back, where="*/kernel").values()]
    same = all(np.array_equal(a, b) for a, b in zip(again, kernels[1], strict=True))
    return gap, same, second.updates == first.updates == 6

if __name__ == "__main__":
    for gap, same, counted in run_ranks(2, work, timeout=60):
        assert gap < 1e-5, gap
        assert same and counted
    print("good")
"""


@pytest.mark.slow
def test_keras_goes_on_in_shards_and_back(tmp_path):
    pytest.importorskip("keras", reason="Keras on torch, in a process of its own")
    script = tmp_path / "keras_to_shards.py"
    script.write_text(KERAS)
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip().endswith("good")
