"""The number of Python functions that a call on held parameters enters for each of them."""

from __future__ import annotations

import numpy as np
import pytest
from test_call_counts import count_calls

import xweights as xw

torch = pytest.importorskip("torch", reason="PyTorch isn't installed")


def test_a_write_to_held_parameters_looks_at_each_of_them_once() -> None:
    # It was one look at all of them for each of them: 337 calls for each of 200, and 1,137 of 1,000.
    model = torch.nn.Sequential(*[torch.nn.Linear(2, 3, bias=False) for _ in range(200)])
    held = xw.hold(model, xw.Clip(-1, 1), where="*/kernel")
    xw.scale(model, 0.5)
    assert count_calls(lambda: xw.scale(model, 0.5)) / 200 <= 160
    held.release()


def test_a_write_to_held_variables_of_keras_looks_at_each_of_them_once() -> None:
    # It was 97,000 calls for each of 250, once the optimizer had made a step.
    keras = pytest.importorskip("keras", reason="Keras isn't installed")
    layers = [keras.layers.Dense(2, use_bias=False) for _ in range(50)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.compile("sgd", "mse")
    held = xw.hold(model, xw.Clip(-1, 1), where="*/kernel")
    model.fit(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), verbose=0)
    xw.scale(model, 0.5)
    assert count_calls(lambda: xw.scale(model, 0.5)) / len(layers) <= 400
    held.release()
