"""Complex arrays are saved by every format that can hold them, and refused by the others before a byte is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import xweights as xw

VALUES = np.array([[complex(-0.0, 3), 4j], [1 + 2j, 0]])
BOTH = ("npz", "pt", "weights.h5")  # formats that have complex64 and complex128
SINGLE = ("safetensors", "safetensors.index.json")  # formats that have complex64


@pytest.mark.parametrize(
    ("ending", "dtype"), [(e, "c8") for e in (*BOTH, *SINGLE)] + [(e, "c16") for e in BOTH], ids=str
)
def test_they_come_back_bit_for_bit_and_can_be_edited(ending: str, dtype: str, tmp_path: Path) -> None:
    path, values = tmp_path / f"w.{ending}", VALUES.astype(dtype)
    xw.save({"w": values, "v": np.ones(3, np.float32)}, path)
    loaded = xw.load(path)
    assert loaded["w"].tobytes() == values.tobytes()
    assert loaded["w"].dtype == values.dtype
    assert xw.equal(path, {"w": values, "v": np.ones(3, np.float32)})
    target = {"w": np.zeros((2, 2), dtype), "v": np.zeros(3, np.float32)}
    xw.set_params(target, path)
    assert target["w"].tobytes() == values.tobytes()
    assert xw.edit_file(path, xw.Scale(2.0), where="w").changed == {"w": 3}
    assert xw.edit_file(path, xw.SetEntries((0, 1), 7j), where="w").in_place
    assert xw.load(path)["w"].tolist() == [[6j, 7j], [2 + 4j, 0]]
    with pytest.raises(xw.DtypeError, match="complex"):
        xw.edit_file(path, xw.Clip(-1, 1), where="w")


@pytest.mark.parametrize("ending", SINGLE)
def test_what_a_format_lacks_is_refused_before_a_byte_is_written(ending: str, tmp_path: Path) -> None:
    with pytest.raises(xw.RefusedFileError, match="'w': safetensors has no dtype complex128"):
        xw.save({"w": VALUES}, tmp_path / f"w.{ending}")
    assert list(tmp_path.iterdir()) == []


def test_numpy_reads_and_writes_the_same(tmp_path: Path) -> None:
    xw.save({"w": VALUES}, tmp_path / "ours.npz")
    assert np.load(tmp_path / "ours.npz")["w"].tobytes() == VALUES.tobytes()
    np.savez(tmp_path / "theirs.npz", w=VALUES, swapped=VALUES.astype(">c8"))
    assert xw.load(tmp_path / "theirs.npz")["w"].tobytes() == VALUES.tobytes()
    assert xw.load(tmp_path / "theirs.npz")["swapped"].tobytes() == VALUES.astype("c8").tobytes()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["complex64", "complex128"])
def test_pytorch_reads_and_writes_the_same(name: str, legacy: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch reads and writes .pt")
    values = VALUES.astype(name)
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.tensor(values))
    torch.save(module.state_dict(), tmp_path / "theirs.pt", _use_new_zipfile_serialization=not legacy)
    assert xw.equal(tmp_path / "theirs.pt", module)
    xw.save(module, tmp_path / "ours.pt")
    assert torch.load(tmp_path / "ours.pt", weights_only=True)["w"].numpy().tobytes() == values.tobytes()


def test_safetensors_reads_and_writes_the_same(tmp_path: Path) -> None:
    theirs = pytest.importorskip("safetensors.numpy", reason="the format's own package")
    values = VALUES.astype("c8")
    xw.save({"w": values}, tmp_path / "ours.safetensors")
    try:
        read = theirs.load_file(tmp_path / "ours.safetensors")["w"]
    except Exception as cause:  # noqa: BLE001 - its own error for a dtype that it doesn't know
        pytest.skip(f"this version doesn't know complex numbers: {cause}")
    assert read.tobytes() == values.tobytes()
    theirs.save_file({"w": values}, tmp_path / "theirs.safetensors")
    assert xw.load(tmp_path / "theirs.safetensors")["w"].tobytes() == values.tobytes()


def test_h5py_reads_and_writes_the_same(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="HDF5 needs h5py")
    xw.save({"w": VALUES}, tmp_path / "ours.h5")
    with h5py.File(tmp_path / "ours.h5") as file:
        assert file["w"][()].tobytes() == VALUES.tobytes()
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["w"] = VALUES
        file.create_dataset("packed", data=VALUES.astype("c8"), chunks=(1, 2), compression="gzip")
        file["swapped"] = VALUES.astype(">c16")
    loaded = xw.load(tmp_path / "theirs.h5")
    assert loaded["w"].tobytes() == loaded["swapped"].tobytes() == VALUES.tobytes()
    assert loaded["packed"].tobytes() == VALUES.astype("c8").tobytes()
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["w"] = np.zeros(2, [("r", "f4"), ("x", "f4")])
    with pytest.raises(xw.RefusedFileError, match="weights are numbers"):
        xw.load(tmp_path / "odd.h5")


def test_a_tensorflow_checkpoint_of_complex_variables_is_read(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow", reason="TensorFlow writes its checkpoints")
    variables = {"a": tf.Variable(VALUES), "b": tf.Variable(VALUES.astype("c8"))}
    path = tf.train.Checkpoint(**variables).write(str(tmp_path / "w"))
    loaded = xw.get_params(path, where=["a", "b"])
    assert (loaded["a"].tobytes(), loaded["b"].tobytes()) == (VALUES.tobytes(), VALUES.astype("c8").tobytes())


def test_a_note_that_calls_other_bytes_complex_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "C64", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(xw.DamagedFileError):
        xw.load(tmp_path / "w.safetensors")
