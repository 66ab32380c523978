"""Accelerate: holds follow the optimizer inside its wrapper, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from learners import X, Y

import xweights as xw

torch = pytest.importorskip("torch", reason="Accelerate trains torch modules")
accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed: nox -s tests has it")

HALF = np.arange(20).reshape(4, 5) % 2 == 0


class Prepared:
    """A model, its prepared optimizer, and ``batch()``: half a step, since two batches are accumulated."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
        kind: Any = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}[name]
        options = {"momentum": 0.9, "nesterov": True} if name == "SGD" else {}
        raw = kind(model.parameters(), lr=0.05, weight_decay=0.1, **options)
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        self.model, self.optimizer = self.accelerator.prepare(model, raw)
        assert type(self.optimizer) is not type(raw)
        self.x, self.y = torch.from_numpy(X), torch.from_numpy(Y)

    def batch(self) -> bool:
        """Train on one batch; return whether the optimizer stepped."""
        with self.accelerator.accumulate(self.model):
            self.accelerator.backward(((self.model(self.x) - self.y) ** 2).mean())
            self.optimizer.step()
            self.optimizer.zero_grad()
            return bool(self.accelerator.sync_gradients)

    def kernel(self) -> np.ndarray:
        return xw.get_params(self.model)["0/kernel"]


@pytest.mark.parametrize("given", [True, False], ids=["optimizer given", "no optimizer given"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_under_accelerate_a_held_mask_and_a_frozen_row_are_true_after_every_batch(name: str, given: bool) -> None:
    run = Prepared(name)
    for _ in range(2):
        run.batch()  # momentum exists
    optimizer = run.optimizer if given else None
    held = xw.hold(run.model, xw.Mask(HALF), where="0/kernel", optimizer=optimizer)
    frozen = xw.freeze(run.model, where="2/kernel", entries={"out": 1}, optimizer=optimizer)
    row = xw.get_params(run.model)["2/kernel"][:, 1].tobytes()
    moved = 0
    for _ in range(12):
        before = xw.get_params(run.model)
        stepped = run.batch()
        now = xw.get_params(run.model)
        assert not now["0/kernel"][~HALF].any()
        assert now["2/kernel"][:, 1].tobytes() == row
        changed = bool((now["0/kernel"] != before["0/kernel"]).any() and (now["2/kernel"] != before["2/kernel"]).any())
        assert changed == stepped
        moved += changed
    assert moved == 6
    held.check()
    frozen.check()
    held.release()
    frozen.release()
    run.batch(), run.batch()
    assert run.kernel()[~HALF].any()
    assert xw.get_params(run.model)["2/kernel"][:, 1].tobytes() != row


@pytest.mark.parametrize("given", [True, False], ids=["optimizer given", "no optimizer given"])
def test_under_accelerate_a_schedule_and_averages_count_steps_and_not_batches(given: bool) -> None:
    run = Prepared("SGD")
    optimizer = run.optimizer if given else None
    steps = [2, 3]
    pruned = xw.prune(run.model, fraction=0.5, schedule=xw.Cubic(*steps), where="0/kernel", optimizer=optimizer)
    averages = xw.average(run.model, decay="swa", optimizer=optimizer)
    zeros = []
    for _ in range(8):
        run.batch()
        zeros.append(int((run.kernel() == 0).sum()))
    assert pruned.step == averages.updates == 4
    assert zeros == [0, 0, 0, 0, 0, 10, 10, 10]
    pruned.release()
    averages.release()


def test_a_hold_that_begins_before_prepare_goes_on_after_it() -> None:
    model = torch.nn.Linear(4, 5)
    raw = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    held = xw.hold(model, xw.Mask(HALF), where="kernel", optimizer=raw)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, raw)
    x = torch.from_numpy(X)
    for _ in range(3):
        before = xw.get_params(prepared)["kernel"]
        accelerator.backward((prepared(x) ** 2).mean() + prepared.weight.sum())
        optimizer.step()
        optimizer.zero_grad()
        now = xw.get_params(prepared)["kernel"]
        assert not now[~HALF].any()
        assert (now != before).any()
    held.check()
    held.release()
