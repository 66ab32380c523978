"""Article 0, "How can Keras node weights and biases be fixed?": penalised (0/1) and really fixed, on Keras and PyTorch.

The right way first, then what goes wrong by hand. 0/2 and 0/3 are about optimizers and schedules, not about weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compiled_steps import KERAS_BACKEND, KERAS_KINDS, KERNEL, KINDS, START, X, Y, training

import xweights as xw


def fitted_training(kind: str) -> Any:
    """Return a Keras training whose model is compiled and already fitted."""
    import keras

    trained = training(kind)
    trained.model.compile(
        keras.optimizers.SGD(0.1), "mse", jit_compile="auto" if KERAS_BACKEND == "jax" else trained.jit
    )
    fit(trained)
    xw.set_params(trained.model, {KERNEL: START, "hidden/bias": np.zeros(3, np.float32)})
    return trained


def fit(trained: Any, epochs: int = 1) -> None:
    trained.model.fit(X, Y, batch_size=len(X), epochs=epochs, verbose=0, shuffle=False)


def penalised_by_numpy(steps: int, l2: float) -> np.ndarray:
    w, b = START.astype(np.float64), np.zeros(3)
    for _ in range(steps):
        slope = 2 * (X @ w + b - Y) / Y.size
        w, b = w - 0.1 * (X.T @ slope + 2 * l2 * w), b - 0.1 * slope.sum(0)
    return w


@pytest.mark.parametrize("kind", KERAS_KINDS)
def test_0_1_an_l2_penalty_is_added_to_a_keras_model_that_was_fitted_already(kind: str) -> None:
    trained = fitted_training(kind)
    with xw.add_penalty(trained.model, l2=0.1) as added:
        fit(trained, epochs=3)
        added.check()
    np.testing.assert_allclose(trained.kernel(), penalised_by_numpy(3, 0.1), rtol=1e-4, atol=1e-5)
    xw.set_params(trained.model, {KERNEL: START, "hidden/bias": np.zeros(3, np.float32)})
    fit(trained, epochs=3)
    np.testing.assert_allclose(trained.kernel(), penalised_by_numpy(3, 0.0), rtol=1e-4, atol=1e-5)


def test_0_1_the_same_penalty_in_a_torch_loop() -> None:
    torch = pytest.importorskip("torch")
    trained = training("torch")
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    for _ in range(3):
        trained.optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(trained.model(x), y) + xw.penalty(trained.model, l2=0.1)
        loss.backward()
        trained.optimizer.step()
    np.testing.assert_allclose(trained.kernel(), penalised_by_numpy(3, 0.1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KERAS_KINDS)
def test_0_1_by_hand_a_regularizer_given_to_a_built_layer_is_ignored(kind: str) -> None:
    import keras

    trained = fitted_training(kind)
    trained.model.layers[0].kernel_regularizer = keras.regularizers.L2(0.1)
    assert not trained.model.losses
    fit(trained, epochs=3)
    np.testing.assert_allclose(trained.kernel(), penalised_by_numpy(3, 0.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KERAS_KINDS)
def test_0_title_a_layer_is_fixed_in_a_keras_model_that_was_fitted_already(kind: str) -> None:
    trained = fitted_training(kind)
    bias = xw.get_params(trained.model)["hidden/bias"]
    frozen = xw.freeze(trained.model, where=KERNEL)
    fit(trained, epochs=3)
    frozen.check()
    np.testing.assert_array_equal(trained.kernel(), START)
    assert (xw.get_params(trained.model)["hidden/bias"] != bias).all()
    frozen.release()
    fit(trained)
    assert (trained.kernel() != START).any()


@pytest.mark.parametrize("kind", KINDS)
def test_0_title_a_node_is_fixed_bit_for_bit_and_the_others_learn(kind: str) -> None:
    trained = training(kind)
    node = {"out": 1}
    held = xw.hold(trained.model, xw.Keep(node), where="hidden/kernel", optimizer=trained.optimizer)
    step = trained.step()
    for _ in range(5):
        step()
    held.check()
    np.testing.assert_array_equal(trained.kernel()[:, 1], START[:, 1])
    assert (trained.kernel()[:, [0, 2]] != START[:, [0, 2]]).all()
    held.release()
    step = trained.step()
    step()
    assert (trained.kernel()[:, 1] != START[:, 1]).all()


def test_0_title_a_frozen_node_survives_momentum_and_decay_in_torch() -> None:
    torch = pytest.importorskip("torch")
    trained = training("torch")
    trained.optimizer = torch.optim.AdamW(trained.model.parameters(), lr=0.1, weight_decay=0.1)
    step = trained.step()
    step()
    before = trained.kernel()
    xw.freeze(trained.model, where=KERNEL, entries={"out": 1}, optimizer=trained.optimizer)
    step = trained.step()
    for _ in range(10):
        step()
    np.testing.assert_array_equal(trained.kernel()[:, 1], before[:, 1])


@pytest.mark.keras_backend
@pytest.mark.skipif(KERAS_BACKEND != "tensorflow", reason="JAX raises, and torch has no compiled step")
def test_0_title_by_hand_a_layer_made_untrainable_after_fit_goes_on_to_move() -> None:
    trained = fitted_training("keras")
    trained.model.layers[0].trainable = False
    fit(trained)
    assert (trained.kernel() != START).all()


def test_0_title_by_hand_masked_gradients_let_a_torch_entry_drift() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(2))
    weight.register_hook(lambda gradient: gradient * torch.tensor([0.0, 1.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(weight[0].item(), 0.904, atol=1e-3)


@pytest.mark.keras_backend
def test_0_title_by_hand_masked_gradients_let_a_keras_entry_drift() -> None:
    keras = pytest.importorskip("keras")
    weight = keras.Variable(np.ones(2, np.float32))
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1)
    optimizer.build([weight])
    for _ in range(10):
        optimizer.apply([keras.ops.convert_to_tensor([0.0, 1.0])], [weight])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(weight)[0], 0.904, atol=1e-3)
