"""Article 3, "How to set specific Keras layer entries to a particular value?": its examples, on Keras and on PyTorch.

3/1 (entries of a weight) is proved in tests/docs/test_seeds.py. Here: 3/2, entries of an activation, and 3/3, entries
that start at a value. By hand both work until the model is saved: then it can't be loaded, or does something else
than was meant.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

keras = pytest.importorskip("keras")
L = keras.layers
BACKEND = keras.backend.backend()

from xweights_keras import EntriesInitializer, SetEntries  # noqa: E402


def host(x: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(x))


MASK = np.array([[True, False, False, True], [False, False, True, False], [False, True, False, False]])
# index and value, for activations of the shape (batch, 3, 4)
CASES: dict[str, tuple[Any, Any]] = {
    "entry": ((0, 0), 1.0),
    "row": ((1,), -0.0),
    "int": (2, 7.0),
    "column": ((..., -1), 0.1),
    "block": ((slice(0, 2), slice(1, None, 2)), [[1.0, 2.0], [3.0, 4.0]]),
    "backwards": ((0, slice(None, None, -1)), np.arange(4, dtype=np.float32)),
    "mask": (MASK, -2.5),
    "mask with values": (MASK, np.array([1.0, 2.0, 3.0, 4.0], np.float32)),
    "not a number": ((2, slice(1, 3)), float("nan")),
}


def referee(x: np.ndarray, index: Any, value: Any) -> np.ndarray:
    x = x.copy()
    for example in x:
        xw.set_entries({"x": example}, index, value, where="x", allow_nonfinite=True)
    return x


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def gradient(layer: Any, x: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    """Compute the gradient of sum(layer(x) * upstream) with the framework below Keras."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) * upstream)
        return host(tape.gradient(loss, x))
    if BACKEND == "jax":
        import jax

        return host(jax.grad(lambda x: (layer(x) * upstream).sum())(x))
    import torch

    x = torch.tensor(x, requires_grad=True)
    (layer(x) * torch.from_numpy(upstream)).sum().backward()
    return host(x.grad)


def same_bits(one: np.ndarray, other: np.ndarray) -> None:
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(np.signbit(one), np.signbit(other))


@pytest.mark.parametrize(("index", "value"), CASES.values(), ids=CASES)
def test_3_2_entries_of_an_activation_are_set_in_every_example(index: Any, value: Any) -> None:
    x = numbers(5, 3, 4)
    same_bits(host(SetEntries(index, value)(x)), referee(x, index, value))


@pytest.mark.parametrize(("index", "value"), CASES.values(), ids=CASES)
def test_3_2_no_gradient_reaches_the_entries_that_were_set(index: Any, value: Any) -> None:
    x, upstream = numbers(2, 3, 4), numbers(2, 3, 4) + 5
    # What was set is what differs between two values that were set.
    kept = referee(x, index, 0.0) == referee(x, index, 1.0)
    np.testing.assert_array_equal(gradient(SetEntries(index, value), x, upstream), np.where(kept, upstream, 0))


@pytest.mark.parametrize(("index", "value"), CASES.values(), ids=CASES)
def test_3_2_a_model_with_the_layer_is_saved_and_loaded(index: Any, value: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3, 4)), SetEntries(index, value)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = numbers(2, 3, 4)
    same_bits(host(loaded(x)), host(model(x)))
    same_bits(host(loaded(x)), referee(x, index, value))


def test_3_2_the_layer_trains_in_a_functional_model_and_after_loading(tmp_path: Path) -> None:
    inputs = keras.Input((4,))
    hidden = L.Dense(6, name="hidden")(inputs)
    outputs = L.Dense(1, name="out")(SetEntries((slice(0, 2),), 0.0)(hidden))
    model = keras.Model(inputs, outputs)
    model.compile(optimizer="adam", loss="mse")
    x, y = numbers(16, 4), numbers(16, 1)
    before = xw.get_params(model)
    model.fit(x, y, epochs=2, batch_size=8, verbose=0)
    after = xw.get_params(model)
    moved = (after["hidden/kernel"] != before["hidden/kernel"]).any(axis=0)
    # The units whose activation is overwritten learn nothing, and what they would have sent on doesn't either.
    np.testing.assert_array_equal(moved, [False, False, True, True, True, True])
    np.testing.assert_array_equal(after["out/kernel"][:2], before["out/kernel"][:2])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(host(loaded(x)), host(model(x)))
    loaded.fit(x, y, epochs=1, batch_size=8, verbose=0)


