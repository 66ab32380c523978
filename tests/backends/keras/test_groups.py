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
    if BACKEND == "jax":
        monkeypatch.setattr(module, "ENOUGH_BYTES", 0)
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


def _make_large(monkeypatch: pytest.MonkeyPatch) -> tuple[Stack, dict[str, np.ndarray]]:
    """Return a layer whose large variables are edited by compiled code one by one."""
    if BACKEND != "jax":
        pytest.skip("large variables are edited by compiled code on JAX only")
    groups = importlib.import_module("xweights_keras.storage.grouped")
    monkeypatch.setattr(groups, "ENOUGH_BYTES", 0)
    arrays = {f"w{n}": np.random.default_rng(n).standard_normal((256, 1030), np.float32) for n in range(7)}
    layer = Stack({name: array.copy() for name, array in arrays.items()})  # Keras may share their memory
    for _ in range(2):
        xw.scale(layer, 0.5, where=...)
        xw.scale(arrays, 0.5, where=...)
    return layer, arrays


def test_large_variables_get_the_bits_of_numpy_and_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, arrays = _make_large(monkeypatch)
    for rule in (xw.Clip(-0.1, 0.2), xw.Mask({n: a > 0 for n, a in arrays.items()}), xw.Add(arrays), xw.Scale(3.0)):
        xw.apply(layer, rule, where=...)
        xw.apply(arrays, rule, where=...)
    assert all(np.asarray(getattr(layer, name)._value).tobytes() == a.tobytes() for name, a in arrays.items())


def test_a_step_can_donate_what_an_edit_of_large_variables_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """It copies what JAX took over from NumPy."""
    import jax

    layer, _ = _make_large(monkeypatch)
    xw.scale(layer, 0.5, where=...)
    step = jax.jit(lambda ws: [w + 1 for w in ws], donate_argnums=0)
    values = [v._value for v in layer.variables]
    buffers = {value.unsafe_buffer_pointer() for value in values}
    assert {new.unsafe_buffer_pointer() for new in step(values)} == buffers


def test_an_array_that_somebody_has_is_not_written_by_edits_of_large_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import jax

    layer, arrays = _make_large(monkeypatch)
    ways = {
        "w0": lambda x: x,
        "w1": lambda x: jax.device_put(x, jax.devices()[0]),
        "w2": lambda x: x.addressable_shards[0].data,
        "w3": np.asarray,
        "w4": np.from_dlpack,
        "w5": lambda x: memoryview(np.asarray(x)),
    }
    kept = {name: take(getattr(layer, name)._value) for name, take in ways.items()}
    before = xw.snapshot(layer)
    expected = {name: array.copy() for name, array in arrays.items()}
    for _ in range(4):
        xw.scale(layer, 0.5, where=...)
        xw.clip(layer, -0.1, 0.1, where=...)
    for name, value in kept.items():
        assert np.asarray(value).tobytes() == expected[name].tobytes(), name
    before.restore()
    for name, array in expected.items():
        assert np.asarray(getattr(layer, name)._value).tobytes() == array.tobytes()


def test_an_alias_alone_keeps_the_buffer_of_a_large_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a snapshot or a view, which would keep the buffer as well."""
    import jax

    layer, arrays = _make_large(monkeypatch)
    alias = jax.device_put(layer.w1._value, jax.devices()[0])
    shard = layer.w2._value.addressable_shards[0].data
    same = layer.w3._value
    exported = np.from_dlpack(layer.w4._value)
    for _ in range(3):
        xw.scale(layer, 0.5, where=...)
    for name, value in (("w1", alias), ("w2", shard), ("w3", same), ("w4", exported)):
        assert np.asarray(value).tobytes() == arrays[name].tobytes(), name


def test_large_variables_can_be_read_while_they_are_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    layer, _ = _make_large(monkeypatch)
    wrong: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                for variable in layer.variables:
                    value = np.array(variable._value)
                    assert len(np.unique(value)) == 1
        except (AssertionError, RuntimeError, ValueError) as error:
            wrong.append(error)

    xw.fill(layer, 1.0, where=...)
    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(30):
        xw.fill(layer, float(turn), where=...)
    done.set()
    reader.join()
    assert not wrong
    assert all(np.all(np.asarray(variable._value) == 29.0) for variable in layer.variables)
