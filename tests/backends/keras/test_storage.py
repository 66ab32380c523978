"""Reading and writing Keras variables: in place, never aliased, undone bit by bit, and inside scopes."""

from __future__ import annotations

import numpy as np
import pytest

import xweights as xw

pytestmark = pytest.mark.keras_backend

keras = pytest.importorskip("keras")
L = keras.layers

BACKEND = keras.backend.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="about Keras on JAX")


def network(**options):
    return keras.Sequential(
        [keras.Input((4,)), L.Dense(16, **options), L.BatchNormalization(**options), L.Dense(3, **options)]
    )


def bits(model) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in xw.get_params(model).items()}


def at_offset(value: np.ndarray, offset: int) -> np.ndarray:
    """Return a copy that begins ``offset`` bytes after an address aligned to 64."""
    room = np.empty(value.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    copy = room[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    copy[...] = value
    return copy


@pytest.mark.parametrize("offset", [0, 4, 16, 32, 60])
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("size", [64, 600], ids=["16 KB", "1.4 MB"])
def test_a_write_never_aliases_the_callers_array(offset: int, strided: bool, size: int) -> None:
    layer = L.Dense(size)
    layer.build((None, size))
    value = at_offset(np.ones((size, size), "float32"), offset)
    xw.set_params(layer, {"kernel": value.T if strided else value}, strict=False)
    value[...] = 7.0
    assert (xw.get_params(layer)["kernel"] == 1.0).all()


@pytest.mark.parametrize("offset", [0, 4])
def test_the_result_of_a_function_is_not_aliased(offset: int) -> None:
    layer = L.Dense(64)
    layer.build((None, 64))
    mine = at_offset(np.ones((64, 64), "float32"), offset)
    xw.apply(layer, lambda w: keras.ops.convert_to_tensor(np.array(mine)), where="kernel")
    mine[...] = 7.0
    assert (xw.get_params(layer)["kernel"] == 1.0).all()


def test_a_write_keeps_the_variable_and_its_dtype_and_device() -> None:
    model = keras.Sequential([network(), L.Dense(100_000)])  # small ones and a large one
    model.build((None, 4))
    variables = list(model.weights)
    values = [v.value for v in variables]
    xw.set_params(model, {name: value + 1 for name, value in xw.get_params(model).items()})
    xw.scale(model, 0.5)
    for old, new, value in zip(variables, model.weights, values, strict=True):
        assert old is new
        assert keras.backend.standardize_dtype(new.value.dtype) == keras.backend.standardize_dtype(value.dtype)
        if BACKEND == "jax":
            assert (new.value.sharding, new.value.committed) == (value.sharding, value.committed)
        else:
            assert new.value is value


def test_a_read_without_a_copy_gives_views_that_cannot_be_written() -> None:
    model = network()
    views = xw.get_params(model, copy=False)
    assert all(not view.flags.writeable for view in views.values())
    np.testing.assert_array_equal(views["dense/0/kernel"], keras.ops.convert_to_numpy(model.layers[0].kernel))


def test_a_snapshot_brings_exactly_the_same_bits_back_after_training() -> None:
    model = network()
    nan = np.array([0x7FC00123, 0x80000000, 0xFFC00001], np.uint32).view(np.float32)
    xw.set_params(model, {"dense/1/bias": nan}, strict=False, allow_nonfinite=True)
    before, kept = bits(model), xw.snapshot(model)
    model.compile("adam", "mse")
    for _ in range(2):
        model.fit(np.ones((8, 4)), np.ones((8, 3)), epochs=2, verbose=0)
        assert bits(model) != before
        kept.restore()
        assert bits(model) == before


def test_an_exception_in_a_transaction_undoes_everything_that_was_written() -> None:
    model = network()
    before = bits(model)

    def fail() -> None:
        with xw.transaction(model):
            xw.fill(model, 3.0)
            model.set_weights([w * 0 for w in model.get_weights()])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert bits(model) == before


def test_training_continues_with_the_written_values() -> None:
    model = network()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    xw.fill(model, 0.25, where="*/kernel")
    model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    assert (xw.get_params(model)["dense/0/kernel"] == 0.25).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_bit_of_every_dtype_comes_back(dtype: str) -> None:
    if BACKEND == "jax" and dtype == "float64":
        pytest.skip("JAX has no float64 without its 64-bit mode")
    layer = L.Dense(5, dtype=dtype)
    layer.build((None, 7))
    kernel = xw.parameters(layer)[0]
    raw = np.random.default_rng(0).integers(0, 256, (7, 5 * kernel.dtype.itemsize), np.uint8)
    value = raw.view(kernel.dtype)
    assert kernel.dtype.name == dtype
    xw.set_params(layer, {"kernel": value}, strict=False, allow_nonfinite=True)
    assert xw.get_params(layer)["kernel"].tobytes() == value.tobytes()


@on_jax
def test_float64_without_the_64_bit_mode_of_jax_is_refused() -> None:
    layer = L.Dense(2, dtype="float64")
    with pytest.warns(UserWarning, match="float64"):
        layer.build((None, 2))
    with pytest.raises(xw.XweightsError, match="jax_enable_x64"):
        xw.scale(layer, 0.5)


def test_inside_an_autocast_the_stored_values_are_used() -> None:
    class Asking(L.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(3,), name="kernel", initializer="ones")

        def call(self, x):
            self.seen = (keras.backend.standardize_dtype(self.kernel.dtype), xw.parameters(self)[0].dtype.name)
            self.values = xw.get_params(self)["kernel"] if BACKEND != "tensorflow" else None
            return x * self.kernel

    layer = Asking(dtype="mixed_float16")
    layer.build((None, 3))
    layer(np.ones((1, 3), "float32"))
    assert layer.seen == ("float16", "float32")
    assert layer.values is None or layer.values.dtype == np.float32


def test_a_normalization_layer_goes_on_with_the_new_numbers() -> None:
    layer = L.Normalization()
    layer.adapt(np.array([[0.0], [2.0]], "float32"))
    model = keras.Sequential([keras.Input((1,)), layer])
    kept = xw.snapshot(model)
    xw.set_params(model, {"normalization/0/mean": [5.0], "normalization/0/variance": [4.0]}, strict=False, cast=True)
    assert float(keras.ops.convert_to_numpy(model(np.array([[9.0]], "float32")))[0, 0]) == 2.0
    xw.scale(model, 0.0, where="*/mean")
    assert float(keras.ops.convert_to_numpy(layer.mean)[0, 0]) == 0.0
    kept.restore()
    assert float(keras.ops.convert_to_numpy(layer.mean)[0, 0]) == 1.0


# Trainable flags


def test_trainable_parameters_are_those_that_the_model_would_train() -> None:
    model = network()
    model.layers[0].trainable = False
    assert {p.name for p in xw.parameters(model) if p.trainable} == {
        "batch_normalization/0/gamma", "batch_normalization/0/beta", "dense/1/kernel", "dense/1/bias",
    }  # fmt: skip
    model.trainable = False
    assert not any(p.trainable for p in xw.parameters(model))
    model.trainable = True
    assert {p.handle.path for p in xw.parameters(model) if p.trainable} == {v.path for v in model.trainable_variables}


def test_freezing_one_parameter_takes_it_out_of_training() -> None:
    model = network()
    kernel = xw.parameters(model)[0]
    kernel.set_trainable(False)
    assert all(v is not kernel.handle for v in model.trainable_variables)
    kernel.set_trainable(True)
    assert any(v is kernel.handle for v in model.trainable_variables)


def test_unfreezing_one_parameter_of_a_frozen_model_unfreezes_it_alone() -> None:
    model = network()
    model.trainable = False
    kernel = xw.parameters(model, where="dense/1/kernel")[0]
    kernel.set_trainable(True)
    assert [v.path for v in model.trainable_variables] == [kernel.native_name]
    assert not model.layers[1].trainable  # or the batch norm would update its statistics again


def test_moving_statistics_cannot_be_unfrozen() -> None:
    mean = xw.parameters(network(), where="*/moving_mean")[0]
    with pytest.raises(xw.WriteError, match="made with trainable=False"):
        mean.set_trainable(True)


def test_integers_cannot_be_trained() -> None:
    steps = xw.parameters(keras.Variable(np.zeros(2, "int32"), trainable=False))[0]
    with pytest.raises(xw.WriteError, match="can't be trained"):
        steps.set_trainable(True)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_a_variable_with_one_replica_is_edited() -> None:
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        layer = L.Dense(2)
        layer.build((None, 2))
    xw.fill(layer, 2.0)
    assert (keras.ops.convert_to_numpy(layer.kernel) == 2.0).all()


@on_jax
def test_an_array_that_was_donated_is_refused() -> None:
    layer = L.Dense(2)
    layer.build((None, 2))
    layer.kernel.value.delete()
    with pytest.raises(xw.WriteError, match="donated"):
        xw.scale(layer, 0.0)
