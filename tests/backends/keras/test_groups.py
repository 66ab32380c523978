"""Many small variables edited by one compiled call have the bits of NumPy, whatever is in them."""

from __future__ import annotations

import importlib

import keras
import numpy as np
import pytest

import xweights as xw

BACKEND = keras.backend.backend()
SHAPES = [*[(3, 4)] * 27, (7,), (), (0, 3), (2, 3, 4), (5, 13)]
MASK = {f"w{n}": np.arange(int(np.prod(shape))).reshape(shape) % 3 == 0 for n, shape in enumerate(SHAPES)}


def numbers(seed: int, dtype: str) -> dict[str, np.ndarray]:
    """Return arrays with what arithmetic treats in its own way; subnormals aside, which some frameworks flush."""
    source = np.random.default_rng(seed)
    special = [0.0, -0.0, 1.0, -1.0, 0.5, np.nan, np.inf, -np.inf, 3e4, -3e4] if dtype != "int32" else [0, 1, -1, 7, -9]
    drawn = (source.choice(special, shape) + source.choice([0, 0, 0.37, -1.6], shape) for shape in SHAPES)
    with np.errstate(all="ignore"):
        return {f"w{n}": np.asarray(array).astype(dtype) for n, array in enumerate(drawn)}


class Stack(keras.layers.Layer):
    """A layer of many small variables."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        for name, array in arrays.items():
            setattr(
                self, name, keras.Variable(array, dtype=array.dtype.name, trainable=array.dtype.kind == "f", name=name)
            )
        self.built = True


RULES = {
    "clip": lambda dtype: xw.Clip(-1, 1),
    "clip at zero": lambda dtype: xw.Clip(0.0, 1),
    "clip at minus zero": lambda dtype: xw.Clip(None, -0.0),
    "clip below": lambda dtype: xw.Clip(low=-1),
    "clip by arrays": lambda dtype: xw.Clip({name: np.zeros_like(a) for name, a in numbers(1, dtype).items()}, None),
    "non-negative": lambda dtype: xw.NonNegative(),
    "scale": lambda dtype: xw.Scale(0.3),
    "add": lambda dtype: xw.Add(0.1),
    "add zero": lambda dtype: xw.Add(0.0),
    "add arrays": lambda dtype: xw.Add(numbers(2, dtype)),
    "fill": lambda dtype: xw.Fill(0.7),
    "fill with arrays": lambda dtype: xw.Fill(numbers(3, dtype)),
    "mask": lambda dtype: xw.Mask(MASK),
    "keep": lambda dtype: xw.Keep(),
}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch):
    """Compile at once, arrays of a few entries only; return the compiled functions."""
    name = {"tensorflow": "xweights_tensorflow.grouped", "jax": "xweights_keras.storage.grouped"}.get(BACKEND)
    if name is None:
        pytest.skip("on torch a group is edited on the host")
    module = importlib.import_module(name)
    functions: dict[object, object] = {}
    monkeypatch.setattr(module, "ENOUGH", 0)
    monkeypatch.setattr(module, "LARGE", 200)
    monkeypatch.setattr(module, "_compiled", functions)
    return functions


@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("float16", "float64", "int32"))]
)
@pytest.mark.parametrize("rule", RULES)
def test_compiled_groups_have_the_bits_of_numpy(rule: str, dtype: str, compiled: dict[object, object]) -> None:
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX has no float64 without its 64-bit mode")
    if dtype == "int32" and rule in ("scale", "add", "fill"):
        pytest.skip("the number is no integer")
    arrays = numbers(0, dtype)
    layer = Stack(arrays)
    made = RULES[rule](dtype)
    for _ in range(2):
        xw.apply(layer, made, where=...)
        xw.apply(arrays, made, where=...)
        for name, expected in arrays.items():
            got = keras.ops.convert_to_numpy(getattr(layer, name))
            assert got.dtype == expected.dtype
            assert got.tobytes() == expected.tobytes(), name
    assert compiled


@pytest.mark.parametrize("offset", [0, 4])
def test_values_written_by_a_compiled_call_are_copies(offset: int, compiled: dict[object, object]) -> None:
    layer = Stack(numbers(0, "float32"))
    values = {}
    for name, array in numbers(4, "float32").items():
        memory = np.empty(array.nbytes + 128, np.uint8)
        start = -memory.__array_interface__["data"][0] % 64 + offset
        values[name] = memory[start : start + array.nbytes].view("float32").reshape(array.shape)
        values[name][...] = array
    xw.set_params(layer, values, allow_nonfinite=True)
    for array in values.values():
        array[...] = 5
    read = xw.get_params(layer)
    assert all(read[name].tobytes() == array.tobytes() for name, array in numbers(4, "float32").items())
    views = xw.get_params(layer, copy=False)
    xw.mask(layer, MASK, where=...)
    xw.fill(layer, 2.0)
    assert not any(view.flags.writeable for view in views.values())
    assert all(np.all(read[name] == 2.0) for name in xw.get_params(layer, out=read))


def test_variables_of_two_dtypes_and_a_number_for_all_of_them(compiled: dict[object, object]) -> None:
    arrays = {
        **{f"a{n}": array for n, array in enumerate(numbers(0, "float32").values())},
        **{f"b{n}": array for n, array in enumerate(numbers(1, "float16").values())},
    }
    layer = Stack(arrays)
    xw.clip(layer, -0.3, 0.3)
    xw.clip(arrays, -0.3, 0.3)
    for name, expected in arrays.items():
        assert keras.ops.convert_to_numpy(getattr(layer, name)).tobytes() == expected.tobytes()
    assert compiled
