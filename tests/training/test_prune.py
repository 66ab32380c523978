"""Pruning by a schedule while training goes on: exact counts, the same masks for equal weights on every backend."""

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


def pruned(one: Learner, **more: Any) -> Any:
    given: dict[str, Any] = {"where": one.first, "fraction": 0.75, "schedule": xw.Cubic(BEGIN, END, every=EVERY)}
    return xw.prune(one.target, **(given | more))


def zeros(one: Learner) -> int:
    return int((xw.get_params(one.target)[one.first] == 0).sum())


def expected(step: int) -> int:
    """How many of 20 entries are pruned after a step, by the formula of Zhu and Gupta."""
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
def test_after_every_step_as_much_is_pruned_as_the_schedule_says(kind: str, optimizer: str) -> None:
    one = learner(kind, optimizer)
    one.steps(2)  # the hold counts from where it begins
    held = pruned(one)
    seen = []
    while held.step < 14:
        one.step()
        seen.append((held.step, zeros(one)))
    assert [count for _, count in seen] == [expected(step) for step, _ in seen]
    # In Keras' accumulation two calls make a step, in torch's two backward passes.
    assert len(seen) == (28 if (kind, optimizer) == ("keras", "accumulation") else 14)
    assert zeros(one) == 15
    held.check()
    assert (held.masks[one.first] == (xw.get_params(one.target)[one.first] != 0)).all()
    held.release()
    one.steps(2)
    assert zeros(one) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_equal_weights_give_equal_masks_at_every_step(kind: str) -> None:
    one = learner(kind, "sgd")
    held = pruned(one)
    arrays = {"w/kernel": np.zeros((4, 5), np.float32)}
    by_numpy = xw.prune(arrays, where="w/kernel", fraction=0.75, schedule=xw.Cubic(BEGIN, END, every=EVERY))
    rng = np.random.default_rng(0)
    for _ in range(12):
        # Many ties, which fall in neutral order whatever the layout.
        weights = rng.integers(-3, 4, size=(4, 5)).astype(np.float32)
        one.set_raw(one.first, weights)
        arrays["w/kernel"][:] = weights
        held.apply()  # the masks so far, as each step does
        held.advance()
        by_numpy.apply()
        assert (held.masks[one.first] == by_numpy.masks["w/kernel"]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_schedule_everything_is_pruned_at_once_and_stays(kind: str) -> None:
    one = learner(kind, "adamw")
    one.steps(2)
    held = xw.prune(one.target, fraction=0.5, where="*/kernel", scope="global", hold=True)
    first = held.masks
    one.steps(5)
    after = xw.get_params(one.target, where="*/kernel")
    assert sum(int((w == 0).sum()) for w in after.values()) == 18  # of 20 + 15: floor(0.5 * 35 + 0.5)
    assert xw.equal(held.masks, first)


@pytest.mark.parametrize("kind", KINDS)
def test_holding_prune_is_pruning_with_hold(kind: str) -> None:
    one, other = learner(kind, "sgd"), learner(kind, "sgd")
    pruned(one)
    xw.hold(other.target, xw.Prune(fraction=0.75), where=other.first, schedule=xw.Cubic(BEGIN, END, every=EVERY))
    one.steps(12)
    other.steps(12)
    assert one.bits == other.bits


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_entries_are_not_pruned_and_the_count_is_exact_all_the_same(kind: str) -> None:
    one = learner(kind, "adamw")
    xw.set_entries(one.target, {"out": 0}, 1e-4, where=one.first)  # the smallest of all
    xw.freeze(one.target, where=one.first, entries={"out": 0})
    held = pruned(one)
    one.steps(12)
    kernel = xw.get_params(one.target)[one.first]
    assert (kernel[:, 0] == np.float32(1e-4)).all()
    assert zeros(one) == 15
    held.check()


@pytest.mark.parametrize("kind", KINDS)
def test_pruning_more_than_is_free_is_refused_and_nothing_is_attached(kind: str) -> None:
    one, twin = learner(kind, "adamw"), learner(kind, "adamw")
    for each in (one, twin):
        xw.freeze(each.target, where=each.first, entries={"out": slice(0, 3)})
    with pytest.raises(xw.HoldError, match=r"wants to prune what is frozen(.|\n)*7 frozen entries(.|\n)*Fix: unfreeze"):
        pruned(one)
    one.steps(3)
    twin.steps(3)
    assert one.bits == twin.bits


def test_in_torch_pruned_weights_are_saved_and_loaded_by_a_plain_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    one, plain = learner("torch", "sgd"), learner("torch", "sgd")
    pruned(one)
    one.steps(12)
    torch.save(one.target.state_dict(), tmp_path / "model.pt")
    plain.target.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert zeros(plain) == 15
    one.target.load_state_dict(learner("torch", "sgd").target.state_dict())
    one.step()
    assert zeros(one) == 15


@pytest.mark.keras_backend
def test_in_keras_pruned_weights_are_saved_and_loaded_by_a_plain_model(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    one, plain = learner("keras", "sgd"), learner("keras", "sgd")
    names = [v.name for v in one.target.variables]
    pruned(one)
    one.steps(12)
    assert [v.name for v in one.target.variables] == names
    one.target.save_weights(tmp_path / "w.weights.h5")
    plain.target.load_weights(tmp_path / "w.weights.h5")
    assert zeros(plain) == 15
    one.target.save(tmp_path / "model.keras")
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
def test_steps_that_a_schedule_did_not_see_are_found_out() -> None:
    if KERAS_BACKEND == "jax":
        pytest.skip("on JAX a step of one's own changes no variables")
    keras = pytest.importorskip("keras")
    one = learner("keras", "sgd")
    one.step()
    held = pruned(one)
    weights = one.target.trainable_variables
    one.optimizer.apply([keras.ops.ones_like(w) for w in weights], weights)
    with pytest.raises(xw.StaleTrainFunctionError, match=r"didn't see every training step(.|\n)*held\.advance"):
        held.check()


def test_a_schedule_is_for_pruning() -> None:
    with pytest.raises(xw.ArgumentError, match="a schedule says how much is pruned"):
        xw.hold({"w": np.ones(2)}, xw.Clip(0, 1), where="w", schedule=xw.OneShot())


def test_a_schedule_that_grows_needs_a_share_to_grow_to() -> None:
    with pytest.raises(xw.ArgumentError, match="needs fraction= or count="):
        xw.prune({"a/kernel": np.ones(2)}, threshold=0.5, schedule=xw.Cubic(0, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_what_forward_passes_change_is_refused(kind: str) -> None:
    one = learner(kind, "sgd", norm=True)
    with pytest.raises(xw.HoldError, match=r"moving_mean' is changed by the forward pass(.|\n)*Fix: freeze"):
        xw.hold(one.target, xw.Clip(-1, 1), where="*/moving_mean")


def test_in_torch_a_computed_parameter_is_refused() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3))
    with pytest.raises(xw.HoldError, match=r"is computed from other parameters(.|\n)*Fix: remove"):
        xw.hold(layer, xw.Clip(-1, 1), where="kernel")
