"""Files with randomly changed bytes are read or refused with a CheckpointError."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import xweights as xw

FORMATS = (
    "safetensors",
    "safetensors.index.json",
    "npz",
    "pt",
    "weights.h5",
    "keras2.h5",
    "keras",
    "packed.npz",
    "index",
)


def valid(folder: Path, name: str) -> Path:
    """Write a small file of a format, and return the range of bytes to change."""
    arrays = {"a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(2, np.float16)}
    path = folder / f"w.{name}"
    if name == "packed.npz":
        np.savez_compressed(path, **{key.replace("/", "_"): array for key, array in arrays.items()})
    elif name == "keras":
        pytest.importorskip("h5py")
        xw.save({"layers/dense/vars/0": arrays["a/kernel"]}, folder / "model.weights.h5")
        layer = {"class_name": "Dense", "config": {"name": "dense", "use_bias": False}}
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", json.dumps({"class_name": "Sequential", "config": {"layers": [layer]}}))
            archive.write(folder / "model.weights.h5", "model.weights.h5")
    elif name == "keras2.h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            whole = file.create_group("model_weights")
            whole.attrs["layer_names"] = [b"lstm"]
            layer = {"class_name": "LSTM", "config": {"name": "lstm", "use_bias": True}}
            file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": [layer]}})
            group = whole.create_group("lstm")
            shapes = {"lstm/kernel:0": (2, 8), "lstm/recurrent_kernel:0": (2, 8), "lstm/bias:0": (16,)}
            group.attrs["weight_names"] = [key.encode() for key in shapes]
            for key, shape in shapes.items():
                group.create_dataset(key, data=np.ones(shape, "f4"))
    elif name == "index":
        tf = pytest.importorskip("tensorflow")
        return Path(tf.train.Checkpoint(a=tf.Variable(arrays["a/kernel"])).save(str(folder / "w")) + ".index")
    else:
        xw.save(xw.Params(arrays, axes={"a/kernel": ("in", "out")}), path)
    return path


def mutations(folder: Path, name: str, count: int, seed: int) -> None:
    path = valid(folder, name)
    whole = path.read_bytes()
    source = np.random.default_rng(seed)
    for number in range(count):
        data = bytearray(whole)
        for _ in range(int(source.integers(1, 4))):
            place = int(source.integers(len(data)))
            kind = source.integers(4)
            if kind == 0:
                data[place] ^= 1 << int(source.integers(8))
            elif kind == 1:
                data[place] = int(source.integers(256))
            elif kind == 2:
                del data[place : place + int(source.integers(1, 9))]
            else:
                data[place:place] = bytes(source.integers(0, 256, int(source.integers(1, 9)), dtype=np.uint8))
            if not data:
                break
        path.write_bytes(data)
        try:
            with xw.load(path, max_bytes=1 << 20) as opened:
                for p in xw.parameters(opened):
                    p.handle.read()
        except xw.CheckpointError:
            pass
        except Exception as wrong:  # noqa: BLE001 - which is what this is about
            pytest.fail(
                f"change {number} of seed {seed} raised a bare {type(wrong).__name__}: {wrong}\n{bytes(data)!r}"
            )


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_was_changed_at_random_is_read_or_refused(name: str, tmp_path) -> None:
    mutations(tmp_path, name, 100, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_ten_thousand_changed_files_are_read_or_refused(name: str, tmp_path) -> None:
    mutations(tmp_path, name, 10_000, 1)