def test_3_2_an_axis_of_unknown_length_can_be_taken_whole() -> None:
    layer = SetEntries((slice(None), 1), 9.0)
    model = keras.Sequential([keras.Input((None, 3)), layer])
    for length in (2, 5):
        x = numbers(2, length, 3)
        same_bits(host(model(x)), referee(x, (slice(None), 1), 9.0))
    with pytest.raises(xw.ShapeError, match="no fixed length"):
        keras.Sequential([keras.Input((None, 3)), SetEntries((0, 1), 9.0)])


def test_3_2_a_number_is_rounded_once_to_the_dtype_of_the_activation() -> None:
    x = keras.ops.ones((1, 3), dtype="bfloat16")
    made = SetEntries((0,), 0.1, dtype="bfloat16")(x)
    assert keras.backend.standardize_dtype(made.dtype) == "bfloat16"
    same_bits(host(keras.ops.cast(made, "float32")), np.array([[0.10009765625, 1.0, 1.0]], np.float32))


def wrong_entries() -> list[tuple[Any, Any, type[Exception], str]]:
    return [
        ({"in": 0}, 1.0, xw.LayoutError, "axis names"),
        ((5, 0), 1.0, xw.ShapeError, "out of range"),
        ((0, 0, 0), 1.0, xw.ShapeError, "3 parts"),
        ((slice(2, 2),), 1.0, xw.SelectionError, "no entry"),
        (MASK[:2], 1.0, xw.ShapeError, "bool index"),
        ([0, 1], 1.0, xw.ArgumentError, "list or an integer array"),
        ((0,), np.ones(3), xw.ShapeError, "value"),
        ((0,), {"a": 1.0}, xw.ArgumentError, "mapping"),
        ((0, 0), "one", xw.XweightsError, "value"),
    ]


