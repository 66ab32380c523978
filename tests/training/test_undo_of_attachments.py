"""Undo of what is attached to training: holds, freezes, schedules, learning-rate factors and averages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from learners import learner

import xweights as xw

KINDS = ["torch", pytest.param("keras", marks=pytest.mark.keras_backend)]
LIMIT = np.float32(0.1)


class FailedError(Exception):
    """The user's own error inside of a transaction."""


def fail_after(target: Any, *block: Any) -> None:
    with xw.transaction(target):
        for call in block:
            call()
        raise FailedError


def largest(training: Any) -> float:
    return float(np.abs(xw.get_params(training.target)[training.first]).max())


def clip(training: Any) -> Any:
    return xw.hold(training.target, xw.Clip(-LIMIT, LIMIT), where=training.first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hold_that_began_in_a_failed_transaction_is_released(kind: str) -> None:
    training = learner(kind, "sgd")
    before = xw.get_params(training.target)
    with pytest.raises(FailedError):
        fail_after(training.target, lambda: clip(training), training.step)
    assert xw.equal(training.target, before)
    xw.fill(training.target, 5.0)
    assert largest(training) == 5.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_hold_that_was_released_in_a_failed_transaction_is_true_after_each_step_again(kind: str) -> None:
    training = learner(kind, "sgd")
    held = clip(training)
    training.step()
    before = xw.get_params(training.target)
    with pytest.raises(FailedError):
        fail_after(training.target, held.release, training.step)
    assert xw.equal(training.target, before)
    xw.fill(training.target, 5.0)
    assert largest(training) == LIMIT
    training.step()
    assert largest(training) <= LIMIT
    held.check()
    held.release()
    xw.fill(training.target, 5.0)
    assert largest(training) == 5.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_freeze_that_was_undone_in_a_failed_transaction_is_in_force_again(kind: str) -> None:
    training = learner(kind, "sgd")
    frozen = xw.freeze(training.target, where=[training.first, training.second])
    before = xw.get_params(training.target)
    with pytest.raises(FailedError):
        fail_after(training.target, lambda: xw.unfreeze(training.target, where=training.first), training.step)
    training.step()
    after = xw.get_params(training.target)
    for name in (training.first, training.second):
        np.testing.assert_array_equal(after[name], before[name])
    frozen.release()
    training.step()
    assert not np.array_equal(xw.get_params(training.target)[training.first], before[training.first])


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_goes_back_to_the_step_and_the_masks_of_then_and_goes_on_from_there(kind: str) -> None:
    training = learner(kind, "sgd")
    held = xw.prune(training.target, fraction=0.8, schedule=xw.Cubic(0, 8), where=training.first)
    training.step()
    before, masks = xw.snapshot(training.target), held.masks
    training.step()
    training.step()
    assert held.step == 3
    assert not xw.equal(held.masks, masks)
    before.restore()
    assert held.step == 1
    assert xw.equal(held.masks, masks)
    held.check()
    training.step()
    assert held.step == 2
    dropped = ~held.masks[training.first]
    assert dropped.sum() > (~masks[training.first]).sum()
    assert (xw.get_params(training.target)[training.first][dropped] == 0).all()
    held.check()


@pytest.mark.parametrize("kind", KINDS)
def test_averages_have_the_values_and_counts_of_then(kind: str) -> None:
    training = learner(kind, "sgd")
    averages = xw.average(training.target, decay=0.5)
    training.step()
    kept = averages.params
    with xw.transaction(training.target) as tx:
        training.step()
        averages.release()
        tx.rollback()
    assert averages.updates == 1
    assert xw.equal(averages.params, kept)
    training.step()
    assert averages.updates == 2
    averages.release()


@pytest.mark.parametrize("kind", KINDS)
def test_learning_rate_factors_are_released_or_set_again(kind: str) -> None:
    training = learner(kind, "sgd")
    training.step()
    former = xw.multiply_lr(training.target, {training.first: 0.0}, optimizer=training.optimizer)
    with xw.transaction(training.target) as tx:
        former.release()
        later = xw.multiply_lr(training.target, {training.second: 0.0}, optimizer=training.optimizer)
        tx.rollback()
    assert later.parameters == []
    before = xw.get_params(training.target)
    training.step()
    after = xw.get_params(training.target)
    np.testing.assert_array_equal(after[training.first], before[training.first])
    assert not np.array_equal(after[training.second], before[training.second])
    former.release()


def test_weights_are_rewound_under_a_mask_that_came_later() -> None:
    w = {"kernel": np.array([1.0, 2.0, 3.0, 4.0])}
    before = xw.snapshot(w)
    held = xw.prune(w, fraction=0.5, hold=True)
    xw.add(w, 1.0)
    before.restore()
    np.testing.assert_array_equal(w["kernel"], [0.0, 0.0, 3.0, 4.0])
    before.restore(release=True)
    np.testing.assert_array_equal(w["kernel"], [1.0, 2.0, 3.0, 4.0])
    assert held.parameters == []


def test_rules_are_held_in_their_former_order_again() -> None:
    w = {"kernel": np.array([3.0, 4.0])}
    first = xw.hold(w, xw.Clip(-1, 1), where="kernel")
    second = xw.hold(w, xw.Clip(-2, 0.5), where="kernel")
    with xw.transaction(w) as tx:
        first.release()
        tx.rollback()
    owners = xw.core.hold_registry.owners(xw.parameters(w)[0])
    assert owners == [first, second]
    first.release()
    second.release()


def test_a_norm_is_not_applied_again_to_weights_that_are_restored() -> None:
    w = xw.Params(
        {"kernel": np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)}, axes={"kernel": ("in", "out")}
    )
    with xw.hold(w, xw.UnitNorm(per="out"), where="kernel"):
        kept, before = w["kernel"].copy(), xw.snapshot(w)
        xw.fill(w, 1.0)
        before.restore()
        np.testing.assert_array_equal(w["kernel"], kept)


def test_only_the_selected_parameters_lose_a_hold_that_began_in_the_transaction() -> None:
    w = {"a": np.ones(1), "b": np.ones(1)}
    with xw.transaction(w, where="a") as tx:
        held = xw.hold(w, xw.Clip(-1, 1), where=...)
        tx.rollback()
    xw.fill(w, 5.0)
    assert (w["a"].item(), w["b"].item()) == (5.0, 1.0)
    held.release()
