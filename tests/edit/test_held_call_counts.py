"""The number of Python functions that a call on held parameters enters for each of them."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from test_call_counts import count_calls

import xweights as xw
from xweights.core import attachments, hold_registry

torch = pytest.importorskip("torch", reason="PyTorch isn't installed")


@pytest.fixture(autouse=True)
def nothing_else_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the holds of other tests: each costs some calls, and which are alive depends on what ran before."""
    monkeypatch.setattr(hold_registry, "_entries", weakref.WeakSet())
    monkeypatch.setattr(hold_registry, "_by_identity", weakref.WeakValueDictionary())
    monkeypatch.setattr(attachments, "_handles", weakref.WeakValueDictionary())


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
