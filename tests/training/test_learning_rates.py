"""multiply_lr: learning rates per parameter, as a share of each step."""

from __future__ import annotations

import numpy as np
import pytest
from learners import KERAS_BACKEND, STEPS, X, Y, every, learner

import xweights as xw

KINDS = [pytest.param("torch"), pytest.param("keras", marks=pytest.mark.keras_backend)]
RATES = {"plain sgd": 0.05, "adam": 0.01, "adamw": 0.01}
# Without Keras' own averaging, which writes weights whatever the learning rate.
NAMES = ("sgd", "adam", "adamw", "rmsprop", "adagrad", "lion", "muon", "lbfgs", "accumulation", "loss scaling")
ALL = [
    *every("torch", "keras", only=NAMES, slow=("adam", "rmsprop", "adagrad", "lion", "muon")),
    *every("jit", only=("adamw", "accumulation"), slow=("adamw",)),
]


def multiply(training, factors):
    return xw.multiply_lr(training.target, factors, optimizer=training.optimizer)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("kind", "optimizer"), ALL)
def test_a_factor_of_0_keeps_every_bit_and_a_factor_of_1_changes_none(kind, optimizer, steps) -> None:
    training, plain = learner(kind, optimizer), learner(kind, optimizer)
    for each in (training, plain):
        each.steps(3)
    before = training.bits
    scaled = multiply(training, {training.first: 1.0})
    for each in (training, plain):
        each.steps(5)
    assert training.bits == plain.bits
    scaled.release()
    scaled = multiply(training, {training.first: 0.0})
    before = training.bits
    training.steps(steps)
    scaled.check()
    assert [name for name in before if training.bits[name] == before[name]] == [training.first]


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("kind", [*KINDS, pytest.param("jit", marks=pytest.mark.keras_backend)])
def test_all_factors_alike_are_a_learning_rate_that_many_times_as_large(kind, name) -> None:
    scaled, smaller = learner(kind, name), learner(kind, name, learning_rate=RATES[name] * 0.25)
    multiply(scaled, {"*": 0.25})
    for training in (scaled, smaller):
        training.steps(20)
    ours, theirs = xw.get_params(scaled.target), xw.get_params(smaller.target)
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", RATES)
def test_factors_have_the_effect_of_parameter_groups_in_torch(name) -> None:
    import torch

    training, grouped = learner("torch", name), learner("torch", name)
    kinds = {"plain sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    decay = {"weight_decay": 0.1} if name == "adamw" else {}
    first, last, rate = grouped.target[0], grouped.target[2], RATES[name]
    groups = [
        {"params": [first.weight], "lr": rate * 0.1},
        {"params": [last.weight], "lr": rate * 3.0},
        {"params": [first.bias, last.bias], "lr": rate},
    ]
    theirs = kinds[name](groups, **decay)
    multiply(training, {"0/kernel": 0.1, "2/kernel": 3.0})
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    for _ in range(20):
        training.step()
        theirs.zero_grad()
        ((grouped.target(x) - y) ** 2).mean().backward()
        theirs.step()
    assert xw.equal(training.target, grouped.target, rtol=2e-5)


@pytest.mark.parametrize(("kind", "optimizer"), every("torch", "keras", only=("adamw", "sgd", "accumulation")))
def test_the_arithmetic_is_old_plus_factor_times_the_step_rounded_after_each_operation(kind, optimizer) -> None:
    training, plain = learner(kind, optimizer), learner(kind, optimizer)
    multiply(training, {training.first: 0.3})
    (old,) = (xw.get_params(plain.target)[plain.first],)
    for each in (training, plain):
        each.steps(2 if kind == "keras" and optimizer == "accumulation" else 1)
    stepped = xw.get_params(plain.target)[plain.first]
    expected = old + np.float32(0.3) * (stepped - old)
    assert xw.get_params(training.target)[training.first].tobytes() == expected.tobytes()
    assert training.bits[training.second] == plain.bits[plain.second]


def test_bfloat16_is_blended_in_its_own_dtype() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2, bias=False, dtype=torch.bfloat16)
    old = xw.get_params(model)["kernel"]
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    xw.multiply_lr(model, {"kernel": 0.3}, optimizer=sgd)
    model.weight.grad = torch.full_like(model.weight, 0.7)
    sgd.step()
    stepped = old - old.dtype.type(0.7)
    expected = old + old.dtype.type(0.3) * (stepped - old)
    assert xw.get_params(model)["kernel"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hold_first", [True, False])
def test_holds_are_true_after_the_scaled_step_in_whatever_order_they_came(kind, hold_first) -> None:
    training = learner(kind)

    def hold() -> xw.Hold:
        return xw.hold(training.target, xw.Clip(-0.1, 0.1), where=training.first, optimizer=training.optimizer)

    held = hold() if hold_first else None
    multiply(training, {"*": 2.0})
    held = held or hold()
    for _ in range(3):
        training.step()
        held.check()
    # What was clipped was the blend: entries lie at the bounds exactly.
    assert np.abs(xw.get_params(training.target)[training.first]).max() == np.float32(0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_matching_factor_counts_and_a_release_ends_all(kind) -> None:
    training, plain = learner(kind), learner(kind)
    scaled = multiply(training, {"*": 0.5, training.first: 0.0})
    assert scaled.factors[training.first] == 0.0
    assert scaled.factors[training.second] == 0.5
    scaled.release()
    scaled.release()
    for each in (training, plain):
        each.steps(2)
    assert training.bits == plain.bits


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_factor_for_a_parameter_is_refused_and_another_parameter_is_not(kind) -> None:
    training = learner(kind)
    multiply(training, {training.first: 0.5})
    with pytest.raises(xw.HoldError, match="already"):
        multiply(training, {"*": 0.5})
    before = training.bits
    multiply(training, {training.second: 0.0})
    training.step()
    assert training.bits[training.second] == before[training.second]


@pytest.mark.keras_backend
def test_factors_take_effect_on_a_fitted_model_and_keras_has_its_own_methods_again() -> None:
    training = learner("keras", "adamw")
    training.target.fit(X, Y, epochs=1, verbose=0)
    before = set(vars(training.optimizer))
    with multiply(training, {training.first: 0.0}) as scaled:
        kept = training.bits
        training.target.fit(X, Y, epochs=1, verbose=0)
        assert training.bits[training.first] == kept[training.first]
        scaled.check()
    assert set(vars(training.optimizer)) == before
    training.target.fit(X, Y, epochs=1, verbose=0)
    assert training.bits[training.first] != kept[training.first]


@pytest.mark.keras_backend
def test_the_average_that_keras_keeps_is_one_of_the_scaled_weights() -> None:
    import keras

    training = learner("keras", "ema")
    xw.multiply_lr(training.target, {"*": 0.0})
    before = xw.get_params(training.target)
    training.steps(2)
    averages = training.optimizer._model_variables_moving_average
    for p, average in zip(xw.parameters(training.target), averages, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(average), before[p.name], rtol=1e-6)


@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="about TensorFlow")
def test_a_step_that_was_traced_before_is_found() -> None:
    tf = pytest.importorskip("tensorflow")
    training = learner("keras", "adam")

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((training.target(X) - Y) ** 2)
        weights = training.target.trainable_variables
        training.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    step()
    scaled = xw.multiply_lr(training.target, {"*": 0.0})
    step()
    with pytest.raises(xw.StaleTrainFunctionError, match="traced before"):
        scaled.check()


def test_a_compiled_optimizer_step_in_torch_is_scaled_too() -> None:
    torch = pytest.importorskip("torch")
    training = learner("torch", "sgd")
    before = training.bits
    multiply(training, {training.first: 0.0})
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    compiled = torch.compile(training.optimizer.step, backend="eager")
    for _ in range(2):
        training.optimizer.zero_grad()
        ((training.target(x) - y) ** 2).mean().backward()
        compiled()
    assert [name for name in before if training.bits[name] == before[name]] == [training.first]


def test_all_problems_with_the_factors_are_raised_at_once_and_nothing_is_attached() -> None:
    training, other = learner("torch", norm=True), learner("torch")
    with pytest.raises(xw.ArgumentError, match=">= 0"):
        multiply(training, {"*": -1.0})
    with pytest.raises(xw.ArgumentError):
        multiply(training, {"*": float("nan")})
    with pytest.raises(xw.ArgumentError, match="mapping"):
        multiply(training, 0.5)
    with pytest.raises(xw.SelectionError):
        multiply(training, {"*": 0.5, "kernal": 0.1})
    with pytest.raises(xw.SelectionError, match="nothing that is trained"):
        multiply(training, {"*/moving_mean": 0.5})
    with pytest.raises(xw.ArgumentError, match="needs the optimizer"):
        xw.multiply_lr(training.target, {"*": 0.5})
    with pytest.raises(xw.HoldError, match="not among"):
        xw.multiply_lr(training.target, {"*": 0.5}, optimizer=other.optimizer)
    with pytest.raises(xw.HoldError, match="no optimizer"):
        xw.multiply_lr({"w": np.ones(2)}, {"w": 0.5})
    assert not training.optimizer._optimizer_step_pre_hooks
