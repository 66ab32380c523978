"""Files are exchanged with the frameworks in both directions and loaded into live models."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import xweights as xw
from xweights.files.io.records import Record


def stacked_model(seed: int = 0) -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    layers = (
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Conv2d(4, 8, 3, groups=4),
        torch.nn.Linear(5, 5),
    )
    return torch.nn.Sequential(*layers, torch.nn.LSTM(3, 4))


def functional(seed: int = 0) -> Any:
    keras = pytest.importorskip("keras")
    pytest.importorskip("h5py")
    keras.utils.set_random_seed(seed)
    given = keras.Input((6, 8))
    inner = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3), keras.layers.Dense(3)])
    ends = [
        keras.layers.LSTM(4)(given),
        keras.layers.Bidirectional(keras.layers.GRU(3))(keras.layers.MultiHeadAttention(2, 4)(given, given)),
        keras.layers.SeparableConv1D(3, 2)(given),
        keras.layers.Conv1D(8, 3, groups=8, name="mine")(given),
        keras.layers.Conv1DTranspose(2, 3)(keras.layers.BatchNormalization()(given)),
        keras.layers.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")(keras.layers.LayerNormalization()(given)),
        keras.layers.TimeDistributed(inner)(given),
        keras.layers.Dropout(0.1, seed=3)(given),
        keras.layers.Dense(8)(given[:, :1]),
    ]
    return keras.Model(given, ends)


def facts_of(target: Any) -> dict[str, Any]:
    return {p.name: (p.axes, p.role, p.gates, p.layer, p.trainable) for p in xw.parameters(target)}


# PyTorch.


def test_torch_reads_our_files_into_the_model_and_we_read_its_files() -> None:
    torch = pytest.importorskip("torch")
    import safetensors.torch

    model, other = stacked_model(), stacked_model(1)
    xw.save(model, "w.pt")
    xw.save(model, "w.safetensors")
    for state in (torch.load("w.pt", weights_only=True), safetensors.torch.load_file("w.safetensors")):
        other.load_state_dict(state)
        assert xw.equal(model, other)
    torch.save({"model": model.state_dict(), "epoch": 3}, "theirs.pt")
    opened = xw.load("theirs.pt")
    assert opened.ignored == ("epoch",)
    assert {p.name.removeprefix("model/") for p in xw.parameters(opened)} == set(model.state_dict())
    for key, tensor in model.state_dict().items():
        np.testing.assert_array_equal(opened[f"model/{key}"], tensor.numpy())


def test_tied_and_transposed_tensors_of_torch_come_back() -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole, "b": whole, "c": whole.T, "d": whole[1:, ::2], "e": whole.to(torch.float8_e5m2)}, "w.pt")
    opened = xw.load("w.pt")
    assert xw.parameters(opened)[0].aliases == ("b",)
    for key, expected in {"b": whole, "c": whole.T, "d": whole[1:, ::2]}.items():
        np.testing.assert_array_equal(opened[key], expected.numpy())
    xw.save(opened, "again.safetensors")
    assert xw.equal(opened, "again.safetensors")
    with pytest.raises(xw.RefusedFileError, match="shares its bytes with"):
        xw.edit_file("w.pt", xw.Scale(2.0), where="c")


@pytest.mark.parametrize("ending", ["pt", "safetensors", "npz", "weights.h5"])
def test_a_torch_model_is_loaded_from_a_file_and_refuses_arrays_that_do_not_fit(ending: str) -> None:
    if ending == "weights.h5":
        pytest.importorskip("h5py")
    model, other = stacked_model(), stacked_model(1)
    xw.save(model, f"w.{ending}")
    version = other[3].weight._version
    xw.set_params(other, f"w.{ending}")
    assert xw.equal(model, other)
    assert facts_of(f"w.{ending}") == facts_of(model)
    assert other[3].weight._version > version
    before = xw.checksum(other)
    xw.edit_file(f"w.{ending}", xw.SetEntries((0, 0), np.nan), where="3/kernel")
    with pytest.raises(xw.NonfiniteError, match="'3/kernel' has 1 non-finite"):
        xw.set_params(other, f"w.{ending}")
    assert xw.checksum(other) == before
    xw.set_params(other, f"w.{ending}", allow_nonfinite=True)
    assert xw.equal(other, f"w.{ending}")


def test_a_file_without_axes_is_not_guessed_into_a_model() -> None:
    torch = pytest.importorskip("torch")
    model, other = stacked_model(), stacked_model(1)
    torch.save(model.state_dict(), "w.pt")
    with pytest.raises(xw.LayoutError, match=r'(?s)3.weight.*Fix: layout="native"'):
        xw.set_params(other, "w.pt")
    xw.set_params(other, "w.pt", layout="native")
    assert xw.equal(model, other)


def test_plain_bytes_go_straight_into_the_parameter(monkeypatch) -> None:
    model, other = stacked_model(), stacked_model(1)
    xw.save(model, "w.safetensors")
    monkeypatch.setattr(Record, "read", lambda record: pytest.fail(f"{record.key} was read into memory of its own"))
    xw.set_params(other, "w.safetensors")
    monkeypatch.undo()
    assert xw.equal(model, other)


def test_a_cast_that_would_change_values_is_refused_from_a_file_too() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 3)
    xw.save(model, "w.safetensors")
    half = torch.nn.Linear(3, 3).half()
    with pytest.raises(xw.DtypeError, match="would change"):
        xw.set_params(half, "w.safetensors")
    xw.set_params(half, "w.safetensors", cast=True)
    assert xw.equal(half, model.half())


# Keras.


@pytest.mark.keras_backend
def test_a_keras_file_has_the_names_roles_axes_and_gates_of_the_model() -> None:
    model = functional()
    model.save("m.keras")
    assert facts_of("m.keras") == facts_of(model)
    assert [p.name for p in xw.parameters("m.keras")] == [p.name for p in xw.parameters(model)]
    assert xw.equal(model, "m.keras")


@pytest.mark.keras_backend
@pytest.mark.parametrize("ending", ["keras", "weights.h5", "weights.json", "safetensors"])
def test_a_keras_model_is_filled_from_a_file(ending: str) -> None:
    model, other = functional(), functional(1)
    path = f"m.{ending}"
    if ending == "keras":
        model.save(path)
    elif ending == "safetensors":
        xw.save(model, path)
    elif ending == "weights.json":
        if "max_shard_size" not in inspect.signature(model.save_weights).parameters:
            pytest.skip("this release of Keras saves no shards")
        model.save_weights(path, max_shard_size=1e-6)
    else:
        model.save_weights(path)
    xw.set_params(other, path)
    assert xw.equal(model, other)


@pytest.mark.keras_backend
@pytest.mark.parametrize("compiled", [False, True])
def test_keras_loads_the_weights_that_we_save(compiled: bool) -> None:
    keras = pytest.importorskip("keras")
    pytest.importorskip("h5py")
    models = []
    for seed in (0, 1):
        keras.utils.set_random_seed(seed)
        layers = [keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(2, name="mine")]
        model = keras.Sequential([keras.Input((3,)), *layers])
        if compiled:
            model.compile("adam", "mse")
            model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
        models.append(model)
    xw.save(models[0], "ours.weights.h5")
    models[1].load_weights("ours.weights.h5")
    assert xw.equal(*models)
    assert facts_of("ours.weights.h5") == facts_of(models[0])


@pytest.mark.keras_backend
@pytest.mark.parametrize("rule", [xw.Scale(0.5), xw.SetEntries(0, 0.5)], ids=["streamed", "in place"])
def test_keras_loads_a_keras_file_that_we_edited(rule: xw.Rule) -> None:
    keras = pytest.importorskip("keras")
    model = functional()
    model.save("m.keras")
    report = xw.edit_file("m.keras", rule, where="*/bias")
    assert report.in_place is isinstance(rule, xw.SetEntries)
    xw.apply(model, rule, where="*/bias")
    assert xw.equal(keras.models.load_model("m.keras"), model)
    assert xw.equal("m.keras", model)


# NumPy and safetensors.


def test_numpy_reads_our_npz_and_we_read_every_npz_of_numpy() -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b/c": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "0-d": np.ones(()),
    }
    arrays |= {"big": np.arange(4, dtype=">f4"), "empty": np.zeros((0, 3)), "ünï": np.array([True, False])}
    for save in (np.savez, np.savez_compressed):
        save("w.npz", **arrays)
        opened = xw.load("w.npz")
        for key, array in arrays.items():
            np.testing.assert_array_equal(opened[key], array)
            assert opened[key].dtype.isnative
    xw.save(arrays, "ours.npz")
    with np.load("ours.npz") as theirs:
        assert sorted(theirs.files) == sorted(arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(theirs[key], array)


def test_the_safetensors_package_reads_ours_and_we_read_its() -> None:
    import ml_dtypes
    import safetensors.numpy

    arrays = {"a": np.arange(6.0).reshape(2, 3), "h": np.arange(3).astype(ml_dtypes.bfloat16), "i": np.arange(3)}
    xw.save(arrays, "ours.safetensors", metadata={"made by": "us"})
    for key, array in safetensors.numpy.load_file("ours.safetensors").items():
        np.testing.assert_array_equal(array, arrays[key])
    assert xw.load("ours.safetensors").metadata == {"made by": "us"}
    safetensors.numpy.save_file(arrays, "theirs.safetensors")
    assert xw.equal("theirs.safetensors", arrays)


# TensorFlow.


def test_a_tensorflow_checkpoint_is_read_and_edited_into_another_format() -> None:
    tf = pytest.importorskip("tensorflow")

    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(tf.random.stateless_normal((3, 4), (0, 1)))
            self.parts = [tf.Variable([1, 2, 3]), tf.Variable(tf.constant([1.0, 2.0], tf.bfloat16))]
            self.more = {f"x{n}": tf.Variable(float(n)) for n in range(400)}  # enough for several blocks

    model = Model()
    path = tf.train.Checkpoint(model=model).save("saved")
    opened = xw.load(path)
    np.testing.assert_array_equal(opened["model/kernel"], model.kernel.numpy())
    np.testing.assert_array_equal(opened["model/parts/1"], np.asarray(model.parts[1]))
    assert opened["model/more/x399"] == 399
    assert {p.dtype.name for p in xw.parameters(path)} == {"float32", "int32", "bfloat16"}
    assert any(key.startswith("save_counter") for key in opened.ignored)
    with pytest.raises(xw.RefusedFileError, match="only read"):
        xw.edit_file(path, xw.Scale(2.0))
    xw.edit_file(path, xw.Scale(2.0), where="model/kernel", out="w.safetensors")
    np.testing.assert_array_equal(xw.load("w.safetensors")["model/kernel"], 2 * model.kernel.numpy())


@pytest.mark.parametrize("damage", ["magic", "sum", "cut", "missing", "short", "linked"])
def test_a_damaged_tensorflow_checkpoint_is_refused(damage: str, tmp_path) -> None:
    tf = pytest.importorskip("tensorflow")
    path = tf.train.Checkpoint(kernel=tf.Variable(np.ones((3, 4), np.float32))).save("saved")
    index, data = tmp_path / f"{path}.index", tmp_path / f"{path}.data-00000-of-00001"
    whole = index.read_bytes()
    if damage == "magic":
        index.write_bytes(whole[:-1] + b"x")
    elif damage == "sum":
        index.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    elif damage == "cut":
        index.write_bytes(whole[:30])
    elif damage == "short":
        data.write_bytes(data.read_bytes()[:10])
    else:
        (tmp_path / "elsewhere").mkdir()
        data.rename(tmp_path / "elsewhere" / "data")
        if damage == "linked":
            data.symlink_to(tmp_path / "elsewhere" / "data")
    with pytest.raises(xw.CheckpointError) as caught:
        xw.load(path)
    kinds = {"missing": xw.FileAccessError, "linked": xw.RefusedFileError}
    assert isinstance(caught.value, kinds.get(damage, xw.DamagedFileError))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
