"""Article 4, "How can layer weights be adjusted during TensorFlow training?": its examples, on Keras and on PyTorch.

The right way first, then what goes wrong by hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compiled_steps import KERAS_BACKEND, KERAS_KINDS, KERNEL, KINDS, START, X, Y, by_numpy, training

import xweights as xw


@pytest.mark.parametrize("kind", KINDS)
def test_4_1_a_layer_is_zeroed_by_name_in_the_step_and_outside_of_it(kind: str) -> None:
    trained = training(kind)
    xw.fill(trained.model, 0.0, where="hidden/*")
    assert not trained.kernel().any()
    trained.step()()
    assert trained.kernel().any()
    trained.step(xw.bind(trained.model, xw.Fill(0.0), where="hidden/*"))()
    assert not trained.kernel().any()
    assert not xw.get_params(trained.model)["hidden/bias"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_4_2_a_layer_is_scaled_after_each_update(kind: str) -> None:
    trained = training(kind)
    step = trained.step(xw.bind(trained.model, xw.Scale(0.9), where="hidden/*"))
    for _ in range(4):
        step()
    wanted = by_numpy(4, 0.1, lambda w, number: xw.scale(w, 0.9))
    np.testing.assert_allclose(trained.kernel(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_4_2_the_scaling_is_to_the_bit_that_of_eager_code(kind: str) -> None:
    trained = training(kind, rate=0.0)
    step = trained.step(xw.bind(trained.model, xw.Scale(0.9), where="hidden/*"))
    wanted = {KERNEL: START.copy()}
    for _ in range(3):
        step()
        xw.scale(wanted, 0.9)
    np.testing.assert_array_equal(trained.kernel(), wanted[KERNEL])


@pytest.mark.parametrize("kind", KERAS_KINDS)
def test_4_2_in_fit_a_callback_does_it(kind: str) -> None:
    import keras

    trained = training(kind)

    class Shrink(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            xw.scale(self.model, 0.9, where="hidden/*")

    trained.model.compile(
        keras.optimizers.SGD(0.1), "mse", jit_compile="auto" if KERAS_BACKEND == "jax" else trained.jit
    )
    trained.model.fit(X, Y, batch_size=len(X), epochs=4, verbose=0, callbacks=[Shrink()], shuffle=False)
    wanted = by_numpy(4, 0.1, lambda w, number: xw.scale(w, 0.9))
    np.testing.assert_allclose(trained.kernel(), wanted, rtol=1e-5, atol=1e-6)


def test_4_2_scaling_is_no_rule_that_stays_true_so_it_can_not_be_held() -> None:
    with pytest.raises(xw.HoldError, match="can't stay true"):
        xw.hold({KERNEL: START.copy()}, xw.Scale(0.9), where=KERNEL)


@pytest.mark.keras_backend
@pytest.mark.skipif(KERAS_BACKEND == "torch", reason="about steps that are traced")
def test_4_2_by_hand_get_weights_can_not_be_traced() -> None:
    trained = training("keras jit")
    with pytest.raises(Exception, match=r"numpy\(\)|__array__|racer"):
        trained.step(
            lambda: trained.model.layers[0].set_weights([0.9 * w for w in trained.model.layers[0].get_weights()])
        )()


@pytest.mark.parametrize("kind", KERAS_KINDS)
def test_4_3_a_held_clip_is_true_after_every_step_of_fit(kind: str) -> None:
    import keras

    trained = training(kind)
    trained.model.compile(
        keras.optimizers.SGD(100.0), "mse", jit_compile="auto" if KERAS_BACKEND == "jax" else trained.jit
    )
    trained.model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    assert np.abs(trained.kernel()).max() > 1

    largest: list[float] = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            largest.append(float(np.abs(xw.get_params(self.model)[KERNEL]).max()))

    held = xw.hold(trained.model, xw.Clip(-1, 1), where=KERNEL)
    trained.model.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[Watch()])
    held.check()
    assert len(largest) == 4
    assert max(largest) <= 1
    # The output is that of the clipped weights, and looking at it changes nothing.
    w = xw.get_params(trained.model)
    made = keras.ops.convert_to_numpy(trained.model(X))
    np.testing.assert_allclose(made, X @ w[KERNEL] + w["hidden/bias"], rtol=1e-4, atol=1e-2)
    assert xw.equal(trained.model, w)


def test_4_3_a_held_clip_is_true_after_every_step_of_torch() -> None:
    trained = training("torch", rate=100.0)
    xw.hold(trained.model, xw.Clip(-1, 1), where=KERNEL, optimizer=trained.optimizer)
    step = trained.step()
    for _ in range(3):
        step()
        assert np.abs(trained.kernel()).max() <= 1


@pytest.mark.keras_backend
def test_4_3_by_hand_a_clip_in_the_call_of_a_keras_layer_neither_holds_nor_reaches_the_output() -> None:
    keras = pytest.importorskip("keras")

    class ByHand(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(shape=(shape[-1], 3), initializer=lambda *_, **__: np.float32(5) * START)

        def call(self, x: Any) -> Any:
            made = keras.ops.matmul(x, self.kernel)
            self.kernel.assign(keras.ops.clip(self.kernel, -1, 1))
            return made

    layer = ByHand()
    layer.build((None, 4))
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.kernel.assign(5 * START)
    made = keras.ops.convert_to_numpy(model(X))
    np.testing.assert_allclose(made, X @ (5 * START), rtol=1e-4, atol=1e-4)
    # Inference has changed the weights: the same call now gives something else.
    assert np.abs(keras.ops.convert_to_numpy(layer.kernel)).max() == 1
    assert np.abs(keras.ops.convert_to_numpy(model(X)) - made).max() > 0.1
    model.compile(keras.optimizers.SGD(100.0), "mse")
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    assert np.abs(keras.ops.convert_to_numpy(layer.kernel)).max() > 1


def test_4_3_by_hand_a_clip_in_the_forward_of_a_torch_module_does_not_hold() -> None:
    torch = pytest.importorskip("torch")
    trained = training("torch", rate=100.0)

    def clip_first(module: Any, inputs: Any) -> None:
        with torch.no_grad():
            module.weight.clamp_(-1, 1)

    trained.model.hidden.register_forward_pre_hook(clip_first)
    step = trained.step()
    for _ in range(3):
        step()
    assert np.abs(trained.kernel()).max() > 1
