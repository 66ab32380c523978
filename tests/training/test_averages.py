"""average: EMA and SWA of weights, with the same bits on every backend."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from learners import KERAS_BACKEND, STEPS, X, Y, every, learner

import xweights as xw

KINDS = [pytest.param("torch"), pytest.param("keras", marks=pytest.mark.keras_backend)]
ALL = [*every("torch", "keras", only=("adamw", "sgd", "ema", "loss scaling")), *every("jit", only=("adamw",))]


def mean_of(history, decay):
    """Compute an average by the formula in the documentation."""
    mean = history[0].copy()
    for n, w in enumerate(history[1:], start=2):
        rate = np.float32(1.0 / n if decay == "swa" else 1.0 - decay)
        mean = mean + rate * (w - mean)
    return mean


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("decay", [0.9, "swa"])
@pytest.mark.parametrize(("kind", "optimizer"), ALL)
def test_averages_follow_training_by_exactly_the_documented_arithmetic(kind, optimizer, decay, steps) -> None:
    training = learner(kind, optimizer)
    training.steps(2)
    averages = xw.average(training.target, decay=decay)
    assert not averages.manual
    history = []
    for _ in range(steps):
        training.step()
        history.append(xw.get_params(training.target))
    assert averages.updates == steps
    averages.check()
    for name, value in averages.params.items():
        assert value.tobytes() == mean_of([params[name] for params in history], decay).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_averages_see_fit_every_so_many_steps_and_after_the_holds(kind) -> None:
    training = learner(kind)
    averages = xw.average(training.target, decay="swa", every=2, where=training.first)
    xw.hold(training.target, xw.Clip(-0.05, 0.05), where=training.first)  # attached later, and yet before
    if kind == "torch":
        training.steps(5)
    else:
        training.target.fit(X, Y, batch_size=4, epochs=2, verbose=0)
        training.target.fit(X, Y, batch_size=8, epochs=1, verbose=0)
    assert averages.updates == 2
    assert np.abs(averages.params[training.first]).max() <= 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_only_accumulates_gradients_does_not_count(kind) -> None:
    training = learner(kind, "accumulation")
    averages = xw.average(training.target, decay=0.5)
    training.steps(4)
    assert averages.updates == (4 if kind == "torch" else 2)  # a step of the torch learner is two batches


@pytest.mark.parametrize("kind", KINDS)
def test_averages_can_be_swapped_in_and_exactly_the_same_bits_come_back(kind) -> None:
    training = learner(kind, norm=True)
    training.steps(1)
    averages = xw.average(training.target, decay=0.9)
    training.steps(3)
    before, mean = training.bits, averages.params
    with averages.swapped_in():
        assert all((xw.get_params(training.target)[name] == value).all() for name, value in mean.items())
        changed = {name for name in before if training.bits[name] != before[name]}
        assert changed == set(mean)
    assert training.bits == before
    with pytest.raises(RuntimeError, match="my own"), averages.swapped_in():
        raise RuntimeError("my own")
    assert training.bits == before
    training.steps(1)
    assert averages.updates == 4


@pytest.mark.parametrize("kind", KINDS)
def test_held_parameters_stay_held_when_averages_are_swapped_in(kind) -> None:
    training = learner(kind)
    averages = xw.average(training.target, decay="swa")
    training.steps(2)
    mask = np.zeros((4, 5), bool)
    mask[0] = True
    xw.hold(training.target, xw.Mask(mask), where=training.first)
    xw.hold(training.target, xw.UnitNorm(per="out"), where=training.second)
    before = training.bits
    with averages.swapped_in():
        now = xw.get_params(training.target)
        assert (now[training.first][0] == averages.params[training.first][0]).all()
        assert not now[training.first][1:].any()
        np.testing.assert_allclose(np.linalg.norm(now[training.second], axis=0), 1.0, rtol=1e-6)
    assert training.bits == before


@pytest.mark.parametrize("kind", KINDS)
def test_training_while_averages_are_swapped_in_is_refused(kind) -> None:
    training = learner(kind)
    averages = xw.average(training.target, decay=0.9)
    with averages.swapped_in():
        with pytest.raises(xw.HoldError, match="swapped in"):
            training.step()
        with pytest.raises(xw.HoldError, match="already"), averages.swapped_in():
            pass
    assert averages.updates == 0


@pytest.mark.keras_backend
def test_averages_can_be_evaluated_between_fits_in_keras() -> None:
    training = learner("keras")
    averages = xw.average(training.target, decay="swa")
    training.target.fit(X, Y, epochs=3, verbose=0)
    twin = learner("keras")
    averages.copy_to(twin.target)
    with averages.swapped_in():
        swapped = training.target.evaluate(X, Y, verbose=0)
    assert swapped == twin.target.evaluate(X, Y, verbose=0)


def test_averages_cross_frameworks() -> None:
    source, target = learner("torch"), learner("keras")
    averages = xw.average(source.target, decay="swa")
    source.steps(2)
    averages.copy_to(target.target, names={"dense/0/*": "0/*", "dense/1/*": "2/*"})
    assert xw.get_params(target.target)["dense/0/kernel"].tobytes() == averages.params["0/kernel"].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_release_leaves_the_averages_as_they_are_and_the_model_as_it_was(kind) -> None:
    training = learner(kind)
    training.step()
    before = set(vars(training.target))
    with xw.average(training.target, decay=0.9) as averages:
        training.step()
    kept = {name: value.tobytes() for name, value in averages.params.items()}
    assert set(vars(training.target)) == before
    training.step()
    assert {name: value.tobytes() for name, value in averages.params.items()} == kept
    assert averages.updates == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_by_hand_of_averages_that_update_themselves_is_refused(kind) -> None:
    training = learner(kind)
    averages = xw.average(training.target, decay=0.9)
    with pytest.raises(xw.HoldError, match="attach=False"):
        averages.update()
    by_hand = xw.average(training.target, decay=0.9, attach=False)
    training.step()
    by_hand.update()
    assert averages.updates == by_hand.updates == 1
    assert all((averages.params[name] == value).all() for name, value in by_hand.params.items())


@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="about TensorFlow")
def test_a_users_own_loop_in_keras_is_detected_and_updates_by_hand() -> None:
    tf = pytest.importorskip("tensorflow")
    training = learner("keras")
    attached = xw.average(training.target, decay=0.9)
    by_hand = xw.average(training.target, decay=0.9, attach=False)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((training.target(X) - Y) ** 2)
    weights = training.target.trainable_variables
    training.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
    by_hand.update()
    assert by_hand.updates == 1
    with pytest.raises(xw.StaleTrainFunctionError, match="attach=False"):
        attached.check()
    with pytest.raises(xw.TraceError):
        tf.function(by_hand.update, autograph=False)()


@pytest.mark.keras_backend
def test_a_model_that_runs_several_steps_at_once_is_refused() -> None:
    if KERAS_BACKEND == "torch":
        pytest.skip("Keras on torch has no steps_per_execution")
    training = learner("keras")
    training.target.compile("sgd", "mse", steps_per_execution=2)
    xw.average(training.target, decay=0.9)
    with pytest.raises(xw.HoldError, match="steps_per_execution"):
        training.target.fit(X, Y, batch_size=2, verbose=0)


def test_another_optimizer_that_trains_something_else_does_not_count() -> None:
    training, other = learner("torch"), learner("torch")
    averages = xw.average(training.target, decay=0.9)
    other.step()
    assert averages.updates == 0
    with pytest.raises(xw.HoldError, match="trains none"):
        xw.average(training.target, decay=0.9, optimizer=other.optimizer)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_are_averaged_in_float32_and_rounded_once_when_swapped_in(dtype) -> None:
    w = {"w": np.full(3, 1.0, dtype)}
    averages = xw.average(w, decay=0.999)
    averages.update()
    w["w"][:] = 0.0
    for _ in range(10):
        averages.update()
    assert averages.params["w"].dtype == np.float32
    np.testing.assert_allclose(averages.params["w"], 0.999**10, rtol=1e-6)
    with averages.swapped_in():
        assert (w["w"] == averages.params["w"].astype(dtype)).all()
    assert (w["w"] == 0.0).all()


def test_float64_is_averaged_in_float64_by_a_decay_that_grows() -> None:
    w = {"w": np.array([1.0])}
    averages = xw.average(w, decay=lambda n: min(0.999, (1 + n) / (10 + n)))
    averages.update()
    w["w"][0] = 0.0
    averages.update()
    assert averages.params["w"].tolist() == [1.0 + (1.0 - 2 / 11) * (0.0 - 1.0)]


def test_params_are_copies() -> None:
    w = {"w": np.array([1.0])}
    averages = xw.average(w, decay=0.5)
    averages.params["w"][0] = 7.0
    assert averages.params["w"].tolist() == [1.0]


def test_bad_arguments_and_parameters_that_cannot_be_averaged_are_refused() -> None:
    w = {"w": np.ones(2), "n": np.ones(2, int)}
    for decay in (1.0, -0.1, float("nan"), "ema", None, True):
        with pytest.raises(xw.ArgumentError, match="decay"):
            xw.average(w, decay=decay)
    for every_ in (0, 1.5, True):
        with pytest.raises(xw.ArgumentError, match="every"):
            xw.average(w, decay=0.9, every=every_)
    with pytest.raises(xw.DtypeError, match="'n'"):
        xw.average(w, decay=0.9, where=...)
    with pytest.raises(xw.SelectionError):
        xw.average(w, decay=0.9, where="x")
    with pytest.raises(xw.HoldError, match="attach=False"):
        xw.average(w, decay=0.9, optimizer=object())
    with pytest.raises(xw.ArgumentError, match="attach=False"):
        xw.average(w, decay=0.9, optimizer=object(), attach=False)
