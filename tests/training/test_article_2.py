"""Article 2, "How can I access and modify layer weights in Keras during training within a TensorFlow graph function?".

Its three examples, in compiled steps of Keras and of PyTorch: the right way first, then what goes wrong by hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compiled_steps import KERAS_BACKEND, KERAS_KINDS, KERNEL, KINDS, START, X, Y, by_numpy, training

import xweights as xw


@pytest.mark.parametrize("kind", KINDS)
def test_2_1_noise_is_added_after_the_update_and_is_the_same_everywhere(kind: str) -> None:
    training_run = training(kind)
    add_noise = xw.bind(training_run.model, xw.Noise(0.01, seed=0), where="*/kernel")
    step = training_run.step(add_noise)
    for number in range(4):
        add_noise.draw(number)
        step()
    wanted = by_numpy(4, 0.1, lambda w, number: xw.noise(w, 0.01, seed=0, step=number, where=KERNEL))
    np.testing.assert_allclose(training_run.kernel(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_2_1_the_noise_is_bit_for_bit_that_of_the_draw(kind: str) -> None:
    training_run = training(kind, rate=0.0)
    add_noise = xw.bind(training_run.model, xw.Noise(0.01, seed=0), where="*/kernel")
    step = training_run.step(add_noise)
    wanted = {KERNEL: START.copy()}
    for number in (0, 7):
        add_noise.draw(number)
        step()
        xw.noise(wanted, 0.01, seed=0, step=number)
    np.testing.assert_array_equal(training_run.kernel(), wanted[KERNEL])


@pytest.mark.parametrize("kind", KINDS)
def test_2_1_by_hand_a_value_computed_before_the_update_throws_the_update_away(kind: str) -> None:
    training_run = training(kind)
    step = training_run.step(before=lambda: training_run.read() + 0.0, after=training_run.assign)
    for _ in range(4):
        step()
    np.testing.assert_array_equal(training_run.kernel(), START)
    trained = training(kind)
    trained.step()()
    assert (trained.kernel() != START).all()


@pytest.mark.keras_backend
@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="tf.function")
def test_2_1_by_hand_an_optimizer_made_in_the_step_is_an_error() -> None:
    tf, keras = pytest.importorskip("tensorflow"), pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])

    @tf.function
    def step() -> None:
        optimizer = keras.optimizers.SGD(0.1)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X) - Y) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    with pytest.raises(ValueError, match=r"tf\.function"):
        step()


@pytest.mark.parametrize("kind", KINDS)
def test_2_2_a_clip_after_the_update_holds_after_every_step(kind: str) -> None:
    training_run = training(kind, rate=100.0)
    clip = xw.bind(training_run.model, xw.Clip(-1, 1), where="*/kernel")
    step = training_run.step(clip)
    for _ in range(4):
        step()
        assert np.abs(training_run.kernel()).max() <= 1
    wanted = by_numpy(1, 100.0, lambda w, number: xw.clip(w, -1, 1, where=KERNEL))
    again = training(kind, rate=100.0)
    again.step(xw.bind(again.model, xw.Clip(-1, 1), where="*/kernel"))()
    np.testing.assert_allclose(again.kernel(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_2_2_a_held_clip_needs_no_line_in_the_step(kind: str) -> None:
    training_run = training(kind, rate=100.0)
    held = xw.hold(training_run.model, xw.Clip(-1, 1), where="*/kernel", optimizer=training_run.optimizer)
    step = training_run.step()
    for _ in range(3):
        step()
        assert np.abs(training_run.kernel()).max() <= 1
    held.check()


@pytest.mark.parametrize("kind", KINDS)
def test_2_2_by_hand_a_clip_before_the_update_does_not_hold(kind: str) -> None:
    training_run = training(kind, rate=100.0)
    clip = xw.bind(training_run.model, xw.Clip(-1, 1), where="*/kernel")
    step = training_run.step(before=clip, after=lambda _: None)
    for _ in range(4):
        step()
    assert np.abs(training_run.kernel()).max() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_2_3_an_increment_is_added_after_the_update(kind: str) -> None:
    training_run = training(kind)
    delta = np.linspace(-0.1, 0.1, 12, dtype=np.float32).reshape(4, 3)
    step = training_run.step(xw.bind(training_run.model, xw.Add(delta), where=KERNEL))
    for _ in range(4):
        step()
    wanted = by_numpy(4, 0.1, lambda w, number: xw.add(w, delta, where=KERNEL))
    np.testing.assert_allclose(training_run.kernel(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_2_3_an_increment_of_the_wrong_shape_is_refused_before_the_step_runs(kind: str) -> None:
    training_run = training(kind)
    with pytest.raises(xw.ShapeError, match="delta"):
        xw.bind(training_run.model, xw.Add(np.zeros((3, 4), np.float32)), where=KERNEL)


@pytest.mark.parametrize("kind", KERAS_KINDS)
def test_2_3_by_hand_a_loss_that_is_not_reduced_is_summed_or_refused(kind: str) -> None:
    import keras

    training_run = training(kind)

    def loss(each: bool) -> Any:
        squares = keras.ops.mean((training_run.model(X) - keras.ops.convert_to_tensor(Y)) ** 2, axis=-1)
        return squares if each else keras.ops.mean(squares)

    if KERAS_BACKEND == "tensorflow":
        import tensorflow as tf

        found = []
        for each in (True, False):
            with tf.GradientTape() as tape:
                value = loss(each)
            found.append(tape.gradient(value, training_run.model.layers[0].kernel).numpy())
        # Nothing says so, but the step is 32 times as long.
        np.testing.assert_allclose(found[0], len(X) * found[1], rtol=1e-4, atol=1e-5)
    elif KERAS_BACKEND == "torch":
        with pytest.raises(RuntimeError, match="scalar"):
            loss(True).backward()
    else:
        import jax

        with pytest.raises(TypeError, match="scalar"):
            jax.grad(lambda x: loss(True))(X)


@pytest.mark.parametrize("kind", KINDS)
def test_several_edits_in_one_step_run_in_their_order_to_the_bit(kind: str) -> None:
    training_run = training(kind, rate=0.0)
    edits = [
        xw.bind(training_run.model, rule, where=KERNEL)
        for rule in (xw.Scale(0.9), xw.Add(0.1), xw.Scale(1.1), xw.Noise(0.5, seed=1), xw.Clip(-0.7, 0.7))
    ]

    def all_of_them() -> None:
        for edit in edits:
            edit()

    step = training_run.step(all_of_them)
    wanted = {KERNEL: START.copy()}
    for number in range(3):
        edits[3].draw(number)
        step()
        xw.scale(wanted, 0.9)
        xw.add(wanted, 0.1)
        xw.scale(wanted, 1.1)
        xw.noise(wanted, 0.5, seed=1, step=number)
        xw.clip(wanted, -0.7, 0.7)
    np.testing.assert_array_equal(training_run.kernel(), wanted[KERNEL])
