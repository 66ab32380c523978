"""The same merge in every framework: a Keras model, its torch twin and files of either, alone and mixed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

keras = pytest.importorskip("keras")
torch = pytest.importorskip("torch", reason="the twin is a torch module")

METHODS: dict[str, dict[str, Any]] = {
    "average": {"weights": (1, 3)},
    "lerp": {"t": 0.3},
    "slerp": {"t": 0.3},
    "ema": {"decay": 0.7},
    "model_stock": {},
    "task_arithmetic": {"weights": (0.5, 0.7)},
    "ties": {"density": 0.4},
    "dare_linear": {"density": 0.4, "seed": 1},
    "dare_ties": {"density": 0.4, "seed": 1},
    "della": {"density": 0.4, "seed": 1},
    "della_linear": {"density": 0.4, "seed": 1},
    "breadcrumbs": {"density": 0.4, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.4, "gamma": 0.1},
}
NEEDS_BASE = METHODS.keys() - {"average", "lerp", "slerp", "ema"}


class InKeras(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.conv = keras.layers.Conv2D(5, 3)
        self.norm = keras.layers.BatchNormalization()
        self.dense = keras.layers.Dense(4)

    def call(self, x: Any) -> Any:
        return self.dense(keras.ops.mean(self.norm(self.conv(x)), axis=(1, 2)))


class InTorch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)
        self.norm = torch.nn.BatchNorm2d(5)
        self.dense = torch.nn.Linear(5, 4)


def in_keras(seed: int) -> Any:
    model = InKeras()
    model(np.zeros((1, 6, 6, 3), np.float32))
    return draw_weights(model, seed)


def in_torch(seed: int) -> Any:
    return draw_weights(InTorch(), seed)


def in_numpy(seed: int) -> Any:
    return xw.get_params(in_torch(seed), where=xw.trainable() | "*moving*")


def draw_weights(model: Any, seed: int) -> Any:
    """Draw a twin's numbers: the same for a seed in every framework."""
    where = xw.trainable() | "*moving*"
    xw.init(model, "normal", seed=seed, where=where)
    return model


@cache
def cached_model(make: Any, seed: int) -> Any:
    """Return a model that is only read, and built once for all methods."""
    return make(seed)


def counted_out(params: xw.Params) -> xw.Params:
    return params.select(lambda p: p.role != "num_batches_tracked")


def merge_twins(makers: tuple[Any, Any, Any], method: str) -> xw.Params:
    """Merge two twins, with a third as the base where there is one."""
    a, b, base = (cached_model(make, seed) for seed, make in enumerate(makers))
    given = {"base": base} if method in NEEDS_BASE else {}
    return counted_out(xw.merge([a, b], method, **given, **METHODS[method]))


@pytest.mark.parametrize(
    "makers",
    [(in_keras,) * 3, (in_torch,) * 3, (in_keras, in_torch, in_numpy), (in_torch, in_keras, in_torch)],
    ids=["keras", "torch", "keras and torch", "torch and keras"],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_merge_has_the_bits_that_numpy_arrays_have(method: str, makers: tuple[Any, Any, Any]) -> None:
    merged = merge_twins(makers, method)
    assert xw.equal(merged, merge_twins((in_numpy,) * 3, method))
    assert merged.axes["conv/kernel"] == ("h", "w", "in", "out")


def test_a_module_a_model_and_a_file_average_right_by_axis_names(tmp_path: Path) -> None:
    xw.save(in_torch(2), tmp_path / "torch.safetensors")
    xw.save(in_keras(2), tmp_path / "keras.npz")
    naive = {
        name: (array.astype(np.float64) * 2 + in_numpy(1)[name] + in_numpy(2)[name]) / 4
        for name, array in in_numpy(0).items()
    }
    for path in (tmp_path / "torch.safetensors", tmp_path / "keras.npz"):
        target = in_torch(5)
        xw.merge([in_torch(0), in_keras(1), path], into=target, weights=(2, 1, 1))
        for name, expected in naive.items():
            np.testing.assert_allclose(xw.get_params(target)[name], expected, rtol=1e-6, atol=1e-6)
        dense = target.dense.weight.detach().numpy()
        np.testing.assert_allclose(dense.T, naive["dense/kernel"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [in_keras, in_torch])
def test_a_live_model_is_merged_into_in_place_and_its_frozen_weights_stay(make: Any) -> None:
    model, other = make(0), in_torch(1)
    before = xw.get_params(model)
    natives = [p.handle for p in xw.parameters(model)]
    with xw.freeze(model, where="conv/*"):
        xw.merge([model, other], into=model)
    expected = xw.merge([before, in_torch(1)])
    after = xw.get_params(model)
    for name in after:
        assert np.array_equal(after[name], before[name] if name.startswith("conv/") else expected[name]), name
    assert not np.array_equal(after["dense/kernel"], before["dense/kernel"])
    identities = [p.identity() for p in xw.parameters(model)]
    assert identities == [p.storage.identity(native) for p, native in zip(xw.parameters(model), natives, strict=True)]


def test_recurrent_layers_of_two_frameworks_are_refused_because_their_gates_differ() -> None:
    class Recurrent(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = keras.layers.GRU(4)

        def call(self, x: Any) -> Any:
            return self.rnn(x)

    model, module = Recurrent(), torch.nn.Module()
    model(np.zeros((1, 2, 3), np.float32))
    module.rnn = torch.nn.GRU(3, 4)
    with pytest.raises(xw.LayoutError, match=r"got: +r, z, h\n.*expected: z, r, h\nFix: port"):
        xw.merge([model, module], names={"rnn/*": "rnn/l0/*"}, where="*/recurrent_kernel")


def test_a_state_dict_merges_with_the_module_that_it_comes_from() -> None:
    a, b = in_torch(0), in_torch(1)
    with pytest.raises(xw.LayoutError, match='layout="native"'):
        xw.merge([a, b.state_dict()])
    expected = xw.merge([a, b])
    assert xw.equal(xw.merge([a, b.state_dict()], layout="native"), expected)
    merged = xw.merge([b.state_dict(), a.state_dict()])
    assert np.array_equal(merged["dense.weight"].T, expected["dense/kernel"])


def test_merging_inside_a_compiled_step_is_refused() -> None:
    tf = pytest.importorskip("tensorflow")
    variable = tf.Variable([1.0, 2.0])

    @tf.function
    def step() -> None:
        xw.merge([{"w": np.zeros(2, np.float32)}, variable])

    with pytest.raises(xw.TraceError, match="before or after the compiled step"):
        step()