@pytest.mark.parametrize(("index", "value", "error", "words"), wrong_entries())
def test_3_2_an_index_or_a_value_that_does_not_fit_is_refused(index: Any, value: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        SetEntries(index, value)(numbers(2, 3, 4))


def test_3_2_by_hand_a_layer_edits_one_example_and_can_not_be_loaded(tmp_path: Path) -> None:
    class ByHand(L.Layer):
        def __init__(self, position: Any) -> None:
            super().__init__()
            self.position = position

        def call(self, x: Any) -> Any:
            # The first index is the batch: this is example 0, not entry 0.
            return keras.ops.slice_update(x, self.position, keras.ops.ones((1, 1)))

    x = numbers(3, 4)
    made = host(ByHand((0, 0))(x))
    assert made[0, 0] == 1.0
    np.testing.assert_array_equal(made[1:], x[1:])
    same_bits(host(SetEntries((0,), 1.0)(x)), referee(x, (0,), 1.0))
    model = keras.Sequential([keras.Input((4,)), ByHand((0, 0))])
    model.save(tmp_path / "by_hand.keras")
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(tmp_path / "by_hand.keras")


STARTS: dict[str, tuple[Any, Any]] = {
    "entry": ((0, 0), 1.0),
    "column": ((..., 2), np.arange(4, dtype=np.float32)),
    "mask": (np.eye(4, 6, dtype=bool), 1.0),
}


@pytest.mark.parametrize(("index", "value"), STARTS.values(), ids=STARTS)
def test_3_3_entries_start_at_a_value_and_the_model_is_saved_and_loaded(index: Any, value: Any, tmp_path: Path) -> None:
    def start() -> Any:
        return EntriesInitializer(keras.initializers.GlorotUniform(seed=1), index=index, value=value)

    model = keras.Sequential([keras.Input((4,)), L.Dense(6, kernel_initializer=start())])
    plain = host(keras.initializers.GlorotUniform(seed=1)((4, 6)))
    kernel = xw.get_params(model)["dense/0/kernel"]
    same_bits(kernel, referee(plain[None], index, value)[0])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    same_bits(xw.get_params(loaded)["dense/0/kernel"], kernel)
    # A layer that is made again from its config starts in the same way.
    again = L.Dense.from_config(model.layers[0].get_config())
    again.build((None, 4))
    same_bits(host(again.kernel), kernel)


def test_3_3_the_base_may_be_a_name_and_bad_ones_are_refused() -> None:
    start = EntriesInitializer("zeros", index=(0,), value=2.0)
    np.testing.assert_array_equal(host(start((2, 3), dtype="float32")), [[2, 2, 2], [0, 0, 0]])
    assert keras.backend.standardize_dtype(start((2, 3), dtype="float16").dtype) == "float16"
    with pytest.raises(xw.LayoutError, match="axis names"):
        EntriesInitializer("zeros", index={"in": 0}, value=1.0)
    with pytest.raises(xw.ShapeError):
        EntriesInitializer("zeros", index=(9, 9), value=1.0)((2, 3))
    with pytest.raises(xw.ArgumentError):
        EntriesInitializer(None, index=(0,), value=1.0)


def test_3_3_by_hand_an_initializer_function_can_not_be_loaded(tmp_path: Path) -> None:
    def by_hand(shape: Any, dtype: Any = None) -> Any:
        start = np.zeros(shape, np.float32)
        start[0, 0] = 1.0
        return keras.ops.convert_to_tensor(start, dtype=dtype)

    model = keras.Sequential([keras.Input((4,)), L.Dense(6, kernel_initializer=by_hand)])
    model.save(tmp_path / "by_hand.keras")
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(tmp_path / "by_hand.keras")


# PyTorch: the same index, the same numbers.


@pytest.mark.parametrize(("index", "value"), CASES.values(), ids=CASES)
def test_3_2_torch_sets_the_same_entries_to_the_same_numbers(index: Any, value: Any) -> None:
    torch = pytest.importorskip("torch")
    from xweights_torch import SetEntries as TorchSetEntries

    x = torch.tensor(numbers(5, 3, 4), requires_grad=True)
    module = TorchSetEntries(index, value)
    made = module(x)
    same_bits(made.detach().numpy(), host(SetEntries(index, value)(x.detach().numpy())))
    upstream = torch.from_numpy(numbers(5, 3, 4) + 5)
    (made * upstream).sum().backward()
    kept = referee(x.detach().numpy(), index, 0.0) == referee(x.detach().numpy(), index, 1.0)
    np.testing.assert_array_equal(x.grad.numpy(), np.where(kept, upstream.numpy(), 0))


@pytest.mark.parametrize("name", ["entry", "column", "block", "backwards", "mask with values"])
def test_3_2_torch_compiles_it_in_one_graph_for_any_shape(name: str) -> None:
    torch = pytest.importorskip("torch")
    from xweights_torch import SetEntries as TorchSetEntries

    index, value = CASES[name]
    module = TorchSetEntries(index, value)
    compiled = torch.compile(lambda x: module(x * 2.0), backend="aot_eager", fullgraph=True)
    for batch in (2, 3, 7):
        x = torch.tensor(numbers(batch, 3, 4), requires_grad=True)
        made = compiled(x)
        same_bits(made.detach().numpy(), referee(2 * x.detach().numpy(), index, value))
        made.sum().backward()
    if name == "entry":
        for length in (5, 6, 8):
            x = numbers(2, 3, length)
            same_bits(compiled(torch.from_numpy(x)).numpy(), referee(2 * x, index, value))


def test_3_2_torch_module_adds_nothing_to_a_state_dict_and_can_be_copied() -> None:
    torch = pytest.importorskip("torch")
    from xweights_torch import SetEntries as TorchSetEntries

    model = torch.nn.Sequential(torch.nn.Linear(4, 3), TorchSetEntries((0,), 1.0), torch.nn.Linear(3, 2))
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    x = torch.from_numpy(numbers(2, 4))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).eval()):
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
    half = TorchSetEntries((0,), 0.1).to(torch.bfloat16)(torch.ones(1, 3, dtype=torch.bfloat16))
    assert half.float().tolist() == [[0.10009765625, 1.0, 1.0]]
    assert "1.0" in repr(model[1])


@pytest.mark.parametrize(("index", "value", "error", "words"), wrong_entries())
def test_3_2_torch_refuses_the_same(index: Any, value: Any, error: Any, words: str) -> None:
    torch = pytest.importorskip("torch")
    from xweights_torch import SetEntries as TorchSetEntries

    with pytest.raises(error, match=words):
        TorchSetEntries(index, value)(torch.zeros(2, 3, 4))


def test_3_3_torch_entries_start_at_a_value_with_the_numbers_of_init() -> None:
    torch = pytest.importorskip("torch")
    from xweights_torch import init_entries_

    layer = torch.nn.Linear(4, 6)
    assert init_entries_(layer, {"in": 0, "out": 5}, 1.0, seed=3, base="he_normal", where="kernel") is layer
    kernel = xw.get_params(layer)["kernel"]
    assert kernel[0, 5] == 1.0
    wanted = xw.Params({"kernel": np.zeros((4, 6), np.float32)}, axes={"kernel": ("in", "out")})
    xw.init(wanted, "he_normal", seed=3)
    xw.set_entries(wanted, (0, 5), 1.0, where="kernel")
    same_bits(kernel, wanted["kernel"])
    before = xw.get_params(layer)
    with pytest.raises(xw.ShapeError):
        init_entries_(layer, (9, 9), 1.0, seed=4)
    assert xw.equal(layer, before)
