"""The examples of docs/seeds.md that edit weights outside training: the right line, on Keras and on PyTorch.

Each test is named after its article and example. A body is written once and runs on twins of both frameworks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xweights as xw


def keras_twin() -> Any:
    import keras

    class KerasTwin(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = keras.layers.Dense(8, activation="relu")
            self.logits = keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.logits(self.hidden(x))

    model = KerasTwin()
    model(np.zeros((1, 4), np.float32))
    return model


def torch_twin() -> Any:
    import torch

    class TorchTwin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = torch.nn.Linear(4, 8)
            self.logits = torch.nn.Linear(8, 3)

        def forward(self, x: Any) -> Any:
            return self.logits(self.hidden(x).relu())

    return TorchTwin()


TWINS: dict[str, Callable[[], Any]] = {"keras": keras_twin, "torch": torch_twin}
pytestmark = pytest.mark.keras_backend


@pytest.fixture(params=list(TWINS))
def model(request: pytest.FixtureRequest) -> Any:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    twin = TWINS[request.param]()
    xw.init(twin, "normal", seed=0, std=0.5, where=...)
    return twin


def run(model: Any, x: np.ndarray) -> np.ndarray:
    if type(model).__name__ == "TorchTwin":
        import torch

        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()
    import keras

    return keras.ops.convert_to_numpy(model(x))


def test_1_1_a_layer_is_zeroed_by_its_position_and_the_other_stays(model: Any) -> None:
    before = xw.get_params(model)
    xw.fill(model, 0.0, where=xw.layer(0))
    after = xw.get_params(model)
    assert not after["hidden/kernel"].any()
    assert not after["hidden/bias"].any()
    assert xw.equal(after.select("logits/*"), before.select("logits/*"))
    np.testing.assert_array_equal(run(model, np.ones((2, 4), np.float32)), np.tile(after["logits/bias"], (2, 1)))


def test_1_2_random_weights_are_the_same_numbers_in_every_framework(model: Any) -> None:
    xw.init(model, "uniform", seed=1, low=-0.1, high=0.1)
    referee = {name: np.zeros(a.shape, a.dtype) for name, a in xw.get_params(model, where="*/kernel").items()}
    xw.init(referee, "uniform", seed=1, low=-0.1, high=0.1)
    for name, array in referee.items():
        np.testing.assert_array_equal(xw.get_params(model)[name], array)
        assert -0.1 <= array.min() < 0 < array.max() <= 0.1


def test_1_2_a_wrong_shape_dtype_or_nan_is_refused_and_nothing_is_written(model: Any) -> None:
    before = xw.snapshot(model)
    kept = xw.get_params(model)
    kernel = kept["hidden/kernel"]
    for wrong, error in [
        (kernel[:, :-1], xw.ShapeError),
        (kernel.astype(np.float64) + 1e-12, xw.DtypeError),
        (np.full_like(kernel, np.nan), xw.NonfiniteError),
    ]:
        with pytest.raises(error):
            xw.set_params(model, {"hidden/bias": np.ones(8, np.float32), "hidden/kernel": wrong}, strict=False)
        assert xw.equal(model, kept)
    before.restore()


def test_1_3_small_entries_are_pruned_and_the_bias_is_left_alone(model: Any) -> None:
    before = xw.get_params(model)
    masks = xw.prune(model, threshold=0.3)
    after = xw.get_params(model)
    assert masks is not None
    for name in ("hidden/kernel", "logits/kernel"):
        large = np.abs(before[name]) > 0.3
        np.testing.assert_array_equal(masks[name], large)
        np.testing.assert_array_equal(after[name], np.where(large, before[name], np.float32(0)))
        assert 0 < large.mean() < 1
    assert xw.equal(after.select("*/bias"), before.select("*/bias"))


def test_3_1_one_entry_is_set_and_no_other(model: Any) -> None:
    before = xw.get_params(model)["hidden/kernel"]
    xw.set_entries(model, (0, 5), 1.0, where="hidden/kernel")
    after = xw.get_params(model)["hidden/kernel"]
    assert after[0, 5] == 1.0
    changed = before != after
    assert changed.sum() == 1
    # In neutral order (in, out) on both frameworks: input 0 now reaches unit 5 with weight 1.
    x = np.zeros((1, 4), np.float32)
    x[0, 0] = 1.0
    hidden = x @ after + xw.get_params(model)["hidden/bias"]
    expected = np.maximum(hidden, 0) @ xw.get_params(model)["logits/kernel"] + xw.get_params(model)["logits/bias"]
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)


def test_3_1_a_row_is_set_by_axis_name(model: Any) -> None:
    xw.set_entries(model, {"out": 2}, [1.0, 2.0, 3.0, 4.0], where="hidden/kernel")
    np.testing.assert_array_equal(xw.get_params(model)["hidden/kernel"][:, 2], [1, 2, 3, 4])


def test_3_3_entries_start_at_a_value_by_an_initializer_function(model: Any) -> None:
    def identity_in_front(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        start = generator.normal(0, 0.01, shape)
        start[0, 0] = 1.0
        return start.astype(np.float32)

    xw.init(model, identity_in_front, seed=3, where="hidden/kernel")
    kernel = xw.get_params(model)["hidden/kernel"]
    assert kernel[0, 0] == 1.0
    assert 0 < np.abs(kernel).sum() - 1.0 < 1.0
