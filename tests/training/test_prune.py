"""Scheduled pruning during training: exact counts, and the same masks for equal weights on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learners import KERAS_BACKEND, Learner, every, learner

import xweights as xw

KINDS = [pytest.param("torch"), pytest.param("keras", marks=pytest.mark.keras_backend)]
BEGIN, END, EVERY = 2, 10, 3
DUE = [2, 5, 8, 10]


def start_pruning(training: Learner, **more: Any) -> Any:
    given: dict[str, Any] = {"where": training.first, "fraction": 0.75, "schedule": xw.Cubic(BEGIN, END, every=EVERY)}
    return xw.prune(training.target, **(given | more))


def zeros(training: Learner) -> int:
    return int((xw.get_params(training.target)[training.first] == 0).sum())


def expected(step: int) -> int:
    """Return how many of 20 entries are pruned after a step, by the formula of Zhu and Gupta."""
    last = max((due for due in DUE if due <= step), default=0)
    return int(0.75 * (1 - (1 - (last - BEGIN) / (END - BEGIN)) ** 3) * 20 + 0.5) if last else 0


# Schedules.


@pytest.mark.parametrize(
    ("schedule", "shares", "due"),
    [
        (xw.OneShot(at=3), {2: 0.0, 3: 1.0, 9: 1.0}, [3]),
        (xw.Constant(begin=1, end=7, every=4), {0: 0.0, 1: 1.0, 7: 1.0}, [1, 5, 7]),
        (xw.Polynomial(2, 6, power=1.0), {1: 0.0, 2: 0.0, 3: 0.25, 5: 0.75, 6: 1.0}, [2, 3, 4, 5, 6]),
        (xw.Polynomial(0, 4, power=1.0, initial=0.5, every=2), {0: 0.5, 2: 0.75, 4: 1.0}, [0, 2, 4]),
        (xw.Cubic(BEGIN, END, every=EVERY), {2: 0.0, 6: 0.875, 10: 1.0}, DUE),
        (xw.ByStep(lambda step: 0.5 if step == 4 else None), {4: 0.5}, [4]),
    ],
    ids=["one shot", "constant", "linear", "linear from a half", "cubic", "by step"],
)
def test_a_schedule_says_how_much_and_when(schedule, shares, due) -> None:
    assert {step: schedule.share(step) for step in shares} == shares
    assert [step for step in range(12) if schedule.due(step)] == due


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: xw.Cubic(10, 5), r"ends before it begins\nbegin: 10\nend:   5"),
        (lambda: xw.Cubic(0, 5, every=0), "every= is a whole number >= 1"),
        (lambda: xw.Cubic(0.5, 5), "begin= is a step"),
        (lambda: xw.OneShot(at=-1), "at= is a step"),
        (lambda: xw.Polynomial(0, 5, power=0), "power= must be positive"),
        (lambda: xw.Polynomial(0, 5, initial=1.5), "initial= is a share"),
        (lambda: xw.ByStep(lambda step: 2.0).share(1), "between 0.0 and 1.0"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(make, text) -> None:
    with pytest.raises(xw.ArgumentError, match=text):
        make()


# In training.


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [*every("torch", "keras", only=("adamw", "accumulation", "loss scaling")), *every("jit", only=("adamw",))],
)
def test_after_every_step_the_pruned_count_is_the_schedules(kind: str, optimizer: str) -> None:
    training = learner(kind, optimizer)
    training.steps(2)  # the hold counts from where it begins
    held = start_pruning(training)
    seen = []
    while held.step < 14:
        training.step()
        seen.append((held.step, zeros(training)))
    assert [count for _, count in seen] == [expected(step) for step, _ in seen]
    # In Keras' accumulation two calls make a step, in torch's two backward passes.
    assert len(seen) == (28 if (kind, optimizer) == ("keras", "accumulation") else 14)
    assert zeros(training) == 15
    held.check()
    assert (held.masks[training.first] == (xw.get_params(training.target)[training.first] != 0)).all()
    held.release()
    training.steps(2)
    assert zeros(training) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_equal_weights_give_equal_masks_at_every_step(kind: str) -> None:
    training = learner(kind, "sgd")
    held = start_pruning(training)
    arrays = {"w/kernel": np.zeros((4, 5), np.float32)}
    by_numpy = xw.prune(arrays, where="w/kernel", fraction=0.75, schedule=xw.Cubic(BEGIN, END, every=EVERY))
    rng = np.random.default_rng(0)
    for _ in range(12):
        # Many ties, which fall in neutral order whatever the layout.
        weights = rng.integers(-3, 4, size=(4, 5)).astype(np.float32)
        training.set_raw(training.first, weights)
        arrays["w/kernel"][:] = weights
        held.apply()  # the masks so far, as each step does
        held.advance()
        by_numpy.apply()
        assert (held.masks[training.first] == by_numpy.masks["w/kernel"]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_schedule_everything_is_pruned_at_once_and_stays(kind: str) -> None:
    training = learner(kind, "adamw")
    training.steps(2)
    held = xw.prune(training.target, fraction=0.5, where="*/kernel", scope="global", hold=True)
    first = held.masks
    training.steps(5)
    after = xw.get_params(training.target, where="*/kernel")
    assert sum(int((w == 0).sum()) for w in after.values()) == 18  # of 20 + 15: floor(0.5 * 35 + 0.5)
    assert xw.equal(held.masks, first)


@pytest.mark.parametrize("kind", KINDS)
def test_holding_prune_is_pruning_with_hold(kind: str) -> None:
    training, other = learner(kind, "sgd"), learner(kind, "sgd")
    start_pruning(training)
    xw.hold(other.target, xw.Prune(fraction=0.75), where=other.first, schedule=xw.Cubic(BEGIN, END, every=EVERY))
    training.steps(12)
    other.steps(12)
    assert training.bits == other.bits


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_entries_are_not_pruned_and_the_count_is_exact_all_the_same(kind: str) -> None:
    training = learner(kind, "adamw")
    xw.set_entries(training.target, {"out": 0}, 1e-4, where=training.first)  # the smallest of all
    xw.freeze(training.target, where=training.first, entries={"out": 0})
    held = start_pruning(training)
    training.steps(12)
    kernel = xw.get_params(training.target)[training.first]
    assert (kernel[:, 0] == np.float32(1e-4)).all()
    assert zeros(training) == 15
    held.check()


@pytest.mark.parametrize("kind", KINDS)
def test_pruning_more_entries_than_are_free_is_refused_and_nothing_is_attached(kind: str) -> None:
    training, twin = learner(kind, "adamw"), learner(kind, "adamw")
    for each in (training, twin):
        xw.freeze(each.target, where=each.first, entries={"out": slice(0, 3)})
    with pytest.raises(xw.HoldError, match=r"wants to prune what is frozen(.|\n)*7 frozen entries(.|\n)*Fix: unfreeze"):
        start_pruning(training)
    training.steps(3)
    twin.steps(3)
    assert training.bits == twin.bits


def test_in_torch_pruned_weights_are_saved_and_loaded_by_a_plain_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    training, plain = learner("torch", "sgd"), learner("torch", "sgd")
    start_pruning(training)
    training.steps(12)
    torch.save(training.target.state_dict(), tmp_path / "model.pt")
    plain.target.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert zeros(plain) == 15
    training.target.load_state_dict(learner("torch", "sgd").target.state_dict())
    training.step()
    assert zeros(training) == 15


@pytest.mark.keras_backend
def test_in_keras_pruned_weights_are_saved_and_loaded_by_a_plain_model(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    training, plain = learner("keras", "sgd"), learner("keras", "sgd")
    names = [v.name for v in training.target.variables]
    start_pruning(training)
    training.steps(12)
    assert [v.name for v in training.target.variables] == names
    training.target.save_weights(tmp_path / "w.weights.h5")
    plain.target.load_weights(tmp_path / "w.weights.h5")
    assert zeros(plain) == 15
    training.target.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int((keras.ops.convert_to_numpy(loaded.layers[0].kernel) == 0).sum()) == 15


# What can't be done.


@pytest.mark.keras_backend
def test_a_schedule_needs_a_model_that_counts_the_steps() -> None:
    keras = pytest.importorskip("keras")
    layer = keras.layers.Dense(3)
    layer.build((None, 4))
    before = xw.get_params(layer)
    with pytest.raises(xw.HoldError, match=r"nothing counts the steps(.|\n)*Fix: pass the model"):
        xw.prune(layer, fraction=0.5, schedule=xw.Cubic(0, 5))
    assert xw.equal(layer, before)
    assert layer.kernel.constraint is None


@pytest.mark.keras_backend
def test_steps_that_a_schedule_did_not_count_are_detected() -> None:
    if KERAS_BACKEND == "jax":
        pytest.skip("on JAX a step of one's own changes no variables")
    keras = pytest.importorskip("keras")
    training = learner("keras", "sgd")
    training.step()
    held = start_pruning(training)
    weights = training.target.trainable_variables
    training.optimizer.apply([keras.ops.ones_like(w) for w in weights], weights)
    with pytest.raises(xw.StaleTrainFunctionError, match=r"didn't see every training step(.|\n)*held\.advance"):
        held.check()


def test_a_schedule_is_for_pruning() -> None:
    with pytest.raises(xw.ArgumentError, match="a schedule says how much is pruned"):
        xw.hold({"w": np.ones(2)}, xw.Clip(0, 1), where="w", schedule=xw.OneShot())


def test_an_optimizer_where_nothing_is_held_is_refused_before_anything_is_pruned() -> None:
    weights = {"a/kernel": np.ones(2)}
    with pytest.raises(xw.ArgumentError, match=r"nothing is held here\nFix: hold=True"):
        xw.prune(weights, fraction=0.5, optimizer=object())
    assert weights["a/kernel"].all()


def test_a_schedule_that_grows_needs_a_share_to_grow_to() -> None:
    with pytest.raises(xw.ArgumentError, match="needs fraction= or count="):
        xw.prune({"a/kernel": np.ones(2)}, threshold=0.5, schedule=xw.Cubic(0, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_that_forward_passes_change_are_refused(kind: str) -> None:
    training = learner(kind, "sgd", norm=True)
    with pytest.raises(xw.HoldError, match=r"moving_mean' is changed by the forward pass(.|\n)*Fix: freeze"):
        xw.hold(training.target, xw.Clip(-1, 1), where="*/moving_mean")


def test_in_torch_a_computed_parameter_is_refused() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3))
    with pytest.raises(xw.HoldError, match=r"is computed from other parameters(.|\n)*Fix: remove"):
        xw.hold(layer, xw.Clip(-1, 1), where="kernel")
