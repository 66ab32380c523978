"""The training axis can fail: rules held by a plausible but wrong method, or not at all, are measured as broken."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import pytest
from harness.held import ENTRIES, FREE, MASK, ROW, RULES, Held, pruned_after
from harness.trainers import Trainer
from harness.training import Kind, Measured, measure

pytestmark = pytest.mark.matrix
STEPS = 8


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} not installed")


class Nothing:
    """What a hold was replaced by."""

    def release(self) -> None:
        """Leave it at that."""


@cache
def without_holds() -> dict[str, Measured]:
    return measure(Kind.TORCH, "AdamW", STEPS, lambda name, rule, trainer: Nothing())


@cache
def with_masked_gradients() -> dict[str, Measured]:
    """Zero the gradients of held entries: the popular recipe, which leaves momentum and weight decay active."""

    def attach(name: str, rule: Held, trainer: Trainer) -> Any:
        import torch

        stays = {"mask": ~MASK, "keep": ENTRIES, "row": [at == ROW for at in range(len(MASK))], "whole": MASK | ~MASK}
        layer = rule.layers[0]
        weight = trainer.kernel(layer)
        if layer in stays:
            entries = torch.as_tensor(stays[layer])
            with torch.no_grad():
                weight.T[entries] *= float(layer != "mask")
            weight.register_hook(lambda slope: torch.where(entries if entries.ndim == 1 else entries.T, 0.0, slope))
        return Nothing()

    return measure(Kind.TORCH, "AdamW", STEPS, attach)


@cache
def with_rules_before_the_update() -> dict[str, Measured]:
    """Each rule is made true ahead of the update, and the optimizer has the last word."""

    def attach(name: str, rule: Held, trainer: Trainer) -> Any:
        held = rule.attach(trainer.target, trainer.optimizer)
        held.release()
        trainer.optimizer.register_step_pre_hook(lambda *_: rule.attach(trainer.target, trainer.optimizer).release())
        return Nothing()

    return measure(Kind.TORCH, "SGD", STEPS, attach)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_is_not_held_is_measured_as_broken(name: str) -> None:
    need("torch")
    assert without_holds()[name].broken > 1e3 * max(RULES[name].tolerance, 1e-9)


@pytest.mark.parametrize("name", ["Mask(keep)", "Keep(entries)", "freeze", "freeze(entries=)"])
def test_masked_gradients_are_measured_as_broken(name: str) -> None:
    need("torch")
    assert with_masked_gradients()[name].broken > 1e-4


@pytest.mark.parametrize("name", ["Clip(-0.1, 0.1)", "MaxNorm(0.4, 'out')", "UnitNorm('in')", "Mask(keep)"])
def test_a_rule_that_is_applied_before_the_update_is_measured_as_broken(name: str) -> None:
    need("torch")
    assert with_rules_before_the_update()[name].broken > 1e-4


def test_a_training_that_stops_is_detected() -> None:
    need("torch")

    def stop(name: str, rule: Held, trainer: Trainer) -> Any:
        for group in trainer.optimizer.param_groups:
            group["lr"] = 0.0
        return rule.attach(trainer.target, trainer.optimizer)

    found = measure(Kind.TORCH, "Adam", STEPS, stop)
    assert found[FREE].moves == 0
    assert found["Mask(keep)"].moves == 0


def test_the_schedule_that_the_measurement_expects_grows_to_the_whole_fraction() -> None:
    counts = [pruned_after(update) for update in range(25)]
    assert counts == sorted(counts)
    assert (counts[2], counts[20]) == (0, 38)
    assert sorted(set(counts)) == [0, 16, 27, 34, 37, 38]
