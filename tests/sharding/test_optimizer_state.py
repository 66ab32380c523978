"""The state of an optimizer on shards: read whole on every rank, written into blocks, refused by all or by none."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="the worlds are PyTorch's")
if not hasattr(os, "fork"):
    pytest.skip("ranks are forked processes", allow_module_level=True)

import numpy as np
import torch
from counting import Counting
from ranks import caught, check_that_all_raised, run_ranks
from worlds import WORLDS, blocks, shard, small

import xweights as xw

# PyTorch's own classes, beside Adafactor and Rprop: these can't step a DTensor.
CLASSES: dict[str, dict[str, Any]] = {
    "AdamW": {"weight_decay": 0.1},
    "SGD": {"momentum": 0.9},
    "NAdam": {},
    "RMSprop": {"momentum": 0.9},
    "Adamax": {},
    "Adagrad": {},
    "Adadelta": {},
}
# Rules that PyTorch lacks, or follows with help.
FOREIGN: dict[str, dict[str, Any]] = {
    "lion": {},
    "ftrl": {},
    "adam": {"clip": ("global_norm", 1.0), "weight_decay": 0.1},
    "rmsprop": {"clip": ("norm", 0.5)},
    "sgd": {"momentum": 0.9, "clip": ("value", 0.3), "weight_decay": 0.1, "coupled": True},
}

KEPT = np.arange(8 * 18).reshape(8, 18) % 3 > 0
RATE = xw.schedule("inverse_time", 0.1, steps=1, decay=1.0)


def step(model: Any, optimizer: Any, first: int = 0, steps: int = 2) -> None:
    """Step with gradients that are the same numbers in every world."""
    for number in range(first, first + steps):
        optimizer.zero_grad()
        for position, p in enumerate(model.parameters()):
            p.grad = torch.full_like(p, 0.5 + position - 3 * number)
        optimizer.step()


def make(kind: str, model: Any, lr: float = 0.01) -> Any:
    return getattr(torch.optim, kind)(model.parameters(), lr=lr, foreach=False, **CLASSES[kind])


def states() -> dict[str, Any]:
    """Return the states that one process has after two steps."""
    found = {}
    for kind in CLASSES:
        model = small()
        optimizer = make(kind, model)
        step(model, optimizer)
        found[kind] = xw.get_optimizer(model, optimizer, step=2 if kind == "SGD" else None)
    return found


def started(rule: str, model: Any) -> Any:
    state = xw.optimizer_state(model, rule, learning_rate=RATE, **FOREIGN[rule])
    return xw.set_optimizer(model, None, state).optimizer


def run_foreign(model: Any) -> dict[str, Any]:
    """Return the weights and the states after two steps by rules of other frameworks."""
    found = {}
    start = xw.get_params(model)
    for rule in FOREIGN:
        xw.set_params(model, start)
        optimizer = started(rule, model)
        step(model, optimizer)
        found[rule] = xw.get_params(model), xw.get_optimizer(model, optimizer)
    return found


def run_all(rank: int, world: str, expected: dict[str, Any], file: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in CLASSES:
        model, other = shard(small(), world), shard(small(5), world)
        optimizer, filled = make(kind, model), make(kind, other, lr=0.5)
        step(model, optimizer)
        state = xw.get_optimizer(model, optimizer, step=2 if kind == "SGD" else None)
        found[f"{kind} read"] = expected[kind].diff(state)
        xw.set_params(other, xw.get_params(model))
        xw.set_optimizer(other, filled, expected[kind])
        found[f"{kind} written"] = expected[kind].diff(xw.get_optimizer(other, filled))
        for one, its in ((model, optimizer), (other, filled)):
            step(one, its, first=2)
        found[f"{kind} goes on"] = [] if xw.equal(model, other) else ["other weights"]
    model = shard(small(), world)
    optimizer = make("AdamW", model)
    xw.set_optimizer(model, optimizer, xw.get_optimizer(model, file))
    found["a file of PyTorch"] = [
        line for line in expected["AdamW"].diff(xw.get_optimizer(model, optimizer)) if "notes" not in line
    ]
    found["foreign"] = run_foreign(shard(small(), world))
    return found


def with_rules(model: Any) -> Any:
    """Attach something of every kind, and return the optimizer."""
    optimizer = make("AdamW", model)
    xw.hold(model, xw.Mask(KEPT), where="up/kernel", optimizer=optimizer)
    xw.freeze(model, where="emb/embeddings", entries=(slice(3, 9),), optimizer=optimizer)
    xw.freeze(model, where="conv/*")
    xw.prune(model, fraction=0.6, schedule=xw.Cubic(0, 6, every=2), where="down/kernel", optimizer=optimizer)
    xw.multiply_lr(model, {"head/*": 0.5}, optimizer=optimizer)
    xw.average(model, decay=0.9, optimizer=optimizer)
    return optimizer


def run_training(model: Any) -> tuple[Any, Any]:
    """Return the training state after two steps, and the weights after two more."""
    optimizer = with_rules(model)
    step(model, optimizer)
    state = xw.get_training_state(model, optimizer)
    step(model, optimizer, first=2)
    return state, xw.get_params(model)


def resume(rank: int, world: str, expected: tuple[Any, Any], file: str) -> dict[str, Any]:
    state, _ = run_training(shard(small(), world))
    own, wanted = ([getattr(a, "entries", getattr(a, "values", {})) for a in s.attached] for s in (state, expected[0]))
    model = shard(small(4), world)
    optimizer = make("AdamW", model, lr=0.5)
    report = xw.set_training_state(model, optimizer, xw.TrainingState.load(file))
    step(model, optimizer, first=2)
    return {
        "slots": not expected[0].optimizer.diff(state.optimizer),
        "attached": list(map(str, state.attached)) == list(map(str, expected[0].attached)),
        "arrays": all(np.array_equal(a[n], b[n]) for a, b in zip(own, wanted, strict=True) for n in b),
        "goes on": xw.equal(model, expected[1]),
        "held": len(report.held) == len(state.attached),
    }


@pytest.mark.parametrize("world", ["fsdp2-2", pytest.param("2d-4", marks=pytest.mark.thorough)])
def test_a_training_state_of_one_process_goes_on_in_many_and_is_read_back(world, tmp_path):
    expected = run_training(small())
    file = str(tmp_path / "run.safetensors")
    expected[0].save(file)
    for answer in run_ranks(WORLDS[world], resume, world, expected, file):
        assert [name for name, good in answer.items() if not good] == []


WORLDS_HERE = ["fsdp2-2", *(pytest.param(w, marks=pytest.mark.thorough) for w in ("ddp-2", "tp-2", "2d-4", "hsdp-4"))]


@pytest.mark.parametrize("world", WORLDS_HERE)
def test_slots_have_the_bits_of_one_process_and_training_goes_on(world, tmp_path):
    model = small()
    optimizer = make("AdamW", model)
    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "adamw.pt")
    expected, foreign = states(), run_foreign(small())
    for answer in run_ranks(WORLDS[world], run_all, world, expected, str(tmp_path / "adamw.pt")):
        for rule, (weights, state) in answer.pop("foreign").items():
            clipped_by_norm = "norm" in FOREIGN[rule].get("clip", ("",))[0]
            same = [np.allclose(weights[n], foreign[rule][0][n], rtol=1e-6, atol=1e-7) for n in weights]
            assert all(same), rule
            assert clipped_by_norm or (xw.equal(weights, foreign[rule][0]) and not foreign[rule][1].diff(state)), rule
        assert {name: lines for name, lines in answer.items() if lines} == {}


def disagree(rank: int) -> dict[str, Any]:
    model, other = shard(small(), "fsdp2-2"), shard(small(1), "fsdp2-2")
    optimizer, stranger = make("AdamW", model), make("AdamW", other)
    step(model, optimizer)
    state = xw.get_optimizer(model, optimizer)
    slots = [value for p in model.parameters() for value in optimizer.state[p].values()]
    before = [getattr(value, "_local_tensor", value).clone() for value in slots]
    here = rank == 1
    found = {
        "a stranger": caught(lambda: xw.get_optimizer(model, stranger if here else optimizer)),
        "another step": caught(lambda: xw.get_optimizer(model, optimizer, step=3 if here else 2)),
        "another call": caught(lambda: xw.checksum(model) if here else xw.get_optimizer(model, optimizer)),
        "another state": caught(
            lambda: xw.set_optimizer(model, optimizer, replace(state, updates=7) if here else state)
        ),
        "another optimizer": caught(
            lambda: xw.set_optimizer(model, torch.optim.SGD(model.parameters(), 0.1) if here else optimizer, state)
        ),
        "a grade": caught(lambda: xw.set_optimizer(model, optimizer, state, grade="stuck" if here else "exact")),
        "adafactor": caught(
            lambda: xw.set_optimizer(model, None, xw.optimizer_state(model, "adafactor", learning_rate=0.1))
        ),
        "lamb": caught(lambda: xw.set_optimizer(model, None, xw.optimizer_state(model, "lamb", learning_rate=0.1))),
        "an average": caught(
            lambda: xw.set_optimizer(
                model, None, xw.optimizer_state(model, "adam", learning_rate=0.1, ema_momentum=0.9)
            )
        ),
    }
    if here:
        del optimizer.state[next(iter(model.parameters()))]["exp_avg"]
    found["a lost slot"] = caught(lambda: xw.get_optimizer(model, optimizer))
    xw.set_optimizer(model, optimizer, state)
    now = [value for p in model.parameters() for value in optimizer.state[p].values()]
    found["unchanged"] = all(map(torch.equal, before, [getattr(value, "_local_tensor", value) for value in now]))
    counting = Counting()
    xw.get_optimizer(model, optimizer)
    found["collectives of reading"] = list(counting.calls)
    counting.calls.clear()
    xw.set_optimizer(model, optimizer, state)
    found["collectives of writing"] = list(counting.calls)
    found["bytes of slots"] = sum(2 * block.numel() * 4 for block in blocks(model))
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_ranks(2, disagree)


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("a stranger", "HandoffError", "on rank 1: this optimizer can't be read"),
        ("another step", "HandoffError", "on rank 1: this optimizer can't be read"),
        ("another call", "RankError", "the call that they make"),
        ("another state", "RankError", "arguments of set_optimizer"),
        ("another optimizer", "HandoffError", "on rank 1: this optimizer can't be written"),
        ("a grade", "ArgumentError", "on rank 1: grade="),
        ("adafactor", "HandoffError", "averages of rows and columns"),
        ("lamb", "HandoffError", "lamb looks at whole arrays"),
        ("an average", "HandoffError", "a sharded one can't be copied"),
        ("a lost slot", "HandoffError", "on rank 1: this optimizer can't be read"),
    ],
)
def test_all_ranks_raise_the_same_error_for(what, kind, text, found):
    check_that_all_raised(found, what, kind, text)


def test_a_refused_state_changes_no_slot_on_any_rank(found):
    assert all(answer["unchanged"] for answer in found)


def test_each_slot_is_gathered_once_and_writing_takes_two_votes(found):
    reading, writing = found[0]["collectives of reading"], found[0]["collectives of writing"]
    slots = 2 * len(list(small().parameters()))
    assert len(reading) == 1 + slots
    assert sum(reading[1:]) <= 1.2 * found[0]["bytes of slots"]  # blocks of 11 and 9 rows are padded
    assert len(writing) == 2
    assert max(writing) <= 217
